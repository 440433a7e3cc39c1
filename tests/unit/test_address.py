"""Addresses: what they say, and what they may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mchannel
from mchannel.address import Address
from mchannel.errors import AddressError
from mchannel.transport import Options, find_scheme


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path))


@pytest.mark.parametrize(
    "text",
    ["shm:///web1", "tcp://10.0.0.7:7600?server=mvm1", "tcp://[::1]:7600", "xen://5/mgmt", "ipc:///srv/run/web1"],
)
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", "web1", "shm:/web1", "tcp://h:99999", "tcp://u@h:1", "shm:///a#b", "shm:///\n"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        Address.parse(text)


@pytest.mark.parametrize("thing", [None, b"shm:///web1", Path("/web1"), 7])
def test_what_is_no_text_is_no_address(thing: Any) -> None:
    for use in (mchannel.open, mchannel.listen, Address.parse):
        with pytest.raises(AddressError, match=f"not {type(thing).__name__}"):
            use(thing)


@pytest.mark.parametrize("scheme", ["memory", "shm", "ipc"])
@pytest.mark.parametrize("option", ["bogus=1", "server=mvm1", "bogus"])
def test_a_local_address_has_no_options(scheme: str, option: str) -> None:
    address = f"{scheme}:///web1?{option}"
    refusal = rf"{scheme} knows no option '{option.partition('=')[0]}'; leave it out"
    with pytest.raises(AddressError, match=refusal):
        mchannel.listen(address)
    with pytest.raises(AddressError, match=refusal):
        mchannel.open(address, timeout=0)


def test_a_network_address_knows_its_server_alone() -> None:
    with pytest.raises(AddressError, match=r"tcp knows no option 'sever'; only server"):
        mchannel.open("tcp://127.0.0.1:1?sever=mvm1", timeout=0)


@pytest.mark.parametrize("path", ["", "..", ".hidden", "a b", "x" * 65])
def test_an_unsafe_name_stands_for_no_file(path: str) -> None:
    with pytest.raises(AddressError, match="a name has"):
        Address("shm", path=path).file(".shm")


@pytest.mark.parametrize("host", ["10.0.0.7", "::1", "node1.example.org", "*", "eth0.100", "localhost"])
def test_a_network_address_has_a_host_and_a_port(host: str) -> None:
    assert Address("tcp", host, 7600).endpoint() == (host, 7600)


@pytest.mark.parametrize("host", ["999.0.0.1", "10.0.0", "1", "fd00:::7", "a b", "", "x;y", "h" * 256])
def test_what_can_be_no_host_is_refused_before_anything_is_opened(host: str) -> None:
    with pytest.raises(AddressError):
        Address("tcp", host, 7600).endpoint()
    with pytest.raises(AddressError, match=r"no (network|IP) address"):
        find_scheme(Address("tcp")).bind(Address("tcp", host, 7600), Options(insecure=True))


@pytest.mark.parametrize("text", ["tcp://10.0.0.7", "tcp://10.0.0.7:7600/web1", "tcp:///web1"])
def test_a_network_address_without_a_port_or_with_a_path_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match="write tcp://HOST:PORT"):
        Address.parse(text).endpoint()
