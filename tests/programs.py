"""Programs that the tests drive."""

from __future__ import annotations

import shutil

import pytest


def program(name: str) -> str:
    """Return the path of a program; skip the test where it is not installed.

    A strict run, in which ``packaging/test`` has installed everything, allows no skipped test.
    """
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: packaging/test installs it")
    return found
