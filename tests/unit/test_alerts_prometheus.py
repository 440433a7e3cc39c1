"""Files of Prometheus rules, in the style of those that ship with exporters."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbroker.alerts import Subscription
from mbroker.alerts.prometheus import Imported, RulesError, read_rules
from mbroker.alerts.promql_values import Renaming

NODE = r"""
groups:
  - name: node
    interval: 1m
    rules:
      - record: instance:node_cpu:ratio
        expr: 1 - avg without (cpu) (rate(node_cpu_seconds_total{mode="idle"}[5m]))
      - alert: HostDown
        expr: up{job="node"} == 0
        for: 5m
        labels: {severity: critical, team: infra}
        annotations: {summary: "{{ $labels.instance }} is down"}
      - alert: CpuBusy
        expr: 100 - (avg by (instance) (rate(node_cpu_seconds_total{job="node", mode="idle"}[5m])) * 100) > 90
        for: 15m
        labels: {severity: warning}
      - alert: DiskFilling
        expr: |
          (
            node_filesystem_avail_bytes{mountpoint!=""} < 5 * 1024 ^ 3
          and
            node_filesystem_readonly{mountpoint!=""} == 0
          )
        for: 30m
        labels: {severity: page}
      - alert: DiskFillingSoon
        expr: predict_linear(node_filesystem_avail_bytes[6h], 24 * 60 * 60) < 0
        labels: {severity: warning}
      - alert: DiskAlmostFull
        expr: node_filesystem_avail_bytes / node_filesystem_size_bytes * 100 < 5
      - alert: NetworkErrors
        expr: increase(node_network_receive_errs_total[2m]) > 12
        for: 1h
      - alert: ClockSkew
        expr: |
          (node_timex_offset_seconds > 0.05 and deriv(node_timex_offset_seconds[5m]) >= 0)
      - alert: ClockOff
        expr: node_timex_offset_seconds > 0.05 or node_timex_offset_seconds < -0.05
        for: 10m
        labels: {severity: "{{ $labels.level }}"}
      - alert: ArrayDegraded
        expr: node_md_disks_required - ignoring (state) node_md_disks{state="active"} > 0
      - alert: HeartbeatGone
        expr: absent(heartbeat{job="node"})
        for: 1h30m
        keep_firing_for: 10m
      - alert: RackHot
        expr: count by (rack) (max_over_time(node_hwmon_temp_celsius[10m]) > 80) >= 3
        labels: {severity: critical}
      - alert: Watchdog
        expr: vector(1)
        labels: {severity: none}
"""


def written(folder: Path, text: str, name: str = "rules.yml") -> Path:
    file = folder / name
    file.write_text(textwrap.dedent(text))
    return file


def by_name(found: list[Imported]) -> dict[str, Imported]:
    return {each.name: each for each in found}


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Imported]:
    return by_name(read_rules(written(tmp_path, NODE)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HostDown", "up == 0 for 5m nodata clear severity critical"),
        ("CpuBusy", 'mean(rate(node_cpu_seconds_total{mode="idle"}[5m])) by (host) < 0.1 for 15m nodata clear'),
        (
            "DiskFilling",
            (
                'node_filesystem_avail_bytes{mountpoint!=""} < 5368709120 and '
                'node_filesystem_readonly{mountpoint!=""} == 0 '
                "for 30m nodata clear severity critical"
            ),
        ),
        ("NetworkErrors", "rate(node_network_receive_errs_total[2m]) > 0.1 for 1h nodata clear"),
        ("ClockOff", "node_timex_offset_seconds > 0.05 or node_timex_offset_seconds < -0.05 for 10m nodata clear"),
        ("HeartbeatGone", "absent(heartbeat[5m]) for 90m nodata clear"),
        ("RackHot", "atleast(3, max(node_hwmon_temp_celsius[10m])) by (rack) > 80 nodata clear severity critical"),
    ],
)
def test_a_rule_becomes_a_subscription(node: dict[str, Imported], name: str, text: str) -> None:
    (subscription,) = node[name].subscriptions
    assert str(subscription) == text
    assert Subscription.parse(text) == subscription
    assert (node[name].group, node[name].reason) == ("node", "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("instance:node_cpu:ratio", "it records a series instead of alerting"),
        ("DiskFillingSoon", "the function predict_linear has no counterpart"),
        ("DiskAlmostFull", "arithmetic between series (/) has no counterpart"),
        ("ClockSkew", "the function deriv has no counterpart"),
        ("ArrayDegraded", "arithmetic between series (-) has no counterpart"),
        ("Watchdog", "it fires whatever its value is"),
    ],
)
def test_a_rule_that_cannot_be_says_why(node: dict[str, Imported], name: str, reason: str) -> None:
    assert node[name].subscriptions == ()
    assert node[name].reason.startswith(reason)


def test_nothing_is_left_unsaid(node: dict[str, Imported]) -> None:
    assert len(node) == 13
    assert all(bool(each.subscriptions) != bool(each.reason) for each in node.values())


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("HeartbeatGone", "keep_firing_for is left out: the alert clears as soon as its condition does"),
        ("ClockOff", "severity '{{ $labels.level }}' became warning"),
        ("NetworkErrors", "increase is compared as a rate per second here, with its threshold divided by 120"),
    ],
)
def test_differences_are_noted(node: dict[str, Imported], name: str, note: str) -> None:
    assert note in node[name].notes


def one(folder: Path, rule: str) -> Imported:
    text = "groups:\n- name: g\n  rules:\n  - " + textwrap.indent(textwrap.dedent(rule), "    ").strip()
    (found,) = read_rules(written(folder, text))
    return found


def test_an_or_of_different_series_becomes_two_subscriptions(tmp_path: Path) -> None:
    found = one(tmp_path, "alert: A\nexpr: a > 1 or b > 2\nfor: 1m")
    assert list(map(str, found.subscriptions)) == ["a > 1 for 1m nodata clear", "b > 2 for 1m nodata clear"]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("alert: A\nexpr: a >", "it is no PromQL"),
        ("alert: A", "it needs alert, expr"),
        ("expr: a > 1", "it needs alert, expr"),
        ("alert: A\nexpr: 1", "it needs alert, expr"),
        ("alert: A\nexpr: a > 1\nlabels: [severity]", "it needs alert, expr"),
        ("alert: A\nexpr: a > 1\nfor: soon", "for must be a duration such as 5m, not 'soon'"),
        ("alert: A\nexpr: a > 1\nfor: 2y", "a duration may last from 1ms to 366d, not 730d"),
        ("alert: A\nexpr: " + " or ".join(["a > 1"] * 70), "a condition may have at most 64 comparisons"),
    ],
)
def test_a_faulty_rule_does_not_spoil_the_others(tmp_path: Path, rule: str, reason: str) -> None:
    text = "groups:\n- name: g\n  rules:\n  - " + textwrap.indent(rule, "    ").strip()
    text += "\n  - alert: Good\n    expr: a > 1\n    for: 0s\n"
    bad, good = read_rules(written(tmp_path, text))
    assert bad.reason.startswith(reason)
    assert [str(each) for each in good.subscriptions] == ["a > 1 nodata clear"]


def test_a_configuration_leads_to_its_files(tmp_path: Path) -> None:
    (tmp_path / "rules.d").mkdir()
    for name in ("b", "a"):
        written(
            tmp_path / "rules.d", f"groups: [{{name: {name}, rules: [{{alert: {name}, expr: x > 1}}]}}]", f"{name}.yml"
        )
    main = written(tmp_path, "rule_files: ['rules.d/*.yml', 'none/*.yml']\nscrape_configs: []", "prometheus.yml")
    assert [(each.file.name, each.name) for each in read_rules(main)] == [("a.yml", "a"), ("b.yml", "b")]


def test_labels_can_be_called_otherwise(tmp_path: Path) -> None:
    file = written(tmp_path, 'groups: [{name: g, rules: [{alert: A, expr: \'x{dom="a", job="b"} > 1\'}]}]')
    (found,) = read_rules(file, Renaming({"dom": "domain"}, frozenset()))
    assert str(found.subscriptions[0]) == 'x{domain="a", job="b"} > 1 nodata clear'


def test_a_file_without_rules_has_none(tmp_path: Path) -> None:
    assert read_rules(written(tmp_path, "groups: [{name: empty}]")) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no groups of rules"),
        ("- a", "holds no groups of rules"),
        ("global: {}", "groups must be a list"),
        ("groups: 7", "groups must be a list"),
        ("groups: [7]", "groups must be a list of tables"),
        ("groups: [{name: g, rules: {}}, {rules: 7}]", "the rules of group 2 must be a list"),
        ("groups: [{name: g, rules: [7]}]", "the rules of group g must be a list of tables"),
        ("rule_files: 7", "rule_files must be a list of texts"),
        ("groups: [a", "line 1, column 11: expected ',' or ']'"),
        ("a: &a [*a", "line 1, column 10:"),
        ("groups: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("\x00", "is no YAML"),
        ("[" * 5000, "is no YAML: maximum recursion"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path, text: str, reason: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(RulesError) as caught:
        read_rules(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match=r"nowhere\.yml: No such file or directory"):
        read_rules(tmp_path / "nowhere.yml")


def test_a_small_file_cannot_become_endless_by_anchors(tmp_path: Path) -> None:
    rules = "r: &r [" + ", ".join(["{alert: A, expr: 'a > 1'}"] * 200) + "]\n"
    groups = "groups: [" + ", ".join(["{name: g, rules: *r}"] * 200) + "]\n"
    with pytest.raises(RulesError, match="more than 10000 rules"):
        read_rules(written(tmp_path, rules + groups))


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match="has more than 1048576 bytes"):
        read_rules(written(tmp_path, "#" * ((1 << 20) + 1)))


@given(st.text(max_size=200) | st.text("groups:[]{}-&*!|> \nalertexpr", max_size=200))
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("any") / "rules.yml"
    file.write_text(text, errors="surrogatepass")
    try:
        read_rules(file)
    except RulesError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most files are refused, some are not
