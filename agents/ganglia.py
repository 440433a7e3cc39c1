"""What a gmond says: the XML that it answers anyone with who connects, as readings of every host that it knows of.

A metric keeps its name, and has the labels ``cluster`` and ``node``. What is text has no value and is left out, and so
is a value of which it is not told when it was taken. The document declares its elements, which is fine; one that
declares entities is refused.
"""

from __future__ import annotations

import re
from typing import NoReturn
from xml.parsers import expat

import attrs

from mchannel.agents.publisher import Reading
from mchannel.samples import Named, is_name

__all__ = ["Gmond", "from_xml"]

_DEEPEST = 16
_LONGEST_ATTRIBUTE = 1024
_MOST = 100_000  # metrics of a document
_OLDEST = 1e6  # seconds; who is silent for longer is gone
_JITTER = 3000  # milliseconds; a gmond tells ages in whole seconds, and documents take their time
_ODD = re.compile(r"[^A-Za-z0-9_.:]")


@attrs.define(eq=False)
class _Document:
    """What was read of a document so far."""

    now: int
    found: list[Reading] = attrs.field(factory=list[Reading])
    depth: int = 0
    cluster: str = ""
    node: str = ""

    def start(self, name: str, said: dict[str, str]) -> None:
        self.depth += 1
        if self.depth > _DEEPEST or any(len(value) > _LONGEST_ATTRIBUTE for value in said.values()):
            raise ValueError("it is nested too deep, or has too long words, to be of a gmond")
        if self.depth == 1 and name != "GANGLIA_XML":
            raise ValueError(f"it begins with {name:.40}, not with GANGLIA_XML; is that a gmond?")
        if name == "CLUSTER":
            self.cluster = said.get("NAME", "")
        elif name == "HOST":
            self.node = said.get("NAME", "")
        elif name == "METRIC":
            self.metric(said)

    def end(self, _: str) -> None:
        self.depth -= 1

    def metric(self, said: dict[str, str]) -> None:
        name = _ODD.sub("_", said.get("NAME", ""))
        if said.get("TYPE") in {"string", "timestamp"} or not is_name(name):
            return
        try:
            value, age = float(said.get("VAL", "")), float(said.get("TN", "0"))
        except ValueError:
            return
        if not 0 <= age < _OLDEST:
            return  # it is not known when that was so
        if len(self.found) == _MOST:
            raise ValueError(f"it has more than {_MOST} metrics")
        labels = tuple((label, text) for label, text in (("cluster", self.cluster), ("node", self.node)) if text)
        self.found.append(Reading(Named(name, labels), value, self.now - round(age * 1000)))


def _refuse(*_: object) -> NoReturn:
    raise ValueError("it declares entities, which no gmond does")


def from_xml(document: bytes, now: int) -> list[Reading]:
    """Return what the *document* says that was read at *now*, in milliseconds; raise ValueError if it is malformed."""
    made = _Document(now)
    parser = expat.ParserCreate()
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.EntityDeclHandler = _refuse
    parser.ExternalEntityRefHandler = _refuse
    parser.StartElementHandler = made.start
    parser.EndElementHandler = made.end
    try:
        parser.Parse(document, True)
    except expat.ExpatError as error:
        raise ValueError(f"it is no XML: {error}") from None
    return made.found


@attrs.define(eq=False)
class Gmond:
    """Tells each measurement of one gmond once, however often it is asked and the age seems to differ by a second."""

    _last: dict[Named, tuple[float, int]] = attrs.field(factory=dict[Named, tuple[float, int]], init=False)
    """Value and time of what every metric of the document before was told with."""

    def read(self, document: bytes, now: int) -> list[Reading]:
        """Return what is new in a *document* read at *now*, in milliseconds; raise ValueError if it is malformed."""
        found, before, self._last = from_xml(document, now), self._last, {}
        told: list[Reading] = []
        for series, value, said in found:
            at = now if said is None else said
            value_before, at_before = self._last[series] = before.get(series, (value, at - _JITTER))
            if abs(at - at_before) < _JITTER:
                if value == value_before:
                    continue
                at = max(at, at_before + 1)
            self._last[series] = value, at
            told.append(Reading(series, value, at))
        return told
