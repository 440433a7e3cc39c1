"""Xen for the test: hypervisor, domain 0 and a guest, of Debian's packages, ready for QEMU to boot.

What comes of the packages is kept by content like the other guests' image; the bundle and the programs of the test
are archives behind it, made anew each time. The same packages and the same tree give the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from tests.system import guest_image
from tests.system.guest_image import CACHE, HOUSE, PYTHON, Entry, cpio

KERNEL = "linux-image-amd64"  # names the package of the newest kernel; the cloud's knows no domain 0
HYPERVISOR = "xen-hypervisor-4.17-amd64"
LIBRARIES = ("libxenstore4", "libxenevtchn1", "libxengnttab1", "libxentoolcore1", "libxentoollog1")
TOOLSTACK = (
    *("xen-utils-4.17", "libxenmisc4.17", "libxencall1", "libxendevicemodel1", "libxenforeignmemory1", "libxenhypfs1"),
    *("libyajl2", "libncurses6", "libtinfo6", "libzstd1", "libext2fs2", "libcom-err2", "liblzo2-2", "libfdt1"),
)
PROGRAMS = ("xl", "xenstored", "xenconsoled", "xen-init-dom0", "libxl-save-helper")
MODULES = ("xen-privcmd", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc")  # in the order in which they are loaded

_XEN = "usr/lib/xen-4.17/bin"


@attrs.frozen
class Machine:
    """What QEMU boots: the hypervisor, domain 0's kernel, and its initramfs with the guest in it."""

    hypervisor: Path
    kernel: Path
    initrd: Path


def machine(folder: Path, cache: Path = CACHE) -> Machine:
    """Return the machine; its initramfs is written below *folder*. Raises NoPackages."""
    kept = _kept(cache)
    with TemporaryDirectory() as built:
        bundle = [sys.executable, str(HOUSE / "tools/guest_bundle.py"), "--output", built]
        subprocess.run(bundle, check=True, stdout=subprocess.DEVNULL)
        ours = {f"opt/{name}": entry for name, entry in guest_image.tree(Path(built))}
    guest = _joined([kept["domu"].read_bytes(), cpio({**ours, **_programs("domu", "agent")})])
    inside = {"guest/initrd": Entry(guest), "guest/kernel": Entry(kept["vmlinux"].read_bytes())}
    initrd = folder / "dom0"
    parts = [
        kept["domu"].read_bytes(),
        kept["dom0"].read_bytes(),
        cpio({**ours, **inside, **_programs("dom0", "broker")}),
    ]
    initrd.write_bytes(_joined(parts))
    return Machine(kept["xen"], kept["vmlinuz"], initrd)


def _programs(domain: str, program: str) -> dict[str, Entry]:
    here = Path(__file__).parent
    init = Entry((here / f"xen_{domain}_init.sh").read_bytes(), stat.S_IFREG | 0o755)
    return {"init": init, f"{program}.py": Entry((here / f"xen_{program}.py").read_bytes())}


def _joined(archives: Iterable[bytes]) -> bytes:
    """Return *archives* as one that a kernel unpacks, the later over the earlier."""
    return b"".join(each + bytes(-len(each) % 4) for each in archives)


def _kept(cache: Path) -> Mapping[str, Path]:
    """Return what the packages hold, from the cache if it is there."""
    kernel = guest_image.newest(KERNEL)
    base, more = (*PYTHON, *LIBRARIES), (HYPERVISOR, kernel, *TOOLSTACK)
    uris = guest_image.uris((*base, *more))
    key = hashlib.sha256(
        "\n".join(
            [*uris, *(Path(each.__file__ or "").read_text() for each in (guest_image, sys.modules[__name__]))]
        ).encode()
    ).hexdigest()[:16]
    kept = {name: cache / f"xen-{key}.{name}" for name in ("xen", "vmlinuz", "vmlinux", "domu", "dom0")}
    if not all(path.exists() for path in kept.values()):
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as scratch:
            root, tools = Path(scratch, "root"), Path(scratch, "tools")
            guest_image.unpack(base, root, cache)
            guest_image.unpack(more, tools, cache)
            (vmlinuz,) = (tools / "boot").glob("vmlinuz-*")
            made = {
                "xen": gzip.decompress(next((tools / "boot").glob("xen-*.gz")).read_bytes()),
                "vmlinuz": vmlinuz.read_bytes(),
                "vmlinux": gzip.compress(_elf(vmlinuz.read_bytes()), 1, mtime=0),
                "domu": gzip.compress(cpio({**_modules(tools), **guest_image.system(root)}), 6, mtime=0),
                "dom0": gzip.compress(cpio(dict(_toolstack(tools))), 6, mtime=0),
            }
            for name, content in made.items():
                Path(scratch, name).write_bytes(content)
                Path(scratch, name).replace(kept[name])
    return kept


def _modules(tools: Path) -> dict[str, Entry]:
    found = {path.stem: path for path in (tools / "lib/modules").rglob("*.ko")}
    return {f"modules/{number}-{name}.ko": Entry(found[name].read_bytes()) for number, name in enumerate(MODULES)}


def _toolstack(tools: Path) -> Iterator[tuple[str, Entry]]:
    """Yield the libraries, and those programs that domain 0 cannot do without."""
    wanted = {f"{_XEN}/{program}" for program in PROGRAMS}
    for name, entry in guest_image.tree(tools):
        if name in wanted or (".so" in name and Path(name).parent.name == "x86_64-linux-gnu"):
            yield name, entry


def _elf(vmlinuz: bytes) -> bytes:
    """Return the kernel proper out of *vmlinuz*: a guest's loader would take long to unpack it, emulated."""
    start = (vmlinuz[0x1F1] + 1) * 512 + int.from_bytes(vmlinuz[0x248:0x24C], "little")
    return lzma.LZMADecompressor().decompress(vmlinuz[start:])
