from __future__ import annotations

import os
from pathlib import Path

import pytest
import zmq

from mchannel import keys
from mchannel.transports.complaints import Complaints
from mchannel.transports.curve import Gatekeeper


def status(gatekeeper: Gatekeeper, key: keys.PublicKey) -> bytes:
    return gatekeeper.answer([b"1.0", b"1", b"mchannel", b"10.0.0.7", b"", b"CURVE", key.raw])[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.new(tmp_path / "keys", "mvm1")
    return tmp_path / "keys"


def test_trust_is_read_again_when_the_folder_has_changed(folder: Path) -> None:
    first, second = (keys.PublicKey(zmq.curve_keypair()[0].decode()) for _ in range(2))
    keys.trust(folder, "first", first.text)
    os.utime(folder / "trusted", (1, 1))
    gatekeeper = Gatekeeper(folder, Complaints())
    assert (status(gatekeeper, first), status(gatekeeper, second)) == (b"200", b"400")
    keys.trust(folder, "second", second.text)
    assert status(gatekeeper, second) == b"200"


def test_two_changes_within_one_time_stamp_are_both_seen(folder: Path) -> None:
    key = keys.PublicKey(zmq.curve_keypair()[0].decode())
    keys.trust(folder, "web1", key.text)
    stamp = (folder / "trusted").stat().st_mtime_ns
    gatekeeper = Gatekeeper(folder, Complaints())
    assert status(gatekeeper, key) == b"200"
    keys.untrust(folder, "web1")
    os.utime(folder / "trusted", ns=(stamp, stamp))
    assert status(gatekeeper, key) == b"400"


def test_a_folder_that_cannot_be_trusted_lets_nobody_in(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = keys.PublicKey(zmq.curve_keypair()[0].decode())
    keys.trust(folder, "web1", key.text)
    folder.chmod(0o755)
    assert status(Gatekeeper(folder, Complaints()), key) == b"400"
    assert "nobody can connect" in caplog.text


@pytest.mark.parametrize("request_", [[], [b"1.0", b"1", b"", b"", b"", b"NULL"], [b"2.0"] * 7])
def test_what_is_no_curve_handshake_is_refused(folder: Path, request_: list[bytes]) -> None:
    assert Gatekeeper(folder, Complaints()).answer(request_)[2] == b"400"


def test_complaints_are_bounded_and_return_after_their_interval(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(limit=3, interval=0.0)
    complaints.make("one")
    complaints.make("one")
    assert len(caplog.records) == 2
    complaints = Complaints(limit=3)
    for count in range(100):
        complaints.make(str(count))
    assert len(caplog.records) == 5
