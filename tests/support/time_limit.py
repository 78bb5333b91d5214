"""A limit for the seconds of a test."""

from collections import Counter

import pytest


class TimeLimit:
    """A pytest plugin: the run fails if the setup and call of a test take longer than the limit.

    Tests marked `system` or `exhaustive` have no limit. The plugin belongs in the process that collects all reports.
    """

    def __init__(self, seconds: float):
        self._limit, self._seconds = seconds, Counter[str]()

    @property
    def _longer(self) -> dict[str, float]:
        return {test: seconds for test, seconds in self._seconds.most_common() if seconds > self._limit}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown" and not {"system", "exhaustive"} & report.keywords.keys():
            self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._longer and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for test, seconds in self._longer.items():
            text = f"{test} takes {seconds:.1f} s, more than {self._limit:g} s: make it shorter, or mark it exhaustive"
            terminalreporter.write_line(f"error: {text}")
