"""What differs where no ring holds the largest message whole."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

from mchannel.conformance import SOON, Conformance
from mchannel.errors import ChannelTimeout


class InParts(Conformance):
    """The tests, over a ring that long messages go through in parts."""

    def test_every_size_up_to_the_largest_arrives_whole(self) -> None:
        """No ring holds the largest message whole: its writer has to go on while it is read."""
        agent, broker = self.pair()
        with ThreadPoolExecutor(1) as threads:
            for size in (0, 1, 7, 8, 9, 4096, 16383, 16384, 100_000, 1 << 20):
                message = bytes([size % 251]) * size
                read = threads.submit(broker.read, timeout=SOON)
                agent.write(message, timeout=SOON)
                while not read.done():
                    with contextlib.suppress(ChannelTimeout):
                        agent.flush(timeout=0.01)
                assert read.result() == message
                broker.done()
