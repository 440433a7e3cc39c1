"""Engines in a process beside the broker's: ``python -m mbroker.alerts.process_host``.

Its standard input is a socket to the broker, which is who may speak to it. It keeps no file, and ends when the broker
does. What they tell each other is pickled: both are the same program, of the same user.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .engine_host import LostError, Report, Tasks, Worker

__all__ = ["ProcessHost", "main"]

_ENDS = 5.0  # seconds that a process has to end, before it is left to whoever started the broker


class ProcessHost:
    """A host for engines: a process, for as long as this object lives or until :meth:`close`."""

    def __init__(self, *, patience: float = 30.0) -> None:
        """Start it; when it does not answer for *patience* seconds it is lost. Raises :exc:`.engine_host.LostError`."""
        paths = [str(Path(entry).absolute()) for entry in sys.path]
        ours, theirs = socket.socketpair()
        timeout = struct.pack("@ll", int(patience), int(patience % 1 * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, timeout)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-B", "-c", f"import sys; sys.path[:] = {paths!r}; {_MAIN}"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise LostError(f"no process can be had for engines: {error.strerror}") from None
        self._pipe: Connection[Any, Any] = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Process id, for operators."""
        return self._process.pid

    def place(self, shard: int, image: bytes) -> None:
        """Have the engine of *shard* from now on."""
        self._ask("place", shard, image)()

    def drop(self, shard: int) -> None:
        """Have the engine of *shard* no longer."""
        self._ask("drop", shard)()

    def start(self, tasks: Tasks) -> Callable[[], Report]:
        """Send *tasks*."""
        return self._ask("perform", tasks)

    def close(self) -> None:
        """End the process, which may be gone already."""
        self._pipe.close()
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDS)

    def _ask(self, what: str, *about: Any) -> Callable[[], Any]:
        try:
            self._pipe.send((what, about))
        except OSError as error:
            raise self._lost(error) from None
        return self._answer

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost(error) from None
        if isinstance(answer, MemoryError):
            self.close()
            raise LostError(f"an engine ran out of memory: {answer}")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _lost(self, error: Exception) -> LostError:
        self.close()
        late = isinstance(error, BlockingIOError)
        return LostError(f"process {self.pid} of engines {'does not answer' if late else 'is gone'}")


def main() -> None:
    """Have engines until the broker closes the socket."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the broker takes its last snapshot first
        signal.signal(number, signal.SIG_IGN)
    worker = Worker()
    pipe: Connection[Any, Any] = Connection(os.dup(0))
    with pipe, suppress(EOFError, ConnectionError):
        while True:
            what, about = pipe.recv()
            try:
                answer = getattr(worker, what)(*about)
            except Exception as error:  # for the broker to raise
                answer = error
            pipe.send(answer)


_MAIN = f"from {__name__} import main; main()"
