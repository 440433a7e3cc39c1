"""A simulated web server whose p-state is set by a real policy, in a real broker, fed by the real meter.

The server is one virtual CPU that serves requests first come, first served, under a load that varies as
that of the M-channels paper (section 4.1.1). ``python -m tests.sim.server`` prints what each policy makes
of it: the tool to tune policies with. Power is modelled: frequency times voltage squared.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Iterator

import attrs

from mbroker.action import Action, SetFrequency
from mbroker.broker import Broker
from mbroker.host import Host
from mbroker.policies.adaptive import Adaptive
from mbroker.policies.sla_dvfs import Basic, Richer, TopSpeed, Utilization
from mbroker.policy import Policy
from mchannel.agents.meter import EPOCH, Meter
from mchannel.event import Event

START = 1_700_000_000.0
POLICIES = {"none": TopSpeed, "basic": Basic, "richer": Richer, "utilization": Utilization, "adaptive": Adaptive}

_MHZ = (1000, 1800, 2000, 2200, 2400)
_POWER = tuple(f * v * v / (2400 * 1.35**2) for f, v in zip(_MHZ, (1.10, 1.20, 1.25, 1.30, 1.35), strict=True))
_BASE = 0.70  # share of the host's power that no p-state changes; the rest is two equal sockets
_SCALING = 0.9  # share of a request's work that a faster clock speeds up
_PLATEAUS = ((150, 0.25), (300, 0.55), (360, 0.95), (480, 0.45), (600, 0.20))  # until second, of the peak


@attrs.frozen
class Load:
    """What comes to the server."""

    peak: float = 700.0
    """Requests per second at the highest plateau."""
    service: float = 0.0007
    """Mean seconds that a request takes at the top p-state, without waiting."""

    def rate(self, seconds: float) -> float:
        """Return the requests per second at that time of the run."""
        return self.peak * next(share for until, share in _PLATEAUS if seconds % 600 < until)


@attrs.define
class Server:
    """The virtual CPU and its queue."""

    load: Load
    dice: random.Random
    level: int = len(_MHZ) - 1
    _arrival: float = 0.0
    _free: float = 0.0
    _work: float = 0.0
    _done: float = 0.0
    _queue: deque[tuple[float, float]] = attrs.field(factory=deque[tuple[float, float]], init=False)

    def run(self, until: float) -> tuple[float, list[tuple[float, float]]]:
        """Serve for one epoch; return the utilisation and (finish, response time) of each request."""
        while self._arrival < until:
            demand = self.dice.gammavariate(2, self.load.service / 2)
            demand *= _SCALING * _MHZ[-1] / _MHZ[self.level] + 1 - _SCALING
            self._free = max(self._free, self._arrival) + demand
            self._work += demand
            self._queue.append((self._free, self._free - self._arrival))
            self._arrival += self.dice.expovariate(self.load.rate(self._arrival))
        finished = list[tuple[float, float]]()
        while self._queue and self._queue[0][0] < until:
            finished.append(self._queue.popleft())
        done = self._work - max(0.0, self._free - until)
        busy, self._done = (done - self._done) / EPOCH, done
        return min(1.0, max(0.0, busy)), finished


def guest_view(utilization: float) -> float:
    """Return what the guest makes of its utilisation, as it takes stolen time for its own.

    The paper gives no figures for this; these make its figure 4 come out over a wide range of loads.
    """
    return min(1.0, 0.5 + 2.0 * utilization)


def events(server: Server, seconds: float, source: str = "web1") -> Iterator[Event]:
    """Yield the two views of each epoch."""
    meter = Meter(source, START)
    for number in range(round(seconds / EPOCH)):
        end = (number + 1) * EPOCH
        usage, finished = server.run(end)
        for at, response in finished:
            meter.observe(START + at, response)
        meter.advance(START + end)
        yield from meter.take(round(guest_view(usage), 4))
        detail = {"epoch": round((START + end) / EPOCH) - 1}
        yield Event("cpu.usage", source, round(usage, 4), START + end, detail)


@attrs.define
class Result:
    """What a policy made of a run."""

    requests: int = 0
    hard: int = 0
    soft: int = 0
    transitions: int = 0
    levels: list[int] = attrs.field(factory=list[int])
    """The p-state in each epoch."""

    @property
    def mean_level(self) -> float:
        """Mean p-state, 0 is the slowest."""
        return sum(self.levels) / len(self.levels)

    def share(self, level: int) -> float:
        """Return the fraction of the epochs that ran at *level*."""
        return self.levels.count(level) / len(self.levels)

    def saving_pct(self, *, managed: bool) -> float:
        """Return the modelled saving against no power management; a managed idle socket runs at the lowest."""
        own = sum(_POWER[level] for level in self.levels) / len(self.levels)
        idle = _POWER[0] if managed else 1.0
        return 100 * (1 - _BASE) / 2 * (2 - own - idle)


def simulate(policy: Policy, *, seed: int = 1, seconds: float = 600.0, load: Load | None = None) -> Result:
    """Run the server for *seconds* under *policy*."""
    server = Server(load or Load(), random.Random(seed))
    broker = Broker(Host("sim", _MHZ).with_level("web1", server.level), [policy])
    result = Result()
    for event in events(server, seconds):
        if event.topic == "sla.epoch":
            result.levels.append(server.level)
            requests, hard, soft = (event.detail[name] for name in ("requests", "hard", "soft"))
            assert isinstance(requests, int)
            assert isinstance(hard, int)
            assert isinstance(soft, int)
            result.requests += requests
            result.hard += hard
            result.soft += soft
        for action in broker.handle(event):
            server.level = _apply(action, server.level)
            result.transitions += isinstance(action, SetFrequency)
    return result


def _apply(action: Action, level: int) -> int:
    return action.level if isinstance(action, SetFrequency) and action.level is not None else level


def main() -> None:
    """Print a table; the argument is the peak in requests per second."""
    load = Load(float(sys.argv[1])) if len(sys.argv) > 1 else Load()
    print("policy       saving %  > 6 ms %  > 3 ms %  moves/h  share of time at 1.0 1.8 2.0 2.2 2.4 GHz")
    for name, policy in POLICIES.items():
        made = simulate(policy(), load=load)
        shares = " ".join(f"{made.share(level):.2f}" for level in range(len(_MHZ)))
        late = (100 * count / made.requests for count in (made.hard, made.soft))
        saving = made.saving_pct(managed=name != "none")
        print(f"{name:12s} {saving:8.1f}  {next(late):8.3f}  {next(late):8.3f}  {made.transitions * 6:7d}  {shares}")


if __name__ == "__main__":
    main()
