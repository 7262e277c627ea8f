"""The logs that a machine leaves on this computer, and what is wrong by them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from desk.machine import known_problems
from desk.machine.process import last_lines
from desk.paths import MachinePaths

_TAIL_LINES = 2000
_TAIL_BYTES = 1 << 20
_BEGINNING = re.compile(r"agent of machine \S+ started")
"""The agent's log is kept over its restarts; the others begin anew with the machine or are short
on words."""


def log_files(paths: MachinePaths) -> dict[str, Path]:
    """Return the machine's logs that exist, by the names that ``known_problems`` uses."""
    files = {
        "console": paths.console_log,
        "qemu": paths.qemu_log,
        "agent": paths.agent_log,
        "engine": paths.engine_log,
        "vagrant": paths.vagrant_log,
    }
    return {name: file for name, file in files.items() if file.is_file()}


def known(paths: MachinePaths, *, running: bool) -> Iterator[tuple[Path, known_problems.Match]]:
    """Yield the known problems in the machine's logs, of its last run where that can be told.

    Of a ``running`` machine only those with which one goes on running: what kept an earlier start
    from succeeding is over.
    """
    for name, file in log_files(paths).items():
        lines = _last_run(last_lines(file, _TAIL_LINES, limit_bytes=_TAIL_BYTES))
        for match in known_problems.search(name, lines):
            if match.problem.running or not running:
                yield file, match


def _last_run(lines: Sequence[str]) -> Sequence[str]:
    begun = [index for index, line in enumerate(lines) if _BEGINNING.search(line)]
    return lines[begun[-1] :] if begun else lines
