"""The management VM's end of a virtio port: the UNIX socket of a domain."""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

import mchannel
from mchannel.address import Address
from mchannel.errors import AddressError, ChannelBroken
from mchannel.frame import Frame, Kind
from mchannel.transport import Options, Transport
from mchannel.transports import domain
from mchannel.transports.stream import BEGIN, EVERYBODY, READY, Demultiplexer, Key, Multiplexer
from tests.unit.virtio_world import wakeups

UUID = "aaaaaaaa-0000-4000-8000-000000000001"
SOON = 10.0
LIMITS = Options(max_message=10_000, window=100_000)


class Raw:
    """A hypervisor whose guest sends what it likes."""

    def __init__(self, path: Path, name: str = UUID, options: Options = LIMITS) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(os.fspath(path))
        self.listener.listen(1)
        self.acceptor = domain.listen(Address.parse(f"virtio://{path}?domain={name}"), options)
        self.wire, _ = self.listener.accept()
        self.wire.settimeout(SOON)
        self.mux = Multiplexer()
        self.demux = Demultiplexer(1 << 20, 64)

    def say(self, key: Key, frame: bytes) -> None:
        self.mux.put(key, frame)
        self.wire.sendall(self.mux.take(1 << 62))
        self.pump()

    def pump(self, seconds: float = 0.0) -> None:
        late = time.monotonic() + seconds
        while select.select([self.acceptor.port], [], [], max(0.0, late - time.monotonic()))[0]:
            self.acceptor.port.pump()

    def heard(self) -> list[tuple[Key, bytes]]:
        self.pump()
        self.wire.setblocking(False)
        found: list[tuple[Key, bytes]] = []
        with suppress(BlockingIOError):
            while data := self.wire.recv(1 << 16):
                found += self.demux.feed(data)
                self.pump()
        self.wire.settimeout(SOON)
        return found

    def meet_again(self) -> None:
        """Let the broker connect anew."""
        late = time.monotonic() + SOON
        while not select.select([self.listener], [], [], 0)[0]:
            assert time.monotonic() < late, "it did not connect"
            self.pump(0.01)
        self.wire, _ = self.listener.accept()
        self.demux.begin()

    def accepted(self) -> Transport:
        found = self.acceptor.accept()
        assert found is not None
        return found

    def close(self) -> None:
        self.acceptor.close()
        self.wire.close()
        self.listener.close()


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Raw]:
    found = Raw(tmp_path / "raw")
    yield found
    found.close()


KEY = Key(b"abcd", "sla")


def test_a_connection_begins_with_a_word_to_everybody_and_a_guest_that_begins_is_answered(raw: Raw) -> None:
    assert raw.heard() == [(EVERYBODY, BEGIN)]
    raw.say(EVERYBODY, BEGIN)
    assert raw.heard() == [(EVERYBODY, READY)]


def test_answers_to_a_guest_that_begins_all_the_time_fill_no_memory(raw: Raw) -> None:
    mux = Multiplexer()
    for _ in range(1000):
        mux.say(BEGIN)
    raw.wire.sendall(mux.take(1 << 62))
    assert len(raw.heard()) < 20


def test_a_guest_that_begins_anew_ends_the_streams_of_before(raw: Raw) -> None:
    raw.say(KEY, b"of a process that died")
    before = raw.accepted()
    raw.say(EVERYBODY, BEGIN)
    raw.say(KEY, b"of another")
    assert before.recv() == b"of a process that died"
    with pytest.raises(ChannelBroken):
        before.recv()
    assert raw.accepted().recv() == b"of another"


def test_a_stream_that_its_agent_ends_breaks_after_what_it_carried(raw: Raw) -> None:
    raw.say(KEY, b"last words")
    raw.say(KEY, b"")
    stream = raw.accepted()
    assert stream.recv() == b"last words"
    with pytest.raises(ChannelBroken):
        stream.recv()
    with pytest.raises(ChannelBroken):
        stream.send(b"")


def test_what_was_read_before_the_domain_left_is_delivered(raw: Raw) -> None:
    raw.say(KEY, b"first")
    stream = raw.accepted()
    raw.mux.put(KEY, b"x" * 9000)
    raw.wire.sendall(raw.mux.take(1 << 62))
    raw.wire.close()
    raw.pump()
    assert [stream.recv(), stream.recv()] == [b"first", b"x" * 9000]
    with pytest.raises(ChannelBroken):
        stream.recv()


def test_a_domain_that_comes_back_is_connected_to_again(raw: Raw) -> None:
    raw.wire.close()
    raw.meet_again()
    assert raw.heard() == [(EVERYBODY, BEGIN)]
    raw.say(KEY, b"back")
    assert raw.accepted().recv() == b"back"


def test_what_a_guest_goes_on_with_before_it_hears_the_new_host_is_not_answered(raw: Raw) -> None:
    raw.say(KEY, Frame(Kind.DATA, 7, number=3, body=b"for the host before").encode())
    assert raw.acceptor.accept() is None
    raw.say(KEY, Frame(Kind.HELLO, 8).encode())
    assert raw.accepted().recv() == Frame(Kind.HELLO, 8).encode()


def test_a_guest_that_goes_on_as_if_it_had_not_heard_the_new_host_is_met(raw: Raw) -> None:
    frame = Frame(Kind.DATA, 7, number=3).encode()
    raw.say(KEY, frame)
    time.sleep(0.6)
    raw.say(KEY, frame)
    assert raw.accepted().recv() == frame


def test_a_guest_that_stays_silent_is_connected_to_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "_SILENCE", 0.05)
    silent = Raw(tmp_path / "silent")
    with silent.wire:
        silent.meet_again()
    silent.close()


def test_a_guest_that_spoke_keeps_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "_SILENCE", 0.05)
    speaking = Raw(tmp_path / "speaking")
    speaking.say(KEY, b"here")
    speaking.pump(0.2)
    speaking.listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        speaking.listener.accept()
    speaking.close()


def test_a_guest_that_spoke_is_not_waited_for_as_long_as_one_that_was_silent_for_long(
    raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.acceptor._silence = 60.0  # pyright: ignore[reportPrivateUsage] - after many silences
    monkeypatch.setattr(domain, "_SILENCE", 0.05)
    raw.say(KEY, b"here")
    raw.wire.close()
    raw.listener.setblocking(False)
    late = time.monotonic() + SOON
    with ExitStack() as connections:
        for _ in range(2):  # the first stays silent
            while not select.select([raw.listener], [], [], 0)[0]:
                assert time.monotonic() < late
                raw.pump(0.01)
            connections.enter_context(raw.listener.accept()[0])


def test_what_waited_for_a_domain_that_left_is_not_sent_to_it_when_it_is_back(raw: Raw) -> None:
    raw.say(KEY, b"hello")
    stream = raw.accepted()
    while stream.send(bytes(9000)):
        pass
    raw.wire.close()
    raw.meet_again()
    assert raw.heard() == [(EVERYBODY, BEGIN)]
    assert raw.demux.garbage == 0


def test_a_domain_that_is_not_there_is_tried_ever_more_rarely(tmp_path: Path) -> None:
    acceptor = domain.listen(Address.parse(f"virtio://{tmp_path}/none?domain={UUID}"), LIMITS)
    assert 2 <= wakeups(acceptor, 1.0) <= 8
    acceptor.close()
    acceptor.close()


def test_a_hypervisor_that_hangs_up_at_once_is_tried_ever_more_rarely(raw: Raw) -> None:
    raw.wire.close()
    raw.listener.setblocking(False)
    late, count = time.monotonic() + 1, 0
    while time.monotonic() < late:
        with suppress(BlockingIOError):
            raw.listener.accept()[0].close()
            count += 1
        raw.pump(0.01)
    assert 2 <= count <= 8


def test_a_socket_that_cannot_be_used_is_complained_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        wrong.bind(os.fspath(tmp_path / "wrong"))
        acceptor = domain.listen(Address.parse(f"virtio://{tmp_path}/wrong?domain={UUID}"), LIMITS)
        wakeups(acceptor, 0.3)
        acceptor.close()
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert "cannot connect to the domain's socket" in caplog.text


@pytest.mark.parametrize("noise", [b"\0", b"\xc1\xc1noise", b"\xf6\1", b"mC\1\0" * 5])
def test_a_guest_that_sends_garbage_is_held_back_with_one_line_and_others_are_not(
    noise: bytes, raw: Raw, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Raw(tmp_path / "other", "bbbbbbbb-0000-4000-8000-000000000002")
    raw.wire.setblocking(False)
    sent = 0
    late = time.monotonic() + 0.5
    while time.monotonic() < late or not caplog.records:
        with suppress(BlockingIOError):
            sent += raw.wire.send(noise * (4000 // len(noise)))
        raw.pump(0.001)
    assert sent < 1 << 20
    assert len(caplog.records) == 1
    assert UUID in caplog.text
    other.say(KEY, b"untouched")
    assert other.accepted().recv() == b"untouched"
    other.close()


def test_a_guest_that_was_held_back_is_heard_again(raw: Raw) -> None:
    raw.wire.sendall(b"\xc1" + b"x" * 100_000)
    raw.pump()
    raw.mux.put(KEY, b"sorry")
    raw.wire.sendall(raw.mux.take(1))
    raw.pump()
    assert raw.acceptor.accept() is None
    raw.pump(1.2)
    assert raw.accepted().recv() == b"sorry"


def test_a_guest_that_hangs_up_while_it_is_held_back_wakes_nobody_in_vain(raw: Raw) -> None:
    raw.wire.sendall(b"\xc1" + b"x" * 100_000)
    raw.pump()
    raw.wire.close()
    assert wakeups(raw.acceptor, 0.5) <= 1


@pytest.mark.parametrize(
    ("key", "frames"),
    [
        (EVERYBODY, [BEGIN]),
        (EVERYBODY, [Frame(Kind.DATA, 1, 1).encode()]),
        (KEY, [b""]),
        (KEY, [Frame(Kind.CALL, 1).encode()]),
        (KEY, [Frame(Kind.HELLO, epoch).encode() for epoch in range(1, 500)]),
    ],
    ids=["BEGIN", "messages to everybody", "end", "CALL", "HELLO of ever new epochs"],
)
def test_a_flood_of_control_frames_is_held_back_with_one_line(
    key: Key, frames: list[bytes], raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    mux = Multiplexer(1 << 40)
    for frame in frames * (50_000 // len(frames)):
        mux.put(key, frame)
    flood = mux.take(1 << 62)
    raw.wire.setblocking(False)
    late = time.monotonic() + 0.5
    while (time.monotonic() < late or not caplog.records) and flood:
        with suppress(BlockingIOError):
            flood = flood[raw.wire.send(flood[:4096]) :]
        raw.pump(0.001)
    assert flood, "all of it was taken"
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "the guest begins, calls and ends more often than any agent"
    ]


def test_messages_are_not_counted_as_control_frames(raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    raw.say(KEY, Frame(Kind.HELLO, 1).encode())
    stream = raw.accepted()
    heard = 0
    for number in range(1, 2500):
        raw.say(KEY, Frame(Kind.DATA, 1, number).encode())
        while stream.recv() is not None:
            heard += 1
    assert heard == 2500
    assert not caplog.records


def test_a_stream_that_nobody_reads_is_ended_when_it_floods(raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    raw.say(KEY, b"")
    for _ in range(30):
        raw.mux.put(KEY, b"x" * 9000)
        raw.wire.sendall(raw.mux.take(1 << 62))
        raw.pump()
        if caplog.records:
            break
    assert "floods" in caplog.text
    assert raw.acceptor.waiting <= 2 * (LIMITS.window + LIMITS.max_message)
    with pytest.raises(ChannelBroken):
        raw.accepted().recv()


def test_a_guest_has_a_limited_number_of_streams(raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(65):
        raw.say(Key(number.to_bytes(4, "little"), "x"), b"hello")
    assert "more than 64 streams" in caplog.text
    found = [raw.acceptor.accept() for _ in range(65)]
    assert found.count(None) == 1


def test_one_stream_too_many_takes_the_place_of_the_one_that_was_quiet_longest(raw: Raw) -> None:
    raw.say(KEY, b"hello")
    quiet = raw.accepted()
    for number in range(64):
        raw.say(Key(number.to_bytes(4, "little"), "x"), b"hello")
    with pytest.raises(ChannelBroken, match="more than 64 streams"):
        quiet.send(b"are you still there?")


def test_a_guest_that_does_not_read_is_sent_no_more_than_a_little(raw: Raw) -> None:
    raw.say(KEY, b"hello")
    stream = raw.accepted()
    news: list[None] = []
    stream.on_news = lambda: news.append(None)
    taken = 0
    while stream.send(bytes(9000)):
        taken += 9000
    assert taken < 1 << 20
    assert wakeups(raw.acceptor, 0.2) <= 1
    assert not news
    while raw.heard():
        pass
    assert news, "it was not told that there is room"
    assert stream.send(b"room again")


def test_what_was_taken_before_a_close_still_leaves(raw: Raw) -> None:
    raw.say(KEY, b"hello")
    stream = raw.accepted()
    sent = 0
    while stream.send(bytes(9000)):
        sent += 1
    raw.acceptor.close()
    found: list[tuple[Key, bytes]] = []
    while data := raw.wire.recv(1 << 16):
        found += raw.demux.feed(data)
    assert found == [(EVERYBODY, BEGIN), *[(KEY, bytes(9000))] * sent]


def test_a_stream_that_the_broker_closed_is_a_new_one_when_it_speaks_again(raw: Raw) -> None:
    raw.say(KEY, b"one")
    raw.accepted().close()
    raw.say(KEY, b"two")
    assert raw.accepted().recv() == b"two"


def test_a_frame_of_one_domain_never_comes_from_another(raw: Raw) -> None:
    """Whatever a guest sends, the peer is the domain of the address."""
    hello = Frame(Kind.HELLO, 1, body=b"bbbbbbbb-0000-4000-8000-000000000002").encode()
    raw.say(Key(b"bbbb", "domain.bbbbbbbb"), hello)
    assert raw.accepted().peer.identity == UUID


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("virtio:///org.mchannel.0?domain=" + UUID, "the whole path"),
        ("virtio://host/run/web1.sock?domain=" + UUID, "the whole path"),
        ("virtio:///run/web1.sock", "virsh domuuid"),
        ("virtio:///run/web1.sock?domain=web1", "virsh domuuid"),
        ("virtio:///run/web1.sock?domian=" + UUID, "no option"),
        ("virtio:///run/" + "x" * 110 + f"?domain={UUID}", "at most 107 bytes"),
    ],
)
def test_an_address_that_names_no_domain_is_refused(address: str, words: str) -> None:
    with pytest.raises(AddressError, match=words):
        mchannel.listen(address)
