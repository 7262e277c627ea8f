"""Rules for the whole suite: privileges are demanded, skips and leftovers are failures."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# A slow machine is no failure: no deadline for an example, none for making one.
settings.register_profile("desk", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("desk")

STRICT = os.environ.get("DESK_TESTS_STRICT") == "1"


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
        thread.join(timeout=5)
    left = [t.name for t in left if t.is_alive()]
    assert not left, f"threads left running: {left}"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In a strict run a skipped test fails the run, whatever the reason for the skip was."""
    if not STRICT or hasattr(session.config, "workerinput") or exitstatus != 0:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("a strict run allows no skipped test", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
