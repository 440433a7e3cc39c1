"""Who talks to this broker: every agent, its state, and when it was last heard.

Without I/O but for its journal. The caller says what happened to which channel and when, in Unix
seconds; what a restart must still know (identities, states, counts) is journalled at each change of
state. The journal is an aid to operators: when the disk refuses, the registry goes on and says so.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Final

import attrs

from mbroker.values import Invalid, build, plain
from mchannel.errors import JournalError, MChannelError
from mchannel.event import Event
from mchannel.journal import Journal

__all__ = ["EPOCH", "Agent", "AgentState", "Registry", "RegistryFull", "host_identity"]

EPOCH: Final = 0.5
"""Seconds in an epoch (M-channels, section 4.1.1); epochs are aligned to the Unix clock."""

_FORGET_GONE = 20
"""Epochs of silence told about a domain whose agents all said goodbye: enough for policies to let go."""


class RegistryFull(MChannelError):
    """A domain has too many agents at once; the new one is not taken."""


class AgentState(Enum):
    """Where communication with an agent stands."""

    CONNECTING = "connecting"
    """Its channel was opened a moment ago, and it has said nothing yet."""
    LIVE = "live"
    SUSPENDED = "suspended"
    """Quiet on purpose, for a migration."""
    LOST = "lost"
    """Its channel broke, or the broker restarted; it is expected back."""
    GONE = "gone"
    """It said goodbye, or broke the rules."""


_AWAY = frozenset({AgentState.SUSPENDED, AgentState.LOST, AgentState.GONE})


@attrs.frozen
class Agent:
    """One agent as the operator sees it."""

    identity: str
    """``host id/domain/name``: unique across hosts, the same across reconnections and restarts."""
    domain: str
    """Whose channel it speaks through."""
    name: str
    """What it calls itself; the session in hexadecimal when it has no printable name."""
    session: str
    """Its present session, in hexadecimal."""
    state: AgentState
    since: float
    """Unix seconds of the last change of state."""
    last_heard: float
    """Unix seconds of its last message; 0 when it never spoke."""
    established: int = 0
    """How often communication was established: over a new channel, or again after it was lost."""
    terminated: int = 0
    """How often it ended, in good order or not."""

    @property
    def re_established(self) -> int:
        """How often it came back."""
        return max(0, self.established - 1)


def host_identity(state: Path, machine_id: Path = Path("/etc/machine-id")) -> str:
    """Return twelve hexadecimal digits that name this host among all hosts.

    Derived from the machine id, which itself is not shown to others (machine-id(5)); where there is
    none, from a file in *state* that is made on the first call. Raises OSError when neither works.
    """
    own = state / "host-id"
    seed = _read(machine_id) or _read(own)
    if not seed:
        seed = secrets.token_hex(16)
        own.write_text(f"{seed}\n", "ascii")
    return hashlib.sha256(f"mbroker host {seed}".encode()).hexdigest()[:12]


def _read(file: Path) -> str:
    try:
        return file.read_text("ascii").strip()
    except (FileNotFoundError, ValueError):
        return ""


class Registry:
    """The agents of one host, at most *limit* in all and *limit_per_domain* of one domain.

    When there are too many, the agent that has been away longest is forgotten; one that is present
    never is.
    """

    def __init__(
        self, host_id: str, journal: Journal | None = None, *, limit: int = 4096, limit_per_domain: int = 16
    ) -> None:
        """Take over what *journal* tells of the time before a restart: who was present then is lost now."""
        self._host_id = host_id
        self._journal = journal
        self._limit = limit
        self._limit_per_domain = limit_per_domain
        self._agents: dict[str, Agent] = {}
        self._heard: dict[str, float] = {}
        self._silent: dict[str, int] = {}
        self._spoke: set[str] = set()
        self._appended = 0
        self.problem = ""
        """Why the journal is not up to date, in one line; empty when it is."""
        for record in journal.records if journal else ():
            self._recall(record)
        for agent in tuple(self._agents.values()):
            if agent.state not in _AWAY:
                self._agents[agent.identity] = attrs.evolve(
                    agent, state=AgentState.LOST, terminated=agent.terminated + 1
                )
        if journal:
            self._compact()

    def agents(self) -> tuple[Agent, ...]:
        """Return all agents, by identity."""
        return tuple(self._now(agent) for _, agent in sorted(self._agents.items()))

    def connect(self, domain: str, name: str, session: bytes, now: float) -> Agent:
        """Note that an agent opened a channel and return it, new or known from before.

        A second agent of the same name, while the first is present, gets a name of its own. Raises
        :exc:`RegistryFull` when the domain has as many agents present as it may have.
        """
        called = name if name.isascii() and name.isprintable() and 0 < len(name) <= 64 else session.hex()
        called = called.replace("/", "_").replace(" ", "_")
        identity = f"{self._host_id}/{domain}/{called}"
        known = self._agents.get(identity)
        if known and known.state not in _AWAY and known.session != session.hex():
            called = f"{called}~{session.hex()[:8]}"
            identity = f"{self._host_id}/{domain}/{called}"
            known = self._agents.get(identity)
        if known is None:
            self._make_room(domain)
            known = Agent(identity, domain, called, "", AgentState.GONE, now, 0.0)
        return self._change(attrs.evolve(self._now(known), session=session.hex()), AgentState.CONNECTING, now)

    def heard(self, identity: str, now: float) -> None:
        """Note that the agent said something.

        Raises :exc:`RegistryFull` when it was forgotten while it was away: it must open its channel anew.
        """
        agent = self._agents.get(identity)
        if agent is None:
            raise RegistryFull("was forgotten while it was away, to make room; it may come again")
        self._heard[identity] = now
        self._spoke.add(agent.domain)
        if agent.state is not AgentState.LIVE:
            self.moved(identity, AgentState.LIVE, now)

    def moved(self, identity: str, state: AgentState, now: float) -> Agent | None:
        """Note another state of the agent and return it, or None when it was forgotten.

        To become live counts as established, unless it was suspended; to become lost or gone as terminated, once.
        """
        if identity not in self._agents:
            return None
        agent = self._now(self._agents[identity])
        if agent.state is state:
            return agent
        ended = state in {AgentState.LOST, AgentState.GONE} and agent.state not in {AgentState.LOST, AgentState.GONE}
        began = state is AgentState.LIVE and agent.state is not AgentState.SUSPENDED
        counted = attrs.evolve(agent, established=agent.established + began, terminated=agent.terminated + ended)
        return self._change(counted, state, now)

    def silence(self, now: float) -> list[Event]:
        """Return ``agent.silent`` for each domain of which nothing was heard since the last call.

        Call it once an epoch, in the middle, so that a report on its way is not missed. ``value``
        counts the calls in a row: a clock that is set cannot make a domain look silent for long.
        """
        spoke, self._spoke = self._spoke, set()
        present = self._presence()
        self._silent = {domain: 0 if domain in spoke else self._silent.get(domain, 0) + 1 for domain in present}
        ended = math.floor(now / EPOCH) - 1
        return [
            Event("agent.silent", domain, epochs, now, {"epoch": ended})
            for domain, epochs in self._silent.items()
            if epochs and (present[domain] or epochs <= _FORGET_GONE)
        ]

    def close(self) -> None:
        """Write down when each agent was last heard, and let go of the journal; idempotent."""
        if self._journal:
            self._compact()
            self._journal.close()

    def _presence(self) -> dict[str, bool]:
        """Return each domain that has agents, and whether any of them did not say goodbye."""
        domains: dict[str, bool] = {}
        for agent in self._agents.values():
            domains[agent.domain] = domains.get(agent.domain, False) or agent.state is not AgentState.GONE
        return domains

    def _now(self, agent: Agent) -> Agent:
        """Return *agent* with the time that the hot path keeps aside."""
        return attrs.evolve(agent, last_heard=self._heard.get(agent.identity, agent.last_heard))

    def _change(self, agent: Agent, state: AgentState, now: float) -> Agent:
        changed = self._agents[agent.identity] = attrs.evolve(agent, state=state, since=now)
        self._save(changed)
        return changed

    def _make_room(self, domain: str) -> None:
        of_domain = [agent for agent in self._agents.values() if agent.domain == domain]
        if len(of_domain) >= self._limit_per_domain:
            self._forget_one(of_domain, f"domain {domain} has {len(of_domain)} agents already; close one first")
        elif len(self._agents) >= self._limit:
            self._forget_one(self._agents.values(), f"this broker has {self._limit} agents already; none may be added")

    def _forget_one(self, candidates: Iterable[Agent], otherwise: str) -> None:
        away = [agent for agent in candidates if agent.state in _AWAY]
        if not away:
            raise RegistryFull(otherwise)
        oldest = min(away, key=lambda agent: (agent.state is not AgentState.GONE, agent.since))
        del self._agents[oldest.identity]
        self._heard.pop(oldest.identity, None)
        self._compact()

    def _recall(self, record: bytes) -> None:
        try:
            agent: Agent = build(Agent, json.loads(record))
        except (Invalid, ValueError, RecursionError):
            self.problem = "a record of the registry's journal was not understood and left out"
            return
        self._agents[agent.identity] = agent

    def _save(self, agent: Agent) -> None:
        self._appended += 1
        if self.problem or self._appended > 4 * len(self._agents) + 256:
            self._compact()
        elif self._journal:
            try:
                self._journal.append(_record(agent), sync=False)  # survives a kill; that is all it is for
            except JournalError as error:
                self.problem = str(error)

    def _compact(self) -> None:
        self._appended = 0
        if self._journal:
            try:
                self._journal.rewrite([_record(agent) for agent in self.agents()])
                self.problem = ""
            except JournalError as error:
                self.problem = str(error)


def _record(agent: Agent) -> bytes:
    return json.dumps(plain(agent)).encode()
