"""A container's processes as ``ps`` shows them, read from proc(5): the guest has no ps program."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from deskd.errors import InvalidArgument
from deskd.record import replace
from deskd.services.containers.ps_columns import COLUMNS, SORT_KEYS, Column, Facts, group_id
from deskd.services.containers.ps_options import PsOptions, parse

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def process_table(pids: list[int], arguments: str) -> dict[str, Any]:
    """Return ``Titles`` and ``Processes`` of these processes for ps arguments, as dockerd does:
    it lets the machine's ps choose and order all, and drops what is not the container's.

    Raises ``InvalidArgument`` for what ps or this table does not know. Reads files.
    """
    options = parse(arguments)
    columns = [_named(text) for text in options.column_texts()]
    if not options.titles or "PID" not in (title for title, _ in columns):
        raise InvalidArgument("Couldn't find PID field in ps output; ask for the column pid, too")
    with open("/proc/stat", encoding="ascii") as file:
        boot_s = next(int(line.split()[1]) for line in file if line.startswith("btime"))
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    found = []
    for pid in sorted(pids):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended in this moment
            found.append(_read(pid, pid, boot_s, memory_bytes))
    found = _sorted(found, options.sort)
    if options.forest:
        found = _forest(found)
    rows = []
    for facts in found:
        if options.selects and _is_chosen(facts, options) is options.inverted:
            continue
        for thread in _threads(facts, boot_s) if options.threads else (facts,):
            rows.append([render(thread) for _, render in columns])
    return {"Titles": [title for title, _ in columns], "Processes": rows}


def _is_chosen(facts: Facts, options: PsOptions) -> bool:
    return (
        facts.pid in options.pids
        or facts.ppid in options.parents
        or facts.uid in options.users
        or facts.name in options.names
        or facts.session in options.sessions
        or facts.terminal in options.terminals
        or (bool(options.groups) and group_id(facts) in options.groups)
    )


def _sorted(found: list[Facts], keys: list[str]) -> list[Facts]:
    for text in reversed(keys):  # each sort keeps the order of the one before among equals
        name = text.lstrip("+-").lower()
        if name not in SORT_KEYS:
            raise InvalidArgument(
                f"ps: cannot sort by {name!r} here; known are {', '.join(sorted(SORT_KEYS))}"
            )
        found = sorted(found, key=SORT_KEYS[name], reverse=text.startswith("-"))
    return found


def _forest(found: list[Facts]) -> list[Facts]:
    """Put children below their parents, drawn as ps draws them below the container's keeper."""
    known = {facts.pid for facts in found}
    children: dict[int, list[Facts]] = {}
    for facts in found:
        children.setdefault(facts.ppid if facts.ppid in known else 0, []).append(facts)
    ordered = []
    waiting = [(facts, "") for facts in reversed(children.get(0, ()))]
    last_of = {parent: group[-1].pid for parent, group in children.items()}
    while waiting:
        facts, above = waiting.pop()
        ordered.append(replace(facts, branch=f"{above}\\_ "))
        parent = facts.ppid if facts.ppid in known else 0
        below = above if last_of[parent] == facts.pid else f"{above}| "
        waiting += [(child, below) for child in reversed(children.get(facts.pid, ()))]
    return ordered


def _threads(facts: Facts, boot_s: int) -> list[Facts]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in sorted(os.listdir(f"/proc/{facts.pid}/task"), key=int):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                thread = _read(facts.pid, int(name), boot_s, facts.memory_bytes)
                found.append(replace(thread, branch=facts.branch))
    return found


def _named(text: str) -> Column:
    name, equals, title = text.partition("=")
    name, _, width = name.partition(":")  # a width is for terminals
    column = COLUMNS.get(name.lower()) if not width or width.isdecimal() else None
    if column is None:
        raise InvalidArgument(
            f"ps column {name!r} is not known here; known are {', '.join(sorted(COLUMNS))}"
        )
    return (title, column[1]) if equals else column


def _read(pid: int, thread: int, boot_s: int, memory_bytes: int) -> Facts:
    with open(f"/proc/{pid}/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
        text = file.read()
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().rstrip(b"\0").split(b"\0")
    started_s = boot_s + int(fields[19]) / _CLOCK_TICKS
    return Facts(
        pid=pid,
        thread=thread,
        ppid=int(fields[1]),
        uid=os.stat(f"/proc/{pid}").st_uid,
        name=name,
        command=b" ".join(words).decode(errors="replace") or f"[{name}]",
        state=fields[0],
        terminal=_terminal(int(fields[4])),
        cpu_s=(int(fields[11]) + int(fields[12])) / _CLOCK_TICKS,
        started_s=started_s,
        elapsed_s=max(time.time() - started_s, 0.0),
        virtual_bytes=int(fields[20]),
        resident_bytes=int(fields[21]) * _PAGE_BYTES,
        threads=int(fields[17]),
        nice=int(fields[16]),
        group=int(fields[2]),
        session=int(fields[3]),
        foreground_group=int(fields[5]),
        processor=int(fields[36]),
        flags=int(fields[6]),
        priority=int(fields[15]),
        policy=int(fields[38]),
        major_faults=int(fields[9]),
        minor_faults=int(fields[7]),
        program_bytes=max(int(fields[24]) - int(fields[23]), 0),
        memory_bytes=memory_bytes,
    )


def _terminal(device: int) -> str:
    if not device:
        return "?"
    major, minor = os.major(device), os.minor(device)
    return f"pts/{minor}" if major == 136 else f"{major}/{minor}"
