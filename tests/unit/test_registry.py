from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from mbroker.registry import Agent, AgentState, Registry, RegistryFull, host_identity
from mchannel.errors import JournalError
from mchannel.journal import Journal

S1, S2, S3 = b"\x01" * 16, b"\x02" * 16, b"\x03" * 16


def states(registry: Registry) -> dict[str, AgentState]:
    return {agent.identity: agent.state for agent in registry.agents()}


def only(registry: Registry) -> Agent:
    (agent,) = registry.agents()
    return agent


def silent(registry: Registry, now: float) -> dict[str, object]:
    return {event.source: event.value for event in registry.silence(now)}


def test_an_identity_names_host_domain_and_agent() -> None:
    assert Registry("abc").connect("web1", "sla", S1, 1.0).identity == "abc/web1/sla"


@pytest.mark.parametrize("name", ["", "\x1b[31m", "x" * 65, "näme"])
def test_an_agent_without_a_decent_name_is_named_by_its_session(name: str) -> None:
    assert Registry("abc").connect("web1", name, S1, 1.0).name == S1.hex()


def test_a_name_cannot_reach_into_another_domain() -> None:
    assert Registry("abc").connect("web1", "../db/sla", S1, 1.0).identity == "abc/web1/.._db_sla"


def test_an_agent_is_connecting_until_it_speaks() -> None:
    registry = Registry("h")
    agent = registry.connect("web1", "sla", S1, 1.0)
    assert agent.state is AgentState.CONNECTING
    registry.heard(agent.identity, 2.0)
    live = only(registry)
    assert (live.state, live.since, live.last_heard, live.established) == (AgentState.LIVE, 2.0, 2.0, 1)


def test_an_agent_that_was_live_before_it_spoke_is_established_once() -> None:
    registry = Registry("h")
    agent = registry.connect("web1", "commands", S1, 1.0)
    registry.moved(agent.identity, AgentState.LIVE, 2.0)
    silent = only(registry)
    assert (silent.state, silent.since, silent.last_heard, silent.established) == (AgentState.LIVE, 2.0, 0.0, 1)
    registry.heard(agent.identity, 3.0)
    assert (only(registry).last_heard, only(registry).established) == (3.0, 1)


def test_last_heard_follows_every_message() -> None:
    registry = Registry("h")
    agent = registry.connect("web1", "sla", S1, 1.0)
    for now in (2.0, 3.0, 4.0):
        registry.heard(agent.identity, now)
    assert only(registry).last_heard == 4.0
    assert only(registry).since == 2.0


def test_established_terminated_and_re_established_are_counted() -> None:
    registry = Registry("h")
    for round_ in range(3):
        agent = registry.connect("web1", "sla", bytes([round_]) * 16, 10.0 * round_)
        registry.heard(agent.identity, 10.0 * round_ + 1)
        registry.moved(agent.identity, AgentState.LOST, 10.0 * round_ + 2)
        registry.moved(agent.identity, AgentState.GONE, 10.0 * round_ + 3)
    counted = only(registry)
    assert (counted.established, counted.terminated, counted.re_established) == (3, 3, 2)


@pytest.mark.parametrize(("away", "established", "terminated"), [(AgentState.SUSPENDED, 1, 0), (AgentState.LOST, 2, 1)])
def test_an_agent_that_speaks_again_over_the_same_channel_is_live(
    away: AgentState, established: int, terminated: int
) -> None:
    registry = Registry("h")
    agent = registry.connect("web1", "sla", S1, 1.0)
    registry.heard(agent.identity, 1.0)
    registry.moved(agent.identity, away, 2.0)
    registry.heard(agent.identity, 3.0)
    again = only(registry)
    assert (again.state, again.established, again.terminated) == (AgentState.LIVE, established, terminated)


def test_an_agent_that_was_forgotten_while_away_must_come_again() -> None:
    registry = Registry("h", limit_per_domain=1)
    agent = registry.connect("web1", "a", S1, 1.0)
    registry.moved(agent.identity, AgentState.LOST, 2.0)
    registry.connect("web1", "b", S2, 3.0)
    with pytest.raises(RegistryFull, match="forgotten"):
        registry.heard(agent.identity, 4.0)
    assert registry.moved(agent.identity, AgentState.GONE, 5.0) is None


def test_a_second_agent_of_one_name_gets_its_own_identity() -> None:
    registry = Registry("h")
    registry.connect("web1", "sla", S1, 1.0)
    second = registry.connect("web1", "sla", S2, 1.0)
    assert second.identity == "h/web1/sla~02020202"
    assert len(registry.agents()) == 2


def test_a_domain_has_a_bounded_number_of_agents() -> None:
    registry = Registry("h", limit_per_domain=2)
    registry.connect("web1", "a", S1, 1.0)
    registry.connect("web1", "b", S2, 1.0)
    with pytest.raises(RegistryFull, match="web1 has 2 agents"):
        registry.connect("web1", "c", S3, 1.0)
    assert registry.connect("db", "c", S3, 1.0).identity == "h/db/c", "others are not affected"


def test_the_agent_that_is_away_longest_makes_room() -> None:
    registry = Registry("h", limit_per_domain=2)
    for name, session, at in (("a", S1, 5.0), ("b", S2, 4.0)):
        registry.moved(registry.connect("web1", name, session, 1.0).identity, AgentState.GONE, at)
    registry.connect("web1", "c", S3, 6.0)
    assert set(states(registry)) == {"h/web1/a", "h/web1/c"}


def test_an_agent_that_said_goodbye_makes_room_before_one_that_was_lost_earlier() -> None:
    registry = Registry("h", limit_per_domain=2)
    registry.moved(registry.connect("web1", "lost", S1, 1.0).identity, AgentState.LOST, 2.0)
    registry.moved(registry.connect("web1", "gone", S2, 1.0).identity, AgentState.GONE, 5.0)
    registry.connect("web1", "new", S3, 6.0)
    assert set(states(registry)) == {"h/web1/lost", "h/web1/new"}


def test_the_whole_is_bounded_too() -> None:
    registry = Registry("h", limit=2)
    registry.connect("a", "x", S1, 1.0)
    registry.connect("b", "x", S2, 1.0)
    with pytest.raises(RegistryFull):
        registry.connect("c", "x", S3, 1.0)


def test_a_domain_that_says_nothing_is_reported_each_epoch() -> None:
    registry = Registry("h")
    agent = registry.connect("web1", "sla", S1, 1.0)
    registry.heard(agent.identity, 1.1)
    assert silent(registry, 1.25) == {}
    assert silent(registry, 1.75) == {"web1": 1}
    assert silent(registry, 2.25) == {"web1": 2}
    registry.heard(agent.identity, 2.5)
    assert silent(registry, 2.75) == {}


def test_silence_says_its_epoch_and_its_time() -> None:
    registry = Registry("h")
    registry.connect("web1", "sla", S1, 1.0)
    (event,) = registry.silence(100.25)
    assert (event.topic, event.at, event.detail) == ("agent.silent", 100.25, {"epoch": 199})


def test_one_agent_that_speaks_is_enough_for_its_domain() -> None:
    registry = Registry("h")
    registry.connect("web1", "quiet", S1, 1.0)
    registry.heard(registry.connect("web1", "sla", S2, 1.0).identity, 1.0)
    assert silent(registry, 1.25) == {}


def test_a_domain_whose_agents_said_goodbye_is_let_go_after_a_while() -> None:
    registry = Registry("h")
    agent = registry.connect("web1", "sla", S1, 1.0)
    registry.moved(agent.identity, AgentState.GONE, 1.0)
    counts = [silent(registry, n * 0.5).get("web1") for n in range(1, 31)]
    assert counts == [*range(1, 21), *[None] * 10]


def test_a_clock_that_jumps_makes_no_long_silence() -> None:
    registry = Registry("h")
    registry.heard(registry.connect("web1", "sla", S1, 1.0).identity, 1.0)
    registry.silence(1.25)
    assert silent(registry, 1e9) == {"web1": 1}


def test_after_a_restart_the_agents_are_known_and_lost(tmp_path: Path) -> None:
    registry = Registry("h", Journal.open(tmp_path / "agents"))
    live = registry.connect("web1", "sla", S1, 1.0)
    registry.heard(live.identity, 2.0)
    registry.moved(registry.connect("db", "sla", S2, 1.0).identity, AgentState.GONE, 3.0)
    registry.close()
    later = Registry("h", Journal.open(tmp_path / "agents"))
    assert states(later) == {"h/web1/sla": AgentState.LOST, "h/db/sla": AgentState.GONE}
    again = later.connect("web1", "sla", S3, 9.0)
    later.heard(again.identity, 9.0)
    assert (again.identity, later.agents()[1].re_established) == (live.identity, 1)
    later.close()


def test_a_kill_loses_no_change_of_state(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "agents")
    registry = Registry("h", journal)
    registry.heard(registry.connect("web1", "sla", S1, 1.0).identity, 2.0)
    journal.close()  # as a kill does: nothing is written at the end
    with Journal.open(tmp_path / "agents") as journal:
        assert only(Registry("h", journal)).established == 1


def test_the_journal_does_not_grow_with_reconnections(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "agents")
    registry = Registry("h", journal)
    for n in range(1000):
        registry.moved(registry.connect("web1", "sla", n.to_bytes(16, "big"), n).identity, AgentState.GONE, n)
    assert journal.size < 200_000
    registry.close()


def test_a_disk_that_refuses_does_not_stop_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.open(tmp_path / "agents")
    registry = Registry("h", journal)

    def refuse(_: Iterable[bytes], **__: object) -> None:
        raise JournalError("cannot append: No space left on device")

    with monkeypatch.context() as full:
        full.setattr(journal, "append_many", refuse)
        full.setattr(journal, "rewrite", refuse)
        agent = registry.connect("web1", "sla", S1, 1.0)
        assert "No space left" in registry.problem
    registry.heard(agent.identity, 2.0)
    assert registry.problem == ""
    registry.close()
    with Journal.open(tmp_path / "agents") as journal:
        assert only(Registry("h", journal)).established == 1


def test_a_record_that_makes_no_sense_is_left_out(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "agents") as journal:
        journal.append(b'{"identity": 5}')
        journal.append(b"\xff")
    with Journal.open(tmp_path / "agents") as journal:
        assert Registry("h", journal).agents() == ()


def test_a_host_keeps_its_identity_and_does_not_show_its_machine_id(tmp_path: Path) -> None:
    machine = tmp_path / "machine-id"
    machine.write_text("0123456789abcdef0123456789abcdef\n")
    assert host_identity(tmp_path, machine) == host_identity(tmp_path, machine)
    assert host_identity(tmp_path, machine) not in machine.read_text()
    machine.write_text("another\n")
    assert host_identity(tmp_path, machine) != host_identity(tmp_path, tmp_path / "none")


def test_a_host_without_a_machine_id_makes_one(tmp_path: Path) -> None:
    first = host_identity(tmp_path, tmp_path / "none")
    assert first == host_identity(tmp_path, tmp_path / "none")
    (tmp_path / "host-id").unlink()
    assert first != host_identity(tmp_path, tmp_path / "none")
