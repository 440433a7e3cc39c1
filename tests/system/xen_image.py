"""Xen for the test: hypervisor, domain 0 and a guest, of Debian's packages, ready for QEMU to boot.

What comes of the packages is kept by content like the other guests' image; the bundle and the programs of the test
are archives behind it, made anew each time. The same packages and the same tree give the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
from packaging.requirements import Requirement

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
LIBVIRT = (
    *("libvirt-daemon", "libvirt-daemon-driver-xen", "libvirt-clients", "libvirt0", "libaudit1", "libcap-ng0"),
    *("libkeyutils1", "libnl-3-200", "libselinux1", "libtirpc3", "libacl1", "libapparmor1", "libblkid1", "libbrotli1"),
    *("libcurl3-gnutls", "libglib2.0-0", "libgmp10", "libgnutls30", "libgssapi-krb5-2", "libhogweed6", "libicu72"),
    *("libidn2-0", "libk5crypto3", "libkrb5-3", "libkrb5support0", "libldap-2.5-0", "libmount1", "libnettle8"),
    *("libnghttp2-14", "libnuma1", "libp11-kit0", "libpcre2-8-0", "libpsl5", "libreadline8", "librtmp1", "libsasl2-2"),
    *("libssh-4", "libssh2-1", "libssl3", "libstdc++6", "libtasn1-6", "libunistring2", "libxml2", "libdbus-1-3"),
    *("libsystemd0", "libgcrypt20", "libgpg-error0", "liblz4-1", "libcap2", "libdb5.3"),
)
"""libvirtd and all that it is linked to."""
NETWORK = (  # in the order in which they are loaded
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "failover"),
    *("net_failover", "virtio_net"),
)

_XEN = "usr/lib/xen-4.17/bin"
_LIBVIRT = re.compile(
    r"usr/sbin/libvirtd|usr/bin/virsh|usr/share/libvirt/(cpu_map|schemas)/.*"
    r"|.*/connection-driver/libvirt_driver_libxl\.so|(usr/)?lib/x86_64-linux-gnu/[^/]*\.so[^/]*"
)


@attrs.frozen
class Machine:
    """What QEMU boots: the hypervisor, domain 0's kernel, and its initramfs with the guest in it."""

    hypervisor: Path
    kernel: Path
    initrd: Path


def machine(folder: Path, cache: Path = CACHE) -> Machine:
    """Return the machine that runs a scenario by itself; its initramfs is written below *folder*. Raises NoPackages."""
    programs = _programs(init="xen_dom0_init.sh", dom0="xen_dom0.sh", broker="xen_broker.py")
    return _machine(folder, _kept(cache), "xen_agent.py", [cpio(programs)])


def host(folder: Path, cache: Path = CACHE) -> Machine:
    """Return the machine that is a host of a fleet, with libvirt and the broker. Raises NoPackages."""
    programs = _programs(init="xen_host_init.sh", dom0="xen_dom0.sh", serve="xen_serve.py", tell="host_numbers.py")
    return _machine(folder, _kept(cache), "guest_talk.py", [_libvirt(cache).read_bytes(), broker(), cpio(programs)])


def _machine(folder: Path, kept: Mapping[str, Path], agent: str, more: Iterable[bytes]) -> Machine:
    with TemporaryDirectory() as built:
        bundle = [sys.executable, str(HOUSE / "tools/guest_bundle.py"), "--output", built]
        subprocess.run(bundle, check=True, stdout=subprocess.DEVNULL)
        ours = {f"opt/{name}": entry for name, entry in guest_image.tree(Path(built))}
    guest = _joined([kept["domu"].read_bytes(), cpio({**ours, **_programs(init="xen_domu_init.sh", agent=agent)})])
    inside = {"guest/initrd": Entry(guest), "guest/kernel": Entry(kept["vmlinux"].read_bytes())}
    initrd = folder / "dom0"
    initrd.write_bytes(_joined([kept["domu"].read_bytes(), kept["dom0"].read_bytes(), cpio({**ours, **inside}), *more]))
    return Machine(kept["xen"], kept["vmlinuz"], initrd)


def _programs(**programs: str) -> dict[str, Entry]:
    """Return programs of the test by the names that they have in the machine, of which init has no suffix."""
    here = Path(__file__).parent
    return {
        name if name == "init" else name + Path(program).suffix: Entry(
            (here / program).read_bytes(), stat.S_IFREG | 0o755
        )
        for name, program in programs.items()
    }


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


def _libvirt(cache: Path) -> Path:
    """Return the archive of libvirt and of the drivers of a network, from the cache if it is there."""
    packages = [guest_image.newest(KERNEL), *LIBVIRT]
    told = [*guest_image.uris(packages), Path(__file__).read_text()]
    key = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
    kept = cache / f"xen-{key}.libvirt"
    if not kept.exists():
        with TemporaryDirectory(dir=cache) as scratch:
            root, whole = Path(scratch, "root"), Path(scratch, "archive")
            guest_image.unpack(packages, root, cache)
            found = {path.stem: path for path in (root / "lib/modules").rglob("*.ko")}
            entries = {name: entry for name, entry in guest_image.tree(root) if _LIBVIRT.fullmatch(name)}
            for number, name in enumerate(NETWORK):
                entries[f"modules/net-{number}-{name}.ko"] = Entry(found[name].read_bytes())
            whole.write_bytes(gzip.compress(cpio(entries), 1, mtime=0))
            whole.replace(kept)
    return kept


def broker() -> bytes:
    """Return the archive of the broker of this tree, and of what it needs of this interpreter, all compiled."""
    with TemporaryDirectory() as scratch:
        opt = Path(scratch, "opt/host")
        project = tomllib.loads((HOUSE / "pyproject.toml").read_text())["project"]
        more = project["optional-dependencies"]
        lines = [*project["dependencies"], *more["host"], *more["libvirt"]]
        for source, name in (*_required(lines, frozenset(), set()), *_packages("mbroker", "mchannel")):
            to = opt / name
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(source.read_bytes())
        compiling = [sys.executable, "-m", "compileall", "-qf", "--invalidation-mode", "unchecked-hash"]
        subprocess.run([*compiling, "-s", scratch, "-p", "/", str(opt)], check=True)
        return gzip.compress(cpio(dict(guest_image.tree(Path(scratch)))), 1, mtime=0)


def _packages(*names: str) -> Iterator[tuple[Path, str]]:
    """Yield the files of our packages, and where they go; some of their folders are links."""
    for name in names:
        for folder, _, files in os.walk(HOUSE / name, followlinks=True):
            for file in files:
                if file.endswith((".py", ".so")):
                    yield Path(folder, file), str(Path(folder, file).relative_to(HOUSE))


def _required(lines: Iterable[str], extras: frozenset[str], seen: set[str]) -> Iterator[tuple[Path, str]]:
    """Yield the files of the distributions that *lines* require, and of all that those need."""
    for wanted in map(Requirement, lines):
        if wanted.name in seen or not _applies(wanted, extras):
            continue
        seen.add(wanted.name)
        found = distribution(wanted.name)
        for file in found.files or ():
            if not {"..", "tests"} & {*file.parts} and (file.suffix in {".py", ""} or ".so" in file.suffixes):
                yield Path(str(file.locate())), str(file)
        yield from _required(found.requires or (), frozenset(wanted.extras), seen)


def _applies(wanted: Requirement, extras: frozenset[str]) -> bool:
    return wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in {*extras, ""})
