"""Shared memory that comes and goes beside a virtio port, under traffic."""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mchannel
from mchannel.codec import RawCodec
from mchannel.errors import AddressError, ChannelTimeout, ProtocolError
from mchannel.transports.lanewords import LABEL, Go, Leave, Left, Offer, Ring, Take, Want, decode
from mchannel.transports.slot import NONCE, SIZE, Place, Slot, find
from tests.unit.lane_world import SLOW, SOON, UUID, Device, World, guest_end, make


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from make(tmp_path)


def test_a_channel_goes_through_memory_once_there_is_some_and_through_the_port_before(world: World) -> None:
    world.turn()
    assert not world.sharing()
    world.plug()
    world.until(world.sharing)
    for _ in range(20):
        world.turn()
    assert world.sharing()
    assert world.exact()


def test_a_broker_sees_the_same_domain_and_stream_whichever_way_it_comes(world: World) -> None:
    before = world.broker.peer
    world.plug()
    world.until(world.sharing)
    assert world.broker.peer == before
    assert before.identity == UUID
    assert before.address.endswith("stream=sla")


def test_a_guest_unmaps_before_it_says_that_it_left(world: World) -> None:
    world.plug()
    world.until(world.sharing)
    memory = str(world.device.memory)
    assert memory in Path("/proc/self/maps").read_text()
    world.unplug()
    assert memory not in Path("/proc/self/maps").read_text()
    assert not world.gate.sharing
    world.turn()
    assert world.exact()


@pytest.mark.parametrize(("guest", "host"), [("ivshmem", "virtio"), ("virtio", "ivshmem")])
def test_ends_of_which_one_knows_only_the_port_talk_through_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, guest: str, host: str
) -> None:
    for world in make(tmp_path, guest=guest, host=host):
        for _ in range(10):
            world.turn()
        if host == "ivshmem":
            world.plug()
            for _ in range(10):
                world.turn()
            assert not world.gate.sharing
            world.unplug()
        assert world.listener.gate.accept() is None
        assert world.broker.peer.address.endswith("stream=sla")
        assert world.exact()
    assert not caplog.records


def test_a_guest_in_memory_goes_on_through_the_port_when_the_next_broker_knows_none(world: World) -> None:
    world.plug()
    world.until(world.sharing)
    assert world.exact()
    sessions = world.listener.hand_over()
    where = f"virtio://{world.hypervisor.path}?domain={UUID}"
    with mchannel.listen(where, RawCodec(), heartbeat=SLOW) as successor, ThreadPoolExecutor(1) as pool:
        for session in sessions:
            successor.adopt(session)
        accepting = pool.submit(successor.accept, SOON)
        while not accepting.done():
            with suppress(ChannelTimeout):
                world.agent.read(timeout=0.05)
        world.broker = accepting.result()
        world.turn()
        assert not guest_end(world.agent).sharing
        assert world.exact()


def test_who_waits_for_an_agent_that_can_use_memory_is_told_once_there_is_one(world: World) -> None:
    told: list[bool] = []
    world.gate.when_wanted(lambda: told.append(True))
    world.until(lambda: told == [True])
    world.gate.when_wanted(lambda: told.append(True))
    assert told == [True, True]
    for _ in range(10):
        world.turn()
    assert told == [True, True]


def test_an_agent_that_knows_only_the_port_wants_no_memory(tmp_path: Path) -> None:
    for world in make(tmp_path, guest="virtio"):
        world.gate.when_wanted(lambda: pytest.fail("it cannot use it"))
        for _ in range(10):
            world.turn()


def test_who_waits_for_a_vacant_memory_is_told_at_once_when_nobody_uses_it(world: World) -> None:
    told: list[bool] = []
    world.gate.quiesce(lambda: told.append(True))
    assert told == [True]


@given(st.lists(st.sampled_from(["plug", "unplug", "pull", "say 1", "say 5"]), max_size=12))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_is_lost_or_repeated_however_memory_comes_and_goes(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for world in make(Path(folder)):
            for step in steps:
                if step == "plug":
                    world.plug()
                elif step == "unplug":
                    world.unplug()
                elif step == "pull":  # the guest did not answer in time
                    world.gate.unplug()
                    world.device.unplug()
                else:
                    for _ in range(int(step[4:])):
                        world.turn()
            assert world.exact()


def test_a_guest_that_does_not_answer_loses_nothing_when_the_memory_is_taken_away(world: World) -> None:
    world.plug()
    world.until(world.sharing)
    world.agent.write(b"%d" % world.told)  # lies in the ring, or waits in the session
    world.broker.write(b"%d" % world.told)
    world.told += 1
    world.gate.quiesce(lambda: pytest.fail("the guest did not say so"))
    world.gate.unplug()
    world.device.unplug()
    world.turn()
    assert world.exact()


def test_a_ring_that_became_other_memory_is_used_no_more(world: World) -> None:
    """What is plugged in next may lie where the old memory did, and a guest that slept may still have that mapped."""
    world.plug()
    world.until(world.sharing)
    memory = world.device.memory
    world.gate.unplug()
    world.gate.plug(memory)  # the same pages
    world.until(world.sharing)
    for _ in range(20):
        world.turn()
    assert world.exact()


def test_what_is_written_into_memory_that_was_given_up_never_arrives(world: World) -> None:
    world.plug()
    world.until(world.sharing)
    fd = os.open(world.device.memory, os.O_RDWR)
    old = mmap.mmap(fd, 0)
    os.close(fd)
    world.unplug()
    old[:] = secrets.token_bytes(64) * (len(old) // 64)
    world.plug()
    world.until(world.sharing)
    old[:] = bytes(len(old))
    for _ in range(20):
        world.turn()
    assert world.exact()
    assert world.sharing()


GUARD, TAILS = 0, (mmap.PAGESIZE + 128, mmap.PAGESIZE + 640)


@pytest.mark.parametrize("offset", [GUARD, *TAILS])
def test_an_end_that_finds_the_rules_broken_is_back_at_the_port(world: World, offset: int) -> None:
    world.plug()
    world.until(world.sharing)
    fd = os.open(world.device.memory, os.O_RDWR)
    with mmap.mmap(fd, 0) as memory:
        os.close(fd)
        memory[offset : offset + 8] = b"\xff" * 8
        world.listen()
        world.until(lambda: not world.gate.sharing)
    world.turn()
    assert world.exact()


def test_a_guest_without_the_device_says_so_and_stays_at_the_port(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mchannel.transports.laneguest._SEARCH", 0.1)
    memory = world.device.plug()
    world.device.unplug()
    with caplog.at_level(logging.WARNING):
        world.gate.plug(memory)
        world.until(lambda: "no device has it" in caplog.text)
    world.unplug()
    assert world.exact()


def test_a_foreign_device_is_not_taken(tmp_path: Path) -> None:
    device = Device(tmp_path)
    place = Place(secrets.token_bytes(NONCE), 0)
    assert find(device.devices, place) is None
    fd = os.open(device.memory, os.O_RDWR)
    slot = Slot.make(fd, place)
    os.close(fd)
    found = find(device.devices, place)
    assert found is not None
    assert found.current
    assert find(device.devices, attrs.evolve(place, nonce=secrets.token_bytes(NONCE))) is None
    assert (device.path / "enable").read_text() == "1"
    for each in (slot, found):
        each.close()
        assert not each.current


def test_a_guest_looks_for_memory_only_where_there_can_be_some(tmp_path: Path) -> None:
    device = Device(tmp_path, slots=1)
    assert find(device.devices, Place(bytes(NONCE), SIZE)) is None
    for place in (
        (b"short", 0, SIZE),
        (bytes(NONCE), 1, SIZE),
        (bytes(NONCE), -4096, SIZE),
        (bytes(NONCE), 0, 1 << 40),
    ):
        with pytest.raises(ProtocolError):
            Place(*place)


@pytest.mark.parametrize("size", [0, SIZE - mmap.PAGESIZE, SIZE + 1])
def test_memory_of_a_size_that_cannot_be_is_refused(world: World, tmp_path: Path, size: int) -> None:
    (tmp_path / "odd").write_bytes(bytes(size))
    with pytest.raises(AddressError, match="whole pages"):
        world.gate.plug(tmp_path / "odd")
    with pytest.raises(AddressError, match="cannot be opened"):
        world.gate.plug(tmp_path / "nothing")


@pytest.mark.parametrize(
    "word",
    [
        Want("sla"),
        Offer(Place(bytes(NONCE), 4096)),
        Take(bytes(NONCE)),
        Go(bytes(NONCE)),
        Leave(bytes(NONCE)),
        Left(bytes(NONCE)),
        Ring(),
    ],
)
def test_a_word_is_understood_as_it_was_said(word: Want | Offer | Take | Go | Leave | Left | Ring) -> None:
    assert decode(word.encode()) == word


@given(st.binary(max_size=64))
def test_what_is_no_word_is_a_protocol_error_and_nothing_else(data: bytes) -> None:
    with suppress(ProtocolError):
        decode(data)


def test_a_stream_cannot_be_called_like_those_of_the_words(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="dot"):
        mchannel.open(f"ivshmem://{tmp_path}/port?stream={LABEL}", RawCodec())
