"""``mbroker``: what an operator asks a broker, on the terminal or as JSON."""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar, cast

import attrs

from mbroker import control
from mbroker.action import Action
from mbroker.broker import PolicyReport
from mbroker.config import ConfigError, load
from mbroker.exits import Exit, Failure, Misuse, exit_of
from mbroker.host import Host
from mbroker.plugins import PluginError, find, installed, load_class, make_policy
from mbroker.replay import read_trace, replay
from mbroker.setup import faults
from mbroker.values import plain
from mchannel import keys
from mchannel.errors import MChannelError
from mchannel.event import Event

try:
    import click
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError:
    sys.exit("mbroker needs the packages of a host; install them: pip install 'mchannel[host]'")

__all__ = ["main"]

F = TypeVar("F", bound=Callable[..., Any])

_WIDE = 200  # columns where there is no terminal to ask


def _with_output(function: F) -> F:
    return click.option(
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="For people or programs.",
    )(function)


def _with_control(function: F) -> F:
    return click.option(
        "--control",
        "address",
        envvar="MBROKER_CONTROL",
        default="shm:///mbroker",
        show_default=True,
        help="Where mbrokerd answers (broker.control in its configuration; also $MBROKER_CONTROL).",
    )(function)


def _with_folder(function: F) -> F:
    return click.option(
        "--folder", type=click.Path(path_type=Path), help="Folder of keys.  [default: /etc/mchannel/keys for root]"
    )(function)


class _Commands(click.Group):
    """Commands whose failures are one line each; :func:`~mbroker.exits.exit_of` says the exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and see that its output arrives."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise  # the reader has enough: click ends quietly
        except (Failure, MChannelError, PluginError) as error:
            _fail(ctx, error, str(error))
        except OSError as error:
            _abandon_output()
            _fail(ctx, error, f"{error.filename or 'standard output'}: {error.strerror or error}")
        return result


def _fail(ctx: click.Context, error: Exception, line: str) -> NoReturn:
    click.echo(f"mbroker: {line}", err=True)
    ctx.exit(exit_of(error))


def _abandon_output() -> None:
    """Let what could not be printed go, or the interpreter would complain again at its end."""
    with suppress(OSError):
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mbroker status
  mbroker list --output json
  mbroker check-config /etc/mbroker/mbroker.toml
  mbroker replay --policy adaptive trace.jsonl
\b
Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 unreachable, 4 not found.
\b
Completion: eval "$(_MBROKER_COMPLETE=bash_source mbroker)"   (or zsh_source, fish_source)""",
)
@click.version_option(package_name="mchannel")
def main() -> None:
    """Ask and prepare an M-broker."""


@main.command(epilog="\b\nExample:\n  mbroker status")
@_with_control
@_with_output
def status(address: str, output: str) -> None:
    """Show how the daemon is doing: its domains, policies and counters."""
    known: control.Status = control.ask_status(address)
    if output == "json":
        _print_json(plain(known))
        return
    console = _console()
    console.print(
        f"{known.broker} ({known.host_id}), mbrokerd {known.version}, pid {known.pid}, "
        f"up {_span(time.time() - known.since)}, {known.config}"
    )
    if known.problem:
        console.print(Text(f"problem: {_clean(known.problem)}", style="bold red"))
    console.print(
        f"{known.events} events, {known.actions} actions; {known.over_budget} over budget, {known.failed} failed, "
        f"{known.malformed} malformed, {known.refused} refused; {known.agents} agents (see: mbroker list)"
    )
    console.print(
        f"listening at {', '.join(known.listening) or 'nothing'}; acting by {', '.join(known.actuators) or 'nothing'}"
    )
    _table(
        console,
        ("DOMAIN", "LEVEL", "SPEED", "CPUS"),
        (
            (each.name, f"{each.level}/{len(known.p_states) - 1}", f"{each.mhz} MHz", _numbers(each.cpus))
            for each in known.domains
        ),
    )
    _table(
        console,
        ("POLICY", "RUNS", "EVENTS", "ACTIONS", "FAILURES", "SLOWEST", "LAST FAILURE"),
        map(_policy_row, known.policies),
    )


@main.command("list", epilog="\b\nExample:\n  mbroker list --output json | jq '.[] | select(.state != \"live\")'")
@_with_control
@_with_output
def list_(address: str, output: str) -> None:
    """List the agents that the daemon knows, their state, and when each was last heard."""
    agents = control.ask_agents(address)
    if output == "json":
        _print_json([{**plain(agent), "re_established": agent.re_established} for agent in agents])
        return
    now = time.time()
    _table(
        _console(),
        ("AGENT", "STATE", "SINCE", "LAST HEARD", "ESTABLISHED", "TERMINATED"),
        (
            (
                agent.identity,
                agent.state.value,
                _span(now - agent.since),
                f"{_span(now - agent.last_heard)} ago" if agent.last_heard else "never",
                str(agent.established),
                str(agent.terminated),
            )
            for agent in agents
        ),
    )


@main.group()
def policy() -> None:
    """Policies that are installed."""


@policy.command("list", epilog="\b\nExample:\n  mbroker policy list")
@_with_output
def policy_list(output: str) -> None:
    """List the installed policies."""
    rows = [(point.name, point.value, _summary(point.name)) for point in installed("policy")]
    if output == "json":
        _print_json([dict(zip(("name", "target", "summary"), row, strict=True)) for row in rows])
        return
    _table(_console(), ("POLICY", "TARGET", "WHAT IT DOES"), rows)


@policy.command("show", epilog="\b\nExample:\n  mbroker policy show adaptive")
@click.argument("name")
@_with_output
def policy_show(name: str, output: str) -> None:
    """Show what a policy does, and its options."""
    point, cls = find("policy", name), load_class("policy", name)
    text = inspect.getdoc(cls) or ""
    options = {
        each.name: "required" if each.default is each.empty else each.default
        for each in inspect.signature(cls).parameters.values()
    }
    if output == "json":
        shown = {
            option: value if isinstance(value, int | float | str) else repr(value) for option, value in options.items()
        }
        _print_json({"name": name, "target": point.value, "text": text, "options": shown})
        return
    console = _console()
    console.print(f"{name}  {point.value}\n\n{text}\n", markup=False, highlight=False)
    _table(console, ("OPTION", "DEFAULT"), ((option, str(value)) for option, value in options.items()))


@main.command(
    "check-config", epilog="\b\nExample:\n  mbroker check-config /etc/mbroker/mbroker.toml && systemctl reload mbrokerd"
)
@click.argument("file", type=click.Path(path_type=Path))
@_with_output
def check_config(file: Path, output: str) -> None:
    """Check a configuration, and what it merges, down to the last key; nothing is started."""
    try:
        lines, code = faults(load(file)), Exit.USAGE
    except ConfigError as error:
        lines, code = error.lines, exit_of(error)
    if output == "json":
        _print_json({"ok": not lines, "faults": list(lines)})
    for line in lines if output == "table" else ():
        click.echo(line, err=True)
    if lines:
        sys.exit(code)
    if output == "table":
        click.echo(f"{file}: good")


@main.command("replay", epilog="\b\nExample:\n  mbroker replay --policy basic --set patience=3 examples/trace.jsonl")
@click.option("--policy", "name", required=True, help="Name of an installed policy; see: mbroker policy list.")
@click.option(
    "--set", "settings", multiple=True, metavar="OPTION=VALUE", help="An option of the policy; VALUE as in TOML."
)
@click.option("--p-states", default="1000,1800,2000,2200,2400", show_default=True, help="The host's p-states in MHz.")
@click.argument("trace", type=click.Path())
@_with_output
def replay_(name: str, settings: Sequence[str], p_states: str, trace: str, output: str) -> None:
    """Run a policy over a recorded trace of events, and print what it would have done.

    With --output json each line is one event with its actions.
    """
    try:
        host = Host("replay", tuple(int(state) for state in p_states.split(",")))
    except ValueError as error:
        raise Misuse(f"--p-states: {error}") from None
    made = make_policy(name, dict(map(_setting, settings)))
    with _text(trace) as lines:
        try:
            for event, actions in replay(made, host, read_trace(lines)):
                _print_decision(event, actions, output)
        except ValueError as error:
            raise Failure(str(error)) from None


def _print_decision(event: Event, actions: Iterable[Action], output: str) -> None:
    if output == "json":
        decided = [plain(action, Action) for action in actions]
        click.echo(json.dumps({**attrs.asdict(event, recurse=False), "actions": decided}))
        return
    for action in actions:
        click.echo(f"{event.at:.3f} {_clean(event.topic)} {_clean(event.source)}: {_clean(str(action))}")


def _text(file: str) -> IO[str]:
    """Open *file*, or standard input for ``-``; raises OSError."""
    return cast("IO[str]", click.open_file(file, "r", encoding="utf-8", errors="replace"))


@main.group("keys")
def keys_() -> None:
    """Keys for channels between hosts: this end's own, and those it trusts."""


@keys_.command("new", epilog="\b\nExample:\n  mbroker keys new node1")
@click.argument("name")
@click.option("--force", is_flag=True, help="Replace the key that is there; peers must trust the new one.")
@_with_folder
def keys_new(name: str, force: bool, folder: Path | None) -> None:
    """Make this end's key pair, called NAME, and print its fingerprint."""
    click.echo(keys.new(folder or keys.default_folder(), name, force=force).public.fingerprint)


@keys_.command("show", epilog="\b\nExamples:\n  mbroker keys show > node1.pub\n  mbroker keys show --trusted")
@click.option("--trusted", is_flag=True, help="List the keys that this end trusts instead.")
@_with_folder
@_with_output
def keys_show(trusted: bool, folder: Path | None, output: str) -> None:
    """Print this end's public key, for `mbroker keys trust` on the other side."""
    where = folder or keys.default_folder()
    if not trusted:
        text = keys.show(where)
        _print_json({"public": text}) if output == "json" else click.echo(text, nl=False)
        return
    known = keys.trusted(where)
    if output == "json":
        _print_json({name: {"fingerprint": key.fingerprint, "server": key.server} for name, key in known.items()})
        return
    rows = ((name, "broker" if key.server else "agent", key.fingerprint) for name, key in known.items())
    _table(_console(), ("NAME", "ROLE", "FINGERPRINT"), rows)


@keys_.command("trust", epilog="\b\nExample:\n  ssh web1 mbroker keys show | mbroker keys trust web1")
@click.argument("name")
@click.argument("file", type=click.Path(), default="-")
@click.option("--server", is_flag=True, help="It is the key of a broker that this end dials.")
@_with_folder
def keys_trust(name: str, file: str, server: bool, folder: Path | None) -> None:
    """Let the holder of the public key in FILE (or standard input) connect, as the domain NAME."""
    with _text(file) as text:
        key = keys.trust(folder or keys.default_folder(), name, text.read(4096), server=server)
    click.echo(key.fingerprint)


@keys_.command("untrust", epilog="\b\nExample:\n  mbroker keys untrust web1")
@click.argument("name")
@_with_folder
def keys_untrust(name: str, folder: Path | None) -> None:
    """Refuse the key called NAME from its next connection on."""
    keys.untrust(folder or keys.default_folder(), name)


def _setting(text: str) -> tuple[str, Any]:
    import tomllib  # noqa: PLC0415 - only replay needs it

    option, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError(text)
        return option, tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        raise Misuse(f'--set {text}: write OPTION=VALUE, VALUE as in TOML: 3, 0.5, true, "text"') from None


def _summary(name: str) -> str:
    try:
        return (inspect.getdoc(load_class("policy", name)) or "").partition("\n")[0]
    except PluginError as error:
        return str(error)


def _policy_row(report: PolicyReport) -> tuple[str, ...]:
    benched = f"; benched for {_span(report.benched_for)}" if report.benched_for else ""
    return (
        report.name,
        "trusted" if report.trusted else "isolated",
        f"{report.events}" + (f" (+{report.skipped} skipped)" if report.skipped else ""),
        str(report.actions),
        f"{report.failures}{benched}",
        f"{report.slowest * 1000:.2f} ms",
        _clean(report.error),
    )


def _console() -> Console:
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDE)


def _table(console: Console, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*(Text(_clean(cell)) for cell in row))
    console.print(table)


def _clean(text: str) -> str:
    """Return *text* without what could steer a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.1f} s"


def _numbers(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))


def _print_json(value: object) -> None:
    click.echo(json.dumps(cast("Any", value), indent=2))


if __name__ == "__main__":
    main()
