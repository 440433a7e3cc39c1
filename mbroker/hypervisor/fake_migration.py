"""A migration between fake hosts: a row of steps, each of which can go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

import attrs

from .domain import Arrival, DomainInfo, State
from .errors import HypervisorUnreachable, MigrationFailed, Where
from .events import Kind
from .migration import MigrationOptions, Phase, Progress, whereabouts

if TYPE_CHECKING:  # the world is made of hosts, and hosts of moves
    from .fake import FakeHypervisor, World

__all__ = ["Fault", "Half", "Move", "Step", "Trouble"]


class Step(Enum):
    """What a migration does next."""

    CONNECT = "connect"
    """Reach the destination."""
    PREPARE = "prepare"
    """Make an empty half there."""
    COPY = "copy"
    """Copy memory while the domain runs on."""
    SWITCH = "switch"
    """Stop it at the source."""
    FINISH = "finish"
    """Have it whole at the destination, where it is held back; with post-copy it runs there now."""
    FETCH = "fetch"
    """Copy what post-copy left behind; no step of other migrations."""
    CONFIRM = "confirm"
    """Drop the half at the source."""
    ADMIT = "admit"
    """Let it run at the destination; post-copy is without this step."""


class Trouble(Enum):
    """What goes wrong at a step."""

    ERROR = "error"
    """The hypervisor refuses it."""
    HANG = "hang"
    """It never ends by itself."""
    CUT = "cut"
    """Whoever migrates loses sight of the destination: before the step, or, once the domain has stopped, after it."""
    KILL_SOURCE = "kill source"
    KILL_DESTINATION = "kill destination"
    LIE = "lie"
    """Until the domain has switched over, it stays and success is reported; then it moves and failure is."""


@attrs.frozen
class Fault:
    """Something that goes wrong once."""

    step: Step
    trouble: Trouble


@attrs.define(eq=False)
class Half:
    """What one host has of a domain."""

    info: DomainInfo
    started: float
    """When it began to run on this host."""
    state: State = State.OFF
    memory: int = 0
    """The world's count of runs when this memory was written."""
    quota: float | None = None
    left: bool | None = None
    """How it ended, when it is off; see :meth:`mbroker.hypervisor.Hypervisor.left`."""
    incoming: bool = False
    """Whether a migration fills it: the host has no definition of it yet."""

    @property
    def described(self) -> DomainInfo:
        """What a hypervisor says of it."""
        return attrs.evolve(self.info, state=self.state)

    def cpu_seconds(self, now: float) -> float:
        """Return the CPU time of a domain that never idles."""
        return (now - self.started) * min(self.quota or 1.0, 1.0)


class _Refused(Exception):
    """A step failed; the hosts still see each other."""


class _Severed(Exception):
    """A host, or the way between both, is gone."""


class _Lied(Exception):
    """What is reported is not what happened."""


@attrs.define(eq=False)
class Move:
    """One migration."""

    world: World
    source: FakeHypervisor
    destination: str
    half: Half
    options: MigrationOptions
    progress: Callable[[Progress], None] | None
    orphaned: bool = attrs.field(default=False, init=False)
    """Whether the process that makes it has died: both hosts do what they do about that, when it is cancelled."""
    _done: set[Step] = attrs.field(factory=set[Step], init=False)
    _before: State = attrs.field(default=attrs.Factory(lambda self: self.half.state, takes_self=True), init=False)

    @property
    def _target(self) -> FakeHypervisor:
        return self.world.hosts[self.destination]

    @property
    def _domain(self) -> str:
        return self.half.info.uuid

    @property
    def _postcopy(self) -> bool:
        return self.options.postcopy_after is not None

    @property
    def _steps(self) -> list[Step]:
        """Steps that are left."""
        without = Step.ADMIT if self._postcopy else Step.FETCH
        return [step for step in Step if step is not without and step not in self._done]

    async def make(self) -> None:
        """Go all steps; raises MigrationFailed, and leaves behind what QEMU and libvirt would."""
        try:
            async with asyncio.timeout(self.options.timeout):
                for step in self._steps:
                    await self._go(step)
        except TimeoutError:
            self._give_up()
            raise self._failed(f"it took longer than {self.options.timeout:g} s") from None
        except asyncio.CancelledError:
            if Step.SWITCH in self._done and not self.orphaned and self._target.reachable:
                self._end()  # it is too late to call it off
            else:
                self._give_up()
            raise
        except _Refused as error:
            self._give_up()
            raise self._failed(str(error)) from None
        except _Severed as error:
            self._give_up(severed=True)
            raise self._failed(str(error), severed=True) from None
        except _Lied:
            if Step.SWITCH not in self._done:
                self._give_up()
                return
            self._end()
            raise MigrationFailed(f"{self.source.uri}: internal error", Where.SOURCE) from None

    async def _go(self, step: Step) -> None:
        await self.world.at_step(step, self._domain)
        trouble = self.world.take(step)
        if trouble is Trouble.HANG:
            await asyncio.Event().wait()
        if trouble is Trouble.ERROR:
            raise _Refused(f"{self.source.uri}: the step {step.value!r} failed")
        if trouble is Trouble.LIE:
            raise _Lied
        if trouble is Trouble.KILL_SOURCE:
            self.source.kill()
        if trouble is Trouble.KILL_DESTINATION and self.destination in self.world.hosts:
            self._target.kill()
        if trouble is Trouble.CUT and Step.SWITCH not in self._done:
            raise _Severed(f"{self.destination} does not answer any more")
        self._look(step)
        self._do(step)
        if trouble is Trouble.CUT:
            raise _Severed(f"{self.destination} does not answer any more")

    def _look(self, step: Step) -> None:
        """See that both hosts are there, and that the destination can take the domain in."""
        if not self.source.reachable:
            raise _Severed(f"{self.source.uri} does not answer any more")
        if self.destination not in self.world.hosts or not self._target.reachable:
            raise _Severed(f"{self.destination} does not answer; is its daemon running, and the URI right?")
        if self._target is self.source:
            raise _Refused(f"{self.half.info.name} is already at {self.destination}")
        there = self._target.halves.get(self._domain)
        if step is Step.PREPARE and there is not None and there.state.active:
            raise _Refused(f"{self.half.info.name} is already active at {self.destination}")
        if self._domain not in self.source.halves:
            if step is not Step.ADMIT:
                raise _Refused(f"{self.half.info.name} is gone")
        elif self.half.state is State.OFF or (step is Step.FINISH and there is None):
            raise _Refused(f"{self.half.info.name} was stopped")

    def _do(self, step: Step) -> None:
        match step:
            case Step.CONNECT:
                pass
            case Step.PREPARE:
                info = self._target.place(self.half.info)
                there = attrs.evolve(self.half, info=info, state=State.MOVING, incoming=True, started=self.world.now())
                self._target.halves[self._domain] = there
                self._target.tell(Kind.ARRIVING, there)
            case Step.COPY:
                self._report(Phase.COPYING)
            case Step.SWITCH:
                self._before, self.half.state = self.half.state, State.MOVING
                if self._before is State.RUNNING:
                    self.source.tell(Kind.LEAVING, self.half)
                if self._postcopy:
                    self.source.tell(Kind.POSTCOPY, self.half)
            case Step.FINISH:
                there = self._target.halves[self._domain]
                there.memory, there.incoming = self.half.memory, False
                if self._postcopy:
                    self._run(there)
                    self._target.tell(Kind.POSTCOPY, there)
                else:
                    if self._before is State.RUNNING:
                        there.info = attrs.evolve(there.info, arrival=Arrival(self.options.ticket, self.source.uri))
                    else:
                        there.state = self._before
                    self._target.tell(Kind.PAUSED, there)
            case Step.FETCH:
                self._report(Phase.POSTCOPY)
                self._target.tell(Kind.ARRIVED, self._target.halves[self._domain])
            case Step.CONFIRM:
                self.source.tell(Kind.LEFT, self.source.forget(self._domain))
            case Step.ADMIT:
                self._target.let_run(self._domain, self.options.ticket)
        self._done.add(step)

    def _end(self) -> None:
        for step in self._steps:
            self._do(step)

    def _run(self, there: Half) -> None:
        there.state = self._before
        if self._before is State.RUNNING:
            self.world.run(self._target, self._domain)

    def _report(self, phase: Phase) -> None:
        if self.progress is not None:
            total = self.half.info.memory
            for part in range(3):
                self.progress(Progress(phase, total * part // 2, total - total * part // 2, total, elapsed=float(part)))

    def _give_up(self, *, severed: bool = False) -> None:
        """Do what both hosts, each by itself, do about a migration that does not go on."""
        there = self._target.halves.get(self._domain) if self.destination in self.world.hosts else None
        if Step.FINISH not in self._done:
            if there is not None and there.incoming and Step.PREPARE in self._done:
                self._target.tell(Kind.STOPPED, self._target.forget(self._domain))
            if Step.SWITCH in self._done and self.half.state is State.MOVING and not self.orphaned:
                self._stay()
        elif severed and self._steps[:1] == [Step.CONFIRM] and not self._postcopy:
            self._stay()  # nobody heard that it is whole there, where it must never run now
        elif self._postcopy and Step.FETCH not in self._done:
            for host, half in ((self.source, self.half), (self._target, there)):
                if half is not None and half.state.active:
                    half.state = State.MOVING
                    host.tell(Kind.POSTCOPY_FAILED, half)
        # else it is whole at the destination, and the source may hold its half: neither knows of the other

    def _stay(self) -> None:
        if self._before is State.RUNNING:
            self.world.run(self.source, self._domain)
            self.source.tell(Kind.ARRIVED, self.half)
        else:
            self.half.state = self._before

    def _failed(self, why: str, *, severed: bool = False) -> MigrationFailed:
        def see(host: FakeHypervisor) -> State | HypervisorUnreachable | None:
            if not host.reachable:
                return HypervisorUnreachable(f"{host.uri} does not answer")
            return host.halves[self._domain].state if self._domain in host.halves else None

        there: State | HypervisorUnreachable | None = None
        if Step.CONNECT in self._done:
            there = HypervisorUnreachable(f"{self.destination} does not answer") if severed else see(self._target)
        return MigrationFailed(why, whereabouts(see(self.source), there))
