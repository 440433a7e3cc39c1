"""``magent sla``: one access log, one channel."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import socket
import threading
from contextlib import closing
from pathlib import Path

from mchannel import channel
from mchannel.agents.accesslog import FormatError, Reader, reader
from mchannel.agents.exits import FAILED, NOT_FOUND, UNREACHABLE, USAGE, Exit
from mchannel.agents.follower import Follower, read_line
from mchannel.agents.meter import Meter
from mchannel.agents.notify import sd_notify
from mchannel.agents.printer import Printer
from mchannel.agents.reopen import Reopening
from mchannel.agents.sla import Recorder
from mchannel.agents.tail import Tail
from mchannel.errors import AddressError, ChannelError, NotListening

__all__ = ["report"]

_POLL = 0.05  # seconds between looks at the log
_KNOCK = 2.0  # seconds for the broker to answer
_PATIENCE = 5.0  # seconds that --once and the end wait for a channel that is full

_log = logging.getLogger("magent")


def report(options: argparse.Namespace) -> None:
    """Run ``magent sla``; raises Exit for what cannot be done."""
    try:
        log = reader(options.format, time_field=options.time_field, unit=options.unit, at_field=options.at_field)
    except FormatError as error:
        raise Exit(USAGE, str(error)) from None
    if options.address is None and not options.dry_run:
        raise Exit(USAGE, "say where the broker listens with --address, or use --dry-run")
    if options.soft_ms > options.hard_ms:
        raise Exit(USAGE, f"--soft-ms {options.soft_ms:g} is above --hard-ms {options.hard_ms:g}")
    options.source = options.source or socket.gethostname()
    with _tail(options.log, from_start=options.once or options.from_start) as tail:
        if options.once and not log.dated:
            raise Exit(
                USAGE,
                "--once needs times of day finer than 500 ms in the log: "
                "add $msec (nginx), %{end:msec}t (Apache) or --at-field (JSON)",
            )
        with closing(_writer(options)) as writer:
            (_once if options.once else _until_signalled)(tail, log, writer, options)


def _writer(options: argparse.Namespace) -> Reopening | Printer:
    if options.dry_run:
        return Printer(options.output == "json")
    try:
        name = "sla-" + re.sub(r"[^A-Za-z0-9._-]", "_", options.log.name)[:60]  # the same after a restart
        return Reopening(lambda: channel.open(options.address, timeout=_KNOCK, name=name))
    except (NotListening, ChannelError, OSError) as error:
        raise Exit(UNREACHABLE, str(error)) from error
    except AddressError as error:
        raise Exit(USAGE, str(error)) from error


def _tail(path: Path, *, from_start: bool) -> Tail:
    try:
        return Tail(path, from_start=from_start)
    except FileNotFoundError:
        raise Exit(NOT_FOUND, f"there is no log {path}; name the file that the server writes") from None
    except (OSError, ValueError) as error:
        raise Exit(FAILED, f"cannot read the log: {error}") from None


def _until_signalled(tail: Tail, log: Reader, writer: Reopening | Printer, options: argparse.Namespace) -> None:
    """Report a log as it grows, until SIGTERM or SIGINT."""
    stop = threading.Event()

    def end(_number: int, _frame: object) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    recorder = Recorder(writer, source=options.source, hard_ms=options.hard_ms, soft_ms=options.soft_ms)
    follower = Follower(log, recorder)
    sd_notify("READY=1")
    while not stop.wait(_POLL):
        follower.look(tail)
    follower.end(tail, _PATIENCE)
    sd_notify("STOPPING=1")
    writer.close()
    if unsaid := recorder.waiting + writer.unacknowledged:
        _log.warning("%d reports were not acknowledged by the broker at %s", unsaid, options.address)


def _once(tail: Tail, log: Reader, writer: Reopening | Printer, options: argparse.Namespace) -> None:
    """Report a log that was written before, by the times in it."""
    meter: Meter | None = None
    unparsed = 0
    for line in tail.rest():
        try:
            access = read_line(log, line)
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
            raise Exit(FAILED, f"none of {unparsed} lines of {options.log} is of this format; see --format")
        return
    if unparsed:
        meter.note("unparsed", unparsed)
    meter.flush()
    for event in meter.take():
        writer.write(event, timeout=_PATIENCE)
