"""Shared memory for the channels of domains that ask for it: plugged in while a domain stays, and out before it moves.

A domain asks by ``lane="1MiB"`` in its metadata (:data:`~mbroker.hypervisor.domain.METADATA`), or the host's
configuration does for all. The memory is a file in /dev/shm that only the hypervisor's user and this broker's can
open; its name goes as soon as both have it. The device has ``role='peer'``: what a host writes into a *master* is not
carried over by a migration, and so the hypervisor refuses to migrate a domain that has a peer. Whoever wants to
migrate it by other means than this broker takes the lane off before: ``mbroker lane DOMAIN off``. It comes when an
agent is there that can use it, and goes when this broker ends.

What a broker left that was killed, the next one takes away; what a broker has that is alive, another one on the same
machine does not touch.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Final

import attrs

from mbroker.fleet.hold import Hold, HoldError
from mbroker.hypervisor import DomainInfo, Hypervisor, HypervisorError
from mchannel.address import runtime_dir
from mchannel.errors import MChannelError
from mchannel.transports.ivshmem import LaneGate

__all__ = ["ALIAS", "LaneError", "Lanes", "lane_size"]

ALIAS: Final = "ua-mchannel-lane"
"""Alias of the device, by which ``virsh detach-device-alias`` takes it out as well."""
_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - where the hypervisor looks; the names are ours alone, and exclusive
_PREFIX: Final = "mchannel-lane-"
_SIZE: Final = 1 << 20
"""Bytes when nobody says how many: firmware leaves QEMU's root ports room for a device of 2 MiB."""
_LEAVE: Final = 3.0
"""Seconds that a guest has to unmap the memory before it is taken away."""
_DETACH: Final = 10.0
_STOP: Final = 2.0
"""Seconds that a broker which ends takes for all of them, half of it for the guests to unmap theirs."""
_UNMAP: Final = 1.0
"""Seconds that agents have to hear of this broker, and so to unmap what they shared with one that was killed."""
_TRIES: Final = (0.5, 1.0, 2.0, 5.0, 15.0)
"""Seconds until a lane that could not be plugged in is tried again; then it stays off."""
_WRITTEN = re.compile(r"([1-9][0-9]{0,3})MiB")

_log = logging.getLogger(__name__)


class LaneError(MChannelError):
    """A domain has no lane, or none can be made; the message says why."""


def lane_size(text: str) -> int:
    """Return the bytes that ``1MiB`` stands for, 0 for ``off``; raise ValueError for other than a power of two."""
    if text == "off":
        return 0
    found = _WRITTEN.fullmatch(text)
    count = int(found[1]) if found else 0
    if not 0 < count <= 256 or count & (count - 1):
        raise ValueError(f"a lane is off, or a power of two from 1MiB to 256MiB, not {text!r:.40}")
    return count << 20


@attrs.define(eq=False)
class _Lane:
    """The lane of one domain that this broker attends to."""

    name: str
    gate: LaneGate
    socket: Path
    size: int
    """Bytes that it asks for; 0 for none."""
    hold: Hold | None = None
    """Keeps other brokers of this machine from the device."""
    busy: asyncio.Lock = attrs.field(factory=asyncio.Lock)
    task: asyncio.Task[None] | None = None


class Lanes:
    """The lanes of the domains of one host."""

    def __init__(self, hypervisor: Hypervisor, *, default: int = 0, folder: Path = _FOLDER) -> None:
        """Give domains that do not say how much they want *default* bytes. Removes what a killed broker left."""
        self._hypervisor = hypervisor
        self._default = default
        self._folder = folder
        self._lanes: dict[str, _Lane] = {}
        for left in folder.glob(f"{_PREFIX}*"):
            with suppress(OSError):
                _remove(left)

    def attend(self, info: DomainInfo, gate: LaneGate, socket: Path) -> None:
        """Look after the lane of a domain whose port's *socket* is listened to by *gate*."""
        wanted = info.metadata.get("lane")
        try:
            size = self._default if wanted is None else lane_size(wanted)
        except ValueError as error:
            _log.warning("%s: its metadata cannot be followed: %s", info.name, error)
            size = 0
        lane = self._lanes[info.uuid] = _Lane(info.name, gate, socket, size)
        left = ALIAS in info.devices
        if size or left:
            lane.task = asyncio.create_task(self._settle(info.uuid, lane, left=left))

    def part(self, domain: str) -> None:
        """Look no more after the lane of a domain that is gone, or is attended to anew."""
        lane = self._lanes.pop(domain, None)
        if lane is not None:
            if lane.task is not None:
                lane.task.cancel()
            lane.gate.unplug()
            if lane.hold is not None:
                lane.hold.release()

    async def turn_on(self, domain: str, size: int = 0) -> None:
        """Plug memory in, if there is none; raises LaneError, or HypervisorError."""
        lane = self._lane(domain)
        lane.size = size or lane.size or self._default or _SIZE
        await self.plug(domain)

    async def turn_off(self, domain: str) -> None:
        """Take the memory out, so that anybody can migrate the domain; raises LaneError, or HypervisorError."""
        self._lane(domain).size = 0
        await self.unplug(domain)

    async def plug(self, domain: str) -> None:
        """Give the domain the lane that it asks for, if it has none; raises HypervisorError or LaneError."""
        lane = self._lanes.get(domain)
        if lane is None or not lane.size:
            return
        async with lane.busy:
            await self._plug(domain, lane)

    async def leave(self) -> None:
        """Take all memory out before this broker ends, so that others can migrate the domains; at most two seconds."""
        plugged = {domain: lane for domain, lane in self._lanes.items() if lane.size or lane.gate.plugged}
        for lane in plugged.values():
            lane.size = 0  # nor does a migration that is called off plug it in again
        if plugged:
            leaving = [asyncio.create_task(self._leave(domain, lane)) for domain, lane in plugged.items()]
            _, late = await asyncio.wait(leaving, timeout=_STOP)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _leave(self, domain: str, lane: _Lane) -> None:
        try:
            await self.unplug(domain, _STOP / 2)
        except (HypervisorError, MChannelError) as error:
            _log.warning("%s: its shared memory stays plugged in: %s", lane.name, error)
        except asyncio.CancelledError:
            _log.warning("%s: its guest may have the shared memory still; see: virsh detach-device-alias", lane.name)
            raise

    async def unplug(self, domain: str, patience: float = _LEAVE) -> None:
        """Let the guest leave the lane and take it out; raises HypervisorError when the device stays attached.

        The guest has *patience* seconds to unmap it. The channels go on by the virtio port in any case; cancelled, they
        do too, and the device may be there still.
        """
        lane = self._lanes.get(domain)
        if lane is None:
            return
        if lane.task is not None:
            lane.task.cancel()
        async with lane.busy:
            left = asyncio.Event()
            lane.gate.quiesce(left.set)
            try:
                async with asyncio.timeout(patience):
                    await left.wait()
            except TimeoutError:
                _log.warning("%s: its guest did not unmap the shared memory in %g s", lane.name, patience)
            finally:
                lane.gate.unplug()
            await self._detach(domain, lane)

    async def _settle(self, domain: str, lane: _Lane, *, left: bool) -> None:
        """Bring about what the domain asks for, when its agents found this broker: a device that comes delays that."""
        if left:
            await asyncio.sleep(_UNMAP)
            await self._insist(lane, lambda: self._detach(domain, lane))
        if lane.size:
            wanted = asyncio.Event()
            lane.gate.when_wanted(wanted.set)
            await wanted.wait()
            await self._insist(lane, lambda: self._plug(domain, lane))

    async def _insist(self, lane: _Lane, change: Callable[[], Awaitable[None]]) -> None:
        for pause in _TRIES:
            try:
                async with lane.busy:
                    await change()
            except (HypervisorError, MChannelError) as error:
                _log.warning("%s: its channels go by the virtio port, without shared memory: %s", lane.name, error)
                await asyncio.sleep(pause)
            else:
                return

    async def _plug(self, domain: str, lane: _Lane) -> None:
        """Make new memory, whatever is plugged in that this broker knows nothing of."""
        if lane.gate.plugged:
            return
        _claim(lane)
        await self._detach(domain, lane)
        info = await self._hypervisor.info(domain)
        path = self._folder / f"{_PREFIX}{domain}-{secrets.token_hex(8)}"
        fd = -1
        try:
            fd = _make(path, lane)
            await _wholly(self._hypervisor.attach(domain, _device(path.name, lane.size, info.free_ports)))
            try:
                lane.gate.plug(path)
            except BaseException:
                await self._detach(domain, lane)  # nobody would know of it, and it keeps the domain from being moved
                raise
        except OSError as error:
            raise LaneError(f"no shared memory in {self._folder}: {error.strerror}") from None
        finally:
            path.unlink(missing_ok=True)
            if fd >= 0:
                os.close(fd)
        _log.info("%s: has %d MiB of shared memory for its channels", lane.name, lane.size >> 20)

    async def _detach(self, domain: str, lane: _Lane) -> None:
        if ALIAS in (await self._hypervisor.info(domain)).devices:
            _claim(lane)
            await self._hypervisor.detach(domain, ALIAS, timeout=_DETACH)

    def _lane(self, domain: str) -> _Lane:
        try:
            return self._lanes[domain]
        except KeyError:
            raise LaneError(f"this broker does not attend to domain {domain}; see: mbroker domains") from None


async def _wholly(change: Coroutine[None, None, None]) -> None:
    """Wait until *change* is done, also when cancelled: the hypervisor goes on with it in any case."""
    task = asyncio.ensure_future(change)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # or asyncio says that nobody looked at it
        raise


def _claim(lane: _Lane) -> None:
    """See that no other broker of this machine has the domain's device, and none gets it; raise LaneError."""
    if lane.hold is not None:
        return
    name = hashlib.blake2b(os.fsencode(lane.socket), digest_size=10).hexdigest()
    try:
        lane.hold = Hold.take(runtime_dir() / "lanes" / name)
    except HoldError as error:
        raise LaneError(f"another broker attends to {lane.socket}: {error}; stop one of them") from None
    except OSError as error:
        raise LaneError(f"{error.filename}: {error.strerror}") from None


def _make(path: Path, lane: _Lane) -> int:
    """Make the memory, for the user that made the domain's socket, who is the hypervisor's; raise OSError.

    While the descriptor is open that is returned, no other broker takes it for something that was left.
    """
    owner = lane.socket.stat()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # one that begins right now may be first: then this fails, and is tried again
        os.posix_fallocate(fd, 0, lane.size)
        if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(fd, owner.st_uid, owner.st_gid)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _remove(left: Path) -> None:
    """Remove memory unless the broker that made it is alive, and about to give it to a domain; raise OSError."""
    fd = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        left.unlink()
    finally:
        os.close(fd)


def _device(name: str, size: int, ports: tuple[int, ...]) -> str:
    """Return the device's XML: in the last free root port, where the machine has some."""
    where = f"<address type='pci' bus='{ports[-1]:#04x}' slot='0x00'/>" if ports else ""
    return (
        f"<shmem name='{name}' role='peer'><model type='ivshmem-plain'/>"
        f"<size unit='M'>{size >> 20}</size><alias name='{ALIAS}'/>{where}</shmem>"
    )
