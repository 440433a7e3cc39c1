"""A virtio port, with a stand-in for the hypervisor and the guest's kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mchannel.channel import Channel
from mchannel.codec import Codec
from mchannel.conformance import Conformance
from mchannel.transports import virtio
from tests.unit.virtio_world import Hypervisor

UUID = "aaaaaaaa-0000-4000-8000-000000000001"


class TestVirtio(Conformance):
    """The MVM listens at the domain's socket, and the guest opens its port."""

    address = ""

    @pytest.fixture(autouse=True)
    def hypervisor(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with Hypervisor(tmp_path / "socket") as made:
            monkeypatch.setattr(virtio, "_open", made.open)
            monkeypatch.setattr(type(self), "address", f"virtio://{made.path}?domain={UUID}")
            monkeypatch.setattr(type(self), "port", f"virtio://{tmp_path}/port", raising=False)
            yield
            self._stack.close()  # channels before the port that carries them

    def open(self, address: object, codec: Codec[Any] | None = None, **wishes: Any) -> Channel[Any]:
        """Open the port, wherever the MVM listens."""
        return super().open(self.port, codec, **wishes)

    port: str


class TestVirtioAsync(TestVirtio):
    asyncio = True
