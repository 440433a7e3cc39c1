"""What ``magent run`` is told by its configuration: TOML to values, strictly."""

from __future__ import annotations

import math
import socket
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs

from mchannel.agents.accesslog import UNITS, FormatError, Reader, reader
from mchannel.agents.exits import NOT_FOUND, USAGE, Exit

__all__ = [
    "DEFAULT",
    "LONGEST_INTERVAL",
    "SHORTEST_INTERVAL",
    "AgentSettings",
    "CommandSettings",
    "MetricsSettings",
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
_LARGEST = 1 << 20  # bytes of a configuration


def _text(_: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"{attribute.name} must be a printable text, not {value!r:.80}")


def _switch(_: object, attribute: attrs.Attribute[bool], value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name} must be true or false, not {value!r:.80}")


def _between(low: float, high: float, unit: str) -> Check:
    def check(_: object, attribute: attrs.Attribute[float], value: object) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= cast("float", value) <= high:
            raise ValueError(f"{attribute.name} must be {low:g} to {high:g} {unit}, not {value!r:.80}")

    return check


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value).startswith("/"):
        raise ValueError(f"log must be the whole path of a file, not {value!r:.80}")
    return Path(value)


@attrs.frozen(kw_only=True)
class AgentSettings:
    """The section ``[agent]``."""

    address: str = attrs.field(default="", validator=_text)
    """Where the broker listens when the guest has no port, device or hypervisor that leads to it."""
    source: str = attrs.field(default="", validator=_text)
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
    unit: str = attrs.field(default="s", validator=attrs.validators.in_(tuple(UNITS)))
    """Unit of the response time in JSON: ``s``, ``ms`` or ``us``."""
    at_field: str = attrs.field(default="", validator=_text)
    """The Unix time in JSON."""
    hard_ms: float = attrs.field(default=6.0, validator=_between(0.001, 1e9, "milliseconds"))
    """Who waited longer was served too late."""
    soft_ms: float = attrs.field(default=3.0, validator=_between(0.001, 1e9, "milliseconds"))
    """Threshold that warns before."""
    service: str = attrs.field(default="", validator=_text)
    """Name that events carry in their detail; with several logs it tells them apart."""

    def __attrs_post_init__(self) -> None:
        """Raise ValueError for thresholds or a format that cannot serve."""
        if self.soft_ms > self.hard_ms:
            raise ValueError(f"soft_ms {self.soft_ms:g} is above hard_ms {self.hard_ms:g}")
        try:
            self.reader()
        except FormatError as error:
            raise ValueError(f"format: {error}") from None

    def reader(self) -> Reader:
        """Return what reads the log's lines."""
        return reader(self.format, time_field=self.time_field, unit=self.unit, at_field=self.at_field)


@attrs.frozen(kw_only=True)
class Settings:
    """A whole configuration; an empty one reports metrics and answers commands."""

    agent: AgentSettings = attrs.field(factory=AgentSettings)
    metrics: MetricsSettings = attrs.field(factory=MetricsSettings)
    commands: CommandSettings = attrs.field(factory=CommandSettings)
    sla: tuple[SlaSettings, ...] = ()


_SECTIONS: dict[str, type] = {"agent": AgentSettings, "metrics": MetricsSettings, "commands": CommandSettings}


def parse(text: str) -> Settings:
    """Return the settings that *text* says; raises ValueError, one line with the key that is wrong."""
    document = tomllib.loads(text)
    if unknown := document.keys() - attrs.fields_dict(Settings).keys():
        raise ValueError(f"there is no section {min(unknown)}; there are {', '.join(attrs.fields_dict(Settings))}")
    made: dict[str, Any] = {
        name: _made(kind, document[name], name) for name, kind in _SECTIONS.items() if name in document
    }
    logs = document.get("sla", [])
    if not isinstance(logs, list) or len(cast("list[object]", logs)) > _LOGS:
        raise ValueError(f"sla: write [[sla]] for each log, at most {_LOGS} times")
    sections = [_made(SlaSettings, table, f"sla[{n}]") for n, table in enumerate(cast("list[object]", logs))]
    if len({section.log for section in sections}) < len(sections):
        raise ValueError("sla: two sections name the same log")
    return Settings(**made, sla=tuple(sections))


def _made(kind: type[T], table: object, where: str) -> T:
    if not isinstance(table, dict):
        raise ValueError(f"{where}: must be a section with keys of its own")
    given = cast("dict[str, Any]", table)
    fields = attrs.fields_dict(cast("type[attrs.AttrsInstance]", kind))
    if unknown := given.keys() - fields.keys():
        raise ValueError(f"{where}.{min(unknown)}: there is no such key; there are {', '.join(fields)}")
    for name, field in fields.items():
        if field.default is attrs.NOTHING and name not in given:
            raise ValueError(f"{where}: {name} is missing")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error.args[0]}") from None


def load(path: Path | None) -> Settings:
    """Return the settings in the file *path*, or in :data:`DEFAULT` if that is there; raises Exit."""
    where = path or DEFAULT
    try:
        with where.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise ValueError("is too long to be a configuration")
        return parse(raw.decode())
    except FileNotFoundError:
        if path is None:
            return Settings()
        raise Exit(NOT_FOUND, f"there is no configuration {where}") from None
    except OSError as error:
        raise Exit(USAGE, f"cannot read {where}: {error.strerror}") from None
    except ValueError as error:
        raise Exit(USAGE, f"{where}: {' '.join(str(error).split())}") from None
