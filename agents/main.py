"""``magent``: the agents as a command, for guests whose applications cannot be changed."""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import attrs

from mchannel import channel
from mchannel.agents.accesslog import UNITS, Access, FormatError, Reader, reader
from mchannel.agents.meter import Meter
from mchannel.agents.notify import sd_notify
from mchannel.agents.reopen import Reopening
from mchannel.agents.sla import Recorder
from mchannel.agents.tail import Tail
from mchannel.errors import AddressError, ChannelError, MChannelError, NotListening
from mchannel.event import Event

__all__ = ["main"]

DONE, FAILED, USAGE, UNREACHABLE, NOT_FOUND = range(5)

_POLL = 0.05  # seconds between looks at the log
_KNOCK = 2.0  # seconds for the broker to answer
_PATIENCE = 5.0  # seconds that --once and the end wait for a channel that is full

_log = logging.getLogger("magent")

_EXAMPLES = """\
examples:
  magent sla --log /var/log/nginx/access.log --address shm:///web1
  magent sla --log access.log --format apache --dry-run
  magent sla --log access.log --format '$msec $status $request_time' --once --dry-run --output json
  magent sla --log app.jsonl --format json --time-field http.took --unit ms --address shm:///web1

formats:
  nginx   the combined format with $request_time at its end
  apache  the combined format with %D at its end
  json    one object a line; --time-field, --unit and --at-field say what it holds
  or the log_format (nginx) or LogFormat (Apache) string as it stands in the server's configuration

exit status: 0 done, 1 failed, 2 usage, 3 broker unreachable, 4 log not found
"""


class _Exit(Exception):
    """The command ends with this status and this one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


@attrs.frozen
class _Printer:
    """Takes events as a channel does, and prints them."""

    render: Callable[[Event], str]
    unacknowledged: int = 0

    def write(self, message: Event, /, timeout: float | None = None) -> None:
        print(self.render(message), flush=True)

    def close(self) -> None:
        """Nothing is held."""


def _as_json(event: Event) -> str:
    return json.dumps(attrs.asdict(event, recurse=False))


_SHOWN = ("requests", "hard", "soft", "p99_ms")
_NOTES = ("unparsed", "dropped", "skipped")


def _as_text(event: Event) -> str:
    at = datetime.fromtimestamp(event.at, UTC).strftime("%H:%M:%S.%f")[:-5]
    notes = [name for name in _NOTES if name in event.detail]
    return "  ".join([at, event.source, *(f"{name} {event.detail[name]!r}" for name in (*_SHOWN, *notes))])


def _milliseconds(text: str) -> float:
    try:
        if 0 < (value := float(text)) < 1e9:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no threshold; give milliseconds above 0, such as 6 or 2.5")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="magent", description="M-agents: observe and report.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sla = commands.add_parser(
        "sla",
        help="report SLA violations from an access log",
        description="Follow an access log and tell the broker every 500 ms how many requests were late.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sla.add_argument("--log", type=Path, required=True, metavar="FILE", help="the access log")
    sla.add_argument("--format", default="nginx", help="nginx (default), apache, json or a format string")
    sla.add_argument("--time-field", default="", metavar="NAME", help="the response time, among several")
    sla.add_argument("--unit", choices=UNITS, default="s", help="unit of the response time in JSON (default: s)")
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
    return parser


def _writer(options: argparse.Namespace) -> Reopening | _Printer:
    if options.dry_run:
        return _Printer(_as_json if options.output == "json" else _as_text)
    try:
        name = "sla-" + re.sub(r"[^A-Za-z0-9._-]", "_", options.log.name)[:60]  # the same after a restart
        return Reopening(lambda: channel.open(options.address, timeout=_KNOCK, name=name))
    except (NotListening, ChannelError, OSError) as error:
        raise _Exit(UNREACHABLE, str(error)) from error
    except AddressError as error:
        raise _Exit(USAGE, str(error)) from error


def _tail(path: Path, *, from_start: bool) -> Tail:
    try:
        return Tail(path, from_start=from_start)
    except FileNotFoundError:
        raise _Exit(NOT_FOUND, f"there is no log {path}; name the file that the server writes") from None
    except (OSError, ValueError) as error:
        raise _Exit(FAILED, f"cannot read the log: {error}") from None


def _access(log: Reader, line: str | None) -> Access | None:
    if line is None:
        raise ValueError("the line is too long")
    return log.read(line)


def _follow(tail: Tail, log: Reader, recorder: Recorder, stop: threading.Event) -> None:
    """Report until *stop* is set, then what is left."""

    def count(line: str | None) -> None:
        try:
            access = _access(log, line)
        except ValueError:
            recorder.note("unparsed")
            return
        if access is not None:
            now = time.time()
            recorder.observe(access.seconds, min(now, access.finished or now))

    while not stop.wait(_POLL):
        for number, line in enumerate(tail.read()):
            count(line)
            if number % 1000 == 999:
                recorder.tick()
        recorder.tick()
    for line in tail.rest():
        count(line)
    recorder.flush(_PATIENCE)


def _until_signalled(tail: Tail, log: Reader, writer: Reopening | _Printer, options: argparse.Namespace) -> None:
    """Report a log as it grows, until SIGTERM or SIGINT."""
    stop = threading.Event()

    def end(_number: int, _frame: object) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    recorder = Recorder(writer, source=options.source, hard_ms=options.hard_ms, soft_ms=options.soft_ms)
    sd_notify("READY=1")
    _follow(tail, log, recorder, stop)
    sd_notify("STOPPING=1")
    writer.close()
    if unsaid := recorder.waiting + writer.unacknowledged:
        _log.warning("%d reports were not acknowledged by the broker at %s", unsaid, options.address)


def _once(tail: Tail, log: Reader, writer: Reopening | _Printer, options: argparse.Namespace) -> None:
    """Report a log that was written before, by the times in it."""
    meter: Meter | None = None
    unparsed = 0
    for line in tail.rest():
        try:
            access = _access(log, line)
        except ValueError:
            unparsed += 1
            continue
        if access is None or access.finished is None:
            continue
        if meter is None:
            meter = Meter(options.source, access.finished, hard_ms=options.hard_ms, soft_ms=options.soft_ms)
        if unparsed:
            meter.note("unparsed", unparsed)
            unparsed = 0
        meter.observe(access.finished, access.seconds)
        for event in meter.take():
            writer.write(event, timeout=_PATIENCE)
    if meter is None:
        if unparsed:
            raise _Exit(FAILED, f"none of {unparsed} lines of {options.log} is of this format; see --format")
        return
    if unparsed:
        meter.note("unparsed", unparsed)
    meter.flush()
    for event in meter.take():
        writer.write(event, timeout=_PATIENCE)


def _sla(options: argparse.Namespace) -> None:
    try:
        log = reader(options.format, time_field=options.time_field, unit=options.unit, at_field=options.at_field)
    except FormatError as error:
        raise _Exit(USAGE, str(error)) from None
    if options.address is None and not options.dry_run:
        raise _Exit(USAGE, "say where the broker listens with --address, or use --dry-run")
    if options.soft_ms > options.hard_ms:
        raise _Exit(USAGE, f"--soft-ms {options.soft_ms:g} is above --hard-ms {options.hard_ms:g}")
    options.source = options.source or socket.gethostname()
    with _tail(options.log, from_start=options.once or options.from_start) as tail:
        if options.once and not log.dated:
            raise _Exit(
                USAGE,
                "--once needs times of day finer than 500 ms in the log: "
                "add $msec (nginx), %{end:msec}t (Apache) or --at-field (JSON)",
            )
        with closing(_writer(options)) as writer:
            (_once if options.once else _until_signalled)(tail, log, writer, options)


def _fail(status: int, line: str) -> NoReturn:
    print(f"magent: {line}", file=sys.stderr)
    raise SystemExit(status)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``magent``; ends with SystemExit unless all went well."""
    logging.basicConfig(format="magent: %(message)s", level=logging.WARNING)
    options = _parser().parse_args(arguments)
    try:
        _sla(options)
    except _Exit as end:
        _fail(end.status, str(end))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nobody is left to tell
        raise SystemExit(FAILED) from None
    except (MChannelError, OSError) as error:
        _fail(FAILED, str(error))
    except KeyboardInterrupt:
        raise SystemExit(FAILED) from None
