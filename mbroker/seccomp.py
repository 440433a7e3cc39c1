"""Which system calls a sandboxed process may still make (Linux seccomp, x86-64 and AArch64).

Two lists, both allow-lists: :func:`confine_to_imports` leaves what importing Python modules needs
(files opened for reading, and no more), :func:`confine_to_computing` what computing and talking over
one open socket needs. Everything else fails with EPERM, so that a policy which tries sees
:exc:`PermissionError`; another architecture's calls kill the process. Filters only ever add up.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

import attrs

__all__ = ["confine_to_computing", "confine_to_imports", "is_supported", "program"]

# Numbers of system calls: x86-64 (asm/unistd_64.h), AArch64 (asm-generic/unistd.h).
COMPUTE: dict[str, tuple[int | None, int | None]] = {
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "close": (3, 57),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "lseek": (8, 62),
    "madvise": (28, 233),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "poll": (7, None),
    "ppoll": (271, 73),
    "read": (0, 63),
    "recvfrom": (45, 207),
    "restart_syscall": (219, 128),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "sendto": (44, 206),
    "sigaltstack": (131, 132),
    "time": (201, None),
    "write": (1, 64),
}
# No fcntl and no ioctl: both can make the kernel send signals to other processes of the same user.
IMPORT = {
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getuid": (102, 174),
    "lstat": (6, None),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "newfstatat": (262, 79),
    "pread64": (17, 67),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "sched_getaffinity": (204, 123),
    "seccomp": (317, 277),
    "stat": (4, None),
    "statx": (332, 291),
    "sysinfo": (99, 179),
    "uname": (63, 160),
}
OPENAT = (257, 56)
MMAP = (9, 222)
MPROTECT = (10, 226)

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PROT_EXEC = 4

_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENT_2 = 0, 4, 32  # offsets in struct seccomp_data; the low word of argument 2
_X32 = 0x40000000


@attrs.frozen
class _Machine:
    column: int
    arch: int
    """AUDIT_ARCH_* of the kernel's headers."""
    seccomp: int


_MACHINES = {"x86_64": _Machine(0, 0xC000003E, 317), "aarch64": _Machine(1, 0xC00000B7, 277)}


class _Program(ctypes.Structure):
    """Mirror of struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def is_supported() -> bool:
    """Return whether this machine's system calls are known here."""
    return platform.machine() in _MACHINES


def confine_to_imports() -> None:
    """Leave the calling thread only what importing needs; no process, no socket, no written file; for good."""
    if ctypes.CDLL(None).prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(errno.EPERM, "the kernel refuses no_new_privs")
    _apply({**COMPUTE, **IMPORT}, {OPENAT: WRITING})


def confine_to_computing() -> None:
    """Leave the calling thread only memory that holds no new code, time, and the files already open.

    Only after :func:`confine_to_imports`.
    """
    _apply(COMPUTE, {MMAP: _PROT_EXEC, MPROTECT: _PROT_EXEC})


def _apply(allowed: dict[str, tuple[int | None, int | None]], unless: dict[tuple[int, int], int]) -> None:
    """Allow *allowed*, and the calls of *unless* when none of these bits is set in their third argument."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}; use isolation = 'none'")
    code = program(platform.machine(), allowed, unless)
    libc = ctypes.CDLL(None, use_errno=True)
    filter_ = _Program(len(code) // 8, code)
    if libc.syscall(machine.seccomp, _SET_MODE_FILTER, 0, ctypes.byref(filter_)):
        raise OSError(ctypes.get_errno(), "the kernel refuses a seccomp filter")


def program(name: str, allowed: dict[str, tuple[int | None, int | None]], unless: dict[tuple[int, int], int]) -> bytes:
    """Return the filter for the machine called *name*; see :func:`_apply`."""
    machine = _MACHINES[name]
    deny = _ERRNO | errno.EPERM
    code = [
        _step(_LOAD, _ARCH),
        _step(_EQUAL, machine.arch, 1, 0),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER),
    ]
    if machine.column == 0:
        code += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _KILL_PROCESS)]
    for numbers in allowed.values():
        number = numbers[machine.column]
        if number is not None:
            code += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    for numbers, bits in unless.items():
        code += [
            _step(_EQUAL, numbers[machine.column], 0, 4),
            _step(_LOAD, _ARGUMENT_2),
            _step(_ANY_BIT, bits, 0, 1),
            _step(_RETURN, deny),
            _step(_RETURN, _ALLOW),
        ]
    code.append(_step(_RETURN, deny))
    return b"".join(code)


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", operation, if_true, if_false, value)
