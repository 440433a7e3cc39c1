"""The load: requests that come when they come, whether the server keeps up or not.

``python -m examples.demo.load PORT SECONDS PEAK ITERATIONS SEED`` asks a server on this machine, and
nothing else, and prints one JSON object at the end. The same arguments give the same requests.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

import attrs

__all__ = ["Arrival", "arrivals", "rate"]

# (until this share of the run, share of the peak): plateaus and a burst between two quiet times, as in
# the M-channels paper (section 4.1.1)
_PLATEAUS = ((0.36, 0.20), (0.55, 0.45), (0.70, 1.00), (0.83, 0.40), (1.00, 0.15))

_CONNECTIONS = 64
_WAITING = 512  # requests that wait for a connection; more are given up
_PATIENCE = 3.0  # seconds for the last answers


@attrs.frozen
class Arrival:
    """One request."""

    at: float
    """Seconds after the start."""
    iterations: int
    """How much work it is."""


def rate(share: float) -> float:
    """Return the load at that *share* of the run (0..1), as a share of the peak."""
    return next((height for until, height in _PLATEAUS if share < until), _PLATEAUS[-1][1])


def arrivals(seconds: float, peak: float, iterations: int, seed: int) -> Iterator[Arrival]:
    """Yield the requests of a run: Poisson arrivals of at most *peak* a second, with gamma-distributed work."""
    dice = random.Random(seed)
    at = 0.0
    while (at := at + dice.expovariate(peak)) < seconds:
        keep, work = dice.random(), dice.gammavariate(4, iterations / 4)
        if keep < rate(at / seconds):
            yield Arrival(at, max(1, round(work)))


_Connection: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@attrs.define
class _Client:
    """Keeps connections open, and a request waiting when all of them are taken."""

    port: int
    sent: int = 0
    answered: int = 0
    failed: int = 0
    _idle: deque[_Connection] = attrs.field(factory=lambda: deque[_Connection](), init=False)
    _slots: asyncio.Semaphore = attrs.field(factory=lambda: asyncio.Semaphore(_CONNECTIONS), init=False)

    async def ask(self, iterations: int) -> None:
        self.sent += 1
        async with self._slots:
            try:
                reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(port=self.port)
                writer.write(b"GET /%d HTTP/1.1\r\nHost: demo\r\n\r\n" % iterations)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(None, 1)[0]))
            except (OSError, EOFError, ValueError, IndexError):
                self.failed += 1
            else:
                self.answered += head.startswith(b"HTTP/1.1 200 ")
                self._idle.append((reader, writer))


async def _run(port: int, seconds: float, peak: float, iterations: int, seed: int) -> dict[str, int]:
    client, loop = _Client(port), asyncio.get_running_loop()
    asking: set[asyncio.Task[None]] = set()
    given_up = 0
    start = loop.time()
    for arrival in arrivals(seconds, peak, iterations, seed):
        await asyncio.sleep(max(0.0, start + arrival.at - loop.time()))
        if len(asking) >= _CONNECTIONS + _WAITING:
            given_up += 1
            continue
        task = asyncio.create_task(client.ask(arrival.iterations))
        asking.add(task)
        task.add_done_callback(asking.discard)
    await asyncio.sleep(max(0.0, start + seconds - loop.time()))
    if asking:
        _, late = await asyncio.wait(asking, timeout=_PATIENCE)
        for task in late:
            task.cancel()
    return {"sent": client.sent, "answered": client.answered, "failed": client.failed, "given_up": given_up}


def main() -> None:
    """Run the load that the arguments describe."""
    port, seconds, peak, iterations, seed = sys.argv[1:]
    print(json.dumps(asyncio.run(_run(int(port), float(seconds), float(peak), int(iterations), int(seed)))))


if __name__ == "__main__":
    main()
