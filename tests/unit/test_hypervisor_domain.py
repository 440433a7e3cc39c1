"""A domain read from its XML, and where it is after a migration."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.hypervisor import HypervisorError, HypervisorUnreachable, NoSuchPort, Port, State, Where
from mbroker.hypervisor.domain import read_domain
from mbroker.hypervisor.migration import whereabouts

XML = """
<domain type='kvm' id='3'>
  <name>web1</name>
  <uuid>AAAAAAAA-0000-4000-8000-000000000001</uuid>
  <metadata>
    <mch:m xmlns:mch='urn:mchannel:1' class='web' sla='p95&lt;100ms'/>
    <other:m xmlns:other='urn:other' class='not ours'/>
  </metadata>
  <memory unit='MiB'>192</memory>
  <currentMemory unit='KiB'>131072</currentMemory>
  <vcpu placement='static' current='2'>4</vcpu>
  <devices>
    <channel type='unix'>
      <source mode='bind' path='/run/libvirt/qemu/channel/3-web1/org.mchannel.0'/>
      <target type='virtio' name='org.mchannel.0' state='connected'/>
      <alias name='channel0'/>
    </channel>
    <channel type='unix'><target type='virtio' name='org.mchannel.ctl'/></channel>
    <channel type='pty'><target type='virtio' name='console'/></channel>
    <shmem name='ring'><alias name='ua-ring'/></shmem>
  </devices>
</domain>
"""


def test_a_domain_is_read_from_its_xml() -> None:
    info = read_domain(XML, State.RUNNING, persistent=False)
    assert (info.uuid, info.name) == ("aaaaaaaa-0000-4000-8000-000000000001", "web1")
    assert (info.vcpus, info.memory, info.persistent) == (2, 128 << 20, False)
    assert info.metadata == {"class": "web", "sla": "p95<100ms"}
    assert info.devices == {"ua-ring"}
    assert info.ports == (
        Port("org.mchannel.0", "/run/libvirt/qemu/channel/3-web1/org.mchannel.0", connected=True),
        Port("org.mchannel.ctl", ""),
    )


def test_a_port_without_socket_says_that_the_domain_must_run() -> None:
    with pytest.raises(NoSuchPort, match="start it first"):
        read_domain(XML, State.OFF, persistent=True).port("org.mchannel.ctl")


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain/>",
        XML.replace("192", "many").replace("131072", "many"),
        XML.replace("AAAA", "ZZZZ"),
        "<!DOCTYPE d [<!ENTITY a 'aaaa'>]>" + XML.strip(),
        XML.replace("KiB", "parsec"),
        XML + " " * (1 << 20),
    ],
)
def test_what_is_no_domain_is_refused_in_one_line(xml: str) -> None:
    with pytest.raises(HypervisorError) as caught:
        read_domain(xml, State.RUNNING, persistent=True)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200), st.integers(0, len(XML)), st.integers(0, 50))
def test_damaged_xml_is_read_or_refused(noise: str, at: int, cut: int) -> None:
    with suppress(HypervisorError):
        read_domain(XML[:at] + noise + XML[at + cut :], State.RUNNING, persistent=True)


AWAY = HypervisorUnreachable("away")


@pytest.mark.parametrize(
    ("source", "destination", "where"),
    [
        (State.RUNNING, None, Where.SOURCE),
        (State.PAUSED, None, Where.SOURCE),
        (State.RUNNING, State.MOVING, Where.SOURCE),
        (State.RUNNING, AWAY, Where.SOURCE),
        (None, State.RUNNING, Where.DESTINATION),
        (State.OFF, State.PAUSED, Where.DESTINATION),
        (State.MOVING, State.RUNNING, Where.DESTINATION),
        (AWAY, State.RUNNING, Where.DESTINATION),
        (State.RUNNING, State.RUNNING, Where.UNKNOWN),
        (State.MOVING, State.MOVING, Where.UNKNOWN),
        (State.MOVING, None, Where.UNKNOWN),
        (State.MOVING, AWAY, Where.UNKNOWN),
        (None, AWAY, Where.UNKNOWN),
        (AWAY, AWAY, Where.UNKNOWN),
        (State.OFF, None, Where.NOWHERE),
        (State.CRASHED, None, Where.NOWHERE),
    ],
)
def test_where_a_domain_is_follows_from_what_both_say(
    source: State | HypervisorUnreachable | None, destination: State | HypervisorUnreachable | None, where: Where
) -> None:
    assert whereabouts(source, destination) is where
