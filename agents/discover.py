"""Which way leads from this guest to the broker of its host."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import attrs

from mchannel.address import Address

__all__ = ["Nothing", "Way", "find"]

PORT = "org.mchannel.0"
_IVSHMEM = ("0x1af4", "0x1110")
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
        return f"reaches its broker by {self.base}" + (f" ({self.why})" if self.why else "")


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


def _ivshmem(root: Path) -> str:
    devices = (root / "sys/bus/pci/devices").glob("*")
    found = any((_word(device / "vendor"), _word(device / "device")) == _IVSHMEM for device in devices)
    return "" if found else "no ivshmem device"


def _xen(root: Path) -> str:
    return "" if (root / "dev/xen/gntalloc").exists() else "no Xen that lets a guest share pages"


_WAYS: tuple[tuple[str, Callable[[Path], str]], ...] = (
    (f"virtio:///{PORT}", _virtio),
    (f"ivshmem:///{PORT}", _ivshmem),
    ("xen:///mgmt", _xen),
)
"""Addresses in the order in which they are preferred, and what tells why one of them is not there."""


def find(configured: str = "", *, root: Path = Path("/")) -> Way | Nothing:
    """Return the best way that this guest has now; *configured* is the address that it takes when it has no other."""
    missing: list[str] = []
    for base, probe in _WAYS:
        if why := probe(root) or _uninstalled(base):
            missing.append(why)
        else:
            return Way(base, ", ".join(missing))
    return (
        Way(configured, ", ".join(missing)) if configured else Nothing(", ".join([*missing, "no address configured"]))
    )


def _uninstalled(base: str) -> str:
    scheme = base.partition(":")[0]
    installed = entry_points(group="mchannel.transports", name=scheme)
    return "" if installed else f"no transport {scheme} is installed"


def _word(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""
