from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from mbroker import seccomp

HEADERS = (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h"))
X86_64, AARCH64 = 0xC000003E, 0xC00000B7
ALLOW, DENY, KILL = 0x7FFF0000, 0x00050001, 0x80000000


@pytest.mark.parametrize("column", [0, 1])
def test_the_numbers_are_those_of_the_kernels_headers(column: int) -> None:
    if not HEADERS[column].exists():
        pytest.skip(f"no {HEADERS[column]}: install linux-libc-dev")
    text = HEADERS[column].read_text()
    real = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    if column:
        real["newfstatat"] = real.pop("fstatat")
    tables = {**seccomp.COMPUTE, **seccomp.IMPORT}
    tables |= {"openat": seccomp.OPENAT, "mmap": seccomp.MMAP, "mprotect": seccomp.MPROTECT}
    for name, numbers in tables.items():
        assert numbers[column] in {None, real.get(name)}, name


def verdict(code: bytes, arch: int, number: int, argument: int = 0) -> int:
    """Run a filter as the kernel would."""
    data = struct.pack("<IIQ3Q", number, arch, 0, 0, 0, argument)
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = struct.unpack_from("<HBBI", code, at * 8)
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            met = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            at += if_true if met else if_false


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", X86_64), ("aarch64", AARCH64)])
def test_what_is_not_allowed_is_denied(machine: str, arch: int) -> None:
    column = 0 if arch == X86_64 else 1
    code = seccomp.program(machine, seccomp.COMPUTE, {})
    allowed = {numbers[column] for numbers in seccomp.COMPUTE.values()}
    assert {number for number in range(600) if verdict(code, arch, number) == ALLOW} == allowed - {None}
    assert verdict(code, arch, 599) == DENY


@pytest.mark.parametrize(("machine", "other"), [("x86_64", AARCH64), ("aarch64", X86_64), ("x86_64", 0x40000003)])
def test_calls_of_another_architecture_kill(machine: str, other: int) -> None:
    assert verdict(seccomp.program(machine, seccomp.COMPUTE, {}), other, 0) == KILL


def test_the_second_table_of_x86_64_kills() -> None:
    assert verdict(seccomp.program("x86_64", seccomp.COMPUTE, {}), X86_64, 0x40000000) == KILL


@pytest.mark.parametrize(("flags", "expected"), [(0, ALLOW), (0o2000000, ALLOW), (1, DENY), (2, DENY), (0o100, DENY)])
def test_a_file_may_be_opened_for_reading_only(flags: int, expected: int) -> None:
    code = seccomp.program("x86_64", {}, {seccomp.OPENAT: seccomp.WRITING})
    assert verdict(code, X86_64, 257, flags) == expected
