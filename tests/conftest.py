"""What holds for every test of the house."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

# Seconds say how busy the machine is, and nothing about a property.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Executed(), "executed")
    sys.meta_path.append(_NoRing())


class _NoRing(MetaPathFinder):
    """Where the C ring was left out (``MCHANNEL_RING=no``), what needs it is skipped. Asked last, so only there."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname in ("mchannel._ring", "mchannel._quick"):
            pytest.skip("the C ring is not built here", allow_module_level=True)


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
