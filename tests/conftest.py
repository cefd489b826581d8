"""Tiers, the limit on a single test, and one thread for each process: networks this small aren't worth waiting threads."""

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator

import pytest

import tests.unsynced  # noqa: F401
from tests.forked import one_template

os.environ.setdefault("OMP_NUM_THREADS", "1")
_keys = tempfile.TemporaryDirectory(prefix="ablate-key-")  # no test makes or reads the user's own
os.environ["ABLATE_KEY_FILE"] = os.path.join(_keys.name, "checkpoints.key")

SERVICES = {"site", "cluster", "postgres", "database"}  # fixtures that start one
_seconds: dict[str, float] = defaultdict(float)  # a test's set-up, call and tear-down together


@pytest.fixture(scope="session", autouse=True)
def template() -> Iterator[None]:
    """Workers, ranks and commands are forked from one process."""
    with one_template():
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--limit",
        type=float,
        metavar="SECONDS",
        help="fail when a test takes longer, name those over half",
    )


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a service; the files with the most slow tests go first, so that none is left over at the end."""
    slow: dict[str, int] = defaultdict(int)
    for item in items:
        if SERVICES & set(getattr(item, "fixturenames", ())):
            item.add_marker("service")
        slow[item.path.as_posix()] += any(item.iter_markers("slow")) or any(item.iter_markers("service"))
    items.sort(key=lambda item: -slow[item.path.as_posix()])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] += report.duration


def _longer_than(seconds: float | None) -> list[str]:
    """The tests that took longer, the longest first; none without a limit."""
    found = sorted(_seconds.items(), key=lambda entry: -entry[1])
    return [f"{took:.0f} s: {name}" for name, took in found if seconds is not None and took > seconds]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _longer_than(session.config.getoption("--limit")):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    limit = config.getoption("--limit")
    if limit is None:
        return
    for title, colour, found in [
        (f"tests that took more than {limit:g} s, which is the limit", {"red": True}, _longer_than(limit)),
        (f"tests that took more than half of the limit of {limit:g} s", {"yellow": True}, _longer_than(limit / 2)),
    ]:
        if found:
            terminalreporter.section(title, bold=True, **colour)
            for line in found:
                terminalreporter.write_line(line, **colour)
