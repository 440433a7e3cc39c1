"""``xen://`` over a hypervisor in this process, which keeps the rules that matter: see xen_world."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap
from pathlib import Path
from typing import NoReturn

import attrs
import pytest

import mchannel
from mchannel import Channel, Listener, RawCodec
from mchannel.address import Address
from mchannel.errors import AddressError, ChannelTimeout, ProtocolError
from mchannel.transport import State, find_scheme
from mchannel.transports import xen, xenlib
from mchannel.transports.xen import Offer
from mchannel.transports.xenguest import GuestWire
from mchannel.transports.xenhost import HostDoor
from tests.unit.faces import attended
from tests.unit.xen_world import UUID, Guest, World

OTHER = "6f1c2d3e-0000-4000-8000-000000000008"
SOON = 10.0


@attrs.define(eq=False)
class Bed:
    """A guest, domain 0, and a channel between them."""

    world: World
    guest: Guest
    host: Guest
    listener: Listener[bytes]
    agent: Channel[bytes]
    broker: Channel[bytes]
    said: int = 0
    read: list[bytes] = attrs.Factory(list[bytes])

    def heard(self, channel: Channel[bytes], timeout: float = 0.01) -> bytes | None:
        try:
            message = channel.read(timeout=timeout)
        except ChannelTimeout:
            return None
        channel.done()
        return message

    def run(self, rounds: int = 10) -> list[bytes]:
        """Let both ends do what they have to, and return what the broker has read so far."""
        for _ in range(rounds):
            self.read += [message for message in (self.heard(self.broker),) if message is not None]
            self.heard(self.agent)
        return self.read

    def talk(self) -> None:
        """A message goes either way; nothing that was read comes again."""
        self.said += 1
        word = b"%d" % self.said
        self.agent.write(word, timeout=SOON)
        self.broker.write(word, timeout=SOON)
        got: list[bytes | None] = [None, None]
        for _ in range(200):
            got = [each or self.heard(end) for each, end in zip(got, (self.agent, self.broker), strict=True)]
            if None not in got:
                break
        assert got == [word, word]


def use(monkeypatch: pytest.MonkeyPatch, guest: Guest, host: Guest) -> None:
    """Let ``xen://`` mean these two."""

    def connect(address: Address, options: mchannel.Options, _: xenlib.Machine) -> GuestWire:
        return GuestWire(address, options, guest.machine)

    def listen(address: Address, options: mchannel.Options, _: xenlib.Machine) -> HostDoor:
        return HostDoor(address, options, host.machine)

    monkeypatch.setattr(xen, "GuestWire", connect)
    monkeypatch.setattr(xen, "HostDoor", listen)


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    world = World()
    guest, host = world.boot(7), Guest(world, 0)
    use(monkeypatch, guest, host)
    with mchannel.listen("xen:///mgmt", codec=RawCodec(), heartbeat=0.2) as listener:
        agent, broker = meet(listener)
        yield Bed(world, guest, host, listener, agent, broker)
        with contextlib.suppress(ChannelTimeout):
            agent.close(timeout=0)


def meet(listener: Listener[bytes], name: str = "mgmt") -> tuple[Channel[bytes], Channel[bytes]]:
    """Open a channel in the guest, which waits until it is accepted."""
    with ThreadPoolExecutor(1) as threads:
        opening = threads.submit(mchannel.open, f"xen:///{name}", RawCodec(), timeout=SOON, heartbeat=0.2)
        broker = listener.accept(timeout=SOON)
        return attended(broker, opening), broker


def offer_at(number: int, name: str = "mgmt") -> str:
    return f"/local/domain/{number}/data/mchannel/{name}/offer"


# --- the offer


def test_an_offer_is_read_as_it_was_written() -> None:
    offer = Offer(9, (8, 500, 4294967295))
    assert Offer.decode(offer.encode()) == offer


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"1", b"1 2", b"1  8", b"1 2 8 ", b"1 -2 8", b"1 0x2 8", b"\xff 2 8", b"1 2 8\x00", b"1\n2\n8"),
        *(b"0 2 8", b"2 2 8", b"1 0 8", b"1 131072 8", b"1 2 4294967296", b"1 2 8 8", b"1 2 00000000008"),
        "1 2 \u0668".encode(),
        b"1 2 " + b" ".join(b"%d" % each for each in range(257)),
        b"1" * 4096,
    ],
)
def test_an_offer_that_cannot_be_is_refused(value: bytes) -> None:
    with pytest.raises(ProtocolError):
        Offer.decode(value)


def test_a_hostile_offer_is_one_line_and_the_others_go_on(bed: Bed, caplog: pytest.LogCaptureFixture) -> None:
    bed.world.boot(8, OTHER)
    store = bed.host.machine.store()
    for value in (b"\x00\xff", b"1 9 1 2 3"):
        store.write(offer_at(8), value)
        bed.run()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert caplog.messages[0].startswith("xen://8/mgmt: refused the offer: an offer is a version, a port")
    assert caplog.messages[1] == "xen://8/mgmt: refused the offer: cannot map 3 pages of domain 8: Invalid argument"
    bed.talk()


def test_pages_without_a_ring_are_unmapped_again(bed: Bed, caplog: pytest.LogCaptureFixture) -> None:
    stranger = bed.world.boot(8, OTHER)
    pages, mapped = stranger.machine.grant(0, 41), bed.world.mapped
    bed.host.machine.store().write(offer_at(8), Offer(9, tuple(pages.references)).encode())
    bed.run()
    assert "does not begin with the header" in caplog.text
    assert bed.world.mapped == mapped


def test_a_domain_that_offers_too_often_is_not_looked_at(bed: Bed, caplog: pytest.LogCaptureFixture) -> None:
    bed.world.boot(8, OTHER)
    store = bed.host.machine.store()
    for number in range(20):
        store.write(offer_at(8), b"1 9 %d" % number)
        bed.heard(bed.broker)
    assert "offers too often" in caplog.messages[-1]
    assert sum("cannot map" in line for line in caplog.messages) < 20
    bed.talk()


# --- who it is


def test_the_peer_is_who_the_toolstack_says(bed: Bed) -> None:
    assert bed.broker.peer.identity == UUID
    assert bed.broker.peer.address == "xen://7/mgmt"


def test_a_domain_without_a_uuid_is_refused(bed: Bed, caplog: pytest.LogCaptureFixture) -> None:
    bed.world.boot(8, "what-the-guest-likes")
    bed.host.machine.store().write(offer_at(8), b"1 9 1")
    bed.run()
    assert caplog.messages == ["xen://8/mgmt: refused the offer: the toolstack gave this domain no UUID"]


@pytest.mark.parametrize("host", ["8", OTHER])
def test_a_listener_can_ask_for_one_domain(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    world = World()
    wrong, right, zero = world.boot(7), world.boot(8, OTHER), Guest(world, 0)
    use(monkeypatch, wrong, zero)
    unheard = GuestWire(Address.parse("xen:///mgmt"), mchannel.Options(), wrong.machine)
    use(monkeypatch, right, zero)
    with mchannel.listen(f"xen://{host}/mgmt", codec=RawCodec()) as listener:
        agent, broker = meet(listener)
        assert broker.peer.identity == OTHER
        assert world.mapped == 1
        agent.close(timeout=0)
    unheard.close()


# --- many channels of a domain


def test_a_listener_can_ask_for_all_names_that_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    guest, zero = world.boot(7), Guest(world, 0)
    use(monkeypatch, guest, zero)
    other = GuestWire(Address.parse("xen:///other"), mchannel.Options(), guest.machine)
    with mchannel.listen(f"xen://{UUID}/mgmt*", codec=RawCodec()) as listener:
        pairs = [meet(listener, name) for name in ("mgmt", "mgmt-sla")]
        assert [broker.peer.address for _, broker in pairs] == ["xen://7/mgmt", "xen://7/mgmt-sla"]
        assert world.mapped == 2
        for agent, _ in pairs:
            agent.close(timeout=0)
        with pytest.raises(ChannelTimeout):
            listener.accept(timeout=0.05)
        assert world.mapped == 0
    other.close()


def test_a_guest_with_more_names_than_can_be_looked_at_is_not_looked_at_further(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    guest, zero = world.boot(7), Guest(world, 0)
    use(monkeypatch, guest, zero)
    for number in range(100):
        zero.machine.store().write(offer_at(7, f"mgmt-{number}"), b"nonsense")
    with mchannel.listen("xen:///mgmt*", codec=RawCodec()) as listener, pytest.raises(ChannelTimeout):
        listener.accept(timeout=0.05)
    assert len(caplog.messages) == 64
    assert sum("offers too often" in line for line in caplog.messages) == 48


def test_a_domain_that_is_not_asked_for_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    wrong, right, zero = world.boot(7), world.boot(8, OTHER), Guest(world, 0)
    use(monkeypatch, right, zero)
    with mchannel.listen(f"xen://{OTHER}/mgmt*", codec=RawCodec()) as listener:
        with pytest.raises(ChannelTimeout):
            listener.accept(timeout=0.05)
        assert world.watched(wrong.number) == 0
        assert world.watched(right.number) == 1
        world.move(right, 9)
        agent, broker = meet(listener)
        assert broker.peer.address == "xen://9/mgmt"
        agent.close(timeout=0)


# --- moving


def quiesced(bed: Bed, hold: int = 60) -> bool:
    """Quiesce, while the agent has no thread of its own."""
    xen.quiesce(bed.guest.number, timeout=0, hold=hold, machine=bed.host.machine)
    rounds = 10
    while offer_at(bed.guest.number) in bed.world.nodes and rounds:
        bed.run(1)
        rounds -= 1
    return rounds > 0


def test_a_quiesced_agent_holds_no_event_channel(bed: Bed) -> None:
    bed.talk()
    assert quiesced(bed)
    assert bed.guest.events == []
    assert xen.quiesce(7, timeout=0, machine=bed.host.machine)


@pytest.mark.parametrize("number", [9, 7])
def test_messages_live_through_a_move_that_was_announced(bed: Bed, number: int) -> None:
    bed.talk()
    bed.agent.write(b"before")
    assert quiesced(bed)
    bed.agent.write(b"between")
    bed.world.move(bed.guest, number)
    bed.agent.write(b"after")
    assert bed.run() == [b"before", b"between", b"after"]
    bed.talk()
    assert bed.broker.peer.identity == UUID
    assert bed.world.kernel_bugs == 0


@pytest.mark.parametrize("number", [9, 7])
def test_messages_live_through_a_move_that_nobody_announced(bed: Bed, number: int) -> None:
    bed.talk()
    bed.agent.write(b"before")
    bed.world.move(bed.guest, number)
    bed.agent.write(b"after")
    assert bed.run() == [b"before", b"after"]
    bed.talk()
    bed.run()
    bed.agent.close(timeout=0)
    assert bed.world.kernel_bugs == 0


@pytest.mark.parametrize("number", [9, 7])
def test_an_agent_that_closes_before_it_notices_a_move_closes_no_dead_event_channel(bed: Bed, number: int) -> None:
    bed.talk()
    bed.world.move(bed.guest, number)
    with contextlib.suppress(ChannelTimeout):
        bed.agent.close(timeout=0)
    assert bed.world.kernel_bugs == 0


def test_a_checkpoint_changes_nothing(bed: Bed) -> None:
    bed.talk()
    offer = bed.world.nodes[offer_at(7)]
    bed.world.fire("/local/domain/7/domid")
    bed.talk()
    assert bed.world.nodes[offer_at(7)] == offer


def test_an_agent_that_was_quiesced_goes_on_when_told(bed: Bed) -> None:
    assert quiesced(bed)
    bed.agent.write(b"while it was quiet")
    xen.resume(7, machine=bed.host.machine)
    assert bed.run() == [b"while it was quiet"]
    bed.talk()


def test_an_agent_goes_on_by_itself_when_no_suspend_comes(bed: Bed) -> None:
    assert quiesced(bed, hold=2)
    bed.agent.write(b"while it was quiet")
    assert bed.run(1) == []
    late = time.monotonic() + SOON
    while not bed.run(1):
        assert time.monotonic() < late, "it stays quiet"
    assert bed.read == [b"while it was quiet"]


def test_an_order_to_an_agent_of_before_does_not_bind_the_next(bed: Bed) -> None:
    bed.run()
    bed.agent.close(timeout=0)
    bed.host.machine.store().write("/local/domain/7/data/mchannel/mgmt/control", b"quiesce 60")
    bed.agent, bed.broker = meet(bed.listener)
    bed.talk()


def test_an_agent_that_does_not_answer_cannot_stop_a_quiesce(bed: Bed) -> None:
    assert not xen.quiesce(7, timeout=0.05, machine=bed.host.machine)


def test_a_domain_without_agents_is_quiet(bed: Bed) -> None:
    bed.world.boot(8, OTHER)
    assert xen.quiesce(8, timeout=0, machine=bed.host.machine)


@pytest.mark.parametrize(
    "value",
    [b"", b"quiesce", b"quiesce 0", b"quiesce 601", b"quiesce -1", b"quiesce 1 2", b"QUIESCE 5", b"resume", b"\xff"],
)
def test_a_control_that_means_nothing_does_nothing(bed: Bed, value: bytes) -> None:
    offer = bed.world.nodes[offer_at(7)]
    bed.host.machine.store().write("/local/domain/7/data/mchannel/mgmt/control", value)
    bed.run()
    assert bed.world.nodes[offer_at(7)] == offer
    bed.talk()


# --- ending


def test_a_domain_that_is_gone_is_unmapped(bed: Bed) -> None:
    bed.talk()
    assert bed.world.mapped == 1
    bed.world.destroy(7)
    bed.heard(bed.broker)
    assert bed.world.mapped == 0


def test_an_offer_that_is_written_again_is_not_mapped_again(bed: Bed) -> None:
    bed.talk()
    (events,) = bed.host.events
    ports = set(events.ports)
    bed.world.fire(offer_at(7))
    bed.talk()
    assert set(events.ports) == ports


def test_a_ring_that_was_taken_back_leaves_no_event_channel_bound(bed: Bed) -> None:
    for number in (9, 10):
        bed.talk()
        assert quiesced(bed)
        bed.world.move(bed.guest, number)
    bed.talk()
    (events,) = bed.host.events
    assert (len(events.ports), bed.world.mapped) == (1, 1)


def test_a_listener_that_closes_unmaps_everything(bed: Bed) -> None:
    bed.talk()
    bed.listener.close()
    assert bed.world.mapped == 0


def test_a_broker_that_comes_back_is_talked_to_again(bed: Bed) -> None:
    bed.talk()
    bed.listener.close()
    with mchannel.listen("xen:///mgmt", codec=RawCodec()) as listener:
        for _ in range(100):
            bed.heard(bed.agent)
            try:
                bed.broker = listener.accept(timeout=0.01)
                break
            except ChannelTimeout:
                continue
        bed.talk()


def test_an_agent_that_closes_takes_its_offer_back(bed: Bed) -> None:
    bed.agent.close(timeout=0)
    assert offer_at(7) not in bed.world.nodes
    assert bed.guest.events == []


def test_a_guest_that_breaks_the_rules_loses_its_channel_for_good(bed: Bed) -> None:
    bed.talk()
    pages = next(iter(bed.world.grants.values()))
    with mmap(pages, 41 * xenlib.PAGE) as ring:
        ring[128:136] = (1 << 40).to_bytes(8, "little")
    (events,) = bed.guest.events
    events.ring(next(iter(events.ports)))
    with pytest.raises(ProtocolError):
        bed.heard(bed.broker, SOON)
    assert bed.broker.state is State.ENDED


# --- where it does not work


def test_a_guest_cannot_listen(bed: Bed) -> None:
    with pytest.raises(AddressError, match="only domain 0 can listen"):
        HostDoor(Address.parse("xen:///mgmt"), mchannel.Options(), bed.guest.machine)


def test_a_name_is_open_once_in_a_guest(bed: Bed) -> None:
    address = Address.parse("xen:///mgmt")
    with pytest.raises(AddressError, match="open in another process"):
        GuestWire(address, mchannel.Options(), bed.guest.machine)
    bed.talk()
    bed.run()
    bed.agent.close(timeout=0)
    GuestWire(address, mchannel.Options(), bed.guest.machine).close()


@pytest.mark.parametrize("missing", ["store", "events", "grant"])
def test_what_cannot_be_opened_leaves_no_descriptor_behind(missing: str) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EACCES, "Permission denied")

    world = World()
    machines = [attrs.evolve(guest.machine, **{missing: refuse}) for guest in (world.boot(7), Guest(world, 0))]
    gc.collect()
    gc.collect()  # what other tests left must not end meanwhile
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises((AddressError, OSError), match="Permission denied"):
        GuestWire(Address.parse("xen:///mgmt"), mchannel.Options(), machines[0])
    if missing != "grant":
        with pytest.raises((AddressError, OSError), match="Permission denied"):
            HostDoor(Address.parse("xen:///mgmt"), mchannel.Options(), machines[1])
    gc.collect()
    world.forget()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_lock_on_a_name_ends_with_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path / "run"))
    release = xenlib.LIBXEN.claim("mgmt")
    with pytest.raises(AddressError, match="open in another process"):
        xenlib.LIBXEN.claim("mgmt")
    release()
    xenlib.LIBXEN.claim("mgmt")()


def test_domain_0_does_not_open(bed: Bed) -> None:
    with pytest.raises(AddressError, match="this is domain 0"):
        GuestWire(Address.parse("xen:///mgmt"), mchannel.Options(), bed.host.machine)


@pytest.mark.parametrize(
    "address",
    [
        "xen:///",
        "xen:///a/b",
        "xen:///..",
        "xen:///a.b",
        "xen:///mgmt?x=1",
        "xen:///*",
        "xen:///mgmt**",
        "xen:///mg*mt",
        "xen://0/mgmt",
        "xen://99999/m",
        "xen://web1/mgmt",
    ],
)
def test_an_address_that_names_nothing_is_refused(bed: Bed, address: str) -> None:
    with pytest.raises(AddressError):
        HostDoor(Address.parse(address), mchannel.Options(), bed.host.machine)


def test_where_there_is_no_xen_one_line_says_what_is_missing() -> None:
    address = Address.parse("xen:///mgmt")
    with pytest.raises(
        AddressError, match=r"^(cannot open /dev/xen/.*modprobe|xen:// needs libxen.*apt-get install libxen)"
    ):
        find_scheme(address).dial(address, mchannel.Options())
