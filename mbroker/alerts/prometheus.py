"""Alerting rules of Prometheus as subscriptions, and why some of them cannot be."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import attrs
import promql_parser
import yaml

from mbroker.action import Severity

from .language import Subscription
from .promql import translate
from .promql_values import Renaming, Unsupported
from .terms import Span
from .tree import Handling, NoData, Rule

__all__ = ["Imported", "RulesError", "read_rules"]

_LARGEST = 1 << 20  # bytes of a file
_MOST = 10_000  # rules, however often the anchors of a file repeat them
_FILES = 1000

_SEVERITIES = {
    Severity.INFO: {"info", "information", "informational", "none", "notice", "debug", "low"},
    Severity.WARNING: {"warning", "warn", "minor", "medium", "average", "moderate", "ticket"},
    Severity.CRITICAL: {"critical", "crit", "error", "major", "high", "page", "emergency", "fatal", "disaster"},
}


class RulesError(ValueError):
    """A file holds no rules; the message is one line that names it."""


@attrs.frozen
class Imported:
    """One rule of a file, and what became of it."""

    file: Path
    group: str
    name: str
    subscriptions: tuple[Subscription, ...] = ()
    """What says the same; none when nothing does."""
    notes: tuple[str, ...] = ()
    """How they differ from the rule."""
    reason: str = ""
    """Why there are none."""


def read_rules(path: Path, renaming: Renaming | None = None) -> list[Imported]:
    """Return what becomes of the rules in *path*: a file of rules, or a configuration that names such files.

    Raises :exc:`RulesError` when one of the files cannot be used; nothing of the others is returned then.
    """
    data = _loaded(path)
    if "groups" not in data and "rule_files" in data:
        files = [Path(name) for pattern in _texts(path, data["rule_files"]) for name in _matches(path.parent, pattern)]
        if len(files) > _FILES:
            raise RulesError(f"{path}: names more than {_FILES} files")
    else:
        files = [path]
    found: list[Imported] = []
    for file in files:
        for group, rule in _rules(file, data if file == path else _loaded(file)):
            found.append(_imported(file, group, rule, renaming or Renaming()))
            if len(found) > _MOST:
                raise RulesError(f"{file}: more than {_MOST} rules")
    return found


def _matches(folder: Path, pattern: str) -> list[str]:
    """Return the files that *pattern* means; it is Prometheus' own way that there may be none."""
    return sorted(glob.glob(str(folder / pattern)))  # noqa: PTH207 - the pattern may be absolute


def _loaded(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
    except OSError as error:
        raise RulesError(f"{path}: {error.strerror}") from None
    if len(text) > _LARGEST:
        raise RulesError(f"{path}: has more than {_LARGEST} bytes")
    try:
        data: object = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RulesError(f"{path}: {where}{error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RulesError(f"{path}: is no YAML: {' '.join(str(error).split()):.100}") from None
    if not isinstance(data, dict):
        raise RulesError(f"{path}: holds no groups of rules; give a file with groups:, or one with rule_files:")
    return cast("dict[str, Any]", data)


def _texts(path: Path, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in cast("list[object]", value)):
        raise RulesError(f"{path}: rule_files must be a list of texts")
    return cast("list[str]", value)


def _rules(path: Path, data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each rule with the name of its group."""
    for number, group in enumerate(_tables(path, "groups", data.get("groups")), 1):
        name = str(group.get("name", number))
        for rule in _tables(path, f"the rules of group {name:.100}", group.get("rules") or []):
            yield name, rule


def _tables(path: Path, what: str, value: object) -> Iterator[dict[str, Any]]:
    if not isinstance(value, list):
        raise RulesError(f"{path}: {what} must be a list")
    for each in cast("list[object]", value):
        if not isinstance(each, dict):
            raise RulesError(f"{path}: {what} must be a list of tables")
        yield cast("dict[str, Any]", each)


def _imported(path: Path, group: str, rule: dict[str, Any], renaming: Renaming) -> Imported:
    if "record" in rule:
        reason = "it records a series instead of alerting; publish that as a metric"
        return Imported(path, group, str(rule["record"]), reason=reason)
    made = Imported(path, group, str(rule.get("alert", "")))
    try:
        expression: object = rule.get("expr")
        labels: object = rule.get("labels") or dict[str, object]()
        if not made.name or not isinstance(expression, str) or not isinstance(labels, dict):
            raise Unsupported("it needs alert, expr, and labels, if any, as a table")
        translation = translate(expression, renaming)
        severity, notes = _severity(cast("dict[str, object]", labels).get("severity"))
        if rule.get("keep_firing_for"):
            notes = (*notes, "keep_firing_for is left out: the alert clears as soon as its condition does")
        rules = [Rule(condition, None, _hold(rule.get("for")), NoData.CLEAR) for condition in translation.conditions]
        subscriptions = tuple(Subscription(each, Handling(severity)) for each in rules)
    except ValueError as error:  # Unsupported, and what the language refuses
        return attrs.evolve(made, reason=str(error))
    return attrs.evolve(made, subscriptions=subscriptions, notes=(*translation.notes, *notes))


def _hold(value: object) -> Span | None:
    """Return the duration of ``for``, such as ``1h30m``."""
    if value is None or str(value) in ("0", "0s"):
        return None
    try:
        span = promql_parser.parse_duration(str(value))
    except ValueError:
        raise Unsupported(f"for must be a duration such as 5m, not {str(value)!r:.40}") from None
    return Span(round(span.total_seconds() * 1000))


def _severity(value: object) -> tuple[Severity, tuple[str, ...]]:
    if value is None:
        return Severity.WARNING, ()
    for severity, words in _SEVERITIES.items():
        if str(value).lower() in words:
            return severity, ()
    return Severity.WARNING, (f"severity {str(value)!r:.40} became warning",)
