"""Both ends in one process, each in a thread of its own."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from mchannel.address import Address
from mchannel.transport import Options
from mchannel.transports.memory import MEMORY


def test_an_end_that_closes_while_the_other_rings_it_closes_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    place = MEMORY.listen(Address.parse("memory:///threads"), Options())
    near = MEMORY.connect(place.address, Options())
    far = place.accept()
    assert far is not None
    ring = os.eventfd_write
    with ThreadPoolExecutor() as threads:

        def ring_slowly(fd: int, value: int) -> None:
            monkeypatch.setattr(os, "eventfd_write", ring)
            closing = threads.submit(near.close)
            with suppress(TimeoutError):
                closing.result(0.2)
            ring(fd, value)

        monkeypatch.setattr(os, "eventfd_write", ring_slowly)
        assert far.send(b"at the last moment")
    far.close()
    place.close()
