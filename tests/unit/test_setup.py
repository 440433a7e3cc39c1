"""Setups: what is taken over from the one in force, and what is left when one cannot be prepared."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

import mchannel
from mbroker import setup
from mbroker.cgroup import Hierarchy
from mbroker.config import ConfigError, Loaded, load
from mbroker.isolation import IsolatedPolicy
from mbroker.setup import Setup, prepared

BASE = """
[broker]
name = "node1"
[host]
p_states = [1000, 2400]
[[listen]]
address = "memory:///web1"
[policies.basic]
[policies.none]
"""


def loaded(folder: Path, text: str) -> Loaded:
    (folder / "mbroker.toml").write_text(text)
    return load(folder / "mbroker.toml")


async def settle(wanted: Loaded, present: Setup) -> Setup:
    async with prepared(wanted, present) as made:
        return made


def run(wanted: Loaded, present: Setup | None = None) -> Setup:
    return asyncio.run(settle(wanted, present or Setup.nothing(wanted)))


@pytest.fixture
def present(tmp_path: Path) -> Generator[Setup]:
    made = run(loaded(tmp_path, BASE))
    yield made
    made.close()


def is_listened_at(address: str) -> bool:
    try:
        mchannel.listen(address).close()
    except mchannel.AddressError:
        return True
    return False


def test_nothing_is_in_force_before_the_first_configuration(tmp_path: Path) -> None:
    nothing = Setup.nothing(loaded(tmp_path, BASE))
    assert (nothing.policies, nothing.doors, nothing.config.policies) == ({}, {}, {})
    assert (nothing.broker.host.name, nothing.make_actuators(tmp_path)) == ("node1", ())


def test_what_did_not_change_is_taken_over_with_its_state(tmp_path: Path, present: Setup) -> None:
    new = run(loaded(tmp_path, BASE.replace("[policies.none]", "[policies.none]\nhost_wide = true")), present)
    assert new.doors == present.doors
    assert new.policies["basic"] is present.policies["basic"]
    assert new.policies["none"] is not present.policies["none"]


def test_what_is_new_is_closed_when_the_switch_fails_and_what_is_in_force_stays(tmp_path: Path, present: Setup) -> None:
    wanted = loaded(tmp_path, f'{BASE}[[listen]]\naddress = "memory:///db"\n')

    async def switch() -> None:
        async with prepared(wanted, present):
            assert is_listened_at("memory:///db")
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(switch())
    assert (is_listened_at("memory:///db"), is_listened_at("memory:///web1")) == (False, True)


def test_what_the_successor_does_not_take_over_is_let_go(tmp_path: Path, present: Setup) -> None:
    new = run(loaded(tmp_path, BASE.replace("web1", "db")), present)
    present.let_go(new)
    assert (is_listened_at("memory:///db"), is_listened_at("memory:///web1")) == (True, False)
    new.close()
    assert not is_listened_at("memory:///db")


def test_other_options_for_an_address_in_force_are_refused(tmp_path: Path, present: Setup) -> None:
    changed = BASE.replace('"memory:///web1"', '"memory:///web1"\nmax_message = 2048')
    with pytest.raises(ConfigError, match=r"mbroker\.toml: listen\.0: other options .* need a restart"):
        run(loaded(tmp_path, changed), present)


class Starting(IsolatedPolicy):
    """Is never ready, until it is closed."""

    began = threading.Event()
    closed = threading.Event()

    def __init__(self, *_: object, **__: object) -> None:
        """Start nothing."""

    def wait(self, seconds: float) -> None:
        self.began.set()
        self.closed.wait(seconds)

    def close(self) -> None:
        self.closed.set()


def test_a_policy_that_was_starting_at_a_cancellation_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "IsolatedPolicy", Starting)
    wanted = loaded(tmp_path, "[policies.basic]\nisolation = 'process'\n")

    async def cancel() -> None:
        task = asyncio.create_task(settle(wanted, Setup.nothing(wanted)))
        assert await asyncio.to_thread(Starting.began.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert Starting.closed.is_set()

    asyncio.run(cancel())


def test_actuators_are_tried_out_without_touching_the_folder_of_journals(tmp_path: Path) -> None:
    (tmp_path / "root" / "proc" / "sys" / "kernel" / "random").mkdir(parents=True)
    (tmp_path / "root" / "proc" / "sys" / "kernel" / "random" / "boot_id").write_text("boot\n")
    state = tmp_path / "state"
    state.mkdir()
    options = f"[actuators.cpufreq.options]\nroot = '{tmp_path / 'root'}'"
    tried = run(loaded(tmp_path, f"[broker]\nstate = '{state}'\n{options}"))
    tried.try_actuators()
    assert list(state.iterdir()) == []
    (actuator,) = tried.make_actuators(state)
    tried.try_actuators()  # also beside one that is at work
    actuator.close()
    assert [file.name for file in state.iterdir()] == ["cpufreq.originals"]


@pytest.mark.parametrize(
    ("options", "usage"), [("", 0.25), ("[actuators.cpu_bandwidth.options.cpus]\nweb1 = 0.5", 0.5)]
)
def test_usage_is_measured_against_what_cpu_bandwidth_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, usage: float
) -> None:
    monkeypatch.setattr(Hierarchy, "detect", lambda: Hierarchy(2, tmp_path, tmp_path))
    counter = tmp_path / "machine/web1/cpu.stat"
    counter.parent.mkdir(parents=True)
    domain = "[domains.web1]\ncgroup = 'machine/web1'\n[actuators.cpu_bandwidth]\n"
    made = run(loaded(tmp_path, domain + options))
    counter.write_text("usage_usec 0\n")
    assert made.usage.sample(made.broker.host, 10.0, 100.0) == []
    counter.write_text("usage_usec 125000\n")
    (event,) = made.usage.sample(made.broker.host, 10.5, 100.5)
    assert event.value == usage
