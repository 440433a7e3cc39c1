"""Engines on other processors and machines, by Ray (``pip install 'mchannel[ray]'``).

Ray starts the process, restarts nothing, and moves what is said: what a lost one did is done again by
:mod:`.housing`. Whoever reaches a Ray cluster can run programs on it, so that its network must be trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from .engine_host import LostError, Report, Tasks, Worker

__all__ = ["RayHost", "connect"]


def connect() -> None:
    """Join the Ray cluster of this machine, once; raise ConnectionError if there is none."""
    if not ray.is_initialized():
        ray.init(address="auto", configure_logging=False, log_to_driver=False)  # pyright: ignore[reportUnknownMemberType]


class RayHost:
    """A host for engines: an actor, and one processor of the cluster to which the caller is connected."""

    def __init__(self, *, patience: float = 30.0, processors: float = 1.0) -> None:
        """Start it where there are *processors*; one that does not answer for *patience* seconds is lost."""
        self._patience = patience
        actor = cast("Any", ray.remote(Worker)).options(num_cpus=processors, max_restarts=0, max_task_retries=0)
        self._actor: Any = actor.remote()

    def place(self, shard: int, image: bytes) -> None:
        """Have the engine of *shard* from now on."""
        self._wait(self._actor.place.remote(shard, image))

    def drop(self, shard: int) -> None:
        """Have the engine of *shard* no longer."""
        self._wait(self._actor.drop.remote(shard))

    def start(self, tasks: Tasks) -> Callable[[], Report]:
        """Send *tasks*."""
        begun = self._actor.perform.remote(tasks)
        return lambda: self._wait(begun)

    def close(self) -> None:
        """End the actor, which may be gone already."""
        ray.kill(self._actor)  # pyright: ignore[reportUnknownMemberType]

    def _wait(self, begun: Any) -> Any:
        try:
            return ray.get(begun, timeout=self._patience)
        except (RayActorError, GetTimeoutError) as error:
            self.close()
            raise LostError(f"a host of engines is gone: {type(error).__name__}") from None
        except RayTaskError as error:
            if isinstance(error.cause, MemoryError):
                self.close()
                raise LostError("an engine ran out of memory") from None
            raise
