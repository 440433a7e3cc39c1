"""A migration that we start, with one thing going wrong at one of its steps, on two real hosts.

Whatever it is: the domain never runs twice, it ends at one host that is known, its channel is attended to
there, and nothing that its agent said is lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import libvirt
import pytest

from tests.system.brokers import BrokerProcess, brokers, talking
from tests.system.libvirt_guest import PORT, Guest
from tests.system.libvirt_hosts import Host

pytest.importorskip("mchannel._ring", reason="the C is not built here")

from tests.system.test_fleet import Pair, nothing_lost

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(300)]
Mend: TypeAlias = Callable[[], None]
Fault: TypeAlias = Callable[[BrokerProcess, BrokerProcess], Mend]
Moment: TypeAlias = Callable[[BrokerProcess, BrokerProcess], None]

patient = pytest.mark.skipif(
    os.environ.get("MCHANNEL_VERIFY") != "1", reason="waits for libvirt to give up: MCHANNEL_VERIFY=1 ./dev test-system"
)


# --- when ---------------------------------------------------------------------------------------


def at_once(source: BrokerProcess, _: BrokerProcess) -> None:
    """Before the destination was asked."""
    source.wait("step", step="check")


def before_the_switch(_: BrokerProcess, destination: BrokerProcess) -> None:
    """While memory is copied."""
    destination.wait("event", kind="arriving")


def at_the_switch(source: BrokerProcess, _: BrokerProcess) -> None:
    """When the domain has stopped at the source, before the destination is told to have it."""
    with closing(source.host.connect()) as connection:
        (domain,) = connection.listAllDomains()
        while domain.state() != [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION]:
            time.sleep(0.002)


def when_it_waits(_: BrokerProcess, destination: BrokerProcess) -> None:
    """When the domain is whole at the destination, before the source has let go of it."""
    destination.wait("event", kind="paused")


def after_the_switch(source: BrokerProcess, _: BrokerProcess) -> None:
    """When the domain has stopped at the source, and its channels are handed over."""
    source.wait("event", kind="leaving")


def at_the_end(source: BrokerProcess, _: BrokerProcess) -> None:
    """When the domain has moved, and the destination is asked whether all is well."""
    source.wait("step", step="confirm")


# --- what ---------------------------------------------------------------------------------------


def kill_the_source(source: BrokerProcess, _: BrokerProcess) -> Mend:
    source.kill()
    return source.start


def kill_the_destination(_: BrokerProcess, destination: BrokerProcess) -> Mend:
    destination.kill()
    return destination.start


def stop_the_source(source: BrokerProcess, _: BrokerProcess) -> Mend:
    source.pause()
    return source.go_on


def stop_the_destination(_: BrokerProcess, destination: BrokerProcess) -> Mend:
    destination.pause()
    return destination.go_on


def stop_libvirt_at_the_source(source: BrokerProcess, _: BrokerProcess) -> Mend:
    return _stop_libvirt(source.host)


def stop_libvirt_at_the_destination(_: BrokerProcess, destination: BrokerProcess) -> Mend:
    return _stop_libvirt(destination.host)


def _stop_libvirt(host: Host) -> Mend:
    def send(name: str) -> None:
        host.run("sh", "-c", f"kill -{name} $(cat /run/libvirtd.pid)")

    send("STOP")
    return lambda: send("CONT")


def cut_the_network(source: BrokerProcess, _: BrokerProcess) -> Mend:
    source.host.cut()
    return lambda: source.host.cut(off=False)


# --- what comes of it ---------------------------------------------------------------------------


@pytest.fixture
def pair(hosts: tuple[Host, Host], tmp_path: Path) -> Iterator[Pair]:
    """A broker on each host."""
    with brokers(hosts, tmp_path) as (first, second):
        yield first, second


@pytest.fixture
def agent(guest: Guest, pair: Pair) -> Iterator[Guest]:
    """An agent in the guest, which has talked to the broker of the first host."""
    with talking(guest, f"virtio:///{PORT}"):
        pair[0].wait("number", number=20)
        yield guest


def running(guest: Guest, hosts: tuple[Host, ...]) -> list[Host]:
    """Return the hosts on which the domain runs now."""
    found: list[Host] = []
    for host in hosts:
        with closing(host.connect()) as connection:
            try:
                state, _ = connection.lookupByUUIDString(guest.uuid).state()
            except libvirt.libvirtError:  # not here
                continue
            if state == libvirt.VIR_DOMAIN_RUNNING:
                found.append(host)
    return found


def alone(guest: Guest, hosts: tuple[Host, ...]) -> None:
    """Wait until nothing is left of the domain but where it is."""
    deadline = time.monotonic() + 30
    others = [host for host in hosts if host is not guest.host]
    while left := [host.name for host in others if _has(host, guest)]:
        assert time.monotonic() < deadline, f"a half of it stays at {left}"
        time.sleep(0.1)


def _has(host: Host, guest: Guest) -> bool:
    with closing(host.connect()) as connection:
        return guest.uuid in {domain.UUIDString() for domain in connection.listAllDomains()}


def settled(guest: Guest, hosts: tuple[Host, ...]) -> Host:
    """Wait until the domain has run on the same host for two seconds, and return that; never does it on two."""
    deadline, since, last = time.monotonic() + 90, time.monotonic(), None
    while time.monotonic() < deadline:
        now = running(guest, hosts)
        if len(now) > 1:  # it may have moved between the two questions
            now = running(guest, hosts)
        assert len(now) < 2, f"it runs on {[host.name for host in now]}"
        where = now[0] if now else None
        if where is not last:
            last, since = where, time.monotonic()
        if last is not None and time.monotonic() > since + 2:
            return last
        time.sleep(0.1)
    raise AssertionError("it runs nowhere")


@contextmanager
def migration(agent: Guest, pair: Pair) -> Generator[None]:
    """Begin to move the agent's domain to the second host; afterwards it lives on one, attended to and whole."""
    source, destination = pair
    boot = agent.boot_id()
    source.tell("migrate", agent.name, destination.host.name)
    try:
        yield
    finally:  # the next test looks for the guest there
        agent.host = settled(agent, (source.host, destination.host))
    alone(agent, (source.host, destination.host))
    at = source if agent.host is source.host else destination
    last = max(said["number"] for broker in pair for said in broker.said if said["what"] == "number")
    while at.wait("number")["number"] <= last:  # until it says something new there
        pass
    nothing_lost(pair, at)
    assert agent.boot_id() == boot


def outcome(source: BrokerProcess) -> dict[str, Any]:
    return source.wait("migrated", timeout=150)


@pytest.mark.parametrize(
    ("moment", "fault"),
    [
        (at_once, kill_the_source),
        (before_the_switch, kill_the_source),
        (after_the_switch, kill_the_source),
        (when_it_waits, kill_the_source),
        pytest.param(at_the_end, kill_the_source, marks=patient),
        (after_the_switch, kill_the_destination),
        pytest.param(before_the_switch, stop_the_source, marks=patient),
        pytest.param(after_the_switch, stop_the_source, marks=patient),
        (after_the_switch, stop_the_destination),
    ],
)
def test_a_broker_that_is_away_for_a_while(agent: Guest, pair: Pair, moment: Moment, fault: Fault) -> None:
    with migration(agent, pair):
        moment(*pair)
        mend = fault(*pair)
        time.sleep(3)
        mend()


@pytest.mark.parametrize("fault", [kill_the_destination, stop_the_destination, cut_the_network])
def test_a_destination_that_does_not_answer_gets_nothing(agent: Guest, pair: Pair, fault: Fault) -> None:
    mend = fault(*pair)
    with migration(agent, pair):
        result = outcome(pair[0])
        mend()
    assert (result["moved"], result["host"], result["step"]) == (False, pair[0].host.name, "expect")
    assert agent.host is pair[0].host


def test_a_destination_that_answers_wrongly_gets_nothing(agent: Guest, pair: Pair) -> None:
    pair[1].kill()
    pair[1].start(LIE="Expect")
    with migration(agent, pair):
        result = outcome(pair[0])
    assert (result["moved"], result["host"], result["step"]) == (False, pair[0].host.name, "expect")
    assert "another question" in result["reason"]
    assert agent.host is pair[0].host


@patient
def test_a_destination_that_says_the_domain_never_came(agent: Guest, pair: Pair) -> None:
    pair[1].kill()
    pair[1].start(LIE="Wherever")
    with migration(agent, pair):
        result = outcome(pair[0])
    assert (result["host"], result["step"]) == (None, "confirm")
    assert agent.host is pair[1].host


@pytest.mark.parametrize("moment", [before_the_switch, pytest.param(after_the_switch, marks=patient)])
def test_a_destination_that_dies_during_the_move_is_not_called_moved_to(
    agent: Guest, pair: Pair, moment: Moment
) -> None:
    with migration(agent, pair):
        moment(*pair)
        mend = kill_the_destination(*pair)
        result = outcome(pair[0])
        mend()
    assert result["step"] == "confirm"
    assert result["host"] in {None, pair[1].host.name}
    assert agent.host is pair[1].host


@pytest.mark.parametrize(
    ("moment", "fault"),
    [
        (before_the_switch, cut_the_network),
        pytest.param(before_the_switch, stop_libvirt_at_the_source, marks=patient),
        pytest.param(before_the_switch, stop_libvirt_at_the_destination, marks=patient),
        pytest.param(at_the_switch, stop_libvirt_at_the_destination, marks=patient),
    ],
)
def test_what_stops_the_move_itself_leaves_the_domain_at_one_host(
    agent: Guest, pair: Pair, moment: Moment, fault: Fault
) -> None:
    with migration(agent, pair):
        moment(*pair)
        mend = fault(*pair)
        try:
            result = outcome(pair[0])
        finally:
            mend()
    assert result["host"] in {None, agent.host.name}
