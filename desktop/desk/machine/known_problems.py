"""Known problems by what a log says of them: a small catalogue that needs no network.

The catalogue is ``known_problems.toml`` beside this module; its head tells what the keys mean.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_CATALOGUE = Path(__file__).with_name("known_problems.toml")


@dataclass(frozen=True, slots=True)
class Problem:
    """An entry of the catalogue. ``running``: a machine goes on running with it."""

    id: str
    log: str
    pattern: re.Pattern[str]
    text: str
    remedy: str
    running: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """A problem that a log shows: in words, and the last line that says it."""

    problem: Problem
    text: str
    line: str


@functools.cache
def catalogue() -> tuple[Problem, ...]:
    """Return all known problems, in the order in which they are told."""
    import tomllib

    entries = tomllib.loads(_CATALOGUE.read_text("utf-8"))["problem"]
    return tuple(Problem(**{**entry, "pattern": re.compile(entry["pattern"])}) for entry in entries)


def search(log: str, lines: Iterable[str]) -> Iterator[Match]:
    """Yield the problems that the lines of a log (``console``, ``qemu``, …) show, each once."""
    newest_first = list(reversed(list(lines)))
    for problem in catalogue():
        if problem.log != log:
            continue
        for line in newest_first:
            found = problem.pattern.search(line)
            if found:
                why = (found.groupdict().get("why") or "").strip(" -]")
                yield Match(problem, problem.text.format(why=why), line)
                break
