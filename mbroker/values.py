"""Attrs values from and to plain data (TOML, JSON, msgpack), strictly: nothing is converted by guess.

``"5"`` is no whole number, ``1`` is no truth, an unknown key is an error. Used for whatever comes
from outside: configuration, sandboxed policies, control requests, the registry's journal.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import attrs
import cattrs
from cattrs.errors import AttributeValidationNote
from cattrs.strategies import configure_tagged_union

from mbroker.action import Action

__all__ = ["Fault", "Invalid", "Where", "blamed", "build", "plain"]

T = TypeVar("T")

# How the validators of attrs begin: it says which attribute of the class that cattrs was making.
_OF_VALIDATOR = re.compile(r"'(?P<name>\w+)' (?P<reason>must .*)", re.DOTALL)

Where: TypeAlias = "tuple[str | int, ...]"
"""Keys and indices that lead to a value."""


@attrs.frozen
class Fault:
    """One thing that is wrong, and where."""

    path: Where
    reason: str

    def __str__(self) -> str:
        """Return the dotted key and the reason."""
        key = ".".join(str(step) for step in self.path)
        return f"{key}: {self.reason}" if key else self.reason


class Invalid(ValueError):
    """Data do not describe the value that was asked for."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("; ".join(str(fault) for fault in faults))
        self.faults = faults


def _exactly(kind: type, name: str) -> Any:
    def check(value: object, _: object) -> object:
        if type(value) is not kind:
            raise TypeError(f"must be {name}, not {_shown(value)}")
        return value

    return check


def _number(value: object, _: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"must be a number, not {_shown(value)}")
    return float(value)


def _choice(value: object, kind: type[Enum]) -> Enum:
    for member in kind:
        if member.value == value:
            return member
    raise ValueError(f"must be one of {', '.join(str(member.value) for member in kind)}, not {_shown(value)}")


def _path(value: object, _: object) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise TypeError(f"must be a path, not {_shown(value)}")
    return Path(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _converter() -> cattrs.Converter:
    made = cattrs.Converter(forbid_extra_keys=True)
    for kind, name in ((int, "a whole number"), (str, "a text"), (bool, "true or false"), (bytes, "bytes")):
        made.register_structure_hook(kind, _exactly(kind, name))
    made.register_structure_hook(float, _number)
    made.register_structure_hook(Path, _path)
    made.register_unstructure_hook(Path, str)
    made.register_structure_hook_func(lambda kind: isinstance(kind, type) and issubclass(kind, Enum), _choice)
    configure_tagged_union(Action, made, tag_name="action")
    return made


_CONVERTER = _converter()


def plain(value: object, kind: Any = None) -> Any:
    """Return *value* as dictionaries, lists and scalars; *kind* when it is a union such as ``Action``."""
    return _CONVERTER.unstructure(value, unstructure_as=kind)


def build(kind: type[T] | Any, data: object) -> T:
    """Return the value of *kind* that *data* describes; raise :exc:`Invalid` when it describes none."""
    try:
        made: T = _CONVERTER.structure(data, kind)
    except Exception as error:  # hostile data raises whatever it can in a converter
        raise Invalid(tuple(_faults(error, ()))) from error
    return made


def blamed(complaint: str) -> tuple[str, str]:
    """Return the attribute that a validator of attrs complains about, and why; "" and all of it from others."""
    of_attrs = _OF_VALIDATOR.fullmatch(complaint)
    return (of_attrs["name"], of_attrs["reason"]) if of_attrs else ("", complaint)


def _faults(error: BaseException, path: Where) -> Iterator[Fault]:
    """Walk cattrs' groups; each member comes with a note of the attribute or index that it is about."""
    if isinstance(error, cattrs.ClassValidationError | cattrs.IterableValidationError):
        noted, others = error.group_exceptions()
        for member, note in noted:
            step = note.name if isinstance(note, AttributeValidationNote) else note.index
            yield from _faults(member, (*path, step))
        for member in others:
            yield from _faults(member, path)
    elif isinstance(error, cattrs.ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        for key in sorted(error.extra_fields):
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            yield Fault((*path, key), f"unknown key; {hint}")
    elif isinstance(error, KeyError):
        yield Fault(path, "is missing") if path else Fault((), f"{error} is missing or not known")
    elif (of_attrs := blamed(str(error)))[0]:
        yield Fault((*path, of_attrs[0]), of_attrs[1])
    elif isinstance(error, TypeError | AttributeError) and not str(error).startswith("must "):
        yield Fault(path, "is not of the kind that belongs here: a table, a list or a single value")
    else:
        yield Fault(path, str(error) or type(error).__name__)
