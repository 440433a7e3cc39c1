"""What a domain can ask of Xen, by Xen's own user libraries: xenstore, event channels, shared pages.

Thin on purpose. The libraries are opened when they are first needed; nothing here waits, except for
xenstored to answer.
"""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import attrs

from mchannel.address import runtime_dir
from mchannel.errors import AddressError
from mchannel.transports.region import Memory

__all__ = ["LIBXEN", "Events", "Machine", "Pages", "Store", "missing_libraries"]

PAGE: Final = 4096
_READ_WRITE: Final = 3  # PROT_READ | PROT_WRITE
_CRITICAL: Final = 9  # XTL_CRITICAL


class Store(Protocol):
    """A connection to xenstore. A path that is not absolute is the domain's own."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when a watch fired."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return the value of a node, at most 4096 bytes, or None."""
        ...

    def write(self, path: str, value: bytes) -> None:
        """Set the value of a node, made if it is not there; raises OSError."""
        ...

    def remove(self, path: str) -> None:
        """Remove a node and all below it; nothing happens if it is not there."""
        ...

    def names(self, path: str) -> list[str]:
        """Return the names of the nodes right below *path*."""
        ...

    def watch(self, path: str, token: str) -> None:
        """Have :meth:`fired` return *token* now, and whenever something at or below *path* changes; raises OSError."""
        ...

    def unwatch(self, path: str, token: str) -> None:
        """Take :meth:`watch` back."""
        ...

    def fired(self) -> str | None:
        """Return the token of a watch that fired, or None."""
        ...

    def close(self) -> None:
        """Let go of the connection and its watches."""
        ...


class Events(Protocol):
    """The event channels of one descriptor."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when a channel was rung."""
        ...

    def offer(self, domain: int) -> int:
        """Return the port of a new channel that *domain* may bind; raises OSError."""
        ...

    def bind(self, domain: int, port: int) -> int:
        """Bind the channel that *domain* offers at its *port*; return the own port. Raises OSError."""
        ...

    def unbind(self, port: int) -> None:
        """Let go of one channel."""
        ...

    def ring(self, port: int) -> None:
        """Ring the other end; nothing happens if it is gone."""
        ...

    def rung(self) -> int | None:
        """Return a port that was rung, and let it be rung again; or None."""
        ...

    def close(self) -> None:
        """Let go of all channels."""
        ...


class Pages(Protocol):
    """Pages that two domains share."""

    memory: Memory
    """Not to be touched after :meth:`close`: the process would die of it."""
    references: Sequence[int]

    def close(self) -> None:
        """Unmap them. Granted pages live on until the other domain has unmapped them too."""
        ...


@attrs.frozen
class Machine:
    """The hypervisor as seen from this domain."""

    store: Callable[[], Store]
    events: Callable[[], Events]
    grant: Callable[[int, int], Pages]
    """Grant so many zeroed pages to a domain: ``grant(domain, count)``. Raises OSError."""
    map: Callable[[int, Sequence[int]], Pages]
    """Map what a domain granted: ``map(domain, references)``. Raises OSError."""
    claim: Callable[[str], Callable[[], None]]
    """Take a name for this process of the domain; return what gives it back. Raises AddressError, OSError."""


class _Libraries:
    """Xen's libraries, each opened when it is first needed."""

    def __init__(self) -> None:
        try:
            from mchannel._xen import ffi  # noqa: PLC0415 - generated: not there in a checkout that was never built
        except ImportError:
            raise AddressError("the binding to Xen was not generated; install the package, or run setup.py") from None
        self.ffi = ffi

    @functools.cached_property
    def store(self) -> Any:
        return self._open("libxenstore.so.4", "libxenstore4")

    @functools.cached_property
    def events(self) -> Any:
        return self._open("libxenevtchn.so.1", "libxenevtchn1")

    @functools.cached_property
    def grants(self) -> Any:
        return self._open("libxengnttab.so.1", "libxengnttab1")

    @functools.cached_property
    def logger(self) -> Any:
        """The libraries' log, without what they would say of each page that a stranger never granted."""
        toollog = self._open("libxentoollog.so.1", "libxentoollog1")
        return toollog.xtl_createlogger_stdiostream(self.ffi.dlopen(None).stderr, _CRITICAL, 0)

    @functools.cached_property
    def free(self) -> Callable[[object], None]:
        free: Callable[[object], None] = self.ffi.dlopen(None).free
        return free

    def _open(self, name: str, package: str) -> Any:
        try:
            return self.ffi.dlopen(name)
        except OSError:
            raise AddressError(f"xen:// needs {name}; as root: apt-get install {package}") from None

    def error(self, what: str) -> OSError:
        """Return what the last call failed of."""
        code = self.ffi.errno
        return OSError(code, f"{what}: {os.strerror(code)}")

    def opened(self, handle: Any, device: str, modules: str) -> Any:
        """Return *handle* unless it is none."""
        if handle == self.ffi.NULL:
            why = os.strerror(self.ffi.errno)
            raise AddressError(
                f"cannot open {device}: {why}; is this a Xen domain, and root? Try: modprobe -a {modules}"
            )
        return handle


@functools.cache
def _libraries() -> _Libraries:
    return _Libraries()


def missing_libraries() -> Iterator[str]:
    """Yield a line for each of Xen's libraries that is not here, or cannot be used: what it is; what to do."""
    try:
        libraries = _libraries()
    except AddressError as error:
        yield str(error)
        return
    for name in ("store", "events", "grants", "logger"):
        try:
            getattr(libraries, name)
        except AddressError as error:
            yield str(error)


class _Store:
    def __init__(self) -> None:
        self._xen = xen = _libraries()
        self._lib = xen.store
        self._handle = xen.opened(self._lib.xs_open(0), "/dev/xen/xenbus", "xenfs")

    def fileno(self) -> int:
        fd: int = self._lib.xs_fileno(self._handle)
        return fd

    def read(self, path: str) -> bytes | None:
        length = self._xen.ffi.new("unsigned int *")
        value = self._lib.xs_read(self._handle, 0, path.encode(), length)
        if value == self._xen.ffi.NULL:
            return None
        try:
            return self._xen.ffi.buffer(value, length[0])[:]
        finally:
            self._xen.free(value)

    def write(self, path: str, value: bytes) -> None:
        if not self._lib.xs_write(self._handle, 0, path.encode(), value, len(value)):
            raise self._xen.error(f"cannot write {path} in xenstore")

    def remove(self, path: str) -> None:
        self._lib.xs_rm(self._handle, 0, path.encode())

    def names(self, path: str) -> list[str]:
        count = self._xen.ffi.new("unsigned int *")
        found = self._lib.xs_directory(self._handle, 0, path.encode(), count)
        if found == self._xen.ffi.NULL:
            return []
        try:
            return [self._xen.ffi.string(found[place]).decode("ascii", "replace") for place in range(count[0])]
        finally:
            self._xen.free(found)

    def watch(self, path: str, token: str) -> None:
        if not self._lib.xs_watch(self._handle, path.encode(), token.encode()):
            raise self._xen.error(f"cannot watch {path} in xenstore")

    def unwatch(self, path: str, token: str) -> None:
        self._lib.xs_unwatch(self._handle, path.encode(), token.encode())

    def fired(self) -> str | None:
        event = self._lib.xs_check_watch(self._handle)
        if event == self._xen.ffi.NULL:
            return None
        try:
            return self._xen.ffi.string(event[1]).decode("ascii", "replace")
        finally:
            self._xen.free(event)

    def close(self) -> None:
        if self._handle is not None:
            self._lib.xs_close(self._handle)
            self._handle = None


class _Events:
    def __init__(self) -> None:
        self._xen = xen = _libraries()
        self._lib = xen.events
        self._handle = xen.opened(self._lib.xenevtchn_open(xen.logger, 0), "/dev/xen/evtchn", "xen-evtchn")
        os.set_blocking(self.fileno(), False)

    def fileno(self) -> int:
        fd: int = self._lib.xenevtchn_fd(self._handle)
        return fd

    def offer(self, domain: int) -> int:
        return self._port(self._lib.xenevtchn_bind_unbound_port(self._handle, domain))

    def bind(self, domain: int, port: int) -> int:
        return self._port(self._lib.xenevtchn_bind_interdomain(self._handle, domain, port))

    def _port(self, port: int) -> int:
        if port < 0:
            raise self._xen.error("cannot bind an event channel")
        return port

    def unbind(self, port: int) -> None:
        if self._handle is not None:
            self._lib.xenevtchn_unbind(self._handle, port)

    def ring(self, port: int) -> None:
        if self._handle is not None:
            self._lib.xenevtchn_notify(self._handle, port)

    def rung(self) -> int | None:
        if self._handle is None or (port := self._lib.xenevtchn_pending(self._handle)) < 0:
            return None
        self._lib.xenevtchn_unmask(self._handle, port)
        return int(port)

    def close(self) -> None:
        if self._handle is not None:
            self._lib.xenevtchn_close(self._handle)
            self._handle = None


class _Granted:
    def __init__(self, domain: int, count: int) -> None:
        xen = _libraries()
        self._lib = xen.grants
        self._count = count
        self._table = xen.opened(self._lib.xengntshr_open(xen.logger, 0), "/dev/xen/gntalloc", "xen-gntalloc")
        references = xen.ffi.new("uint32_t[]", count)
        self._start = self._lib.xengntshr_share_pages(self._table, domain, count, references, 1)
        if self._start == xen.ffi.NULL:
            error = xen.error(f"cannot grant {count} pages")
            self._lib.xengntshr_close(self._table)
            raise error
        self.references: Sequence[int] = [references[place] for place in range(count)]
        self.memory: Memory = xen.ffi.buffer(self._start, count * PAGE)

    def close(self) -> None:
        if self._table is not None:
            self._lib.xengntshr_unshare(self._table, self._start, self._count)
            self._lib.xengntshr_close(self._table)
            self._table = None


class _Mapped:
    def __init__(self, domain: int, references: Sequence[int]) -> None:
        xen = _libraries()
        self._lib = xen.grants
        self.references = references
        self._table = xen.opened(self._lib.xengnttab_open(xen.logger, 0), "/dev/xen/gntdev", "xen-gntdev")
        wanted = xen.ffi.new("uint32_t[]", list(references))
        count = len(references)
        self._start = self._lib.xengnttab_map_domain_grant_refs(self._table, count, domain, wanted, _READ_WRITE)
        if self._start == xen.ffi.NULL:
            error = xen.error(f"cannot map {count} pages of domain {domain}")
            self._lib.xengnttab_close(self._table)
            raise error
        self.memory: Memory = xen.ffi.buffer(self._start, count * PAGE)

    def close(self) -> None:
        if self._table is not None:
            self._lib.xengnttab_unmap(self._table, self._start, len(self.references))
            self._lib.xengnttab_close(self._table)
            self._table = None


def _claim(name: str) -> Callable[[], None]:
    folder = runtime_dir()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(folder / f"{name}.xen", flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise AddressError(f"xen:///{name} is open in another process of this guest; choose another name") from None
    return functools.partial(os.close, fd)


LIBXEN = Machine(_Store, _Events, _Granted, _Mapped, _claim)
