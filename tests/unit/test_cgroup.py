from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from mbroker.cgroup import CgroupError, Hierarchy

V1 = "32 31 0:29 / /sys/fs/cgroup/{point} rw,relatime - cgroup cgroup rw,{controllers}\n"
V2 = "41 31 0:38 / /sys/fs/cgroup/{point} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


def machine(root: Path, *lines: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("".join(lines))
    for line in lines:
        (root / line.split()[4].replace("\\040", " ").lstrip("/")).mkdir(parents=True, exist_ok=True)
    return root


def test_version_1_with_its_controllers_mounted_apart(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        V1.format(point="cpu", controllers="cpu"),
        V1.format(point="cpuacct", controllers="cpuacct"),
        V1.format(point="cpuset", controllers="cpuset"),
    )
    cgroup = root / "sys/fs/cgroup"
    assert Hierarchy.detect(root) == Hierarchy(1, cgroup / "cpu", cgroup / "cpuacct")


def test_version_1_with_its_controllers_mounted_together(tmp_path: Path) -> None:
    root = machine(tmp_path, V1.format(point="cpu,cpuacct", controllers="cpu,cpuacct"))
    both = root / "sys/fs/cgroup/cpu,cpuacct"
    assert Hierarchy.detect(root) == Hierarchy(1, both, both)


def test_version_2(tmp_path: Path) -> None:
    root = machine(tmp_path, V2.format(point=""))
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpuset cpu io memory\n")
    assert Hierarchy.detect(root) == Hierarchy(2, root / "sys/fs/cgroup", root / "sys/fs/cgroup")


def test_a_hybrid_machine_is_what_its_cpu_controller_is(tmp_path: Path) -> None:
    lines = (V2.format(point="unified"), V1.format(point="cpu,cpuacct", controllers="cpu,cpuacct"))
    root = machine(tmp_path, *lines)
    (root / "sys/fs/cgroup/unified/cgroup.controllers").write_text("hugetlb\n")
    assert Hierarchy.detect(root).version == 1


def test_of_several_mounts_the_first_counts(tmp_path: Path) -> None:
    again = V1.format(point="cpu", controllers="cpu").replace("/sys/fs", "/var/chroot/sys/fs")
    root = machine(tmp_path, V1.format(point="cpu", controllers="cpu"), again)
    assert Hierarchy.detect(root).cpu == root / "sys/fs/cgroup/cpu"


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    root = machine(tmp_path, V1.format(point="my\\040cpu", controllers="cpu"))
    assert Hierarchy.detect(root).cpu == root / "sys/fs/cgroup/my cpu"


def test_a_machine_without_the_controller_says_what_to_do(tmp_path: Path) -> None:
    root = machine(tmp_path, V1.format(point="cpuset", controllers="cpuset"))
    with pytest.raises(CgroupError, match="mount cgroup2"):
        Hierarchy.detect(root)


@pytest.mark.parametrize("path", ["", "/", ".", "..", "a/../../etc", "/../x"])
def test_a_group_stays_below_its_hierarchy(tmp_path: Path, path: str) -> None:
    hierarchy = Hierarchy(2, tmp_path, tmp_path)
    with pytest.raises(CgroupError, match="names no group below"):
        hierarchy.group(path)


def test_making_a_group_of_version_2_turns_the_controller_on_above_it(tmp_path: Path) -> None:
    group = Hierarchy(2, tmp_path, tmp_path).group("machine/web1")
    group.create()
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    assert (tmp_path / "machine/cgroup.subtree_control").read_text() == "+cpu"
    assert list((tmp_path / "machine/web1").iterdir()) == []


def test_a_process_is_moved_in_every_hierarchy_of_version_1(tmp_path: Path) -> None:
    group = Hierarchy(1, tmp_path / "cpu", tmp_path / "cpuacct").group("web1")
    group.create()
    group.add(4711)
    for controller in ("cpu", "cpuacct"):
        assert (tmp_path / controller / "web1/cgroup.procs").read_text() == "4711"


def test_usage_is_in_seconds_under_both_versions(tmp_path: Path) -> None:
    group = Hierarchy(1, tmp_path / "cpu", tmp_path / "cpuacct").group("web1")
    group.create()
    (tmp_path / "cpuacct/web1/cpuacct.usage").write_text("1500000000\n")
    assert group.usage() == 1.5
    group = Hierarchy(2, tmp_path, tmp_path).group("web2")
    group.create()
    (group.folder / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n")
    assert group.usage() == 2.5


@pytest.mark.parametrize("version", [1, 2])
def test_the_usage_of_a_group_that_is_gone_is_an_oserror(tmp_path: Path, version: Literal[1, 2]) -> None:
    with pytest.raises(FileNotFoundError, match="web1"):
        Hierarchy(version, tmp_path, tmp_path).group("web1").usage()


@pytest.mark.parametrize("text", ["", "user_usec 1\n", "usage_usec", "usage_usec \n", "usage_usec much\n"])
def test_counters_that_do_not_tell_the_usage_are_an_oserror(tmp_path: Path, text: str) -> None:
    group = Hierarchy(2, tmp_path, tmp_path).group("web1")
    group.create()
    (group.folder / "cpu.stat").write_text(text)
    with pytest.raises(CgroupError, match=r"web1/cpu\.stat does not tell usage_usec"):
        group.usage()


def test_removing_a_group_is_idempotent(tmp_path: Path) -> None:
    group = Hierarchy(1, tmp_path / "cpu", tmp_path / "cpuacct").group("web1")
    group.create()
    assert group.exists()
    group.remove()
    group.remove()
    assert not group.exists()
