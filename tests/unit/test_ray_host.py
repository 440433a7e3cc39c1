"""Engines on Ray, in a network namespace that has nothing but its own loopback."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mbroker.alerts._match", reason="the C is not built here")

ROOT = Path(__file__).resolve().parents[2]
ALONE = [
    "unshare",
    "--net",
    "--pid",
    "--mount-proc",
    "--kill-child",
    "sh",
    "-c",
    'ip link set lo up && exec "$@"',
    "sh",
]

PROGRAM = """
import os, signal, sys
import ray

ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False,
         object_store_memory=100_000_000, _temp_dir=sys.argv[1], _node_ip_address="127.0.0.1")
from mbroker.alerts.engine_host import InProcess
from mbroker.alerts.ray_host import RayHost
from mbroker.alerts.shards import Shards
from tests.unit.test_shards import START, by_alert, columns, rule, streams
import random

TEXTS = ["load > 5", "mean(load) by (rack) > 4", "quantile(0.9, load) > 5", "load > 4 and mean(temp) by (rack) > 3"]


def process(engine):
    return os.getpid()


made = []


def make():
    made.append(RayHost(processors=0.5))
    return made[-1]


here, there = Shards(START, count=5), Shards(START, count=5, hosts=2, make=make)
for text in TEXTS:
    assert here.add(rule(text)) == there.add(rule(text))
edges = 0
for turn, (now, samples) in enumerate(streams(random.Random(7), 30)):
    wanted = by_alert(here.push(now, *columns(here, samples)))
    told = by_alert(there.push(now, *columns(there, samples)))
    assert told == wanted, (turn, told, wanted)
    edges += len(told)
    if turn == 8:
        there.grow()
    if turn == 15:  # the process dies, and nobody says so
        (victim,) = there._housing.do({next(iter(there.where["host 1"])): [process]}).values()
        os.kill(victim[0], signal.SIGKILL)
    if turn == 22:
        saved = there.save()
        there.close()
        there = Shards.load(saved, hosts=2, make=make)
assert edges > 20
assert len(made) == 5
there.close()
ray.shutdown()
print("edges", edges)
"""


def alone() -> str:
    """Return why no namespace can be made here; nothing if one can."""
    try:
        done = subprocess.run([*ALONE, "true"], capture_output=True, text=True, timeout=20, check=False)
    except OSError as error:
        return str(error)
    return done.stderr.strip() or str(done.returncode) if done.returncode else ""


@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'mchannel[ray]'")
@pytest.mark.skipif(bool(reason := alone()), reason=f"needs a network namespace of its own: {reason}")
def test_edges_are_the_same_on_ray_where_hosts_come_and_are_killed(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("r")
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", PROGRAM, folder],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
        check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1].startswith("edges ")
