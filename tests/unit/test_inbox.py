"""Durable channels: on disk before they are acknowledged, and recognised when they come again."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mchannel
from mchannel.address import Address
from mchannel.codec import RawCodec
from mchannel.durable import DurableLink
from mchannel.errors import ChannelTimeout, EndOfChannel, JournalError
from mchannel.inbox import Inbox, Recorded
from mchannel.journal import Journal
from mchannel.transport import Gate, Link, Options, Peer
from mchannel.transports.memory import MEMORY
from tests.unit.faces import attended

RAW = RawCodec()
SESSION = b"s" * 16
PEER = Peer("web1", "memory:///web1", name="web server")


def message(number: int) -> Recorded:
    return Recorded(SESSION, number, PEER, b"%d" % number)


def test_what_was_not_finished_comes_first_and_marked_then_what_the_peer_replays(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as threads:
        listener = mchannel.listen("memory:///durable", RAW, durable=tmp_path / "log")
        coming = threads.submit(mchannel.open, "memory:///durable", RAW)
        broker = listener.accept(timeout=5)
        agent = attended(broker, coming)
        agent.write_many([b"1", b"2", b"3"])
        assert [broker.read(timeout=5) for _ in range(2)] == [b"1", b"2"]  # the second is not finished
        listener.close()
        with mchannel.listen("memory:///durable", RAW, durable=tmp_path / "log") as successor:
            left = successor.accept(timeout=5)
            found = left.receive(timeout=5)
            assert (found.value, found.redelivered) == (b"2", True)
            assert left.session == agent.session
            with pytest.raises(EndOfChannel, match="earlier process"):
                left.read(timeout=0)
            flushing = threads.submit(agent.flush, 10)
            again = successor.accept(timeout=5)
            assert again.read(timeout=5) == b"3"
            again.done()
            flushing.result(10)
            closing = threads.submit(agent.close)
            with pytest.raises(EndOfChannel):
                again.read(timeout=5)
            closing.result(10)


def test_a_message_is_recorded_once(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "log")
    assert inbox.record(message(1))
    assert not inbox.record(message(1))
    inbox.close()
    inbox = Inbox(tmp_path / "log")
    assert inbox.backlog == (message(1),)
    assert not inbox.record(message(1))
    inbox.close()


def test_the_journal_is_compacted_and_replays_are_recognised_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mchannel.inbox._COMPACT", 500)
    inbox = Inbox(tmp_path / "log")
    for number in range(1, 51):
        inbox.record(message(number))
        if number != 7:
            inbox.done(SESSION, number)
    inbox.close()
    assert (tmp_path / "log").stat().st_size < 2000
    inbox = Inbox(tmp_path / "log")
    assert inbox.backlog == (message(7),)
    assert not inbox.record(message(50))
    inbox.close()


def test_a_finished_message_of_a_quiet_session_is_recognised_after_another_session_had_the_journal_compacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mchannel.inbox._COMPACT", 500)
    inbox = Inbox(tmp_path / "log")
    for session, count in ((b"quiet", 3), (b"busy", 50)):
        for number in range(1, count + 1):
            inbox.record(Recorded(session, number, PEER, b"payload"))
            inbox.done(session, number)
    inbox.close()
    assert (tmp_path / "log").stat().st_size < 2000
    inbox = Inbox(tmp_path / "log")
    assert inbox.backlog == ()
    for number in (1, 3):
        assert not inbox.record(Recorded(b"quiet", number, PEER, b"payload"))
    assert inbox.record(Recorded(b"quiet", 4, PEER, b"payload"))
    inbox.close()


def test_the_numbers_of_a_session_that_ended_are_forgotten(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "log")
    inbox.record(message(1))
    inbox.forget(SESSION)
    assert inbox.record(message(1))
    inbox.close()


def test_a_session_that_ended_is_forgotten(tmp_path: Path) -> None:
    where, options = Address.parse("memory:///durable"), Options()
    gate, inbox = MEMORY.bind(where, options), Inbox(tmp_path / "log")
    agent = MEMORY.dial(where, options)
    link = _accept(gate, agent)
    broker = DurableLink(link, inbox)
    agent.send(b"1")
    agent.close()
    assert broker.recv() == b"1"
    with pytest.raises(EndOfChannel):
        broker.recv()
    assert inbox.record(Recorded(link.session, 1, PEER, b"1")), "the number is remembered"
    broker.close()
    inbox.close()
    gate.close()


def _accept(gate: Gate, agent: Link) -> Link:
    late = time.monotonic() + 10
    while time.monotonic() < late:
        gate.port.pump()
        agent.port.pump()
        agent.tick(time.monotonic())
        if (link := gate.accept()) is not None:
            return link
    raise AssertionError("nobody came")


def test_what_is_marked_after_the_end_comes_again(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "log")
    inbox.record(message(1))
    inbox.close()
    inbox.done(SESSION, 1)
    inbox = Inbox(tmp_path / "log")
    assert inbox.backlog == (message(1),)
    inbox.close()


@pytest.mark.parametrize("record", [b"garbage", b"\x92\x01\x02", b"\x90"])
def test_another_journal_is_refused(record: bytes, tmp_path: Path) -> None:
    with Journal.open(tmp_path / "log") as journal:
        journal.append(record)
    with pytest.raises(JournalError, match="move it away"):
        Inbox(tmp_path / "log")
    with Journal.open(tmp_path / "log"):
        pass  # its lock is free again


def test_messages_longer_than_a_record_are_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="durable"):
        mchannel.listen("memory:///durable", durable=tmp_path / "log", max_message=1 << 24)


@pytest.mark.parametrize("address", ["memory:///refused", "shm:///refused"])
def test_a_message_that_the_disk_refuses_is_neither_lost_nor_acknowledged(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path / "run"))
    with (
        mchannel.listen(address, RawCodec(), durable=tmp_path / "journal") as listener,
        ThreadPoolExecutor() as threads,
    ):
        opening = threads.submit(mchannel.open, address, RawCodec())
        broker = listener.accept(timeout=10)
        agent = attended(broker, opening)
        agent.write(b"one")
        with monkeypatch.context() as broken:
            broken.setattr(Inbox, "record", _refuse)
            for _ in range(2):
                with pytest.raises(JournalError):
                    broker.read(timeout=5)
            with pytest.raises(ChannelTimeout):
                agent.flush(timeout=0.2)
        assert broker.read(timeout=5) == b"one"
        agent.flush(timeout=5)  # it is on disk now
        agent.write(b"two")
        assert broker.read(timeout=5) == b"two"
        broker.done()
        agent.close()
        broker.close()


@pytest.mark.parametrize("address", ["memory:///refused", "shm:///refused"])
def test_a_channel_that_closes_with_a_message_that_the_disk_refuses_leaves_it_to_its_successor(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path / "run"))
    with ThreadPoolExecutor() as threads:
        with mchannel.listen(address, RAW, durable=tmp_path / "journal") as listener:
            opening = threads.submit(mchannel.open, address, RAW)
            broker = listener.accept(timeout=10)
            agent = attended(broker, opening)
            agent.write(b"kept by its sender")
            with monkeypatch.context() as broken:
                broken.setattr(Inbox, "record", _refuse)
                with pytest.raises(JournalError):
                    broker.read(timeout=5)
                broker.close()
            with pytest.raises(ChannelTimeout):
                agent.read(timeout=0.1)  # there is no goodbye
        with mchannel.listen(address, RAW, durable=tmp_path / "journal") as listener:
            flushing = threads.submit(agent.flush, 10)
            successor = listener.accept(timeout=10)
            assert successor.read(timeout=10) == b"kept by its sender"
            successor.done()
            flushing.result()
            agent.close()


@pytest.mark.parametrize("address", ["memory:///refused", "shm:///refused"])
def test_a_channel_is_not_suspended_while_the_disk_refuses_a_message(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path / "run"))
    with (
        mchannel.listen(address, RAW, durable=tmp_path / "journal") as listener,
        ThreadPoolExecutor() as threads,
    ):
        opening = threads.submit(mchannel.open, address, RAW)
        broker = listener.accept(timeout=10)
        agent = attended(broker, opening)
        agent.write(b"one")
        with monkeypatch.context() as broken:
            broken.setattr(Inbox, "record", _refuse)
            with pytest.raises(JournalError):
                broker.read(timeout=5)
            with pytest.raises(JournalError):
                broker.suspend(timeout=0.2)
        closing = threads.submit(agent.close)
        assert list(broker) == [b"one"]
        closing.result()


def _refuse(*_: object) -> bool:
    raise JournalError("no space left on device")
