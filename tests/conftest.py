"""What holds for every test of the house."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

# Seconds say how busy the machine is, and nothing about a property. CI judges a change, so it draws the same examples
# each time; everybody else draws new ones.
_SAME = bool(os.environ.get("CI")) and not os.environ.get("MCHANNEL_VERIFY")
settings.register_profile("house", deadline=None, derandomize=_SAME, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


_MEMORY = Path("/dev/shm")
_PREFIX = "mchannel-test-"
_ENOUGH = 1 << 30


@pytest.fixture(scope="session")
def in_memory(pytestconfig: pytest.Config) -> Iterator[Path | None]:
    """Return a folder in memory, or None where there is none; what a run that was killed left there goes first.

    A run locks its folder, so that one which nobody holds is nobody's.
    """
    if pytestconfig.option.basetemp or not _is_roomy(_MEMORY):
        yield None
        return
    for left in _MEMORY.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            held = _lock(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(held)
    with TemporaryDirectory(prefix=_PREFIX, dir=_MEMORY, ignore_cleanup_errors=True) as folder:
        held = _lock(Path(folder))
        yield Path(folder)
        os.close(held)


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@pytest.fixture
def memory(tmp_path: Path, in_memory: Path | None) -> Iterator[Path]:
    """Return a folder in memory: what is killed at each of its steps syncs thousands of times. Else one on disk.

    With ``--basetemp`` it is on disk, too, and stays.
    """
    if in_memory is None:
        yield tmp_path
    else:
        with TemporaryDirectory(dir=in_memory, ignore_cleanup_errors=True) as folder:
            yield Path(folder)


def _is_roomy(folder: Path) -> bool:
    if not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    return not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize > _ENOUGH


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Executed(), "executed")
    if os.environ.get("MCHANNEL_RING") == "no":
        sys.meta_path.append(_NoC())


class _NoC(MetaPathFinder):
    """Where the C was left out (``MCHANNEL_RING=no``), what needs it is skipped. Asked last, so only there."""

    _NEEDED = ("mchannel._ring", "mchannel._quick", "mbroker.alerts._edges", "mbroker.alerts._match")

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname in self._NEEDED:
            pytest.skip("the C is not built here", allow_module_level=True)


class _Executed:
    """A run in which every test was skipped proves nothing, so it fails like a run without tests."""

    def __init__(self) -> None:
        self.count = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.count += report.when == "call" and not report.skipped

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        ok = session.exitstatus == pytest.ExitCode.OK and not session.config.option.collectonly
        if ok and not self.count:
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
