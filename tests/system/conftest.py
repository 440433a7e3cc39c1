"""The test bed: two hosts and a guest, made once for all tests that ask."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.system import guest_image, libvirt_guest, libvirt_hosts
from tests.system.guest_image import Image
from tests.system.libvirt_guest import Guest
from tests.system.libvirt_hosts import Host


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what takes many minutes to those who ask for it."""
    if config.option.markexpr or os.environ.get("MCHANNEL_VERIFY") == "1":
        return
    reason = "takes minutes on two hosts: ./dev test-system"
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason))


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What guests boot."""
    try:
        return guest_image.image(tmp_path_factory.mktemp("image"))
    except guest_image.NoPackages as error:
        pytest.skip(f"the guest is made of Debian 12's packages: {error}")


@pytest.fixture(scope="session")
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts between which guests can move."""
    try:
        with libvirt_hosts.hosts() as pair:
            yield pair
    except libvirt_hosts.NoHosts as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_guest(hosts: tuple[Host, Host], image: Image, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """One guest for all tests; it ends with its host."""
    return libvirt_guest.start(hosts[0], image, tmp_path_factory.mktemp("guest"))


@pytest.fixture
def guest(shared_guest: Guest, hosts: tuple[Host, Host]) -> Guest:
    """The shared guest, on the first host."""
    if shared_guest.host != hosts[0]:
        shared_guest.migrate(hosts[0])
    return shared_guest
