"""The guest: Debian's kernel, Python, cffi backend and msgpack in an initramfs, with the guest bundle in it.

Nothing of it needs root. What comes of Debian's packages is kept by content below ``$XDG_CACHE_HOME/mchannel``; the
bundle and the guest's init are a second archive behind it, made anew each time. The same packages and the same tree
give the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

HOUSE = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mchannel/guests"

PYTHON = (
    *("busybox-static", "libc6", "libgcc-s1", "zlib1g", "libbz2-1.0", "libexpat1", "libffi8", "liblzma5", "libuuid1"),
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "python3-cffi-backend", "python3-msgpack"),
)
ZMQ = (  # for tcp:// in a guest
    *("python3-zmq", "libzmq5", "libbsd0", "libmd0", "libnorm1", "libpgm-5.3-0", "libsodium23", "libstdc++6"),
    *("libgssapi-krb5-2", "libkrb5-3", "libk5crypto3", "libcom-err2", "libkrb5support0", "libkeyutils1", "libssl3"),
)
KERNEL = "linux-image-cloud-amd64"  # names the package of the newest kernel
MODULES = (  # in the order in which they are loaded
    *("virtio/virtio_ring", "virtio/virtio", "virtio/virtio_pci_modern_dev", "virtio/virtio_pci_legacy_dev"),
    *("virtio/virtio_pci", "char/virtio_console", "core/failover", "net/net_failover", "net/virtio_net"),
)

_LEFT_OUT = re.compile(
    r"usr/(share|lib/(systemd|valgrind|.*/(gconv|audit|krb5|engines-3|ossl-modules)/))"
    r"|usr/lib/python3.*/(test|tests|lib2to3|pydoc_data|distutils|curses|sqlite3|dbm|venv|wsgiref|__pycache__)/"
    r"|usr/lib/python3.*/lib-dynload/(_codecs_(jp|kr|cn|hk|tw|iso2022)|_test|_ctypes_test|_curses|_sqlite|_dbm|_crypt)"
    r"|lib/.*/lib(mvec|nss_|thread_db|memusage|pcprofile|c_malloc)|etc/|boot/|usr/s?bin/(?!python3)|.*\.py$"
)


class NoPackages(Exception):
    """Debian's packages cannot be had here; the message says what apt-get said."""


@attrs.frozen
class Entry:
    """A file, or a link whose content is its target."""

    content: bytes
    mode: int = stat.S_IFREG | 0o644


@attrs.frozen
class Image:
    """What a guest boots."""

    kernel: Path
    initrd: Path


def cpio(entries: Mapping[str, Entry]) -> bytes:
    """Return *entries* as an archive that a kernel unpacks: by name, owned by root, without times."""
    folders = {str(folder) for name in entries for folder in Path(name).parents} - {"."}
    listed = {**dict.fromkeys(folders, Entry(b"", stat.S_IFDIR | 0o755)), **entries}
    out = bytearray()
    for number, name in enumerate([*sorted(listed), "TRAILER!!!"], start=1):
        entry = listed.get(name, Entry(b"", 0))
        path = name.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4) + entry.content
        out += bytes(-len(out) % 4)
    return bytes(out)


def image(folder: Path, packages: Sequence[str] = PYTHON, cache: Path = CACHE) -> Image:
    """Return the kernel and, written below *folder*, the initramfs of a guest; raises NoPackages."""
    debian, vmlinuz = _debian([*packages, newest(KERNEL)], cache)
    ours = {"init": Entry(Path(__file__).with_name("guest_init.sh").read_bytes(), stat.S_IFREG | 0o755)}
    ours["control.py"] = Entry(Path(__file__).with_name("guest_control.py").read_bytes())
    with TemporaryDirectory() as built:
        bundle = [sys.executable, str(HOUSE / "tools/guest_bundle.py"), "--output", built]
        subprocess.run(bundle, check=True, stdout=subprocess.DEVNULL)
        ours |= {f"opt/{name}": entry for name, entry in tree(Path(built))}
    initrd = folder / "initrd"
    base = debian.read_bytes()
    initrd.write_bytes(base + bytes(-len(base) % 4) + cpio(ours))
    return Image(vmlinuz, initrd)


def tree(root: Path) -> Iterator[tuple[str, Entry]]:
    """Yield every file and link below *root* by its path there."""
    for path in root.rglob("*"):
        name, mode = str(path.relative_to(root)), path.lstat().st_mode
        if stat.S_ISLNK(mode):
            yield name, Entry(bytes(path.readlink()), stat.S_IFLNK | 0o777)
        elif stat.S_ISREG(mode):
            yield name, Entry(path.read_bytes(), stat.S_IFREG | (0o755 if mode & 0o100 else 0o644))


def _run(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise NoPackages(f"{' '.join(command[:2])}: {said}") from error
    return done.stdout


def newest(kernel: str) -> str:
    """Return the package of the kernel that the package *kernel* names; raises NoPackages."""
    return _run("apt-cache", "depends", "--important", kernel).split("Depends: ")[1].split()[0]


def uris(packages: Sequence[str]) -> list[str]:
    """Return a line for each of *packages*: where it is, its file, its size and hash; raises NoPackages."""
    return sorted(_run("apt-get", "download", "--print-uris", *packages).splitlines())


def unpack(packages: Sequence[str], root: Path, cache: Path) -> None:
    """Unpack *packages* below *root*, from the cache if they are there; raises NoPackages."""
    files = {name.partition("_")[0]: name for name in (line.split()[1] for line in uris(packages))}
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    if missing := [package for package in packages if not (debs / files[package]).exists()]:
        with TemporaryDirectory(dir=cache) as fetched:
            _run("apt-get", "download", "-q", *missing, cwd=Path(fetched))
            for deb in Path(fetched).iterdir():
                deb.replace(debs / deb.name)
    for package in packages:
        _run("dpkg-deb", "-x", str(debs / files[package]), str(root))


def _debian(packages: Sequence[str], cache: Path) -> tuple[Path, Path]:
    """Return the archive of what the guest needs of *packages*, and its kernel, both from the cache if there."""
    key = hashlib.sha256("\n".join([*uris(packages), Path(__file__).read_text()]).encode()).hexdigest()[:16]
    archive, kernel = cache / f"{key}.cpio.gz", cache / f"{key}.vmlinuz"
    if not archive.exists() or not kernel.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as scratch:
            root, whole = Path(scratch, "root"), Path(scratch, "archive")
            unpack(packages, root, cache)
            next((root / "boot").glob("vmlinuz-*")).replace(kernel)
            modules = _modules(root)
            whole.write_bytes(gzip.compress(cpio({**modules, **system(root)}), 9, mtime=0))
            whole.replace(archive)
    return archive, kernel


def _modules(root: Path) -> dict[str, Entry]:
    """Return the kernel's modules, which leave *root*."""
    (modules,) = (root / "lib/modules").iterdir()
    entries: dict[str, Entry] = {}
    for number, module in enumerate(MODULES):
        (path,) = modules.glob(f"kernel/*/{module}.ko")
        entries[f"modules/{number:02}-{path.name}"] = Entry(path.read_bytes())
    shutil.rmtree(root / "lib/modules")
    return entries


def system(root: Path) -> dict[str, Entry]:
    """Compile the Python in *root* and return what a guest needs of the whole.

    Only compiled modules go in: the image is smaller, and Python starts much faster where every instruction is
    emulated. The guest's own interpreter compiles, so this works under any other.
    """
    lib = root / "lib/x86_64-linux-gnu"
    (python,) = (root / "usr/bin").glob("python3.*")
    command = [f"{lib}/ld-linux-x86-64.so.2", "--library-path", f"{lib}:{root}/usr/lib/x86_64-linux-gnu", str(python)]
    command += ["-S", "-m", "compileall", "-bqf", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/"]
    command += [f"{root}/usr/lib/{python.name}", f"{root}/usr/lib/python3/dist-packages"]
    environment = {"PYTHONHOME": f"{root}/usr", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    entries = {name: entry for name, entry in tree(root) if not _LEFT_OUT.match(name)}
    entries["usr/bin/python3"] = Entry(python.name.encode(), stat.S_IFLNK | 0o777)
    for empty in ("dev", "proc", "run", "sys", "tmp"):
        entries[empty] = Entry(b"", stat.S_IFDIR | 0o755)
    return entries
