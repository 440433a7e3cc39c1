"""Whatever the network does: exactly once with a handoff, at least once and marked without."""

from __future__ import annotations

import inspect
import sys
import types
from pathlib import Path

import pytest

from mchannel.reader import Reader
from mchannel.session import Session
from mchannel.transport import Delivery
from mchannel.writer import Writer
from tests.crash.points import WHOLE
from tests.unit.session_walks import fewest, outcome, walks


@pytest.mark.timeout(3600 if WHOLE else 120)
@pytest.mark.parametrize("delivery", Delivery)
def test_nothing_is_lost_invented_reordered_or_repeated_without_a_mark(delivery: Delivery) -> None:
    for walk in walks(200_000 if WHOLE else 1_000):
        if outcome(walk, delivery) is not None:
            short = fewest(walk, lambda steps: outcome(steps, delivery) is not None)
            pytest.fail("\n".join([f"{outcome(short, delivery)!r} after", *map(str, short)]))


MUTANTS = {
    "acknowledges what was received": (
        Reader,
        "self.acked, self.told = self.done, self.taken",
        "self.done = self.expected - 1; self.acked, self.told = self.done, self.taken",
    ),
    "forgets what was received": (
        Session,
        "self._open(frame.ack, hello.received, now)",
        "self._open(hello.received, hello.received, now)",
    ),
    "hears every epoch": (Session, "if self._shaken and frame.epoch == self.epoch", "if self._shaken"),
    "hears messages before the handshake": (Session, "if found is None or not self._shaken:", "if found is None:"),
    "overlooks what a message acknowledges": (Session, "if ack >= self.writer.base or", "if ack > self.writer.base or"),
    "looks for the message after the next": (
        Session,
        "self.epoch, reader.expected)",
        "self.epoch, reader.expected + 1)",
    ),
    "looks for messages of the epoch before": (
        Session,
        "self.epoch, reader.expected)",
        "self.epoch - 1, reader.expected)",
    ),
    "takes a message twice": (
        Session,
        "if number + len(payloads) <= reader.expected:",
        "if number + len(payloads) < reader.expected:",
    ),
    "takes again what comes with something new": (
        Reader,
        "payloads = payloads[self.expected - number :]",
        "pass",
    ),
    "replays nothing": (Session, "self._data_of_many(*writer.after(max(received, self._ahead)))", "pass"),
    "thinks that more went with HELLO than did": (
        Session,
        "self._ahead = first + len(batch) - 1",
        "self._ahead = first + len(batch)",
    ),
    "thinks that more followed HELLO than did": (Session, "self._ahead += count", "self._ahead += count + 1"),
    "replays one less": (Writer, "skip = max(0, number - self.base + 1)", "skip = max(0, number - self.base + 2)"),
    "marks nothing": (Session, "self.reader.begin(hello.base, hello.sent)", "self.reader.begin(hello.base, 0)"),
    "marks what is held only": (
        Session,
        "self.reader.begin(hello.base, hello.sent)",
        "self.reader.begin(hello.base, hello.base)",
    ),
    "marks all but the last": (Reader, "number <= self.unsure", "number < self.unsure"),
    "counts on from the wrong number": (Writer, "self.base = received + 1", "self.base = received"),
    "counts on to the wrong number": (Writer, "self.last = received + len(self.unacked)", "pass"),
    "does not count on": (
        Session,
        "self.writer.count_on(hello.received, dict(hello.authors).get(self.author))",
        "pass",
    ),
    "hands over what was received as done": (
        Session,
        "(reader.done, base, kept",
        "(reader.expected - 1, base, kept",
    ),
    "hands over nothing unacknowledged": (
        Session,
        "kept, reader = tuple(self.writer.unacked), self.reader",
        "kept, reader = (), self.reader",
    ),
    "forgets the doubts at a handoff": (Session, "Reader(found.received, found.unsure)", "Reader(found.received)"),
    "overlooks a gap": (
        Session,
        "elif number > reader.expected and not self._complete(number - 1, now):",
        "elif False:",
    ),
    "overlooks that the last was lost": (
        Session,
        "        if number < self.reader.expected:\n            return True",
        "        if True:\n            return True",
    ),
    "ignores the window": (Writer, "if size > window and", "if False and"),
    "knows no window but its own": (Session, "self.writer.share(frame.ack, terms)", "pass"),
    "counts empty messages as nothing": (
        Writer,
        "size = self.size + len(payload) + OVERHEAD",
        "size = self.size + len(payload)",
    ),
    "counts a batch by its first": (
        Session,
        "max(self.writer.sent, first + len(batch) - 1)",
        "max(self.writer.sent, first)",
    ),
    "tries a handshake once": (Session, "if self._retry_due is not None and now >= self._retry_due:", "if False:"),
    "never acknowledges by the clock": (Session, "elif now >= self._ack_due:", "elif False:"),
    "stays suspended for ever": (
        Session,
        "self._suspend_until = now + timeout",
        "self._suspend_until = None",
    ),
}


def _mutant(part: type, old: str, new: str) -> types.ModuleType:
    """Return the session's module with *new* instead of *old* in the file that defines *part*."""
    path = Path(inspect.getfile(part))
    source = path.read_text(encoding="utf-8")
    assert source.count(old) >= 1, f"{path.name} has no {old!r} any more; plant this bug anew"
    module = _module(path, source.replace(old, new))
    if part is Session:
        return module
    session = Path(inspect.getfile(Session))
    whole = _module(session, session.read_text(encoding="utf-8"))
    setattr(whole, part.__name__, getattr(module, part.__name__))
    return whole


def _module(path: Path, source: str) -> types.ModuleType:
    module = types.ModuleType(f"{path.stem}_mutant")
    sys.modules[module.__name__] = module
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("bug", MUTANTS)
def test_a_planted_bug_is_found(bug: str) -> None:
    mutant = _mutant(*MUTANTS[bug])
    assert any(outcome(walk, delivery, mutant) is not None for walk in walks(5_000) for delivery in Delivery)
