"""The child in which one policy runs that nobody vouches for: ``python -I -m mbroker.isolated``.

Its standard input is a socket to the broker; it has no other file, no environment and, when started
by root, no privileges. The order matters: limits, credentials and the first filter before the
policy's module is imported, unless it is one of this package; the second filter before the policy
sees an event.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import pwd
import resource
import signal
import socket
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, cast

from mbroker.action import Action
from mbroker.broker import MAX_ACTIONS, one_line
from mbroker.host import Host
from mbroker.policy import Policy, topics_of
from mbroker.seccomp import confine_to_computing, confine_to_imports
from mbroker.values import build, plain
from mchannel.codec import EventCodec
from mchannel.packing import Limits, pack, unpack

__all__ = ["CPU_SECONDS", "FROM_BROKER", "MAX_PACKET", "main"]

MAX_PACKET = 1 << 17
"""Bytes in the longest packet of either direction."""
FROM_BROKER = Limits(text=MAX_PACKET, binary=MAX_PACKET, items=MAX_PACKET)
CPU_SECONDS = 60
"""Processor time after which the kernel ends the child, unless the broker extends it."""

_SET_PDEATHSIG = 1


def main() -> None:
    """Serve one policy until the broker closes the socket."""
    pipe = socket.socket(fileno=os.dup(0))
    os.close(0)
    try:
        policy = _prepare(*cast("tuple[Any, ...]", unpack(pipe.recv(MAX_PACKET), FROM_BROKER)))
        pipe.send(pack(("ready", topics_of(policy))))
    except Exception as error:  # whatever keeps it from starting is for the operator to read
        pipe.send(pack(("refused", one_line(error))))
        return
    codec, host = EventCodec(FROM_BROKER), Host("")
    while packet := pipe.recv(MAX_PACKET):
        number, event, picture = unpack(packet, FROM_BROKER)
        if picture is not None:
            host = build(Host, picture)
        answer, failure = b"", ""
        try:
            actions = islice(policy.decide(codec.decode(cast("bytes", event)), host), MAX_ACTIONS + 1)
            answer = pack(("done", number, [plain(action, Action) for action in actions]))
        except BaseException as error:  # the policy's failure, sys.exit() too, is the broker's to judge
            failure = one_line(error)
        pipe.send(answer or pack(("failed", number, failure)))  # here, where the error no longer holds what it ate


def _prepare(broker: int, target: str, options: dict[str, Any], path: tuple[str, ...], memory: int) -> Policy:
    """Give up all that a policy does not need, then import and make it."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    sys.path[:] = [entry for entry in path if os.access(entry, os.F_OK)]
    module, _, name = target.partition(":")
    if module.startswith("mbroker."):  # ours, as this module is: it needs no folder that every user may read
        importlib.import_module(module)
    nobody = pwd.getpwnam("nobody")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
        os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, resource.RLIM_INFINITY))
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # after the change of user: that clears it
    if os.getppid() != broker:
        raise SystemExit
    hidden = [entry for entry in sys.path if not os.access(entry, os.R_OK)]
    confine_to_imports()
    try:
        policy: Policy = getattr(importlib.import_module(module), name)(**options)
    except ModuleNotFoundError as error:
        if not hidden:
            raise
        raise ModuleNotFoundError(f"{error}, unless in {', '.join(hidden)}, where user nobody may not read") from None
    confine_to_computing()
    return policy


if __name__ == "__main__":
    main()
