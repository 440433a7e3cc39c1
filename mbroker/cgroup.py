"""Control groups of the CPU controllers, version 1 and 2, behind one face."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import attrs

__all__ = ["Cgroup", "CgroupError", "Hierarchy"]


class CgroupError(OSError):
    """No CPU controller is mounted, a group's path leaves its hierarchy, or a counter is missing."""


@attrs.frozen
class _Mount:
    point: Path
    filesystem: str
    options: frozenset[str]


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        fields, _, more = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields.split()[4])
        filesystem, _, options = more.split()[:3]
        yield _Mount(root / point.lstrip("/"), filesystem, frozenset(options.split(",")))


@attrs.frozen
class Hierarchy:
    """Where this machine keeps the CPU controllers."""

    version: Literal[1, 2]
    cpu: Path
    """Mount point of the controller that limits."""
    cpuacct: Path
    """Mount point of the one that counts; under version 2 and often under 1 the same."""

    @classmethod
    def detect(cls, root: Path = Path("/")) -> Self:
        """Read ``/proc/self/mountinfo`` below *root*.

        On a hybrid machine the ``cpu`` controller is in one of both versions; that one is meant.
        Raises CgroupError when it is in none, OSError when /proc cannot be read.
        """
        found: dict[str, Path] = {}
        for mount in _mounts(root):
            if mount.filesystem == "cgroup":
                for name in {"cpu", "cpuacct"} & mount.options:
                    found.setdefault(name, mount.point)  # the first: later ones are for containers
            elif mount.filesystem == "cgroup2" and "cpu" in _words(mount.point / "cgroup.controllers"):
                found.setdefault("unified", mount.point)
        if "cpu" in found:
            return cls(1, found["cpu"], found.get("cpuacct", found["cpu"]))
        if "unified" in found:
            return cls(2, found["unified"], found["unified"])
        raise CgroupError("no cgroup hierarchy with the cpu controller is mounted; mount cgroup2 on /sys/fs/cgroup")

    def group(self, path: str) -> Cgroup:
        """Return the group at *path*, relative to the hierarchy; it need not exist."""
        parts = Path(path.lstrip("/")).parts
        if not parts or ".." in parts:
            raise CgroupError(f"{path!r} names no group below {self.cpu}; give a path such as machine/web1")
        return Cgroup(self, Path(*parts))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text("ascii").split()
    except FileNotFoundError:
        return []


@attrs.frozen
class Cgroup:
    """One control group: the processes of a domain, or of a server, that share a CPU quota."""

    hierarchy: Hierarchy
    path: Path

    @property
    def folder(self) -> Path:
        """Where its limits are."""
        return self.hierarchy.cpu / self.path

    @property
    def _folders(self) -> tuple[Path, ...]:
        return tuple({self.folder: None, self.hierarchy.cpuacct / self.path: None})

    def exists(self) -> bool:
        """Tell whether the kernel knows the group."""
        return self.folder.is_dir()

    def create(self) -> None:
        """Make the group and those above it, with the CPU controller on; raises OSError (root only)."""
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)
        if self.hierarchy.version == 2:
            for parent in reversed(self.path.parents):
                (self.hierarchy.cpu / parent / "cgroup.subtree_control").write_text("+cpu")

    def add(self, pid: int) -> None:
        """Move the process *pid* into the group; its later children are born there."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Remove the group, which must be empty; idempotent. Raises OSError while processes are in it."""
        for folder in self._folders:
            if folder.is_dir():
                folder.rmdir()

    def quota_settings(self, quota_us: int, period_us: int) -> dict[Path, str]:
        """Return what to write where so that the group may run *quota_us* in every *period_us*."""
        if self.hierarchy.version == 2:
            return {self.folder / "cpu.max": f"{quota_us} {period_us}"}
        return {
            self.folder / "cpu.cfs_period_us": str(period_us),
            self.folder / "cpu.cfs_quota_us": str(quota_us),
        }

    def usage(self) -> float:
        """Return the seconds of CPU time that the group has used since it was made; raises OSError."""
        if self.hierarchy.version == 1:
            nanoseconds = (self.hierarchy.cpuacct / self.path / "cpuacct.usage").read_text("ascii")
            return int(nanoseconds) / 1e9
        file = self.folder / "cpu.stat"
        found = re.search(r"^usage_usec (\d+)$", file.read_text("ascii"), re.MULTILINE)
        if found is None:
            raise CgroupError(f"{file} does not tell usage_usec")
        return int(found[1]) / 1e6
