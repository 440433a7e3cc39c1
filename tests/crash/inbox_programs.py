"""What a durable channel promises, as a program and its checks; and the same with bugs planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mchannel.durable import DurableLink
from mchannel.inbox import Inbox, Recorded
from mchannel.transport import Peer

from .points import Ack, Program

__all__ = ["BUGS", "check", "check_power_cut", "program"]

SESSION = b"s" * 16
LAST = 7


class Wire:
    """The peer, and the link to it: it sends again what was not acknowledged."""

    peer = Peer("web1", "memory:///web1")
    session = SESSION

    def __init__(self, start: int, ack: Ack) -> None:
        self.number = start
        self.redelivered = start > 0
        self._ack = ack

    def recv(self) -> bytes | None:
        self.done()
        if self.number == LAST:
            return None
        self.number += 1
        return b"%d" % self.number

    def done(self) -> None:
        if self.number:
            self._ack(f"peer {self.number}")


def program(link_of: type[DurableLink] = DurableLink, inbox_of: type[Inbox] = Inbox) -> Program:
    """Return the program that receives all messages and says what it did with each."""

    def run(folder: Path, ack: Ack) -> None:
        inbox = inbox_of(folder / "log")
        wire: Any = Wire(0, ack)
        link = link_of(wire, inbox)
        while (payload := link.recv()) is not None:
            ack(f"seen {payload.decode()}")
            if payload == b"4":
                inbox._compact()  # pyright: ignore[reportPrivateUsage]
                ack("compacted")
            ack(f"finishing {payload.decode()}")
        inbox.close()

    return run


def _check(inbox_of: type[Inbox], folder: Path, acked: Sequence[str], *, power_cut: bool) -> None:
    told = [line.split() for line in acked if " " in line]
    finishing = max((int(number) for verb, number in told if verb == "finishing"), default=0)
    seen = max((int(number) for verb, number in told if verb == "seen"), default=0)
    confirmed = max((int(number) for verb, number in told if verb == "peer"), default=0)
    inbox = inbox_of(folder / "log")
    wire: Any = Wire(confirmed, lambda _: None)
    link = DurableLink(wire, inbox, inbox.backlog)
    again: list[int] = []
    while (payload := link.recv()) is not None:
        again.append(int(payload))
        assert link.redelivered or int(payload) > seen, f"{payload!r} came again without a mark"
    inbox.close()
    first = again[0] if again else LAST + 1
    assert again == list(range(first, LAST + 1)), f"after {acked} came {again}"
    assert first <= finishing + 1, f"lost {finishing + 1} to {first - 1}"
    assert power_cut or first >= seen, f"{first} was finished, and came again"
    reopened = Inbox(folder / "log")
    assert not reopened.backlog, "it was finished, and is pending"
    assert not reopened.record(Recorded(SESSION, LAST, Wire.peer, b"replayed")), "it was recorded twice"
    reopened.close()


def check(inbox_of: type[Inbox] = Inbox) -> Callable[[Path, Sequence[str]], None]:
    """Return the check after a kill."""
    return lambda folder, acked: _check(inbox_of, folder, acked, power_cut=False)


def check_power_cut(inbox_of: type[Inbox] = Inbox) -> Callable[[Path, Sequence[str]], None]:
    """Return the check after a power cut: marks that were not synced may be gone."""
    return lambda folder, acked: _check(inbox_of, folder, acked, power_cut=True)


class AcknowledgesFirst(DurableLink):
    """Tells the peer before the message is on disk."""

    def recv(self) -> bytes | None:
        self.done()
        payload = self._link.recv()
        if payload is not None:
            self._link.done()
            message = Recorded(self.session, self._link.number, self.peer, payload)
            self._inbox.record(message)
            self._hand_out(message, redelivered=False)
        return payload


class NeverSyncs(Inbox):
    """Leaves messages to the page cache."""

    def record(self, message: Recorded) -> bool:
        fresh = message.number > self._highest.get(message.session, 0)
        if fresh:
            self._journal.append(message.encode(), sync=False)
            self._pending[message.session, message.number] = message
            self._reach(message.session, message.number)
        return fresh


class ForgetsNumbers(Inbox):
    """Does not recognise what is replayed."""

    def _reach(self, session: bytes, number: int) -> None:
        pass


class CompactsPendingAway(Inbox):
    """Keeps the numbers and drops the messages."""

    def _compact(self) -> None:
        self._journal.rewrite(())


BUGS = (AcknowledgesFirst, NeverSyncs, ForgetsNumbers, CompactsPendingAway)
