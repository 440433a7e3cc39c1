"""What ``magent run`` is told by its configuration: TOML to values, strictly."""

from __future__ import annotations

import difflib
import socket
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs

from mchannel.agents.accesslog import UNITS, FormatError, Reader, reader
from mchannel.agents.discover import check_address
from mchannel.agents.exits import NOT_FOUND, USAGE, Exit
from mchannel.errors import AddressError
from mchannel.samples import MOST_LABELS, Labels, is_label, is_name

__all__ = [
    "DEFAULT",
    "LONGEST_INTERVAL",
    "SHORTEST_INTERVAL",
    "AgentSettings",
    "CommandSettings",
    "HostSettings",
    "MetricsSettings",
    "ReadSettings",
    "Settings",
    "SlaSettings",
    "load",
    "parse",
]

T = TypeVar("T")
Check = Callable[[Any, "attrs.Attribute[Any]", Any], None]

DEFAULT = Path("/etc/magent.toml")
"""Read when no other file is named; it may be missing."""
SHORTEST_INTERVAL, LONGEST_INTERVAL = 0.05, 3600.0
"""Seconds between two looks at the metrics, at least and at most."""
_LOGS = 32
_READS = 256
_KINDS = {"nagios": ("command",), "ganglia": ("address", "file"), "prometheus": ("url", "file")}
_LONGEST_LABEL = 256  # characters of a text that goes with every event
_LARGEST = 1 << 20  # bytes of a configuration


class _Fault(ValueError):
    """The value of a key cannot be; or, of a whole section or file, something about it."""

    def __init__(self, reason: str, *path: str | int) -> None:
        super().__init__(": ".join(filter(None, (".".join(map(str, path)), reason))))
        self.reason = reason
        self.path = path

    def inside(self, *path: str | int) -> _Fault:
        """Return the fault as it is called from further outside."""
        return _Fault(self.reason, *path, *self.path)


def _must(name: str, be: str, value: object) -> _Fault:
    try:
        shown = repr(value) if isinstance(value, str) else str(value)
    except ValueError:  # whole numbers have a limit, too
        shown = "a number like that"
    return _Fault(f"must be {be}, not {shown if len(shown) <= 60 else f'{shown[:57]}...'}", name)


def _text(_: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value.isprintable():
        raise _must(attribute.name, "a printable text", value)


def _label(_: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST_LABEL:
        raise _must(attribute.name, f"a printable text of at most {_LONGEST_LABEL} characters", value)


def _address(instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    _text(instance, attribute, value)
    try:
        if value:
            check_address(value)
    except AddressError as error:
        raise _Fault(f"must be an address: {error}", attribute.name) from None


def _switch(_: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise _must(attribute.name, "true or false", value)


def _between(low: float, high: float, unit: str) -> Check:
    def check(_: object, attribute: attrs.Attribute[float], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _must(attribute.name, f"{low:g} to {high:g} {unit}", value)

    return check


def _among(known: Collection[str]) -> Check:
    def check(_: object, attribute: attrs.Attribute[str], value: object) -> None:
        if not isinstance(value, str) or value not in known:
            raise _must(attribute.name, f"one of {', '.join(known)}", value)

    return check


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value).startswith("/") or "\0" in str(value):
        raise _must("log", "the whole path of a file", value)
    return Path(value)


@attrs.frozen(kw_only=True)
class AgentSettings:
    """The section ``[agent]``."""

    address: str = attrs.field(default="", validator=_address)
    """Where the broker listens when the guest has no port, device or hypervisor that leads to it."""
    source: str = attrs.field(default="", validator=_label)
    """Name of this domain, for people: a broker believes the channel. Default: the host name."""

    @property
    def domain(self) -> str:
        """What events call this domain."""
        return self.source or socket.gethostname()


@attrs.frozen(kw_only=True)
class MetricsSettings:
    """The section ``[metrics]``."""

    enabled: bool = attrs.field(default=True, validator=_switch)
    interval: float = attrs.field(default=2.0, validator=_between(SHORTEST_INTERVAL, LONGEST_INTERVAL, "seconds"))
    """Seconds between two reports; the broker may change it until the agent is restarted."""


@attrs.frozen(kw_only=True)
class CommandSettings:
    """The section ``[commands]``."""

    enabled: bool = attrs.field(default=True, validator=_switch)


@attrs.frozen(kw_only=True)
class SlaSettings:
    """One section ``[[sla]]``: an access log, as the options of ``magent sla`` describe it."""

    log: Path = attrs.field(converter=_path)
    """The file; it may come into being later."""
    format: str = attrs.field(default="nginx", validator=_text)
    """``nginx``, ``apache``, ``json``, or the server's own format string."""
    time_field: str = attrs.field(default="", validator=_text)
    """The response time, among several."""
    unit: str = attrs.field(default="s", validator=_among(tuple(UNITS)))
    """Unit of the response time in JSON: ``s``, ``ms`` or ``us``."""
    at_field: str = attrs.field(default="", validator=_text)
    """The Unix time in JSON."""
    hard_ms: float = attrs.field(default=6.0, validator=_between(0.001, 1e9, "milliseconds"))
    """Who waited longer was served too late."""
    soft_ms: float = attrs.field(default=3.0, validator=_between(0.001, 1e9, "milliseconds"))
    """Threshold that warns before."""
    service: str = attrs.field(default="", validator=_label)
    """Name that events carry in their detail; with several logs it tells them apart."""

    def __attrs_post_init__(self) -> None:
        """Raise ValueError for thresholds or a format that cannot serve."""
        if self.soft_ms > self.hard_ms:
            raise _Fault(f"{self.soft_ms:g} is above hard_ms {self.hard_ms:g}", "soft_ms")
        try:
            self.reader()
        except FormatError as error:
            raise _Fault(str(error), "format") from None

    def reader(self) -> Reader:
        """Return what reads the log's lines."""
        return reader(self.format, time_field=self.time_field, unit=self.unit, at_field=self.at_field)


@attrs.frozen(kw_only=True)
class HostSettings:
    """The section ``[host]``, for ``magent host``."""

    interval: float = attrs.field(default=1.0, validator=_between(SHORTEST_INTERVAL, LONGEST_INTERVAL, "seconds"))
    """Seconds between two looks at the host and its domains."""
    libvirt: str = attrs.field(default="", validator=_text)
    """URI of the hypervisor whose domains are told of, such as ``qemu:///system``; none if it is empty."""


def _words(value: object) -> tuple[str, ...]:
    words = cast("list[object]", value) if type(value) in (list, tuple) else [None]
    if not all(isinstance(word, str) and "\0" not in word for word in words):
        raise _must("command", "a list of a program and its arguments", value)
    return tuple(cast("list[str]", words))


def _labels(value: object) -> Labels:
    if value == ():
        return ()
    fault = _must("labels", f"up to {MOST_LABELS // 2} names and texts", value)
    pairs = sorted(cast("dict[str, object]", value).items()) if isinstance(value, dict) else [("", value)]
    if len(pairs) > MOST_LABELS // 2 or not all(is_name(name) and is_label(label) for name, label in pairs):
        raise fault
    return cast("Labels", tuple(pairs))


@attrs.frozen(kw_only=True)
class ReadSettings:
    """One section ``[[read]]``: something that already watches, and whose results are published."""

    kind: str = attrs.field(validator=_among(tuple(_KINDS)))
    """``nagios``: a plug-in, ``ganglia``: a gmond, ``prometheus``: an exporter such as node_exporter."""
    name: str = attrs.field(validator=_text)
    """The label ``check`` of what a plug-in says; ``read`` of what is told of the reader itself."""
    command: tuple[str, ...] = attrs.field(default=(), converter=_words)
    """The plug-in and its arguments; no shell sees them."""
    address: str = attrs.field(default="", validator=_text)
    """Host and port of a gmond: ``127.0.0.1:8649``."""
    url: str = attrs.field(default="", validator=_text)
    """Where an exporter answers: ``http://127.0.0.1:9100/metrics``."""
    file: str = attrs.field(default="", validator=_text)
    """The whole path of a file that holds what they would say."""
    interval: float = attrs.field(default=15.0, validator=_between(SHORTEST_INTERVAL, LONGEST_INTERVAL, "seconds"))
    timeout: float = attrs.field(default=10.0, validator=_between(0.05, 600.0, "seconds"))
    labels: Labels = attrs.field(default=(), converter=_labels)
    """Added to every series."""

    def __attrs_post_init__(self) -> None:
        """Raise ValueError unless it says in one way where to read."""
        if not is_label(self.name):
            raise _must("name", "a text of 1 to 256 characters", self.name)
        given = [field for field in ("command", "address", "url", "file") if getattr(self, field)]
        if len(given) != 1 or given[0] not in _KINDS[self.kind]:
            raise _Fault(f"a reader of kind {self.kind} needs {' or '.join(_KINDS[self.kind])}, and nothing else")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise _must("url", "something that begins with http:// or https://", self.url)
        if self.file and not self.file.startswith("/"):
            raise _must("file", "the whole path of a file", self.file)
        if self.address and not self.address.rpartition(":")[2].isdecimal():
            raise _must("address", "a host and a port", self.address)


@attrs.frozen(kw_only=True)
class Settings:
    """A whole configuration; an empty one reports metrics and answers commands."""

    agent: AgentSettings = attrs.field(factory=AgentSettings)
    metrics: MetricsSettings = attrs.field(factory=MetricsSettings)
    commands: CommandSettings = attrs.field(factory=CommandSettings)
    host: HostSettings = attrs.field(factory=HostSettings)
    sla: tuple[SlaSettings, ...] = ()
    read: tuple[ReadSettings, ...] = ()


_SECTIONS: dict[str, type] = {
    "agent": AgentSettings,
    "metrics": MetricsSettings,
    "commands": CommandSettings,
    "host": HostSettings,
}


def parse(text: str) -> Settings:
    """Return the settings that *text* says; raises ValueError, one line with the key that is wrong."""
    document = _document(text)
    _refuse_unknown(document, Settings)
    made: dict[str, Any] = {
        name: _made(kind, document[name], name) for name, kind in _SECTIONS.items() if name in document
    }
    sections = _several(SlaSettings, document.get("sla", []), "sla", "log", _LOGS)
    if len({section.log for section in sections}) < len(sections):
        raise _Fault("two sections name the same log", "sla")
    reads = _several(ReadSettings, document.get("read", []), "read", "reader", _READS)
    if len({read.name for read in reads}) < len(reads):
        raise _Fault("two sections have the same name", "read")
    return Settings(**made, sla=sections, read=reads)


def _document(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise _Fault("is nested too deep") from None
    except ValueError:  # of Python's int
        raise _Fault("has a number of too many digits") from None


def _several(kind: type[T], tables: object, where: str, noun: str, most: int) -> tuple[T, ...]:
    if not isinstance(tables, list) or len(cast("list[object]", tables)) > most:
        raise _Fault(f"write [[{where}]] for each {noun}, at most {most} times", where)
    return tuple(_made(kind, table, where, n) for n, table in enumerate(cast("list[object]", tables)))


def _made(kind: type[T], table: object, *where: str | int) -> T:
    if not isinstance(table, dict):
        raise _Fault("must be a section with keys of its own", *where)
    given = cast("dict[str, Any]", table)
    try:
        _refuse_unknown(given, kind)
        for name, field in _fields(kind).items():
            if field.default is attrs.NOTHING and name not in given:
                raise _Fault("is missing", name)
        return kind(**given)
    except _Fault as fault:
        raise fault.inside(*where) from None


def _refuse_unknown(given: Collection[str], kind: type) -> None:
    known = _fields(kind)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise _Fault(f"unknown key; {hint}", key)


def _fields(kind: type) -> dict[str, attrs.Attribute[Any]]:
    return attrs.fields_dict(cast("type[attrs.AttrsInstance]", kind))


def load(path: Path | None) -> Settings:
    """Return the settings in the file *path*, or in :data:`DEFAULT` if that is there; raises Exit."""
    where = path or DEFAULT
    try:
        with where.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise _Fault("is too long to be a configuration")
        return parse(raw.decode())
    except FileNotFoundError:
        if path is None:
            return Settings()
        raise Exit(NOT_FOUND, f"there is no configuration {where}") from None
    except OSError as error:
        raise Exit(USAGE, f"cannot read {where}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Exit(USAGE, f"{where}: is not UTF-8 text") from None
    except ValueError as error:
        line = " ".join(str(error).split())
        raise Exit(USAGE, f"{where}: {''.join(each if each.isprintable() else '?' for each in line)}") from None
