from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mbroker.cli import main

HOUSE = Path(__file__).parents[2]


def run(*arguments: str | Path, text: str | None = None) -> Result:
    result = CliRunner().invoke(main, [str(each) for each in arguments], input=text)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_daemon_that_is_not_there_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCHANNEL_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("mbroker.control._PATIENCE", 0.1)
    for command in (("status",), ("list",), ("policy", "list", "--control", "shm:///mbroker")):
        result = run(*command)
        assert result.exit_code == 3
        assert result.stderr.startswith("mbroker: no daemon answers at shm:///mbroker: ")
        assert result.stderr.count(":") == 3, "one hint"
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("list", "no agent is known yet; what agents open: mbroker status"),
        ("domains", "there are no domains on this host"),
        ("fleet", "no other host is configured"),
        ("subscriptions", "there are no subscriptions; what there is to watch: mbroker metrics"),
        ("alerts silences", "nothing is silenced; how to: mbroker alerts silence --help"),
        ("alerts history", "nothing happened yet"),
    ],
)
def test_a_list_of_nothing_says_so_to_people_and_is_empty_to_programs(
    monkeypatch: pytest.MonkeyPatch, command: str, says: str
) -> None:
    def nothing(*_: object) -> tuple[()]:
        return ()

    monkeypatch.setattr("mbroker.control.ask", nothing)
    monkeypatch.setattr("mbroker.control.ask_agents", nothing)
    assert run(*command.split()).stdout == f"{says}\n"
    assert json.loads(run(*command.split(), "--output", "json").stdout) == []


def test_who_trusts_nobody_hears_how_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    assert run("keys", "show", "--trusted", "--folder", tmp_path).stdout.startswith("nobody is trusted; how to: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("status", "--nonsense"),
        ("list", "--output", "xml"),
        ("policy", "show"),
        ("status", "--control", "bogus"),
        ("status", "--control", "bogus:///x"),
        ("list", "--control", "tcp://127.0.0.1:7600"),
        ("list", "--control", "tcp://nowhere"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize("module", ["mbroker.cli", "mbroker.daemon"])
@pytest.mark.parametrize("missing", ["click", "cattrs"])
def test_without_the_packages_of_a_host_one_line_says_how_to_get_them(module: str, missing: str) -> None:
    script = f"import sys; sys.modules[{missing!r}] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert f"needs {missing} and other packages of a host; install them: pip install" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_cannot_be_printed_is_one_line_and_exit_code_1() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mbroker.cli", "policy", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "mbroker: standard output: No space left on device\n")


def tree(group: click.Group, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield *group* and all its commands, each with the words by which it is called."""
    yield words, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from tree(command, *words, name)
        else:
            yield (*words, name), command


COMMANDS = dict(tree(main))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_has_an_example_and_fits_a_terminal(words: tuple[str, ...]) -> None:
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert f"mbroker {' '.join(words)}" in result.stdout.partition("\n  Example")[2]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert not re.search(r"[a-z,]\.\.\.$", result.stdout, re.MULTILINE), "a summary is cut"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_that_tells_something_tells_programs_too(words: tuple[str, ...]) -> None:
    if words == ("deadman",) or isinstance(COMMANDS[words], click.Group):
        return  # the one is a service
    assert "--output" in {option for param in COMMANDS[words].params for option in param.opts}


def test_policies_are_listed_with_what_they_do() -> None:
    assert {each["name"] for each in json.loads(run("policy", "list", "--output", "json").stdout)} >= {
        "none",
        "basic",
        "richer",
        "utilization",
        "adaptive",
    }
    assert "mbroker.policies.sla_dvfs:Basic" in run("policy", "list").stdout


SECTIONS = "[policies.basic]\n[policies.mine]\npolicy = 'basic'\nisolation = 'process'\n"


def test_policies_are_listed_with_the_sections_that_host_them(tmp_path: Path) -> None:
    (tmp_path / "mbroker.toml").write_text(SECTIONS)
    asked = ("policy", "list", "--config", tmp_path / "mbroker.toml")
    known = {each["name"]: each["hosted"] for each in json.loads(run(*asked, "--output", "json").stdout)}
    assert (known["basic"], known["none"]) == ({"basic": "trusted", "mine": "isolated"}, {})
    assert "basic trusted, mine isolated" in run(*asked).stdout


def test_how_policies_run_is_not_guessed() -> None:
    assert json.loads(run("policy", "list", "--output", "json").stdout)[0]["hosted"] is None
    assert "HOSTED" not in run("policy", "list").stdout
    assert run("policy", "list", "--config", "a", "--control", "b").exit_code == 2


def test_a_policy_is_shown_with_its_options() -> None:
    shown = json.loads(run("policy", "show", "adaptive", "--output", "json").stdout)
    assert shown["options"]["patience"] == 4
    assert "patience" in run("policy", "show", "adaptive").stdout


def test_an_unknown_policy_is_exit_code_4_with_a_hint() -> None:
    result = run("policy", "show", "adaptiv")
    assert result.exit_code == 4
    assert result.stderr == "mbroker: no policy is called 'adaptiv'; did you mean adaptive?\n"


def test_the_example_of_a_configuration_is_good() -> None:
    assert run("check-config", HOUSE / "examples" / "mbroker.toml").exit_code == 0


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[brokr]", "brokr: unknown key; did you mean broker?"),
        ("[policies.basik]", "policies.basik: no policy is called 'basik'; did you mean basic?"),
        ("[policies.x]\npolicy = 'basik'\nisolation = 'process'", "policies.x: no policy is called 'basik'"),
        (
            "[policies.adaptive.options]\npatiense = 1",
            "policies.adaptive.options.patiense: policy adaptive has no option 'patiense'; did you",
        ),
        ("[actuators.cpufrek]", "actuators.cpufrek: no actuator is called 'cpufrek'; did you mean cpufreq?"),
        ("[actuators.cpufreq.options]\nmetod = 1", "actuators.cpufreq.options.metod: actuator cpufreq"),
        ("[actuators.cpufreq.options]\nmethod = 'x'", "actuators.cpufreq.options.method: actuator cpufreq refuses"),
        (
            "[actuators.cpufreq.options]\nroot = '/nowhere'",
            "actuators.cpufreq.options.root: actuator cpufreq refuses its options: 'root' must be the folder",
        ),
        (
            "[actuators.cpu_bandwidth.options]\nperiod_us = 'x'",
            "actuators.cpu_bandwidth.options: actuator cpu_bandwidth refuses its options: a number is needed instead",
        ),
        (
            "[policies.adaptive.options]\npatience = 'x'",
            "policies.adaptive.options: policy adaptive refuses its options: a number",
        ),
    ],
)
def test_a_bad_configuration_is_exit_code_2_with_one_line_for_each_fault(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "mbroker.toml"
    file.write_text(text)
    result = run("check-config", file)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{file}: {line}")
    assert result.stderr.count("\n") == 1
    said = json.loads(run("check-config", file, "--output", "json").stdout)
    assert (said["ok"], len(said["faults"])) == (False, 1)


def test_a_folder_of_keys_that_the_fleet_could_not_use_is_a_fault(tmp_path: Path) -> None:
    folder, file = tmp_path / "keys", tmp_path / "mbroker.toml"
    file.write_text(
        f"[broker]\nname = 'node1'\n[hypervisor]\nuri = 'test:///default'\n"
        f"[fleet]\nlisten = 'tcp://127.0.0.1:7700'\nkeys = '{folder}'"
    )
    assert run("check-config", file).stderr == (
        f"{file}: fleet.keys: {folder} has no key; make one with: mbroker keys new NAME\n"
    )
    assert run("keys", "new", "node1", "--folder", folder).exit_code == 0
    assert run("check-config", file).exit_code == 0
    folder.chmod(0o755)
    result = run("check-config", file)
    assert result.exit_code == 2
    assert result.stderr == (
        f"{file}: fleet.keys: {folder} is open to other users; close it with: chmod go= {folder}\n"
    )


def test_a_fault_is_found_in_the_file_that_set_the_key(tmp_path: Path) -> None:
    (tmp_path / "mbroker.toml").write_text("[policies.none]")
    (tmp_path / "mbroker.d").mkdir()
    more = tmp_path / "mbroker.d" / "more.toml"
    more.write_text("[policies.basik]")
    assert run("check-config", tmp_path / "mbroker.toml").stderr.startswith(f"{more}: policies.basik: no policy")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check-config", "missing"),
        ("policy", "show", "missing"),
        ("replay", "--policy", "basic", "missing"),
        ("replay", "--policy", "missing", HOUSE / "examples" / "web1.trace.jsonl"),
        ("keys", "trust", "web1", "missing"),
        ("keys", "untrust", "web1", "--folder", "missing"),
        ("keys", "show", "--folder", "missing"),
    ],
)
def test_what_is_not_there_is_exit_code_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str | Path, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (4, 1)
    assert "missing" in result.stderr


@pytest.mark.parametrize("command", ["new", "trust", "untrust"])
def test_a_name_that_no_key_can_have_is_exit_code_2(tmp_path: Path, command: str) -> None:
    result = run("keys", command, "../x", "--folder", tmp_path, text="anything")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "'../x' is no name for a key" in result.stderr


def test_a_file_that_cannot_be_read_is_exit_code_1(tmp_path: Path) -> None:
    result = run("replay", "--policy", "basic", tmp_path)
    assert (result.exit_code, result.stderr) == (1, f"mbroker: {tmp_path}: Is a directory\n")


TRACE = '{"topic": "cpu.usage", "source": "web1", "value": 0.1, "at": 0.5, "detail": {"epoch": 0}}\n'


def test_a_trace_is_replayed() -> None:
    trace = HOUSE / "examples" / "web1.trace.jsonl"
    printed = run("replay", "--policy", "basic", trace, "--output", "json").stdout.splitlines()
    assert len(printed) == len(trace.read_text().splitlines())
    asked = [action for line in printed for action in json.loads(line)["actions"] if action["action"] == "SetFrequency"]
    assert asked[0] == {"action": "SetFrequency", "domain": "web1", "step": 0, "level": 3}
    people = run("replay", "--policy", "basic", trace).stdout
    assert people.count("SetFrequency") == len(asked)


def test_a_policy_for_a_replay_takes_options(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(TRACE)
    assert run("replay", "--policy", "adaptive", "--set", "patience=2", trace).exit_code == 0
    refused = run("replay", "--policy", "adaptive", "--set", "patiense=2", trace)
    assert (refused.exit_code, "did you mean patience?" in refused.stderr) == (2, True)
    assert run("replay", "--policy", "adaptive", "--set", "patience", trace).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "content", "code", "said"),
    [
        (("--policy", "nosuch"), TRACE, 4, "no policy is called"),
        (("--policy", "basic"), TRACE + "{nonsense\n", 1, "line 2: not JSON"),
        (("--policy", "basic"), "\udcff", 1, "line 1"),
        (("--policy", "basic", "--p-states", "9,1"), TRACE, 2, "--p-states"),
        (("--policy", "basic", "--p-states", "x"), TRACE, 2, "--p-states"),
    ],
)
def test_a_replay_that_cannot_be_is_one_line(
    tmp_path: Path, arguments: tuple[str, ...], content: str, code: int, said: str
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_bytes(content.encode(errors="surrogateescape"))
    result = run("replay", *arguments, trace)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_keys_are_made_shown_and_trusted(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    fingerprint = run("keys", "new", "web1", "--folder", theirs).stdout
    public = run("keys", "show", "--folder", theirs).stdout
    run("keys", "new", "node1", "--folder", ours)
    trusted = run("keys", "trust", "web1", "--folder", ours, text=public)
    assert (trusted.exit_code, trusted.stdout) == (0, fingerprint)
    listed = json.loads(run("keys", "show", "--trusted", "--folder", ours, "--output", "json").stdout)
    assert listed == {"web1": {"fingerprint": fingerprint.strip(), "server": False}}
    assert run("keys", "untrust", "web1", "--folder", ours).exit_code == 0
    told = json.loads(run("keys", "trust", "web1", "--folder", ours, "--output", "json", text=public).stdout)
    assert told == {"name": "web1", "fingerprint": fingerprint.strip(), "server": False}
    assert json.loads(run("keys", "untrust", "web1", "--folder", ours, "--output", "json").stdout) == {
        "name": "web1",
        "trusted": False,
    }
    remade = json.loads(run("keys", "new", "web1", "--force", "--folder", theirs, "--output", "json").stdout)
    assert remade["name"] == "web1"
    assert remade["fingerprint"] != fingerprint.strip()
    assert run("keys", "untrust", "web1", "--folder", ours).exit_code == 4


def test_the_secret_half_of_a_key_is_never_printed(tmp_path: Path) -> None:
    said = run("keys", "new", "web1", "--folder", tmp_path).output + run("keys", "show", "--folder", tmp_path).output
    secret = (tmp_path / "identity.key").read_text().split()[-1]
    assert secret not in said


def test_a_key_that_is_none_is_exit_code_1(tmp_path: Path) -> None:
    run("keys", "new", "node1", "--folder", tmp_path)
    result = run("keys", "trust", "web1", "--folder", tmp_path, text="nonsense\x1b[31m")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_a_second_key_needs_force(tmp_path: Path) -> None:
    run("keys", "new", "node1", "--folder", tmp_path)
    assert run("keys", "new", "node1", "--folder", tmp_path).exit_code == 1
    assert run("keys", "new", "node1", "--folder", tmp_path, "--force").exit_code == 0
