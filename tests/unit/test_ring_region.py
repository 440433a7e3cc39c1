"""The shared memory itself: how it is made, checked, named and cleaned up."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mchannel.errors import AddressError, ProtocolError
from mchannel.transports.ring import Region, RingEnd, Side


def test_a_region_is_sealed_against_resizing() -> None:
    with Region.create() as region, pytest.raises(PermissionError):
        os.ftruncate(region.fd, 4096)


@pytest.mark.parametrize(("capacity", "pool"), [(0, 1 << 16), (5000, 1 << 16), (1 << 16, 2048), (1 << 31, 1 << 16)])
def test_sizes_that_are_not_powers_of_two_in_range_are_refused(capacity: int, pool: int) -> None:
    with pytest.raises(ValueError, match="powers of two"):
        Region.create(capacity, pool)


def test_an_attached_region_has_the_creators_sizes_and_memory() -> None:
    with Region.create(1 << 13, 1 << 16) as made, Region.attach(made.fd) as found:
        assert (found.capacity, found.pool) == (1 << 13, 1 << 16)
        RingEnd(made, Side.A).write(b"x")
        assert RingEnd(found, Side.B).read() == b"x"


def test_attach_leaves_the_callers_descriptor_alone() -> None:
    with Region.create() as made:
        Region.attach(made.fd).close()
        os.fstat(made.fd)


def test_the_epoch_counts_successions() -> None:
    with Region.create() as made, Region.attach(made.fd) as found:
        assert found.epoch == 0
        assert made.advance() == 1
        assert found.epoch == 1


def test_memory_that_is_not_sealed_is_refused() -> None:
    fd = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    try:
        with pytest.raises(ProtocolError, match="not sealed"):
            Region.attach(fd)
    finally:
        os.close(fd)


def test_a_file_is_refused(tmp_path: Path) -> None:  # on a tmpfs it could have seals, and has none
    with (tmp_path / "file").open("w+b") as file, pytest.raises(ProtocolError, match=r"not a memfd|not sealed"):
        Region.attach(file.fileno())


def test_a_region_larger_than_the_limit_is_refused() -> None:
    with Region.create() as made, pytest.raises(ProtocolError, match="larger"):
        Region.attach(made.fd, limit=1 << 20)


def sealed(content: bytes | bytearray) -> int:
    fd = os.memfd_create("forged", os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


@pytest.mark.parametrize("offset", [None, 0, 8, 12, 16, 24, 32], ids=lambda at: f"byte {at}")
def test_a_header_that_is_not_ours_is_refused(offset: int | None) -> None:
    with Region.create(1 << 12, 1 << 12) as made:
        content = bytearray(made.memory)
    if offset is None:
        content.clear()
    else:
        content[offset] ^= 1
    fd = sealed(content)
    try:
        with pytest.raises(ProtocolError, match="header"):
            Region.attach(fd)
    finally:
        os.close(fd)


def test_an_unchanged_copy_of_a_header_is_accepted() -> None:
    with Region.create(1 << 12, 1 << 12) as made:
        fd = sealed(bytes(made.memory))
    Region.attach(fd).close()
    os.close(fd)


# ---- names


def test_a_named_region_is_joined_by_its_name_and_removed_on_close(tmp_path: Path) -> None:
    path = tmp_path / "web1"
    with Region.named(path) as made, Region.join(path) as found:
        assert path.stat().st_mode & 0o777 == 0o600
        RingEnd(made, Side.A).write(b"x")
        assert RingEnd(found, Side.B).read() == b"x"
    assert not path.exists()


def test_a_name_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "web1"
    with Region.named(path), pytest.raises(AddressError, match="alive"):
        Region.named(path)
    assert not path.exists()


def test_joining_a_name_that_is_not_there_is_an_address_error(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="no shared memory"):
        Region.join(tmp_path / "nobody")


def test_joining_a_file_that_is_no_region_is_a_protocol_error(tmp_path: Path) -> None:
    for content in (b"", b"x" * 5000):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ProtocolError):
            Region.join(tmp_path / "file")


def test_bad_sizes_leave_no_name_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="powers of two"):
        Region.named(tmp_path / "web1", capacity=5000)
    assert not (tmp_path / "web1").exists()


def test_the_name_that_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "web1"
    code = (
        "import sys, time; from mchannel.transports.ring import Region;"
        "r = Region.named(sys.argv[1]); print('made', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"made\n"
        with pytest.raises(AddressError):
            Region.named(path)
        owner.send_signal(signal.SIGKILL)
    assert path.exists()
    with Region.named(path) as region:
        assert RingEnd(region, Side.A).written == 0
    assert not path.exists()


def test_close_does_not_remove_a_name_that_another_region_took(tmp_path: Path) -> None:
    path = tmp_path / "web1"
    first = Region.named(path)
    path.unlink()
    with Region.named(path):
        first.close()
        assert path.exists()
