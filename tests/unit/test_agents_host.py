"""What this machine says of itself, and what libvirt says of domains."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import psutil
import pytest

from mchannel.agents.domains import DomainMetrics, Unreachable, from_statistics
from mchannel.agents.host import HostMetrics
from mchannel.agents.publisher import Reading
from mchannel.samples import Labels, Named


def names(readings: list[Reading]) -> set[str]:
    return {reading.series.metric for reading in readings}


def test_this_host_tells_what_a_guest_tells_and_more() -> None:
    host = HostMetrics()
    told = host.read()
    assert names(told) >= {"load", "memory", "memory.swap_total", "filesystem", "filesystem.free", "uptime"}
    assert names(told) >= {"agent.memory", "network.sent_bytes"}


def test_shares_are_told_from_the_second_look_on() -> None:
    now = iter(range(100))
    host = HostMetrics(monotonic=lambda: float(next(now)))
    assert "agent.cpu" not in names(host.read())
    assert "agent.cpu" in names(host.read())


def test_what_changes_slowly_is_looked_at_every_five_seconds_and_told_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speeds, now = iter([900, 800]), iter([0.0, 1.0, 4.9, 5.0])
    fans = lambda: {"nct": [SimpleNamespace(label="", current=next(speeds))]}  # noqa: E731
    monkeypatch.setattr(psutil, "sensors_fans", fans, raising=False)
    host = HostMetrics(monotonic=lambda: next(now))
    told = [[reading.value for reading in host.read() if reading.series.metric == "fan"] for _ in range(4)]
    assert told == [[900], [900], [900], [800]]


def test_what_is_gone_at_a_look_is_not_told_as_it_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    fans = [{"nct": [SimpleNamespace(label="", current=900)]}, {}]
    now = iter([0.0, 5.0, 6.0])
    monkeypatch.setattr(psutil, "sensors_fans", lambda: fans.pop(0), raising=False)
    host = HostMetrics(monotonic=lambda: next(now))
    assert ["fan" in names(host.read()) for _ in range(3)] == [True, False, False]


def test_the_uptime_is_that_of_the_machine_now() -> None:
    host = HostMetrics(monotonic=lambda: 0.0)
    first, second = ([r.value for r in host.read() if r.series.metric == "uptime"] for _ in range(2))
    assert abs(first[0] - (time.time() - psutil.boot_time())) < 30
    assert second > first


def test_every_series_of_this_host_has_a_valid_name_and_a_value() -> None:
    for reading in HostMetrics().read():
        reading.series.check()
        assert math.isfinite(reading.value)


def test_sensors_are_told_with_what_is_too_hot_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    core = SimpleNamespace(label="Core 0", current=61.0, high=80.0, critical=100.0)
    bare = SimpleNamespace(label="", current=40.0, high=None, critical=None)
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: {"coretemp": [core, bare]}, raising=False)
    monkeypatch.setattr(
        psutil, "sensors_fans", lambda: {"nct": [SimpleNamespace(label="", current=900)]}, raising=False
    )
    told = {(r.series.metric, r.series.labels): r.value for r in HostMetrics().read()}
    first: Labels = (("chip", "coretemp"), ("sensor", "0 Core 0"))
    assert [told["temperature" + part, first] for part in ("", ".high", ".critical")] == [61, 80, 100]
    assert told["temperature", (("chip", "coretemp"), ("sensor", "1"))] == 40
    assert told["fan", (("chip", "nct"), ("sensor", "0"))] == 900


@pytest.mark.parametrize("group", ["sensors_temperatures", "sensors_fans", "disk_partitions", "cpu_freq"])
def test_what_a_machine_does_not_have_keeps_nothing_else_from_being_told(
    monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(psutil, group, fail, raising=False)
    assert {"load", "agent.memory"} <= names(HostMetrics().read())


SAID: dict[str, int | str] = {
    "state.state": 1,
    "cpu.time": 2_000_000_000,
    "vcpu.current": 2,
    "balloon.current": 1024,
    "balloon.rss": 512,
    "block.count": 1,
    "block.0.name": "vda",
    "block.0.rd.bytes": 7,
    "net.count": 1,
    "net.0.name": "vnet3",
    "net.0.tx.bytes": 9,
}


def test_a_domain_is_told_by_its_name() -> None:
    domain = ("domain", "web1")
    assert set(from_statistics("web1", SAID)) == {
        Reading(Named("domain.running", (domain,)), 1),
        Reading(Named("domain.cpu_seconds", (domain,)), 2),
        Reading(Named("domain.vcpus", (domain,)), 2),
        Reading(Named("domain.memory", (domain,)), 1 << 20),
        Reading(Named("domain.memory.resident", (domain,)), 1 << 19),
        Reading(Named("domain.disk.read_bytes", (("device", "vda"), domain)), 7),
        Reading(Named("domain.network.sent_bytes", (domain, ("interface", "vnet3"))), 9),
    }


def test_a_domain_that_is_paused_does_not_run() -> None:
    assert next(from_statistics("web1", {"state.state": 3})).value == 0


@pytest.mark.parametrize("count", [10**9, "many", -1])
def test_a_domain_with_absurd_counts_is_told_within_bounds(count: int | str) -> None:
    assert len(list(from_statistics("web1", {"block.count": count, "block.0.rd.bytes": 1}))) <= 1


def test_the_domains_of_libvirt_are_read_without_being_allowed_to_change_them() -> None:
    now = iter([10.0, 12.0])
    domains = DomainMetrics("test:///default", monotonic=lambda: next(now))
    first, second = domains.read(), domains.read()
    assert names(first) >= {"domain.running", "domain.cpu_seconds", "domain.vcpus", "domain.memory"}
    assert "domain.cpu" not in names(first)
    (share,) = [reading.value for reading in second if reading.series.metric == "domain.cpu"]
    assert share >= 0
    assert {reading.series.labels for reading in first} == {(("domain", "test"),)}


def test_a_hypervisor_that_is_away_is_one_line_and_is_tried_again() -> None:
    domains = DomainMetrics("qemu:///nowhere")
    with pytest.raises(Unreachable, match=r"^qemu:///nowhere: ") as caught:
        domains.read()
    assert "\n" not in str(caught.value)
    domains.uri = "test:///default"
    assert domains.read()


def test_a_counter_that_was_set_back_has_no_share() -> None:
    domains = DomainMetrics("")
    spent = [{"web1": {**SAID, "cpu.time": time}} for time in (5_000_000_000, 1_000_000_000, 3_000_000_000)]
    told = [list(domains.shares(said, float(now))) for now, said in enumerate(spent)]
    assert told == [[], [], [Reading(Named("domain.cpu", (("domain", "web1"),)), 1.0)]]
