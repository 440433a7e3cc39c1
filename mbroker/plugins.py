"""Policies and actuators by the names of their entry points, checked before they are made."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, cast

import attrs

from mbroker.actuator import Actuator
from mbroker.broker import one_line
from mbroker.host import Host
from mbroker.policy import Policy, topics_of
from mbroker.values import blamed

__all__ = [
    "BadOptions",
    "PluginError",
    "UnknownPlugin",
    "check_actuator",
    "find",
    "installed",
    "load_class",
    "make_actuator",
    "make_policy",
]

Kind = Literal["policy", "actuator"]

_GROUPS: dict[Kind, str] = {"policy": "mbroker.policies", "actuator": "mbroker.actuators"}


class PluginError(ValueError):
    """A policy or an actuator cannot be made; one line says what to do."""

    key: tuple[str, ...] = ()
    """Where in its section of the configuration the reason stands."""


class UnknownPlugin(PluginError):
    """Nothing of that name is installed."""


class BadOptions(PluginError):
    """It does not take these options."""

    def __init__(self, reason: str, option: str = "") -> None:
        super().__init__(reason)
        self.key = ("options", option) if option else ("options",)


def installed(kind: Kind) -> tuple[EntryPoint, ...]:
    """Return the entry points of this kind, by name."""
    return tuple(sorted(entry_points(group=_GROUPS[kind]), key=lambda point: point.name))


def find(kind: Kind, name: str) -> EntryPoint:
    """Return the entry point called *name*; raise :exc:`UnknownPlugin` when there is none."""
    points = {point.name: point for point in installed(kind)}
    if name in points:
        return points[name]
    near = difflib.get_close_matches(name, points, 1)
    hint = f"did you mean {near[0]}?" if near else f"installed are {', '.join(points) or 'none'}"
    raise UnknownPlugin(f"no {kind} is called {name!r}; {hint}")


def load_class(kind: Kind, name: str) -> type[Any]:
    """Import the class that the entry point names; raise :exc:`PluginError` when that fails."""
    point = find(kind, name)
    try:
        found: object = point.load()
    except (Exception, SystemExit) as error:  # importing runs code of others
        raise PluginError(f"{kind} {name} ({point.value}) cannot be imported: {one_line(error)}") from error
    if not isinstance(found, type):
        raise PluginError(f"{kind} {name} ({point.value}) is no class")
    return found


def make_policy(name: str, options: Mapping[str, Any]) -> Policy:
    """Make the policy called *name* in this process.

    Raises :exc:`PluginError` when it does not take *options*, or is no policy.
    """
    policy = _make("policy", name, load_class("policy", name), options)
    try:
        topics_of(policy)
    except Exception as error:  # TypeError, or what its own code raises
        raise PluginError(f"policy {name} cannot be asked: {one_line(error)}") from error
    return cast("Policy", policy)


def make_actuator(
    name: str, options: Mapping[str, Any], *, host: Host, state: Path, cgroups: Mapping[str, str]
) -> Actuator:
    """Make the actuator called *name*. One that takes ``cgroups`` gets *cgroups* unless *options* say others.

    Raises :exc:`PluginError`, and what making it raises: OSError, JournalError.
    """
    cls = load_class("actuator", name)
    given: dict[str, Any] = {**options, "host": host, "state": state}
    if "cgroups" in inspect.signature(cls).parameters:
        given = {"cgroups": dict(cgroups), **given}
    return cast("Actuator", _make("actuator", name, cls, given))


def check_actuator(name: str, options: Mapping[str, Any], host: Host) -> None:
    """Raise :exc:`PluginError` when the actuator called *name* does not take *options*; the machine is not touched.

    An attrs class is judged by its own converters and validators, without its ``__attrs_post_init__``.
    """
    cls = load_class("actuator", name)
    given: dict[str, Any] = {**options, "host": host, "state": Path()}
    _check_names("actuator", name, cls, given)
    if attrs.has(cls):
        _make("actuator", name, _judge(cls), given)


def _judge(cls: type[Any]) -> type[Any]:
    """Return a class with the fields of *cls* and nothing that it does."""
    fields: dict[str, Any] = {
        field.name: attrs.field(
            default=field.default, validator=field.validator, converter=field.converter, kw_only=True, type=field.type
        )
        for field in attrs.fields(cls)
        if field.init
    }
    return attrs.make_class(cls.__name__, fields)


def _check_names(kind: Kind, name: str, cls: type[Any], options: Mapping[str, Any]) -> None:
    """Raise :exc:`BadOptions` for an option that *cls* does not know."""
    signature = inspect.signature(cls)
    unknown = [option for option in options if option not in signature.parameters]
    if unknown and not any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
        known = [each for each in signature.parameters if each not in {"host", "state"}]
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}"
        raise BadOptions(f"{kind} {name} has no option {unknown[0]!r}; {hint}", unknown[0])


def _make(kind: Kind, name: str, cls: type[Any], options: Mapping[str, Any]) -> Any:
    _check_names(kind, name, cls, options)
    try:
        return cls(**options)
    except Exception as error:  # its own code judges its options
        if kind == "actuator" and isinstance(error, OSError):
            raise  # the machine, or a journal
        reason = _reason(error, options)
        option, _ = blamed(reason)
        raise BadOptions(f"{kind} {name} refuses its options: {reason}", option) from error


def _reason(error: Exception, options: Mapping[str, Any]) -> str:
    """Return why an option was refused; where the class compared it blindly, at least which ones were given."""
    text = " ".join(str(error.args[0] if error.args else error).split())
    if isinstance(error, TypeError) and "not supported between" in text:
        wrong = [f"{name} = {value!r}" for name, value in options.items() if isinstance(value, str | list | dict)]
        return f"a number is needed instead of {' or '.join(wrong) or 'one of them'}"
    return text
