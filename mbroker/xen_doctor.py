"""What ``mbroker doctor`` looks at on a host with Xen: domain 0, its devices, its libraries, and what guests offer."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from mbroker.findings import Finding, Verdict
from mbroker.hypervisor import DomainInfo
from mchannel.transports.xen import channels
from mchannel.transports.xenlib import LIBXEN, Machine, missing_libraries

__all__ = ["domain_0", "offers"]

_DEVICES: Final = (("dev/xen/evtchn", "xen-evtchn"), ("dev/xen/gntdev", "xen-gntdev"))
"""What a listener opens, and the kernel's module that makes it."""
_XENSTORED: Final = "run/xenstored/socket"
_PATIENCE: Final = 2.0  # seconds


def domain_0(root: Path = Path("/")) -> Iterator[Finding]:
    """See that channels from guests can end here."""
    if "control_d" not in _word(root / "proc/xen/capabilities"):
        meaning = "this is not domain 0 of Xen, where the channels of its guests end"
        yield Finding("xen", Verdict.FAIL, meaning, "boot Xen, mount xenfs at /proc/xen, and run mbrokerd in domain 0")
        return
    major, minor, extra = (_word(root / "sys/hypervisor/version" / part) for part in ("major", "minor", "extra"))
    yield Finding("xen", Verdict.OK, f"this is domain 0 of Xen {major}.{minor}{extra}")
    for device, module in _DEVICES:
        if not (root / device).exists():
            yield Finding("xen", Verdict.FAIL, f"/{device} is not here", f"as root: modprobe {module}")
        elif not os.access(root / device, os.R_OK | os.W_OK):
            meaning = f"this user may not open /{device}"
            yield Finding("xen", Verdict.FAIL, meaning, "run mbrokerd, and this, as root")
    yield from _xenstored(root / _XENSTORED)
    for line in missing_libraries():
        meaning, _, remedy = line.partition("; ")
        yield Finding("xen", Verdict.FAIL, meaning, remedy)


def offers(domains: Iterable[DomainInfo], machine: Machine = LIBXEN) -> Iterator[Finding]:
    """See which channels the agents of the domains that run offer; raises AddressError where there is no Xen."""
    for domain in domains:
        if domain.number is None:
            continue
        if names := channels(domain.number, machine=machine):
            yield Finding("domain", Verdict.OK, f"{domain.name} offers {', '.join(sorted(names))}")
        else:
            meaning = f"no agent of {domain.name} offers a channel"
            yield Finding("domain", Verdict.WARN, meaning, "start magent in it; see what it says there")


def _xenstored(path: Path) -> Iterator[Finding]:
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(_PATIENCE)
            door.connect(str(path))
    except OSError as error:
        meaning = f"xenstored does not answer: {error.strerror or error}"
        remedy = "as root: systemctl start xenstored; well if it is a domain of its own"
        yield Finding("xen", Verdict.WARN, meaning, remedy)


def _word(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip()
    except OSError:
        return ""
