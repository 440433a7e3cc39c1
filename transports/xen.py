"""``xen:///name``: a ring in pages that a guest grants to domain 0, with an event channel as its bell.

The guest makes the pages and the channel and *offers* them in xenstore, under its own
``data/mchannel/NAME/offer``: one node, so that it is never read half written. Domain 0 listens
there (``xen:///NAME`` for all domains, ``xen://DOMID/NAME`` or ``xen://UUID/NAME`` for one) and maps
what it finds. Whatever a guest writes is a stranger's word; who it is, domain 0 knows by itself.

Pages survive save, restore and migration, grants and event channels do not, and a channel that is
closed *after* such a suspend trips a bug of the guest's kernel. So :func:`quiesce` asks the agents
of a domain to let go before, :func:`resume` to go on when nothing came of it; an agent whose domain
got another number offers anew, and the session replays. A suspend that nobody announced works too,
but the agent then keeps one dead descriptor for as long as it runs.
"""

from __future__ import annotations

from mchannel.framed import Framed
from mchannel.transports.xenguest import GuestWire
from mchannel.transports.xenhost import HostDoor, channels, quiesce, resume
from mchannel.transports.xenlib import LIBXEN, Machine
from mchannel.transports.xenoffer import HOLD, Offer

__all__ = ["HOLD", "XEN", "Offer", "channels", "quiesce", "resume", "scheme"]


def scheme(machine: Machine) -> Framed:
    """Return the scheme ``xen`` on *machine*."""
    return Framed(
        lambda address, options: GuestWire(address, options, machine),
        lambda address, options: HostDoor(address, options, machine),
    )


XEN = scheme(LIBXEN)
