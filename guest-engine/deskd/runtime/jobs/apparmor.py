"""The job that gives the kernel AppArmor's default profile for containers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from deskd.kernel import apparmor
from deskd.runtime.jobs.programs import run_program


def load_default(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Load the default profile where the kernel does not know it yet. Raises ``Unsupported`` where
    the parser is missing or refuses."""
    del arguments, fds
    apparmor.show_policy()
    if apparmor.is_loaded(apparmor.DEFAULT_PROFILE):
        return  # perhaps another engine's, which means the same by this name
    if os.path.exists(apparmor.COMPILED):
        with open(apparmor.COMPILED, "rb") as file:
            apparmor.load(file.read())
    else:
        run_program("apparmor_parser", "--replace", "--skip-cache", apparmor.SOURCE)
