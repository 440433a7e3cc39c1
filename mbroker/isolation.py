"""A policy in a process of its own, seen from the broker: it can be wrong, late or hostile, and is replaced.

See :mod:`mbroker.isolated` for what the process may do (compute) and may not (everything else).
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

from mbroker.action import Action
from mbroker.host import Host
from mbroker.isolated import CPU_SECONDS, FROM_BROKER, MAX_PACKET
from mbroker.values import Invalid, build, plain
from mchannel.codec import EventCodec
from mchannel.event import Event
from mchannel.packing import Limits, pack, unpack

__all__ = ["IsolatedPolicy", "IsolationError"]

_FROM_POLICY = Limits()
_EXTEND_EVERY = 4096  # decisions between two extensions of the processor time


class IsolationError(Exception):
    """The policy failed, answered nonsense, came too late, or is being started again."""


class _Child:
    """One run of the process."""

    def __init__(self, setup: tuple[object, ...]) -> None:
        packed = pack(setup)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pipe = ours
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-m", "mbroker.isolated"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        self.ready = False
        self.host: Host | None = None
        self.number = 0
        ours.send(packed)

    def send(self, packet: bytes, seconds: float) -> None:
        self.pipe.settimeout(seconds)
        self.pipe.send(packet)

    def receive(self, seconds: float) -> tuple[object, ...]:
        """Return one answer; raise TimeoutError, or IsolationError for what no honest child sends."""
        self.pipe.settimeout(seconds)
        packet = self.pipe.recv(MAX_PACKET + 1)
        if not packet:
            raise IsolationError("its process ended")
        if len(packet) > MAX_PACKET:
            raise IsolationError(f"answered with more than {MAX_PACKET} bytes")
        try:
            return unpack(packet, _FROM_POLICY)
        except ValueError as error:
            raise IsolationError(f"answered with what is no message: {error}") from None

    def kill(self) -> None:
        self.pipe.close()
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)


class IsolatedPolicy:
    """Stands in for a policy that decides in a child process without credentials.

    A decision that misses the deadline, or an answer that breaks the rules, costs the child its
    life; a new one is started in the background, without the state of the old one. While it starts,
    :meth:`decide` raises. A policy that merely raises keeps its process and its state.

    The child dies with the thread that started it: start policies from the broker's main thread.
    """

    def __init__(
        self,
        target: str,
        options: Mapping[str, Any] | None = None,
        *,
        deadline: float = 0.05,
        memory: int = 256 << 20,
        wait: float | None = 10.0,
    ) -> None:
        """Start ``module:class`` with *options*, and :meth:`wait` for it unless that is None.

        *deadline* is in seconds a decision, *memory* in bytes of address space.
        """
        self.target = target
        self.topics: tuple[str, ...] = ()
        self.restarts = 0
        self._setup = (os.getpid(), target, dict(options or {}), [entry for entry in sys.path if entry], memory)
        self._deadline = deadline
        self._codec = EventCodec(FROM_BROKER)
        try:
            self._child = _Child(self._setup)
        except (TypeError, ValueError, OverflowError, OSError) as error:
            raise IsolationError(f"cannot be started in a process: {error}") from None
        if wait is not None:
            self.wait(wait)

    @property
    def pid(self) -> int:
        """Process id of the present child, for operators."""
        return self._child.process.pid

    def decide(self, event: Event, host: Host) -> Iterable[Action]:
        """Ask the child; raises :exc:`IsolationError` at the latest one deadline later."""
        return self.decide_within(event, host, self._deadline)

    def decide_within(self, event: Event, host: Host, seconds: float) -> Iterable[Action]:
        """Ask the child; raises :exc:`IsolationError` after *seconds* or one deadline, whichever is sooner."""
        deadline = min(seconds, self._deadline)
        if not self._child.ready:
            self._resume()
        try:
            return self._ask(event, host, deadline)
        except TimeoutError:
            self._replace()
            raise IsolationError(f"did not answer within {deadline:.3g} s; its process is replaced") from None
        except OSError as error:
            self._replace()
            raise IsolationError(f"its process is gone ({error.strerror or error}); it is replaced") from None

    def wait(self, seconds: float) -> None:
        """Return when the policy is ready and :attr:`topics` are known; may be called in another thread.

        Raises :exc:`IsolationError` when it cannot be imported, made or confined in time; it is closed then.
        """
        try:
            self.topics = self._greet(seconds)
        except TimeoutError:
            self.close()
            raise IsolationError(f"{self.target} was not ready within {seconds:g} s") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the child; idempotent."""
        self._child.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, event: Event, host: Host, deadline: float) -> Iterable[Action]:
        child = self._child
        child.number += 1
        picture = None if host is child.host else plain(host)
        until = time.monotonic() + deadline
        child.send(pack((child.number, self._codec.encode(event), picture)), deadline)
        child.host = host
        try:
            answer = child.receive(max(until - time.monotonic(), 1e-6))
        except IsolationError:
            self._replace()
            raise
        if child.number % _EXTEND_EVERY == 0:
            self._extend()
        match answer:
            case ("done", child.number, actions):
                try:
                    decision: tuple[Action, ...] = build(tuple[Action, ...], actions)
                except Invalid as error:
                    raise IsolationError(f"answered with what is no action: {error}") from None
                return decision
            case ("failed", child.number, str(reason)):
                raise IsolationError(reason)
            case _:
                self._replace()
                raise IsolationError("answered what it was not asked; its process is replaced")

    def _greet(self, seconds: float) -> tuple[str, ...]:
        """Return the topics that the child wants, once it is ready."""
        match self._child.receive(seconds):
            case ("ready", topics) if isinstance(topics, tuple):
                self._child.ready = True
                return cast("tuple[str, ...]", topics)  # Broker checks what is in it
            case ("refused", str(reason)):
                raise IsolationError(f"cannot start: {reason}")
            case _:
                raise IsolationError("its topics are no tuple of topic prefixes")

    def _resume(self) -> None:
        """Go on with a replaced child if it is ready by now."""
        try:
            self._greet(1e-6)
        except (TimeoutError, BlockingIOError):
            raise IsolationError("is being started again") from None
        except (IsolationError, OSError):
            self._replace()
            raise

    def _replace(self) -> None:
        self._child.kill()
        self._child = _Child(self._setup)
        self.restarts += 1

    def _extend(self) -> None:
        """Grant processor time to a child that answers: the limit is for one whose broker hangs."""
        with suppress(OSError, ValueError):
            used = _cpu_seconds(self.pid)
            resource.prlimit(self.pid, resource.RLIMIT_CPU, (used + CPU_SECONDS, resource.RLIM_INFINITY))


def _cpu_seconds(pid: int) -> int:
    """Return the processor time that *pid* has used, rounded up."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) // os.sysconf("SC_CLK_TCK") + 1
