"""Programs of the machine that jobs run, since the engine itself forks nothing."""

from __future__ import annotations

import shutil
import signal
import subprocess

from deskd.errors import Unsupported

_ADMINISTRATION_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
"""The launcher has no environment of its own."""


def run_program(name: str, *arguments: str) -> None:
    """Run one of the machine's administration programs. Raises ``Unsupported`` where it is missing
    or fails."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else nobody would learn how it ended
    program = shutil.which(name, path=_ADMINISTRATION_PATH)
    if program is None:
        raise Unsupported(f"this machine has no program {name}")
    done = subprocess.run(
        [program, *arguments],
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={"PATH": _ADMINISTRATION_PATH, "LC_ALL": "C"},
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise Unsupported(f"{name} ended with {done.returncode}: {said}")
