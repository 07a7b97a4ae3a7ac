"""A pytest plugin that tells of each failure at once, in one line that begins with FAILED."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's processes report to the one that prints
        config.pluginmanager.register(_Failures(config))


class _Failures:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = " ".join((crash.message if crash else report.longreprtext).split())[:200]
            writer = self.config.get_terminal_writer()
            writer.line()
            writer.line(f"FAILED {report.nodeid}: {why}")
            writer.flush()

    pytest_collectreport = pytest_runtest_logreport
