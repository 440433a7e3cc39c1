"""``mbroker``: what an operator asks a broker, on the terminal or as JSON."""

from __future__ import annotations

import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, TypeAlias, TypeVar, cast

import attrs

try:
    import click

    from mbroker.options import with_control, with_output
    from mbroker.terminal import abandon_output, clean, numbers, print_json, print_line, print_table, span
    from mbroker.values import plain
except ModuleNotFoundError as missing:
    sys.exit(f"mbroker needs {missing.name} and other packages of a host; install them: pip install 'mchannel[host]'")

from mbroker import alert_commands, control, deadman_command, doctor, fleet_commands, rule_commands
from mbroker.action import Action
from mbroker.broker import PolicyReport
from mbroker.config import Config, ConfigError, Isolation, Loaded, load
from mbroker.exits import Exit, Failure, Misuse, exit_of
from mbroker.host import Host
from mbroker.plugins import PluginError, find, installed, load_class, make_policy
from mbroker.replay import read_trace, replay
from mbroker.setup import faults
from mchannel import keys
from mchannel.errors import KeyFileError, MChannelError
from mchannel.event import Event

__all__ = ["main"]

F = TypeVar("F", bound=Callable[..., Any])

Hosted: TypeAlias = dict[str, dict[str, str]]
"""For each policy the sections that host it, and how it runs there."""


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
        except (Failure, ConfigError, MChannelError, PluginError) as error:
            _fail(ctx, error, str(error))
        except OSError as error:
            abandon_output()
            _fail(ctx, error, f"{error.filename or 'standard output'}: {error.strerror or error}")
        return result


def _fail(ctx: click.Context, error: Exception, line: str) -> NoReturn:
    click.echo(f"mbroker: {line}", err=True)
    ctx.exit(exit_of(error))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mbroker check-config /etc/mbroker/mbroker.toml
  mbroker status
  mbroker list --output json
  mbroker subscribe 'load > 8 for 2m'
  mbroker alerts list
\b
Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 unreachable,
4 not found, 130 interrupted.
\b
Completion, also for zsh_source and fish_source:
  eval "$(_MBROKER_COMPLETE=bash_source mbroker)"
""",
)
@click.version_option(package_name="mchannel")
def main() -> None:
    """Ask and prepare an M-broker."""


@main.command(
    short_help="Show how the daemon is doing.", epilog="\b\nExamples:\n  mbroker status\n  mbroker status --output json"
)
@with_control
@with_output
def status(address: str, output: str) -> None:
    """Show how the daemon is doing: its domains, policies and counters."""
    known: control.Status = control.ask_status(address)
    if output == "json":
        print_json(plain(known))
        return
    print_line(
        f"{known.broker} ({known.host_id}), mbrokerd {known.version}, pid {known.pid}, "
        f"up {span(time.time() - known.since)}, {known.config}"
    )
    if known.problem:
        print_line(f"problem: {clean(known.problem)}", "bold red")
    print_line(
        f"{known.events} events, {known.actions} actions; {known.over_budget} over budget, {known.failed} failed, "
        f"{known.malformed} malformed, {known.refused} refused; {known.agents} agents (see: mbroker list)"
    )
    print_line(
        f"listening at {', '.join(known.listening) or 'nothing'}; acting by {', '.join(known.actuators) or 'nothing'}"
    )
    if (alerts := known.alerts) is not None:
        print_line(
            f"{alerts.subscriptions} subscriptions to {alerts.series} series, {alerts.samples} samples; "
            f"{alerts.refused} refused; {alerts.delivered} deliveries (see: mbroker alerts list)"
        )
        if alerts.engines:
            busy = ", ".join(f"{clean(name)} {share:.0%}" for name, share in alerts.engines.items())
            print_line(f"{len(alerts.engines)} engines beside the broker, busy so much of a processor: {busy}")
        for line in (alerts.problem, *(f"{name} was not told: {why}" for name, why in alerts.unreachable.items())):
            if line:
                print_line(f"problem: {clean(line)}", "bold red")
    print_table(
        ("DOMAIN", "LEVEL", "SPEED", "CPUS"),
        (
            (each.name, f"{each.level}/{len(known.p_states) - 1}", f"{each.mhz} MHz", numbers(each.cpus))
            for each in known.domains
        ),
    )
    print_table(
        ("POLICY", "RUNS", "EVENTS", "ACTIONS", "FAILURES", "SLOWEST", "LAST FAILURE"),
        map(_policy_row, known.policies),
    )


@main.command(
    "list",
    short_help="List the agents that the daemon knows.",
    epilog="\b\nExample:\n  mbroker list --output json | jq '.[] | select(.state != \"live\")'",
)
@with_control
@with_output
def list_(address: str, output: str) -> None:
    """List the agents that the daemon knows, their state, and when each was last heard."""
    agents = control.ask_agents(address)
    if output == "json":
        print_json([{**plain(agent), "re_established": agent.re_established} for agent in agents])
        return
    now = time.time()
    print_table(
        ("AGENT", "STATE", "SINCE", "LAST HEARD", "ESTABLISHED", "TERMINATED"),
        (
            (
                agent.identity,
                agent.state.value,
                span(now - agent.since),
                f"{span(now - agent.last_heard)} ago" if agent.last_heard else "never",
                str(agent.established),
                str(agent.terminated),
            )
            for agent in agents
        ),
        empty="no agent is known yet; what agents open: mbroker status",
    )


@main.group(epilog="\b\nExample:\n  mbroker policy list")
def policy() -> None:
    """Policies that are installed."""


@policy.command(
    "list",
    short_help="List the installed policies, and how each is hosted.",
    epilog="""\b
Examples:
  mbroker policy list
  mbroker policy list --config /etc/mbroker/mbroker.toml
  mbroker policy list --control shm:///mbroker""",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Show which sections of this configuration host each.",
)
@click.option("--control", "address", metavar="ADDRESS", help="Show how the daemon that answers here hosts each.")
@with_output
def policy_list(config: Path | None, address: str | None, output: str) -> None:
    """List the installed policies; if asked, how each is hosted: trusted in the broker's process, or isolated."""
    if config and address:
        raise Misuse("--config and --control say the same; give one of them")
    hosted: Hosted | None = None
    if config:
        hosted = _configured(load(config).config)
    elif address:
        hosted = _running(control.ask_status(address))
    policies = [(each.name, each.value, _summary(each.name)) for each in installed("policy")]
    if output == "json":
        print_json(
            [
                {"name": name, "target": target, "summary": summary, "hosted": hosted and hosted.get(name, {})}
                for name, target, summary in policies
            ]
        )
    elif hosted is None:
        print_table(("POLICY", "TARGET", "WHAT IT DOES"), policies)
    else:
        sections = {
            name: ", ".join(f"{section} {runs}" for section, runs in found.items()) for name, found in hosted.items()
        }
        print_table(
            ("POLICY", "HOSTED", "TARGET", "WHAT IT DOES"),
            ((name, sections.get(name, ""), target, summary) for name, target, summary in policies),
        )


@policy.command("show", epilog="\b\nExample:\n  mbroker policy show adaptive")
@click.argument("name")
@with_output
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
        print_json({"name": name, "target": point.value, "text": text, "options": shown})
        return
    print_line(f"{name}  {point.value}\n\n{text}\n")
    print_table(("OPTION", "DEFAULT"), ((option, str(value)) for option, value in options.items()))


@main.command(
    "check-config",
    short_help="Check a configuration; nothing is started.",
    epilog="""\b
Example:
  mbroker check-config /etc/mbroker/mbroker.toml && systemctl reload mbrokerd""",
)
@click.argument("file", type=click.Path(path_type=Path))
@with_output
def check_config(file: Path, output: str) -> None:
    """Check a configuration, and what it merges, down to the last key; nothing is started."""
    try:
        loaded = load(file)
        lines, code = (*faults(loaded), *_key_faults(loaded)), Exit.USAGE
    except ConfigError as error:
        lines, code = error.lines, exit_of(error)
    if output == "json":
        print_json({"ok": not lines, "faults": list(lines)})
    for line in lines if output == "table" else ():
        click.echo(line, err=True)
    if lines:
        sys.exit(code)
    if output == "table":
        click.echo(f"{file}: good")


@main.command(
    "replay",
    short_help="Run a policy over a recorded trace of events.",
    epilog="\b\nExample:\n  mbroker replay --policy basic --set patience=3 examples/trace.jsonl",
)
@click.option(
    "--policy", "name", metavar="NAME", required=True, help="Name of an installed policy; see: mbroker policy list."
)
@click.option(
    "--set", "settings", multiple=True, metavar="OPTION=VALUE", help="An option of the policy; VALUE as in TOML."
)
@click.option(
    "--p-states",
    metavar="MHZ,...",
    default="1000,1800,2000,2200,2400",
    show_default=True,
    help="The host's p-states, slowest first.",
)
@click.argument("trace", type=click.Path())
@with_output
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
        click.echo(f"{event.at:.3f} {clean(event.topic)} {clean(event.source)}: {clean(str(action))}")


def _text(file: str) -> IO[str]:
    """Open *file*, or standard input for ``-``; raises OSError."""
    return cast("IO[str]", click.open_file(file, "r", encoding="utf-8", errors="replace"))


@main.group("keys", short_help="Keys for channels between hosts.", epilog="\b\nExample:\n  mbroker keys show --trusted")
def keys_() -> None:
    """Keys for channels between hosts: this end's own, and those it trusts."""


@keys_.command("new", short_help="Make this end's key pair.", epilog="\b\nExample:\n  mbroker keys new node1")
@click.argument("name")
@click.option("--force", is_flag=True, help="Replace the key that is there; peers must trust the new one.")
@_with_folder
@with_output
def keys_new(name: str, force: bool, folder: Path | None, output: str) -> None:
    """Make this end's key pair, called NAME, and print its fingerprint."""
    _print_key(name, keys.new(folder or keys.default_folder(), name, force=force).public, output)


@keys_.command(
    "show",
    short_help="Print this end's public key, or those it trusts.",
    epilog="\b\nExamples:\n  mbroker keys show > node1.pub\n  mbroker keys show --trusted",
)
@click.option("--trusted", is_flag=True, help="List the keys that this end trusts instead.")
@_with_folder
@with_output
def keys_show(trusted: bool, folder: Path | None, output: str) -> None:
    """Print this end's public key, for `mbroker keys trust` on the other side."""
    where = folder or keys.default_folder()
    if not trusted:
        text = keys.show(where)
        print_json({"public": text}) if output == "json" else click.echo(text, nl=False)
        return
    known = keys.trusted(where)
    if output == "json":
        print_json({name: {"fingerprint": key.fingerprint, "server": key.server} for name, key in known.items()})
        return
    rows = ((name, "broker" if key.server else "agent", key.fingerprint) for name, key in known.items())
    print_table(("NAME", "ROLE", "FINGERPRINT"), rows, empty="nobody is trusted; how to: mbroker keys trust --help")


@keys_.command(
    "trust",
    short_help="Let the holder of a key connect.",
    epilog="\b\nExample:\n  ssh web1 mbroker keys show | mbroker keys trust web1",
)
@click.argument("name")
@click.argument("file", type=click.Path(), default="-")
@click.option("--server", is_flag=True, help="It is the key of a broker that this end dials.")
@_with_folder
@with_output
def keys_trust(name: str, file: str, server: bool, folder: Path | None, output: str) -> None:
    """Let the holder of the public key in FILE (or standard input) connect, as the domain NAME."""
    with _text(file) as text:
        key = keys.trust(folder or keys.default_folder(), name, text.read(4096), server=server)
    _print_key(name, key, output)


@keys_.command("untrust", epilog="\b\nExample:\n  mbroker keys untrust web1")
@click.argument("name")
@_with_folder
@with_output
def keys_untrust(name: str, folder: Path | None, output: str) -> None:
    """Refuse the key called NAME from its next connection on."""
    keys.untrust(folder or keys.default_folder(), name)
    if output == "json":
        print_json({"name": name, "trusted": False})


def _print_key(name: str, key: keys.PublicKey, output: str) -> None:
    if output == "json":
        print_json({"name": name, "fingerprint": key.fingerprint, "server": key.server})
    else:
        click.echo(key.fingerprint)


def _setting(text: str) -> tuple[str, Any]:
    import tomllib  # noqa: PLC0415 - only replay needs it

    option, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError(text)
        return option, tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        raise Misuse(f'--set {text}: write OPTION=VALUE, VALUE as in TOML: 3, 0.5, true, "text"') from None


def _key_faults(loaded: Loaded) -> tuple[str, ...]:
    """Return why mbrokerd, run by this user, could not use the key that its fleet knows it by."""
    if (fleet := loaded.config.fleet) is None:
        return ()
    try:
        keys.own(fleet.keys or keys.default_folder())
    except KeyFileError as error:
        return loaded.error("fleet", "keys", reason=error).lines
    return ()


def _configured(config: Config) -> Hosted:
    found: Hosted = {}
    for name, section in config.policies.items():
        found.setdefault(section.policy or name, {})[name] = _runs(trusted=section.isolation is Isolation.NONE)
    return found


def _running(status: control.Status) -> Hosted:
    found: Hosted = {}
    for report in status.policies:
        found.setdefault(report.entry, {})[report.name] = _runs(trusted=report.trusted)
    return found


def _runs(*, trusted: bool) -> str:
    return "trusted" if trusted else "isolated"


def _summary(name: str) -> str:
    try:
        return (inspect.getdoc(load_class("policy", name)) or "").partition("\n")[0]
    except PluginError as error:
        return str(error)


def _policy_row(report: PolicyReport) -> tuple[str, ...]:
    benched = f"; benched for {span(report.benched_for)}" if report.benched_for else ""
    return (
        report.name,
        _runs(trusted=report.trusted),
        f"{report.events}" + (f" (+{report.skipped} skipped)" if report.skipped else ""),
        str(report.actions),
        f"{report.failures}{benched}",
        f"{report.slowest * 1000:.2f} ms",
        clean(report.error),
    )


for _command in (
    rule_commands.subscribe,
    rule_commands.unsubscribe,
    rule_commands.subscriptions,
    rule_commands.metrics,
    alert_commands.alerts,
    rule_commands.explain,
    rule_commands.import_rules,
    deadman_command.deadman,
    fleet_commands.domains,
    fleet_commands.fleet,
    fleet_commands.migrate,
    fleet_commands.lane,
    doctor.doctor,
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
