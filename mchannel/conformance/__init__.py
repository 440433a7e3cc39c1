"""What every transport must do, as tests that anybody can run against their own.

::

    class TestMine(Conformance):
        address = "mine:///conformance"


    class TestMineAsync(TestMine):
        asyncio = True

pytest collects the inherited tests, one behaviour each. The same tests drive both faces: with
``asyncio`` set, channels of the asyncio face live in an event loop of their own thread. The
transport must be registered under the entry points ``mchannel.transports``.

A channel does not survive ``fork``: open it in the process that uses it. Closing the copy that a forked
process has ends nothing.
"""

from __future__ import annotations

from .bench import SOON
from .ends import Ends
from .messages import Messages
from .sessions import Sessions

__all__ = ["SOON", "Conformance"]


class Conformance(Messages, Ends, Sessions):
    """The tests. Subclass it and name an address; each test gets the address for itself."""
