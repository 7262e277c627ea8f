"""The suite's own rules for tests that fail and are run once more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest

machines = []

@pytest.fixture(scope="module")
def machine():
    machines.append("up")
    yield len(machines)
    machines.append("down")

def test_that_leaves_something(machine):
    assert machine == 3

def test_that_comes_after_it(machine):
    assert (machine, machines) == (3, ["up", "down", "up"])
"""


def test_a_second_run_meets_nothing_that_the_first_one_left(tmp_path: Path) -> None:
    (tmp_path / "test_module.py").write_text(TESTS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--reruns", "1"),
            *("--rootdir", str(tmp_path), str(tmp_path)),
        ],
        cwd=Path(__file__).parents[2],
        env={k: v for k, v in os.environ.items() if not k.startswith(("DESK_", "PYTEST_"))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed, 1 rerun" in done.stdout
    assert "unsteady: mend them" in done.stdout
