from __future__ import annotations

import re
from pathlib import Path

import pytest

from mbroker.broker import Budget
from mbroker.config import Config, ConfigError, Isolation, NoSuchFile, load


def write(folder: Path, text: str, **more: str) -> Path:
    file = folder / "mbroker.toml"
    file.write_text(text)
    for name, content in more.items():
        (folder / "mbroker.d").mkdir(exist_ok=True)
        (folder / "mbroker.d" / f"{name}.toml").write_text(content)
    return file


WHOLE = """
[broker]
name = "node1"
state = "/tmp/state"
control = "ipc:///mbroker"
[broker.budget]
rate = 2
[host]
p_states = [1000, 2400]
[[listen]]
address = "shm:///web1"
[[listen]]
address = "tcp://0.0.0.0:7600"
[policies.sla]
policy = "richer"
isolation = "process"
options = { soft_share = 0.3 }
[actuators.cpu_bandwidth]
[domains.web1]
cpus = [0, 1]
cgroup = "machine/web1"
"""


FLEET = """
[hypervisor]
uri = "qemu:///system"
[fleet]
listen = "tcp://10.0.0.1:7700"
"""


def test_every_section_is_read(tmp_path: Path) -> None:
    config = load(write(tmp_path, WHOLE)).config
    assert config.broker.name == "node1"
    assert config.broker.budget == Budget(rate=2.0)
    assert config.host.p_states == (1000, 2400)
    assert [section.fixed_domain for section in config.listen] == ["web1", None]
    assert config.policies["sla"].isolation is Isolation.PROCESS
    assert config.policies["sla"].options == {"soft_share": 0.3}
    assert config.domains["web1"].cpus == (0, 1)
    assert config.domains["web1"].cgroup == "machine/web1"
    assert "cpu_bandwidth" in config.actuators


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")).config == Config()


def test_more_files_are_merged_in_the_order_of_their_names(tmp_path: Path) -> None:
    config = load(
        write(
            tmp_path,
            '[broker]\nname = "a"\ncontrol = "ipc:///c"\n[[listen]]\naddress = "shm:///one"',
            z='[broker]\nname = "z"',
            b='[broker]\nname = "b"\n[[listen]]\naddress = "shm:///two"',
        )
    ).config
    assert (config.broker.name, config.broker.control) == ("z", "ipc:///c")
    assert [section.address for section in config.listen] == ["shm:///one", "shm:///two"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[brokr]", "brokr: unknown key; did you mean broker?"),
        ("[hypervisor]\nuri = ''", "hypervisor.uri: must be a hypervisor's URI such as qemu:///system, not ''"),
        ("[fleet]\nlisten = 'tcp://10.0.0.1:7700'", "fleet: is of no use without [hypervisor]"),
        ("[fleet]\nlisten = 'shm:///fleet'", "fleet.listen: must be an address like tcp://"),
        (
            (
                "[broker]\nname = 'a'\n[hypervisor]\nuri = 'qemu:///system'\n"
                "[fleet]\nlisten = 'tcp://10.0.0.1:7700'\n[fleet.hosts.a]\naddress = 'tcp://10.0.0.1:7700'"
            ),
            "fleet.hosts.a: is this host itself",
        ),
        ("[policies.sla]\nisolaton = 'process'", "policies.sla.isolaton: unknown key; did you mean isolation?"),
        (
            "[policies.sla]\nisolation = 'chroot'",
            "policies.sla.isolation: must be one of none, process, not 'chroot'",
        ),
        ("[broker]\nname = 5", "broker.name: must be a text, not 5"),
        ("[broker.budget]\nrate = 0", "broker.budget.rate: must be > 0: 0.0"),
        ("[[listen]]", "listen.0.address: is missing"),
        ("[policies.sla]\ndeadline = 1.5", "policies.sla.deadline: must be <= 1"),
        ("[[listen]]\naddress = 'web1'", "listen.0.address: must be an address: 'web1' is not an address"),
        ("[[listen]]\naddress = 'shm:///a'\n[[listen]]\naddress = 'shm:///a'", "listen.1.address: shm:///a is used"),
        ("[[listen]]\naddress = 'shm:///mbroker'", "listen.0.address: shm:///mbroker is used by broker.control"),
        ("[[listen]]\naddress = 'tcp://127.0.0.1:1'\ninsecure = true", "listen.0.domain: is missing"),
        ("[host]\np_states = [2400, 1000]", "host.p_states: must be frequencies"),
        ("[host]\np_states = '1'", "host.p_states"),
        ("[domains.web1]\ncpus = []", "domains.web1.cpus: must be"),
        (
            "[policies.a]\nisolation = 'process'\ndeadline = 0.6\n[policies.b]\nisolation = 'process'\ndeadline = 0.6",
            "policies.b.deadline: the isolated policies up to here may take 1.2 s together",
        ),
        ("listen = 3", "listen: is not of the kind"),
        ("policies = 3", "policies: is not of the kind"),
        ("policies.basic = 3", "policies.basic: "),
        ("[domains.w]\ncgroup = '../../x'", "domains.w.cgroup: must be a path below the hierarchy"),
        ("[domains.w]\ncgroup = '/'", "domains.w.cgroup: must be a path below the hierarchy"),
        ("[[listen]]\naddress = 'foo:///x'", "listen.0.address: must be an address: foo:///x: no transport"),
        ("[[listen]]\naddress = 'tcp://999.0.0.1:80'", "listen.0.address: must be an address: tcp://999.0.0.1:80: 999"),
        ("[[listen]]\naddress = 'tcp://10.0.0.7'", "listen.0.address: must be an address: tcp://10.0.0.7 is no net"),
        ("[[listen]]\naddress = 'tcp://10.0.0.7:1/x'", "listen.0.address: must be an address: tcp://10.0.0.7:1/x is"),
        ("[[listen]]\naddress = 'shm:///'", "listen.0.address: must be an address: shm:///: a name has"),
        (
            "[[listen]]\naddress = 'shm:///a'\nmax_message = 100000000000000000000000",
            "listen.0.max_message: must be <=",
        ),
        (
            "[[listen]]\naddress = 'tcp://0.0.0.0:1'\ninsecure = true\ndomain = 'a'",
            "listen.0.insecure: is for addresses of loopback only",
        ),
        ("[broker]\ncontrol = 'tcp://127.0.0.1:1'", "broker.control: must be an address of this host"),
        ("[broker\n", "line 1"),
        (
            FLEET + "[fleet.hosts.'node 2']\naddress = 'tcp://10.0.0.2:7700'",
            "fleet.hosts.node 2: is called as its key: 'node 2' is no name for a key; use 1 to 64 letters",
        ),
        (
            FLEET + "[broker]\nname = 'node 1'",
            "broker.name: is called as its key: 'node 1' is no name for a key; use 1 to 64 letters",
        ),
        (
            "[hypervisor]\nuri = 'qemu:///system'\nlane = '3MiB'",
            "hypervisor.lane: must be off, 1MiB, 2MiB, 4MiB, 8MiB, 16MiB, 32MiB, 64MiB, 128MiB or 256MiB, not '3MiB'",
        ),
    ],
)
def test_an_error_names_the_file_and_the_key(tmp_path: Path, text: str, fault: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}: .*{re.escape(fault)}"):
        load(file)


def test_an_error_names_the_file_that_set_the_key(tmp_path: Path) -> None:
    file = write(tmp_path, '[broker]\nname = "a"', wrong="[broker]\nstate = 1\n[[listen]]\nadress = 'shm:///x'")
    with pytest.raises(ConfigError) as caught:
        load(file)
    wrong = tmp_path / "mbroker.d" / "wrong.toml"
    assert sorted(caught.value.lines) == [
        f"{wrong}: broker.state: must be a path, not 1",
        f"{wrong}: listen.0.address: is missing",
        f"{wrong}: listen.0.adress: unknown key; did you mean address?",
    ]


def test_an_error_in_a_key_that_is_set_again_names_the_last_file(tmp_path: Path) -> None:
    file = write(
        tmp_path, "[broker.budget]\nburst = 3", first="[broker.budget]\nburst = 4", last="broker.budget.burst = 0"
    )
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert [line.partition(":")[0] for line in caught.value.lines] == [str(tmp_path / "mbroker.d" / "last.toml")]


def test_what_turns_out_later_names_the_file_that_set_the_key_too(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, "[policies.none]", more="[policies.basic]\n[policies.basic.options]\npatience = 1"))
    main, more = tmp_path / "mbroker.toml", tmp_path / "mbroker.d" / "more.toml"
    for key, line in {
        ("policies", "none"): f"{main}: policies.none: why",
        ("policies", "basic", "options", "patience"): f"{more}: policies.basic.options.patience: why",
        ("policies", "basic", "options", "unset"): f"{more}: policies.basic.options.unset: why",
        ("domains",): f"{main}: domains: why",
    }.items():
        assert loaded.error(*key, reason="why").lines == (line,)


def test_what_the_system_refuses_is_said_with_the_file_first(tmp_path: Path) -> None:
    loaded, refusal = load(write(tmp_path, "")), PermissionError(13, "Permission denied", "/sys/x")
    assert loaded.error("host", reason=refusal).lines[0].endswith("host: /sys/x: Permission denied")


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match=r"none\.toml: cannot be read: No such file or directory"):
        load(tmp_path / "none.toml")


def test_a_file_that_is_no_text_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("value", "reason"), [("[" * 5000, "is nested too deep"), ("9" * 5000, "has a number of too many digits")]
)
def test_text_that_wears_its_reader_out_is_one_line(tmp_path: Path, value: str, reason: str) -> None:
    file = write(tmp_path, f"x = {value}")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.lines == (f"{file}: {reason}",)
