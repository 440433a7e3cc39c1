"""The memory that two ends of a ring share: made by one of them, checked by the other before it is used."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from mchannel._ring import ffi, lib
from mchannel.errors import AddressError, ProtocolError

__all__ = ["Lanes", "Memory", "Region", "lanes_size"]

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Memory(Protocol):
    """Memory that is mapped somehow: an ``mmap``, or a cffi buffer. Slices are copies."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Give access to the bytes themselves."""
        ...

    def __getitem__(self, where: slice, /) -> bytes:
        """Return a copy of a part."""
        ...

    def __len__(self) -> int:
        """Return how many bytes there are."""
        ...


class Lanes:
    """The two lanes of a ring in *memory*, whoever mapped it: the header is checked, its sizes are kept here.

    The memory must stay mapped until every :class:`~mchannel.transports.ring.RingEnd` over it is closed. Raise
    ProtocolError if it does not begin with the header of a ring, or has another size than the header says.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.size = len(memory)
        self.base = ffi.from_buffer(memory)
        shape = ffi.new("uint64_t[]", 2)
        if lib.mcp_region_check(self.base, self.size, shape) != lib.MC_OK:
            raise ProtocolError("the shared memory does not begin with the header of a ring that this version knows")
        self.capacity = shape[0]
        self.pool = shape[1]

    @classmethod
    def lay_out(cls, memory: Memory, capacity: int, pool: int) -> Self:
        """Make lanes in zeroed *memory*; raise ValueError unless it has just the size that they need."""
        if lanes_size(capacity, pool) != len(memory):
            raise ValueError(f"{len(memory)} bytes do not hold lanes of {capacity} bytes with pools of {pool}")
        lib.mc_region_init(ffi.from_buffer(memory), capacity, pool)
        return cls(memory)

    @property
    def epoch(self) -> int:
        """How often an end was succeeded. The peer can write it: compare it for change, trust it for nothing."""
        return lib.mc_region_epoch(self.base)

    def advance(self) -> int:
        """Begin a new epoch and return it: an end calls it when it succeeds another one."""
        return lib.mc_region_advance(self.base)


class Region(Lanes):
    """Two lanes of shared memory, one a direction, with *capacity* bytes of ring and *pool* bytes for long messages.

    The memory stays mapped as long as an end of it or a view into it lives; :meth:`close` lets go of the
    descriptor, and of the name if there is one. Also a context manager.
    """

    def __init__(self, fd: int, name: Path | None = None) -> None:
        """Map and check the region behind *fd*, which is owned from now on. Raise ProtocolError if it is none."""
        self.fd = fd
        self._name = name
        try:
            size = os.fstat(fd).st_size
            super().__init__(mmap.mmap(fd, size) if size else mmap.mmap(-1, mmap.PAGESIZE))
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def create(cls, capacity: int = 1 << 18, pool: int = 1 << 22) -> Self:
        """Make a region without a name, sealed against resizing, to be passed to the peer as a descriptor.

        *capacity* and *pool* are bytes in each direction, powers of two from 4 KiB to 1 GiB; others raise
        ValueError. Pages are zero until they are used, and take up memory only then.
        """
        fd = os.memfd_create("mchannel", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _lay_out(fd, capacity, pool)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    @classmethod
    def attach(cls, fd: int, limit: int = 1 << 26) -> Self:
        """Map the region behind *fd*, made by a peer that need not be trusted; *fd* is duplicated and stays open.

        Raise ProtocolError unless it is an ordinary memfd of at most *limit* bytes, sealed so that it can never
        shrink under this process, with a valid header.
        """
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            raise ProtocolError("the peer's shared memory is not a memfd") from None
        if seals & _SEALS != _SEALS:
            raise ProtocolError("the peer's shared memory is not sealed: it could shrink while it is used")
        if os.fstatvfs(fd).f_bsize != mmap.PAGESIZE:
            raise ProtocolError("the peer's shared memory is made of huge pages, which may not be there when used")
        if os.fstat(fd).st_size > limit:
            raise ProtocolError(f"the peer's shared memory is larger than {limit} bytes")
        return cls(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))

    @classmethod
    def named(cls, path: str | Path, capacity: int = 1 << 18, pool: int = 1 << 22) -> Self:
        """Make a region with a name (mode 0600), for ends of one user that cannot pass descriptors.

        The name goes with :meth:`close`. One that a killed process left is replaced; raise AddressError when its
        owner still lives. A file cannot be sealed: whoever may open it must be trusted.
        """
        path = Path(path)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise AddressError(f"{path} belongs to a process that is alive; choose another name") from None
            if _is_at(fd, path):
                if not os.fstat(fd).st_size:
                    break
                path.unlink()  # its owner died: those who still hold it keep the old memory
            os.close(fd)
        try:
            os.posix_fallocate(fd, 0, max(1, lib.mc_region_size(capacity, pool)))
            _lay_out(fd, capacity, pool)
        except BaseException:
            path.unlink()
            os.close(fd)
            raise
        return cls(fd, path)

    @classmethod
    def join(cls, path: str | Path) -> Self:
        """Map the region that a process of this user made by :meth:`named`; raise AddressError if there is none."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise AddressError(f"no shared memory at {path}: {error.strerror}") from None
        found = os.fstat(fd)
        if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise AddressError(f"{path} is not a file of this user")
        return cls(fd)

    def close(self) -> None:
        """Let go of the descriptor and the name; idempotent."""
        if self._name is not None and _is_at(self.fd, self._name):
            self._name.unlink()
        self._name = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """Close what nobody closed; a constructor that raised has closed already."""
        with suppress(AttributeError, OSError):
            if hasattr(self, "pool"):
                self.close()


def lanes_size(capacity: int, pool: int) -> int:
    """Return how many bytes lanes take; raise ValueError unless both are powers of two from 4 KiB to 1 GiB."""
    size = lib.mc_region_size(capacity, pool) if min(capacity, pool) > 0 else 0
    if not size:
        raise ValueError(f"capacity {capacity} and pool {pool} must be powers of two from 4 KiB to 1 GiB")
    return size


def _lay_out(fd: int, capacity: int, pool: int) -> None:
    size = lanes_size(capacity, pool)
    os.ftruncate(fd, size)
    Lanes.lay_out(mmap.mmap(fd, size), capacity, pool)


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
