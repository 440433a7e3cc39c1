"""The guest bundle under Debian's own Python, with two of Debian's packages and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[2]
PYTHON = Path("/usr/bin/python3")
DEBIAN = Path("/usr/lib/python3/dist-packages")
NEEDED = ("_cffi_backend", "msgpack")

pytestmark = pytest.mark.skipif(
    not all([PYTHON.exists(), *(list(DEBIAN.glob(f"{name}*")) for name in NEEDED)]),
    reason="needs apt-get install python3 python3-cffi-backend python3-msgpack",
)


def build(output: Path) -> Path:
    subprocess.run([sys.executable, HOUSE / "tools/guest_bundle.py", "--output", output], check=True)
    return output


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a guest has of Debian beside the standard library."""
    folder = tmp_path_factory.mktemp("dist-packages")
    for name in NEEDED:
        for path in DEBIAN.glob(f"{name}*"):
            (folder / path.name).symlink_to(path)
    return folder


def in_guest(guest: Path, code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run *code* without this environment, without site-packages."""
    start = f"import sys; sys.path.append({str(guest)!r}); del sys.argv[0]\n"
    command = [PYTHON, "-I", "-S", "-B", "-c", start + code, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=guest)


RUN = "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.parametrize("form", ["magent", "magent.pyz"])
def test_magent_runs_from_the_bundle(form: str, bundle: Path, guest: Path) -> None:
    done = in_guest(guest, RUN, bundle / form, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: magent ")


@pytest.mark.parametrize("form", ["magent", "magent.pyz"])
def test_an_agent_talks_through_a_transport_of_the_bundle(form: str, bundle: Path, guest: Path) -> None:
    code = (
        "sys.path.insert(0, sys.argv[0])\n"
        "import threading, mchannel\n"
        "def agent():\n"
        "    with mchannel.open('memory:///web1') as channel: channel.write(mchannel.Event('sla.epoch', 'web1'))\n"
        "with mchannel.listen('memory:///web1') as listener:\n"
        "    threading.Thread(target=agent).start()\n"
        "    with listener.accept(timeout=10) as channel: print(*(event.source for event in channel))\n"
    )
    done = in_guest(guest, code, bundle / form)
    assert (done.stdout, done.stderr) == ("web1\n", "")


def test_the_ring_of_the_folder_runs_on_the_guests_cffi(bundle: Path, guest: Path) -> None:
    pytest.importorskip("mchannel._ring")
    code = (
        "sys.path.insert(0, sys.argv[0])\n"
        "from mchannel._ring import lib\n"
        "print(lib.mc_region_size(65536, 65536) > 2 * 65536)"
    )
    done = in_guest(guest, code, bundle / "magent")
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_only_the_channel_attrs_and_the_service_are_in_the_bundle(bundle: Path) -> None:
    names = {path.name.partition("-")[0] for path in (bundle / "magent").iterdir()}
    assert names == {"__main__.py", "magent.service", "magent.toml", "mchannel", "attr", "attrs"}


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    once, twice = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (build(tmp_path / "once"), build(tmp_path / "twice"))
    )
    assert once == twice


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    command = [sys.executable, str(HOUSE / "tools/guest_bundle.py"), "--output", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("guest-bundle: cannot write the bundle: ")
    assert done.stderr.count("\n") == 1
