"""Which way leads from this guest to the broker of its host."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import attrs

from mchannel.address import Address
from mchannel.errors import AddressError
from mchannel.transport import find_scheme

__all__ = ["Nothing", "Way", "check_address", "find"]

PORT = "org.mchannel.0"
_ADD = f"<channel type='unix'><target type='virtio' name='{PORT}'/></channel>"


@attrs.frozen
class Way:
    """A physical channel, over which each logical one has an address of its own."""

    base: str
    """The address without the name of a stream."""
    why: str = ""
    """Why none of those that go before it was taken."""

    def address(self, stream: str) -> str:
        """Return the address of a logical channel."""
        where = Address.parse(self.base)
        if where.scheme in {"virtio", "ivshmem"}:
            return str(attrs.evolve(where, options=(*where.options, ("stream", stream))))
        return f"{self.base}-{stream}" if where.scheme == "xen" else self.base

    def __str__(self) -> str:
        """Return one line for people."""
        shares = ", and by shared memory while its host plugs some in" if self.base.startswith("ivshmem:") else ""
        return f"reaches its broker by {self.base}{shares}" + (f" ({self.why})" if self.why else "")


@attrs.frozen
class Nothing:
    """There is no way."""

    why: str

    def __str__(self) -> str:
        """Return one line that says what to do."""
        return f"{self.why}; add to the domain's devices: {_ADD}, or name an address of the broker"


def _virtio(root: Path) -> str:
    if (root / "dev/virtio-ports" / PORT).exists():
        return ""
    names = (root / "sys/class/virtio-ports").glob("*/name")  # without udev there are no names in /dev
    return "" if any(_word(name) == PORT for name in names) else f"no virtio port {PORT}"


def _xen(root: Path) -> str:
    return "" if (root / "dev/xen/gntalloc").exists() else "no Xen that lets a guest share pages"


_WAYS: tuple[tuple[str, Callable[[Path], str]], ...] = (
    (f"ivshmem:///{PORT}", _virtio),  # begins at that port, and stays there as long as there is no memory
    (f"virtio:///{PORT}", _virtio),
    ("xen:///mgmt", _xen),
)
"""Addresses in the order in which they are preferred, and what tells why one of them is not there."""


def find(configured: str = "", *, root: Path = Path("/")) -> Way | Nothing:
    """Return the best way that this guest has now; *configured* is the address that it takes when it has no other."""
    missing: dict[str, None] = {}  # in order, and each once
    for base, probe in _WAYS:
        if why := probe(root) or _unusable(base):
            missing[why] = None
        else:
            return Way(base, ", ".join(missing))
    return (
        Way(configured, ", ".join(missing)) if configured else Nothing(", ".join([*missing, "no address configured"]))
    )


def check_address(text: str) -> None:
    """Raise AddressError when no broker can ever be reached at the address *text*; nothing is opened."""
    where = Address.parse(text)
    find_scheme(where)
    match where.scheme:
        case "tcp":
            where.refuse_options("server")
            host, port = where.endpoint()
            if host == "*" or not port:
                raise AddressError(f"{where}: say which host and port the broker has, for example tcp://10.0.0.7:7600")
        case "virtio" | "ivshmem":
            where.refuse_options("stream")
            attrs.evolve(where, options=()).file("")
        case "xen":
            where.file("")
            if "." in where.path or "/" in where.path:  # xenstore's names have neither
                raise AddressError(
                    f"{where}: a name has 1 to 64 letters, digits, dashes or underscores, like xen:///mgmt"
                )
        case "shm" | "ipc" | "memory":
            where.file("")
        case _:
            pass  # of another distribution, which knows its own


def _unusable(base: str) -> str:
    """Return why the transport cannot be had, as when what it is compiled of does not fit this guest."""
    scheme = base.partition(":")[0]
    for installed in entry_points(group="mchannel.transports", name=scheme):
        try:
            installed.load()
        except ImportError as error:
            return f"the transport {scheme} cannot be loaded: {error}"
        return ""
    return f"no transport {scheme} is installed"


def _word(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""
