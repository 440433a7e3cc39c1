"""Every transport that is shipped, by both faces."""

from __future__ import annotations

import functools
import runpy
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

import mchannel
from mchannel import keys
from mchannel.conformance import Conformance
from mchannel.transport import Wishes


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test names of its own."""
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path))


class TestMemory(Conformance):
    address = "memory:///conformance"


class TestMemoryAsync(TestMemory):
    asyncio = True


class TestShm(Conformance):
    address = "shm:///conformance"


class TestShmAsync(TestShm):
    asyncio = True


class TestIpc(Conformance):
    address = "ipc:///conformance"


class TestIpcAsync(TestIpc):
    asyncio = True


class TestTcp(Conformance):
    address = "tcp://127.0.0.1:0"
    wishes: ClassVar[Wishes] = {"insecure": True}


class TestTcpAsync(TestTcp):
    asyncio = True


class TestTcpCurve(Conformance):
    """Between two ends that prove by key who they are."""

    address = "tcp://127.0.0.1:0"

    @pytest.fixture(autouse=True)
    def trusted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One folder of keys serves both ends: it trusts itself."""
        folder = tmp_path / "keys"
        keys.new(folder, "self")
        keys.trust(folder, "self", keys.show(folder), server=True)
        monkeypatch.setattr(type(self), "wishes", {"keys": folder})


class TestTcpCurveAsync(TestTcpCurve):
    asyncio = True


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("address", ["memory:///web1", "shm:///web1", "ipc:///web1", "tcp://127.0.0.1:{port}"])
def test_the_same_agent_and_broker_run_over_every_transport(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as probe:  # an address that both can be told, and that nobody else gets meanwhile
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as who listens there does
        probe.bind(("127.0.0.1", 0))
        where = address.format(port=probe.getsockname()[1])
        if where.startswith("tcp"):
            monkeypatch.setattr(mchannel, "open", functools.partial(mchannel.open, insecure=True))
            monkeypatch.setattr(mchannel, "listen", functools.partial(mchannel.listen, insecure=True))
        monkeypatch.setattr("sys.argv", ["hello", where])
        with ThreadPoolExecutor() as threads:
            broker = threads.submit(runpy.run_path, str(EXAMPLES / "hello_broker.py"))
            agent = threads.submit(runpy.run_path, str(EXAMPLES / "hello_agent.py"))
            agent.result(30)
            broker.result(30)
    said = capsys.readouterr().out.splitlines()
    assert [float(line.split()[0]) for line in said] == [0.0, 0.03, 0.4, 0.0]
    assert "SetFrequency" in said[1]
