"""What a registry promises, as a program and its check; and the same with bugs planted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mbroker.registry import Agent, AgentState, Registry
from mchannel.journal import Journal

from .points import Ack, Program

__all__ = ["BUGS", "check", "good", "program"]


def program(kind: type[Registry]) -> Program:
    """Return the program in which agents come, speak, go and come back, with one restart between."""

    def run(folder: Path, ack: Ack) -> None:
        for life in range(2):
            registry = kind("h", Journal.open(folder / "agents"), limit_per_domain=2)
            for turn, name in enumerate(("sla", "log", "late")):
                at = 100.0 * life + 10 * turn
                agent = registry.connect("web1", name, bytes([life, turn] * 8), at)
                registry.heard(agent.identity, at + 1)
                gone = registry.moved(agent.identity, AgentState.LOST, at + 2)
                assert gone
                ack(f"{name} {gone.established} {gone.terminated}")
            registry.close()

    return run


def check(folder: Path, acked: Sequence[str]) -> None:
    """See that who was promised last is known, with counts no lower than promised, and that work goes on."""
    registry = Registry("h", Journal.open(folder / "agents"), limit_per_domain=2)
    assert not registry.problem, registry.problem
    agents = {agent.name: agent for agent in registry.agents()}
    assert all(agent.state in {AgentState.LOST, AgentState.GONE} for agent in agents.values()), "nobody is present yet"
    assert len(agents) <= 3, "the limit holds, give or take the one that was being forgotten"
    if acked:
        name, established, terminated = acked[-1].split()
        known = agents.get(name)
        assert known, f"{name} was promised and is not known"
        assert known.established >= int(established), f"{name} was established {established} times"
        assert known.terminated >= int(terminated), f"{name} was terminated {terminated} times"
    registry.connect("db", "sla", b"s" * 16, 999.0)
    registry.close()
    again = Registry("h", Journal.open(folder / "agents"))
    assert "db" in {agent.domain for agent in again.agents()}, "what came after the recovery is lost"
    again.close()


class WritesAtTheEnd(Registry):
    """Journals only when it is closed."""

    def _save(self, agent: Agent) -> None:
        pass


class ForgetsBeforeTheChange(Registry):
    """Compacts without the agent whose state is changing."""

    def _save(self, agent: Agent) -> None:
        changed = self._agents.pop(agent.identity)
        self._compact()
        self._agents[agent.identity] = changed


BUGS = (WritesAtTheEnd, ForgetsBeforeTheChange)
good = program(Registry)
