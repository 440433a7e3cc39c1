"""``magent``: the agents as a command, for guests whose applications cannot be changed."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mchannel.agents.discover import check_address
from mchannel.agents.exits import FAILED, USAGE, Exit
from mchannel.errors import AddressError, MChannelError

__all__ = ["main"]

_STATUS = """\
exit status: 0 done, 1 failed, 2 usage or configuration, 3 broker unreachable,
4 log or configuration not found"""

_SLA_EXAMPLES = f"""\
examples:
  magent sla --log /var/log/nginx/access.log --address shm:///web1
  magent sla --log access.log --format apache --dry-run
  magent sla --log access.log --format '$msec $status $request_time' \\
      --once --dry-run --output json
  magent sla --log app.jsonl --format json --time-field http.took --unit ms \\
      --address shm:///web1

formats:
  nginx   the combined format with $request_time at its end
  apache  the combined format with %D at its end
  json    one object a line; --time-field, --unit and --at-field say what it
          holds
  or the log_format (nginx) or LogFormat (Apache) string as it stands in the
  server's configuration

{_STATUS}
"""

_RUN_EXAMPLES = f"""\
examples:
  magent run
  magent run --dry-run --address shm:///web1
  magent run --config ./magent.toml --address tcp://10.0.0.7:7600?server=mvm1

It takes the first that is there: the virtio port org.mchannel.0 (and shared
memory beside it while the host plugs some in), Xen, the address of its
configuration. Until then it waits. SIGHUP reads the configuration again,
SIGTERM ends it.

{_STATUS}
"""

_HOST_EXAMPLES = f"""\
examples:
  magent host --once
  magent host --once --output json --libvirt qemu:///system
  magent host --address shm:///node1 --interval 1
  magent host --config /etc/magent.toml

It reads CPUs, load, memory, disks, interfaces, filesystems and sensors of this
machine, the domains of its hypervisor (--libvirt), and whatever its
configuration names as [[read]]: Nagios plug-ins, Ganglia, Prometheus exporters.
Until a broker listens it waits, and keeps what it read. SIGHUP reads the
configuration again, SIGTERM ends it.

{_STATUS}
"""


def _milliseconds(text: str) -> float:
    try:
        if 0 < (value := float(text)) < 1e9:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no threshold; give milliseconds above 0, such as 6 or 2.5")


def _seconds(text: str) -> float:
    try:
        if 0.05 <= (value := float(text)) <= 3600:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no interval; give 0.05 to 3600 seconds")


class _Version(argparse.Action):
    """Print the version and end; it is looked up only when asked for, as guests may be slow."""

    def __call__(self, *_: object) -> NoReturn:
        from mchannel.agents.daemon import installed_version  # noqa: PLC0415

        print(f"magent {installed_version() or 'of a bare checkout'}")
        raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="magent", description="M-agents: observe and report.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(
        commands.add_parser(
            "run",
            help="report SLA violations and metrics, and answer the broker, until it is ended",
            description="Find the broker of the host that runs this guest, report to it, and answer it.",
            epilog=_RUN_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_host(
        commands.add_parser(
            "host",
            help="publish the metrics of this host, its domains, and what watches it already",
            description="Read metrics at an interval, and send them to the broker of this host.",
            epilog=_HOST_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_sla(
        commands.add_parser(
            "sla",
            help="report SLA violations from an access log",
            description="Tell the broker every 500 ms how many requests of an access log were late.",
            epilog=_SLA_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("--config", type=Path, metavar="FILE", help="default: /etc/magent.toml, if it is there")
    run.add_argument("--address", help="where the broker listens: look for nothing else")
    run.add_argument("--dry-run", action="store_true", help="print the events instead of sending them")
    run.add_argument("--output", choices=["text", "json"], default="text", help="how --dry-run prints")


def _add_host(host: argparse.ArgumentParser) -> None:
    host.add_argument("--config", type=Path, metavar="FILE", help="default: /etc/magent.toml, if it is there")
    host.add_argument("--address", help="where the broker listens: look for nothing else")
    host.add_argument("--interval", type=_seconds, metavar="SECONDS", help="between two looks (default: 1)")
    host.add_argument("--libvirt", metavar="URI", help="tell of the domains there, such as qemu:///system")
    host.add_argument("--once", action="store_true", help="print what would be sent, and end")
    host.add_argument("--output", choices=["text", "json"], default="text", help="how --once prints")


def _add_sla(sla: argparse.ArgumentParser) -> None:
    sla.add_argument("--log", type=Path, required=True, metavar="FILE", help="the access log")
    sla.add_argument("--format", default="nginx", help="nginx (default), apache, json or a format string")
    sla.add_argument("--time-field", default="", metavar="NAME", help="the response time, among several")
    sla.add_argument(
        "--unit", choices=["s", "ms", "us"], default="s", help="unit of the response time in JSON (default: s)"
    )
    sla.add_argument("--at-field", default="", metavar="NAME", help="the Unix time in JSON")
    sla.add_argument("--address", help="where the broker listens, such as shm:///web1")
    sla.add_argument("--source", default="", metavar="DOMAIN", help="name of this domain (default: host name)")
    sla.add_argument("--hard-ms", type=_milliseconds, default=6.0, metavar="MS", help="hard threshold (default: 6)")
    sla.add_argument("--soft-ms", type=_milliseconds, default=3.0, metavar="MS", help="soft threshold (default: 3)")
    mode = sla.add_mutually_exclusive_group()
    mode.add_argument("--follow", action="store_true", help="go on as the log grows (default)")
    mode.add_argument("--once", action="store_true", help="read the log from start to end by its own times")
    sla.add_argument("--from-start", action="store_true", help="with --follow: count what is there already")
    sla.add_argument("--dry-run", action="store_true", help="print the events instead of sending them")
    sla.add_argument("--output", choices=["text", "json"], default="text", help="how --dry-run prints")


def _run(options: argparse.Namespace) -> None:
    """Run the command; what the others need is not imported, as guests may be slow."""
    if options.address is not None:
        try:
            check_address(options.address)
        except AddressError as error:
            raise Exit(USAGE, f"--address {error}") from None
    if options.command == "sla":
        from mchannel.agents import slalog  # noqa: PLC0415

        slalog.report(options)
    elif options.command == "host":
        from mchannel.agents import watching  # noqa: PLC0415

        watching.run(options)
    else:
        from mchannel.agents import daemon  # noqa: PLC0415

        daemon.run(options)


def _fail(status: int, line: str) -> NoReturn:
    print(f"magent: {line}", file=sys.stderr)
    raise SystemExit(status)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``magent``; ends with SystemExit unless all went well."""
    logging.basicConfig(format="magent: %(message)s", level=logging.WARNING)
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except Exit as end:
        _fail(end.status, str(end))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nobody is left to tell
        raise SystemExit(FAILED) from None
    except (MChannelError, OSError) as error:
        _fail(FAILED, str(error))
    except KeyboardInterrupt:
        raise SystemExit(FAILED) from None
