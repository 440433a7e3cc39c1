"""What magent.toml may say."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from mchannel.agents.exits import NOT_FOUND, USAGE, Exit
from mchannel.agents.settings import AgentSettings, Settings, SlaSettings, load, parse

WHOLE = """
[agent]
address = "tcp://10.0.0.7:7600?server=mvm1"
source = "web1"

[metrics]
enabled = false
interval = 10

[commands]
enabled = false

[[sla]]
log = "/var/log/nginx/access.log"
service = "shop"
hard_ms = 20
soft_ms = 10.5

[[sla]]
log = "/var/log/app.jsonl"
format = "json"
time_field = "took"
unit = "ms"
at_field = "at"
"""


EXAMPLE = Path(__file__).resolve().parents[2] / "examples/magent.toml"


def test_the_example_says_the_defaults_and_one_log() -> None:
    settings = load(EXAMPLE)
    assert attrs.evolve(settings, sla=()) == Settings()
    (shop,) = settings.sla
    assert shop == SlaSettings(log="/var/log/nginx/access.log", service="shop")


def test_an_empty_configuration_reports_metrics_and_obeys() -> None:
    settings = parse("")
    assert settings == Settings()
    assert (settings.metrics.enabled, settings.commands.enabled, settings.sla) == (True, True, ())


def test_every_key_arrives() -> None:
    settings = parse(WHOLE)
    assert settings.agent == AgentSettings(address="tcp://10.0.0.7:7600?server=mvm1", source="web1")
    assert (settings.metrics.enabled, settings.metrics.interval, settings.commands.enabled) == (False, 10, False)
    shop, app = settings.sla
    assert (shop.log, shop.format, shop.service) == (Path("/var/log/nginx/access.log"), "nginx", "shop")
    assert (shop.hard_ms, shop.soft_ms) == (20, 10.5)
    assert (app.format, app.time_field, app.unit, app.at_field) == ("json", "took", "ms", "at")


def test_a_source_that_is_not_named_is_the_host() -> None:
    assert AgentSettings().domain
    assert AgentSettings(source="web1").domain == "web1"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[metric]", "metric: unknown key; did you mean metrics?"),
        ("[x]", "x: unknown key; known are agent, metrics, commands, host, sla, read"),
        ("metrics = 5", "metrics: must be a section"),
        ("[metrics]\nintervall = 5", "metrics.intervall: unknown key; did you mean interval?"),
        ("[metrics]\nx = 5", "metrics.x: unknown key; known are enabled, interval"),
        ('["\\u001b[31m"]', "?[31m: unknown key; known are"),
        ("[metrics]\ninterval = 0.01", "metrics.interval: must be 0.05 to 3600 seconds, not 0.01"),
        ("[metrics]\ninterval = true", "metrics.interval: must be 0.05 to 3600 seconds, not True"),
        ("[metrics]\ninterval = nan", "metrics.interval: must be 0.05 to 3600 seconds, not nan"),
        ("[metrics]\ninterval = 1979-05-27", "metrics.interval: must be 0.05 to 3600 seconds, not 1979-05-27"),
        (f"[metrics]\ninterval = 0x{'f' * 5000}", "metrics.interval: must be 0.05 to 3600 seconds, not a number like"),
        (f"[metrics]\ninterval = {'9' * 5000}", "has a number of too many digits"),
        ("[metrics]\nenabled = 1", "metrics.enabled: must be true or false, not 1"),
        ('[agent]\nsource = "a\\u0000b"', "agent.source: must be a printable text"),
        (f"[agent]\nsource = '{'a' * 257}'", "agent.source: must be a printable text of at most 256 characters, not"),
        (f"[[sla]]\nlog = '/a'\nservice = '{'a' * 257}'", "sla.0.service: must be a printable text of at most 256 ch"),
        (
            "[[sla]]\nlog = '/a'\nservice = 5",
            "sla.0.service: must be a printable text of at most 256 characters, not 5",
        ),
        ("[agent]\naddress = 5", "agent.address: must be a printable text, not 5"),
        ("[agent]\naddress = 'shm:///'", "agent.address: must be an address: shm:///: a name has 1 to 64 letters"),
        ("[sla]\nlog = '/a'", "sla: write [[sla]] for each log"),
        ("[[sla]]\nformat = 'nginx'", "sla.0.log: is missing"),
        ("[[sla]]\nlog = 'access.log'", "sla.0.log: must be the whole path of a file, not 'access.log'"),
        ('[[sla]]\nlog = "/a\\u0000"', r"sla.0.log: must be the whole path of a file, not '/a\x00'"),
        ("[[sla]]\nlog = '/a'\nformat = '%T'", "sla.0.format: too coarse for epochs of 500 ms"),
        ("[[sla]]\nlog = '/a'\nformat = 5", "sla.0.format: must be a printable text, not 5"),
        ("[[sla]]\nlog = '/a'\nsoft_ms = 7", "sla.0.soft_ms: 7 is above hard_ms 6"),
        ("[[sla]]\nlog = '/a'\nhard_ms = 0", "sla.0.hard_ms: must be 0.001 to 1e+09 milliseconds, not 0"),
        ("[[sla]]\nlog = '/a'\nunit = 'h'", "sla.0.unit: must be one of s, ms, us, not 'h'"),
        ("[[read]]\nname = 'a'\nkind = ['nagios']", "read.0.kind: must be one of nagios, ganglia, prometheus, not ["),
        ("[[read]]\nname = 'a'\nkind = 'nagios'", "read.0: a reader of kind nagios needs command, and nothing else"),
        ("[[read]]\nname = 'a'\nkind = 'nagios'\ncommand = 'x'", "read.0.command: must be a list of a program"),
        ("[[sla]]\nlog = '/a'\n[[sla]]\nlog = '/a'", "sla: two sections name the same log"),
        ("[[sla]]\nlog = '/a'\n" * 33, "sla: write [[sla]] for each log, at most 32 times"),
        (f"a = {'[' * 5000}", "is nested too deep"),
        ("a = ", "Invalid value (at end of document)"),
    ],
)
def test_a_fault_is_one_line_with_its_key(tmp_path: Path, text: str, line: str) -> None:
    file = tmp_path / "magent.toml"
    file.write_text(text)
    with pytest.raises(Exit) as caught:
        load(file)
    assert caught.value.status == USAGE
    assert str(caught.value).startswith(f"{file}: {line}")
    assert "\n" not in str(caught.value)


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(Exit, match="there is no configuration") as caught:
        load(tmp_path / "magent.toml")
    assert caught.value.status == NOT_FOUND


def test_the_file_of_the_system_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mchannel.agents.settings.DEFAULT", tmp_path / "magent.toml")
    assert load(None) == Settings()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\xff\xfe", "is not UTF-8 text"), (b"#" * 2_000_000, "is too long to be a configuration")],
)
def test_what_is_no_configuration_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "magent.toml"
    file.write_bytes(content)
    with pytest.raises(Exit) as caught:
        load(file)
    assert (caught.value.status, str(caught.value)) == (USAGE, f"{file}: {reason}")


def test_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Exit, match=f"cannot read {tmp_path}: Is a directory"):
        load(tmp_path)
