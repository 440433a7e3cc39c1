"""A hypervisor in one process: xenstore, event channels and grants as far as the transport can see them.

It keeps the rules that matter: nodes of a suspended domain are gone, its grants and channels are dead, and letting
go of a channel that was bound before the suspend is the kernel's bug.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from collections.abc import Callable, Sequence
from threading import RLock

import attrs

from mchannel.errors import AddressError
from mchannel.transports.region import Memory
from mchannel.transports.xenlib import PAGE, Machine

UUID = "6f1c2d3e-0000-4000-8000-000000000007"


class World:
    """All that the hypervisor and xenstored know."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.nodes: dict[str, bytes] = {"/local/domain/0/domid": b"0"}
        self.stores: list[FakeStore] = []
        self.unbound: dict[tuple[int, int], FakeEvents] = {}
        self.grants: dict[tuple[int, tuple[int, ...]], int] = {}
        self.mapped = 0
        self.kernel_bugs = 0
        self.ports = 1

    def boot(self, number: int, uuid: str = UUID) -> Guest:
        guest = Guest(self, number)
        self.introduce(guest, uuid)
        return guest

    def introduce(self, guest: Guest, uuid: str = UUID) -> None:
        self.nodes[f"/local/domain/{guest.number}/domid"] = str(guest.number).encode()
        self.nodes[f"/local/domain/{guest.number}/vm"] = f"/vm/{uuid}".encode()
        self.fire("@introduceDomain")

    def destroy(self, number: int) -> None:
        home = f"/local/domain/{number}"
        self.nodes = {path: value for path, value in self.nodes.items() if not (path + "/").startswith(home + "/")}
        self.fire("@releaseDomain")

    def move(self, guest: Guest, number: int) -> None:
        """Save and restore, or migrate: another number, the same memory, nothing else."""
        before, guest.number = guest.number, number
        self.unbound = {at: events for at, events in self.unbound.items() if at[0] != before}
        self.grants = {at: fd for at, fd in self.grants.items() if at[0] != before}
        for events in guest.events:
            events.stale = events.stale or bool(events.ports)
        uuid = self.nodes[f"/local/domain/{before}/vm"].decode().removeprefix("/vm/")
        if number == before:  # it went to another host, of which this is now the xenstore
            self.destroy(before)
        self.introduce(guest, uuid)
        if number != before:
            self.destroy(before)
        for store in self.stores:  # the kernel registers them again, and each fires
            if store.guest is guest:
                for _, token in store.watches:
                    store.tell(token)

    def watched(self, number: int) -> int:
        """Return how many watches lie on a domain's part of xenstore."""
        home = f"/local/domain/{number}/"
        return sum(store.at(path).startswith(home) for store in self.stores for path, _ in store.watches)

    def forget(self) -> None:
        """Let go of pages that nobody holds any more."""
        for fd in self.grants.values():
            os.close(fd)
        self.grants.clear()

    def fire(self, path: str) -> None:
        for store in self.stores:
            for watched, token in tuple(store.watches):
                where = store.at(watched)
                if (path + "/").startswith(where + "/") or (where + "/").startswith(path + "/"):
                    store.tell(token)


@attrs.define(eq=False)
class Guest:
    """A domain; number 0 is domain 0."""

    world: World
    number: int
    events: list[FakeEvents] = attrs.Factory(list["FakeEvents"])
    claimed: set[str] = attrs.Factory(set[str])

    @property
    def machine(self) -> Machine:
        return Machine(
            lambda: FakeStore(self.world, self),
            lambda: FakeEvents(self.world, self),
            lambda _, count: Granted(self.world, self, count),
            lambda domain, references: Mapped(self.world, domain, references),
            self._claim,
        )

    def _claim(self, name: str) -> Callable[[], None]:
        if name in self.claimed:
            raise AddressError(f"xen:///{name} is open in another process of this guest; choose another name")
        self.claimed.add(name)
        return lambda: self.claimed.remove(name)


class FakeStore:
    def __init__(self, world: World, guest: Guest) -> None:
        self.world = world
        self.guest = guest
        self.watches: list[tuple[str, str]] = []
        self._fired: deque[str] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        world.stores.append(self)

    def at(self, path: str) -> str:
        return path if path[0] in "/@" else f"/local/domain/{self.guest.number}/{path}"

    def tell(self, token: str) -> None:
        self._fired.append(token)
        os.eventfd_write(self._fd, 1)

    def fileno(self) -> int:
        return self._fd

    def read(self, path: str) -> bytes | None:
        return self.world.nodes.get(self.at(path))

    def write(self, path: str, value: bytes) -> None:
        with self.world.lock:
            self.world.nodes[self.at(path)] = value
            self.world.fire(self.at(path))

    def remove(self, path: str) -> None:
        with self.world.lock:
            if self.world.nodes.pop(self.at(path), None) is not None:
                self.world.fire(self.at(path))

    def names(self, path: str) -> list[str]:
        below = self.at(path) + "/"
        with self.world.lock:
            return sorted({node[len(below) :].split("/")[0] for node in self.world.nodes if node.startswith(below)})

    def watch(self, path: str, token: str) -> None:
        with self.world.lock:
            self.watches.append((path, token))
            self.tell(token)

    def unwatch(self, path: str, token: str) -> None:
        self.watches.remove((path, token))

    def fired(self) -> str | None:
        with self.world.lock:
            if not self._fired:
                return None
            found = self._fired.popleft()
            if not self._fired:
                os.eventfd_read(self._fd)
            return found

    def close(self) -> None:
        with self.world.lock:
            if self in self.world.stores:
                self.world.stores.remove(self)
                os.close(self._fd)


class FakeEvents:
    def __init__(self, world: World, guest: Guest) -> None:
        self.world = world
        self.guest = guest
        self.ports: dict[int, tuple[FakeEvents, int] | None] = {}
        self.stale = False
        self._rung: deque[int] = deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        guest.events.append(self)

    def fileno(self) -> int:
        return self._fd

    def _bound(self, other: tuple[FakeEvents, int] | None) -> int:
        self.world.ports += 1
        self.ports[self.world.ports] = other
        return self.world.ports

    def offer(self, domain: int) -> int:
        with self.world.lock:
            port = self._bound(None)
            self.world.unbound[self.guest.number, port] = self
            return port

    def bind(self, domain: int, port: int) -> int:
        with self.world.lock:
            other = self.world.unbound.pop((domain, port), None)
            if other is None:
                raise OSError(errno.EINVAL, "cannot bind an event channel: Invalid argument")
            own = self._bound((other, port))
            other.ports[port] = (self, own)
            return own

    def unbind(self, port: int) -> None:
        with self.world.lock:
            other = self.ports.pop(port, None)
            if other is not None and other[1] in other[0].ports:
                other[0].ports[other[1]] = None
                self.world.unbound[other[0].guest.number, other[1]] = other[0]

    def ring(self, port: int) -> None:
        with self.world.lock:
            other = self.ports.get(port)
            if other is not None and not self.stale and not other[0].stale and other[1] in other[0].ports:
                other[0]._rung.append(other[1])
                os.eventfd_write(other[0]._fd, 1)

    def rung(self) -> int | None:
        with self.world.lock:
            if not self._rung:
                return None
            found = self._rung.popleft()
            if not self._rung:
                os.eventfd_read(self._fd)
            return found

    def close(self) -> None:
        with self.world.lock:
            if self.stale:
                self.world.kernel_bugs += 1
            if self in self.guest.events:
                self.guest.events.remove(self)
                for port in tuple(self.ports):
                    self.unbind(port)
                os.close(self._fd)


class Granted:
    def __init__(self, world: World, guest: Guest, count: int) -> None:
        self._fd = os.memfd_create("grants")
        os.ftruncate(self._fd, count * PAGE)
        self.memory: Memory = mmap.mmap(self._fd, count * PAGE)
        self.references: Sequence[int] = range(1000 * guest.number + 8, 1000 * guest.number + 8 + count)
        world.grants[guest.number, tuple(self.references)] = self._fd

    def close(self) -> None:
        """The pages live on while they are mapped, and so does the descriptor here."""


class Mapped:
    def __init__(self, world: World, domain: int, references: Sequence[int]) -> None:
        fd = world.grants.get((domain, tuple(references)))
        if fd is None:
            raise OSError(errno.EINVAL, f"cannot map {len(references)} pages of domain {domain}: Invalid argument")
        self.references = references
        self.memory: Memory = mmap.mmap(fd, len(references) * PAGE)
        self._world: World | None = world
        world.mapped += 1

    def close(self) -> None:
        if self._world is not None:
            self._world.mapped -= 1
            self._world = None
