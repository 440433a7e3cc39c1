"""From a URI to a hypervisor."""

from __future__ import annotations

import re

from .driver import Hypervisor
from .errors import HypervisorError

__all__ = ["connect", "is_xen"]


def is_xen(uri: str) -> bool:
    """Whether *uri* leads to Xen, here or by any of libvirt's transports."""
    return re.match(r"xen(\+[a-z0-9]+)?:", uri) is not None


async def connect(uri: str) -> Hypervisor:
    """Return the hypervisor at *uri*, such as ``qemu:///system`` or ``xen:///system``.

    A connection that is lost later is made again in the background. *uri* must come from the operator:
    some of libvirt's transports run programs that it names. Raises
    :exc:`~mbroker.hypervisor.HypervisorUnreachable` when nobody answers, and
    :exc:`~mbroker.hypervisor.HypervisorError` without libvirt's Python binding.
    """
    try:
        from .libvirt_driver import LibvirtHypervisor  # noqa: PLC0415 - an extra, which tests and guests lack
        from .xen_driver import XenHypervisor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "libvirt":
            raise
        raise HypervisorError(
            "libvirt's Python binding is missing: "
            "apt install libvirt-dev pkg-config gcc && pip install 'mchannel[libvirt]'"
        ) from None
    return await (XenHypervisor if is_xen(uri) else LibvirtHypervisor).connect(uri)
