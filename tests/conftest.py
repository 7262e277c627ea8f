"""Rules for the whole suite: privileges are demanded, skips and leftovers are failures."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

STRICT = os.environ.get("DESK_TESTS_STRICT") == "1"
# A slow machine is no failure: no deadline for an example, none for making one. A strict run tries
# the same examples every time; new ones are for those who can look into what they find.
settings.register_profile(
    "desk",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=STRICT,
)
settings.load_profile("desk")
# Where the names of tests go that passed only when they were run once more.
UNSTEADY = os.environ.get("DESK_TESTS_UNSTEADY")
_TIMEOUT = pytest.StashKey[Any]()
_FAILED = pytest.StashKey[bool]()


def pytest_configure() -> None:
    """Let the tests' programs be interrupted, also where a shell started them all in its
    background: what it ignores there is ignored by every child."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _privileges(request: pytest.FixtureRequest) -> None:
    """A test marked ``root`` fails without root: a missing privilege is no reason to skip."""
    if request.node.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("this test needs root: run it as root or deselect it with -m 'not root'")


@pytest.fixture(autouse=True)
def _no_leftover_threads() -> Iterator[None]:
    """Fail a test that leaves a non-daemon thread running."""
    before = set(threading.enumerate())
    yield
    left = [t for t in threading.enumerate() if t not in before and not t.daemon]
    for thread in left:
        thread.join(timeout=60)
    alive = [t.name for t in left if t.is_alive()]
    assert not alive, f"threads left running: {alive}"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In a strict run a skipped test fails the run, whatever the reason for the skip was."""
    if not STRICT or hasattr(session.config, "workerinput") or exitstatus != 0:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("a strict run allows no skipped test", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """Remember the limit: the second run of a test needs it as well."""
    item.stash[_TIMEOUT] = settings


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give a second run its own time-out: pytest-timeout sees both runs as one, and its timer
    ended with the first failure."""
    if getattr(item, "execution_count", 1) > 1 and _TIMEOUT in item.stash:
        hooks = item.config.pluginmanager.hook
        hooks.pytest_timeout_cancel_timer(item=item)
        hooks.pytest_timeout_set_timer(item=item, settings=item.stash[_TIMEOUT])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the report of a test that failed with a machine tell what that wrote."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    if report.failed and call.when == "call" and item.get_closest_marker("vm"):
        from tests.machine_logs import homes_of, logs_of

        for home in homes_of(getattr(item, "funcargs", {}).values()):
            report.sections += logs_of(home)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """After a failure end what several tests share, a module's machine, too: the next test, which
    may be the second run of this one, must not meet what is left there."""
    if item.stash.get(_FAILED, False):
        del item.stash[_FAILED]
        item.session._setupstate.teardown_exact(None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show why tests needed a second run, and name those that passed it, here and where the
    names of all stages are gathered."""
    stats = terminalreporter.stats
    first: dict[str, str] = {}
    for report in stats.get("rerun", []):
        parts = [report.longreprtext, *(text for _title, text in report.sections)]
        first[report.nodeid] = first.get(report.nodeid, "") + "\n".join(parts)
    for name, text in sorted(first.items()):
        terminalreporter.section(f"first run of {name}", sep="_")
        terminalreporter.write_line(text)
    failed = {report.nodeid for kind in ("failed", "error") for report in stats.get(kind, [])}
    unsteady = sorted(set(first) - failed)
    if not unsteady:
        return
    terminalreporter.section("unsteady: mend them")
    for name in unsteady:
        terminalreporter.write_line(name)
    if UNSTEADY:
        with Path(UNSTEADY).open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in unsteady)
