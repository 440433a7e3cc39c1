"""Asking what watches already: plug-ins are run, daemons and exporters are asked, files are read. All of it bounded."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from mchannel.agents.apart import Apart
from mchannel.agents.nagios import from_output
from mchannel.agents.publisher import Reading
from mchannel.agents.settings import ReadSettings
from mchannel.apart import apart
from mchannel.samples import Labels

__all__ = ["reader"]

_LARGEST = 16 << 20  # bytes of a document
_LONGEST_OUTPUT = 1 << 16  # bytes of a plug-in
_CHUNK = 1 << 16
_UNKNOWN = 3


def reader(settings: ReadSettings) -> Callable[[], Coroutine[Any, Any, list[Reading]]]:
    """Return what reads once when it is called, in one look at a time; it raises when that fails."""
    look: Callable[[], Coroutine[Any, Any, list[Reading]]]
    if settings.kind == "nagios":
        look = partial(_plugin, settings)
    else:
        look = Apart(partial(_document, settings, _understanding(settings)))

    async def read() -> list[Reading]:
        return [_labelled(reading, settings.labels) for reading in await look()]

    return read


def _labelled(reading: Reading, labels: Labels) -> Reading:
    if not labels:
        return reading
    series = reading.series
    return reading._replace(
        series=series._replace(labels=tuple(sorted({**dict(labels), **dict(series.labels)}.items())))
    )


# -- plug-ins


async def _plugin(settings: ReadSettings) -> list[Reading]:
    """Run it; one that takes too long is ended with all that it started, and its state is not known."""
    process = await asyncio.create_subprocess_exec(
        *settings.command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, cwd="/", start_new_session=True
    )
    output = bytearray()
    try:
        async with asyncio.timeout(settings.timeout * 0.9):  # to say so in time
            await _keep(process, output)
            status = await process.wait()
    except TimeoutError:
        status = _UNKNOWN
        await _end(process)
    except BaseException:
        await _end(process)
        raise
    said = partial(from_output, settings.name, status, output.decode("utf-8", "replace"))
    return await apart(lambda: list(said()), "apart")


async def _keep(process: Process, output: bytearray) -> None:
    """Read all that it says, and keep the beginning."""
    assert process.stdout is not None
    while part := await process.stdout.read(_CHUNK):
        output += part[: _LONGEST_OUTPUT - len(output)]


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


# -- documents


def _understanding(settings: ReadSettings) -> Callable[[bytes], list[Reading]]:
    """Return what makes readings of a document."""
    if settings.kind != "ganglia":
        return _exposition
    from mchannel.agents.ganglia import Gmond  # noqa: PLC0415 - read what is asked for

    gmond = Gmond()
    return lambda raw: gmond.read(raw, time.time_ns() // 1_000_000)


def _exposition(raw: bytes) -> list[Reading]:
    try:
        from mchannel.agents.exposition import from_text  # noqa: PLC0415 - its parser is an extra
    except ImportError as error:
        raise RuntimeError(f"{error}; an exposition needs it: pip install 'mchannel[host]'") from None
    return from_text(raw.decode("utf-8", "replace"))


def _document(settings: ReadSettings, understand: Callable[[bytes], list[Reading]]) -> list[Reading]:
    where = settings.file or settings.url or settings.address
    try:
        raw = _fetched(settings, time.monotonic() + settings.timeout)
    except (OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise OSError(f"{where}: {reason}") from None
    return understand(raw)


def _fetched(settings: ReadSettings, late: float) -> bytes:
    if settings.file:
        with Path(settings.file).open("rb") as file:
            return _all_of(file.read, late)
    if settings.url:
        request = urllib.request.Request(settings.url, headers={"Accept": "text/plain; version=0.0.4"})  # noqa: S310 - checked by the settings
        with _OPENER.open(request, timeout=settings.timeout) as answer:
            return _all_of(answer.read1, late)
    host, _, port = settings.address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=settings.timeout) as connection:
        return _all_of(connection.recv, late)


def _all_of(take: Callable[[int], bytes], late: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := take(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > _LARGEST:
            raise ValueError(f"it is longer than {_LARGEST >> 20} MiB")
        if time.monotonic() > late:
            raise TimeoutError("it takes too long to say all that it has to")
    return b"".join(parts)


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens http and https: no file, no proxy, no redirection to elsewhere."""
    opener = urllib.request.OpenerDirector()
    for kind in ("HTTPHandler", "HTTPSHandler", "HTTPDefaultErrorHandler", "HTTPErrorProcessor"):
        opener.add_handler(getattr(urllib.request, kind)())
    return opener


_OPENER = _opener()
