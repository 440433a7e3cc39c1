"""What /proc says, as events."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbroker.broker import RESERVED_TOPICS
from mchannel.agents.metrics import Metrics, readings
from mchannel.codec import EventCodec
from mchannel.event import Event
from mchannel.samples import Labels

STAT = "cpu  {0} 0 0 {1} {2} 0 0 {3} 0 0\ncpu0 {0} 0 0 {1} {2} 0 0 {3} 0 0\ncpu3 5 0 0 5 0 0 0 0 0 0\nintr 5 0\n"
MEMINFO = (
    "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 250 kB\nSwapTotal: 8 kB\nSwapFree: 4 kB\nHugePages_Total: 0\n"
)
DISK = "   8 0 {name} {reads} 0 {sectors} 4 {writes} 0 {written} 8 0 77 12\n"
NETWORK = "Inter-| Receive\n face |bytes\n    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n"
INTERFACE = "  {name}: {received} 11 1 2 0 0 0 0 {sent} 21 3 4 0 0 0 0\n"


class Guest:
    """A /proc that a test writes, and its clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 100.0
        for name, text in {
            "proc/stat": STAT.format(100, 100, 0, 0),
            "proc/loadavg": "0.50 1.25 2.00 3/150 4711\n",
            "proc/meminfo": MEMINFO,
            "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n",
            "proc/pressure/memory": "some avg10=0.0 total=0\nfull avg10=0.0 total=0\n",
            "proc/pressure/io": "some avg10=0.0 total=0\nfull avg10=0.0 total=0\n",
            "proc/diskstats": DISK.format(name="vda", reads=10, sectors=100, writes=5, written=50),
            "proc/net/dev": NETWORK + INTERFACE.format(name="eth0", received=1000, sent=500),
            "sys/block/vda": "",
            "sys/block/loop0": "",
        }.items():
            self.put(name, text)
        self.metrics = Metrics(
            "web1", proc=root / "proc", clock=lambda: 1700000000.0 + self.now, monotonic=lambda: self.now
        )

    def put(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def sample(self, after: float = 2.0) -> dict[str, Event]:
        self.now += after
        return {event.topic.removeprefix("metrics."): event for event in self.metrics.sample()}


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_the_groups_are_those_that_the_kernel_tells_of(guest: Guest) -> None:
    assert list(guest.sample()) == ["cpu", "load", "memory", "pressure", "disk", "network"]
    (guest.root / "proc/pressure/io").unlink()
    guest.put("proc/meminfo", "MemTotal: many\n")
    assert list(guest.sample()) == ["cpu", "load", "disk", "network"]


def test_the_first_sample_has_no_rates_and_every_event_its_time(guest: Guest) -> None:
    events = guest.sample()
    assert {event.at for event in events.values()} == {1700000102.0}
    assert {event.source for event in events.values()} == {"web1"}
    assert [events[group].value for group in ("cpu", "pressure", "disk", "network")] == [None] * 4


def test_a_cpu_is_busy_when_it_is_neither_idle_nor_waits(guest: Guest) -> None:
    guest.sample()
    guest.put("proc/stat", STAT.format(130, 150, 10, 10))
    event = guest.sample()["cpu"]
    assert event.value == 0.4
    assert event.detail == {"cpus": (0, 3), "busy": (0.4, None), "steal": 0.1, "iowait": 0.1}


def test_a_cpu_that_was_plugged_in_has_no_share_yet(guest: Guest) -> None:
    guest.sample()
    guest.put("proc/stat", STAT.format(130, 170, 0, 0).replace("cpu3", "cpu4"))
    assert guest.sample()["cpu"].detail["busy"] == (0.3, None)


def test_load_and_memory_are_told_as_they_are(guest: Guest) -> None:
    events = guest.sample()
    assert events["load"].value == 0.5
    assert events["load"].detail == {"five": 1.25, "fifteen": 2.0, "running": 3, "tasks": 150}
    assert events["memory"].value == 0.75
    assert events["memory"].detail["available"] == 250 * 1024


def test_pressure_is_the_share_of_the_time_between_two_samples(guest: Guest) -> None:
    guest.sample()
    guest.put("proc/pressure/cpu", "some avg10=0.00 total=1500000\n")
    guest.put("proc/pressure/io", "some avg10=0.0 total=100000\nfull avg10=0.0 total=50000\n")
    event = guest.sample(after=2.0)["pressure"]
    assert event.value == 0.25
    assert event.detail == {"cpu_some": 0.25, "memory_some": 0, "memory_full": 0, "io_some": 0.05, "io_full": 0.025}


def test_only_whole_disks_that_were_used_are_counted(guest: Guest) -> None:
    guest.sample()
    disks = [("vda", 12, 104), ("vda1", 12, 104), ("loop0", 0, 0)]
    guest.put(
        "proc/diskstats",
        "".join(
            DISK.format(name=name, reads=reads, sectors=n, writes=5 if n else 0, written=50) for name, reads, n in disks
        ),
    )
    event = guest.sample(after=2.0)["disk"]
    assert event.value == 4 * 512 / 2
    assert event.detail["devices"] == ("vda",)
    assert event.detail["read_bytes"] == (104 * 512,)
    assert event.detail["busy_ms"] == (77,)


def test_the_network_is_counted_without_loopback(guest: Guest) -> None:
    guest.sample()
    guest.put("proc/net/dev", NETWORK + INTERFACE.format(name="eth0", received=3000, sent=700))
    event = guest.sample(after=2.0)["network"]
    assert event.value == 1100
    assert event.detail["interfaces"] == ("eth0",)
    assert (event.detail["received_bytes"], event.detail["sent_bytes"]) == ((3000,), (700,))
    assert (event.detail["receive_errors"], event.detail["send_drops"]) == ((1,), (4,))


def test_a_counter_that_was_set_back_has_no_rate_once(guest: Guest) -> None:
    guest.sample()
    guest.put("proc/net/dev", NETWORK)
    assert guest.sample()["network"].value is None
    assert guest.sample()["network"].value == 0


def test_a_guest_with_very_many_interfaces_sends_no_long_message(guest: Guest) -> None:
    many = [INTERFACE.format(name=f"veth{n}", received=2**40, sent=2**40) for n in range(5000)]
    guest.put("proc/net/dev", NETWORK + "".join(many))
    event = guest.sample()["network"]
    assert event.detail["left_out"] == 5000 - 64
    assert len(EventCodec().encode(event)) < 10_000


def test_no_topic_is_one_that_only_the_host_may_speak(guest: Guest) -> None:
    assert not [event.topic for event in guest.sample().values() if event.topic.startswith(RESERVED_TOPICS)]


def test_this_machine_can_be_measured() -> None:
    metrics = Metrics("web1")
    topics = {event.topic for event in metrics.sample()}
    assert topics >= {"metrics.cpu", "metrics.load", "metrics.memory", "metrics.network"}


def series(event: Event) -> dict[tuple[str, Labels], float]:
    return {(reading.series.metric, reading.series.labels): reading.value for reading in readings(event)}


def test_each_number_of_a_group_is_a_series_named_after_it(guest: Guest) -> None:
    guest.sample()
    told = guest.sample()
    assert series(told["load"]) == {
        ("load", ()): 0.5,
        ("load.five", ()): 1.25,
        ("load.fifteen", ()): 2.0,
        ("load.running", ()): 3,
        ("load.tasks", ()): 150,
    }
    assert series(told["disk"])["disk.read_bytes", (("device", "vda"),)] == 100 * 512
    assert series(told["network"])["network.sent_bytes", (("interface", "eth0"),)] == 500


def test_a_series_has_the_time_of_its_group(guest: Guest) -> None:
    event = guest.sample()["load"]
    assert {reading.at for reading in readings(event)} == {round(event.at * 1000)}


def test_what_is_not_known_yet_is_no_series(guest: Guest) -> None:
    assert ("cpu", ()) not in series(guest.sample()["cpu"])
    guest.put("proc/stat", STAT.format(150, 150, 0, 0))
    told = series(guest.sample()["cpu"])
    assert told["cpu", ()] == 0.5
    assert told["cpu.busy", (("cpu", "0"),)] == 0.5


def test_every_series_of_a_guest_has_a_valid_name(guest: Guest) -> None:
    guest.sample()
    for event in guest.sample().values():
        for reading in readings(event):
            reading.series.check()
