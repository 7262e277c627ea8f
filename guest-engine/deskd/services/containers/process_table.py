"""A container's processes as ``ps`` shows them, read from proc(5): the guest has no ps program."""

from __future__ import annotations

import contextlib
import os
import pwd
import time
from collections.abc import Callable
from typing import Any

from deskd.errors import InvalidArgument
from deskd.record import Record, replace
from deskd.services.containers.ps_options import PsOptions, parse

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class _Facts(Record):
    """What /proc tells of one process. Times are seconds."""

    pid: int
    thread: int
    ppid: int
    uid: int
    name: str
    command: str
    state: str
    terminal: str
    cpu_s: float
    started_s: float
    elapsed_s: float
    virtual_bytes: int
    resident_bytes: int
    threads: int
    nice: int
    group: int
    session: int
    foreground_group: int
    processor: int
    memory_bytes: int
    branch: str = ""

    @property
    def cpu_percent(self) -> float:
        return min(self.cpu_s / max(self.elapsed_s, 1.0) * 100, 999.0)


def _user(facts: _Facts) -> str:
    try:
        return pwd.getpwuid(facts.uid).pw_name
    except KeyError:
        return str(facts.uid)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    text = f"{hours:02}:{minutes:02}:{rest:02}"
    return f"{days}-{text}" if days else text


def _stat(facts: _Facts) -> str:
    marks = (
        (facts.nice < 0, "<"),
        (facts.nice > 0, "N"),
        (facts.session == facts.pid, "s"),
        (facts.threads > 1, "l"),
        (facts.foreground_group == facts.group, "+"),
    )
    return facts.state + "".join(mark for told, mark in marks if told)


def _elapsed(facts: _Facts) -> str:
    return _clock(facts.elapsed_s).removeprefix("00:")


def _start(facts: _Facts) -> str:
    form = "%H:%M" if facts.elapsed_s < 86400 else "%b%d"
    return time.strftime(form, time.localtime(facts.started_s))


_Column = tuple[str, Callable[[_Facts], str]]
_COLUMNS: dict[str, _Column] = {
    "pid": ("PID", lambda f: str(f.pid)),
    "ppid": ("PPID", lambda f: str(f.ppid)),
    "pgid": ("PGID", lambda f: str(f.group)),
    "pgrp": ("PGRP", lambda f: str(f.group)),
    "sid": ("SID", lambda f: str(f.session)),
    "tgid": ("TGID", lambda f: str(f.pid)),
    "lwp": ("LWP", lambda f: str(f.thread)),
    "tid": ("TID", lambda f: str(f.thread)),
    "spid": ("SPID", lambda f: str(f.thread)),
    "tpgid": ("TPGID", lambda f: str(f.foreground_group)),
    "psr": ("PSR", lambda f: str(f.processor)),
    "uid": ("UID", lambda f: str(f.uid)),
    "uid_name": ("UID", _user),
    "user": ("USER", _user),
    "euser": ("EUSER", _user),
    "comm": ("COMMAND", lambda f: f.branch + f.name),
    "ucmd": ("CMD", lambda f: f.branch + f.name),
    "args": ("COMMAND", lambda f: f.branch + f.command),
    "cmd": ("CMD", lambda f: f.branch + f.command),
    "command": ("COMMAND", lambda f: f.branch + f.command),
    "stat": ("STAT", _stat),
    "state": ("S", lambda f: f.state),
    "s": ("S", lambda f: f.state),
    "tty": ("TT", lambda f: f.terminal),
    "tt": ("TT", lambda f: f.terminal),
    "tname": ("TTY", lambda f: f.terminal),
    "time": ("TIME", lambda f: _clock(f.cpu_s)),
    "bsdtime": ("TIME", lambda f: f"{int(f.cpu_s) // 60}:{int(f.cpu_s) % 60:02}"),
    "cputime": ("TIME", lambda f: _clock(f.cpu_s)),
    "etime": ("ELAPSED", _elapsed),
    "etimes": ("ELAPSED", lambda f: str(int(f.elapsed_s))),
    "stime": ("STIME", _start),
    "start": ("STARTED", _start),
    "start_time": ("START", _start),
    "c": ("C", lambda f: str(int(f.cpu_percent))),
    "pcpu": ("%CPU", lambda f: f"{f.cpu_percent:.1f}"),
    "%cpu": ("%CPU", lambda f: f"{f.cpu_percent:.1f}"),
    "pmem": ("%MEM", lambda f: f"{f.resident_bytes / f.memory_bytes * 100:.1f}"),
    "%mem": ("%MEM", lambda f: f"{f.resident_bytes / f.memory_bytes * 100:.1f}"),
    "vsz": ("VSZ", lambda f: str(f.virtual_bytes // 1024)),
    "vsize": ("VSZ", lambda f: str(f.virtual_bytes // 1024)),
    "sz": ("SZ", lambda f: str(f.virtual_bytes // _PAGE_BYTES)),
    "rss": ("RSS", lambda f: str(f.resident_bytes // 1024)),
    "nlwp": ("NLWP", lambda f: str(f.threads)),
    "thcount": ("THCNT", lambda f: str(f.threads)),
    "ni": ("NI", lambda f: str(f.nice)),
    "nice": ("NI", lambda f: str(f.nice)),
}
_KEYS: dict[str, Callable[[_Facts], Any]] = {
    "pid": lambda f: f.pid,
    "ppid": lambda f: f.ppid,
    "uid": lambda f: f.uid,
    "user": _user,
    "comm": lambda f: f.name,
    "args": lambda f: f.command,
    "cmd": lambda f: f.command,
    "pcpu": lambda f: f.cpu_percent,
    "%cpu": lambda f: f.cpu_percent,
    "pmem": lambda f: f.resident_bytes,
    "%mem": lambda f: f.resident_bytes,
    "rss": lambda f: f.resident_bytes,
    "vsz": lambda f: f.virtual_bytes,
    "time": lambda f: f.cpu_s,
    "etime": lambda f: f.elapsed_s,
    "etimes": lambda f: f.elapsed_s,
    "start_time": lambda f: f.started_s,
    "nlwp": lambda f: f.threads,
    "nice": lambda f: f.nice,
}


def process_table(pids: list[int], arguments: str) -> dict[str, Any]:
    """Return ``Titles`` and ``Processes`` of these processes for ps arguments, as dockerd does:
    it lets the machine's ps choose and order all, and drops what is not the container's.

    Raises ``InvalidArgument`` for what ps or this table does not know. Reads files.
    """
    options = parse(arguments)
    columns = [_named(text) for text in options.column_texts()]
    if "PID" not in (title for title, _ in columns):
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
        if options.selects and not _is_chosen(facts, options):
            continue
        for thread in _threads(facts, boot_s) if options.threads else (facts,):
            rows.append([render(thread) for _, render in columns])
    return {"Titles": [title for title, _ in columns], "Processes": rows}


def _is_chosen(facts: _Facts, options: PsOptions) -> bool:
    return (
        facts.pid in options.pids
        or facts.ppid in options.parents
        or facts.uid in options.users
        or facts.name in options.names
    )


def _sorted(found: list[_Facts], keys: list[str]) -> list[_Facts]:
    for text in reversed(keys):  # each sort keeps the order of the one before among equals
        name = text.lstrip("+-").lower()
        if name not in _KEYS:
            raise InvalidArgument(
                f"ps: cannot sort by {name!r} here; known are {', '.join(sorted(_KEYS))}"
            )
        found = sorted(found, key=_KEYS[name], reverse=text.startswith("-"))
    return found


def _forest(found: list[_Facts]) -> list[_Facts]:
    """Put children below their parents, drawn as ps draws them below the container's keeper."""
    known = {facts.pid for facts in found}
    children: dict[int, list[_Facts]] = {}
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


def _threads(facts: _Facts, boot_s: int) -> list[_Facts]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in sorted(os.listdir(f"/proc/{facts.pid}/task"), key=int):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                thread = _read(facts.pid, int(name), boot_s, facts.memory_bytes)
                found.append(replace(thread, branch=facts.branch))
    return found


def _named(text: str) -> _Column:
    name, equals, title = text.partition("=")
    column = _COLUMNS.get(name.lower())
    if column is None:
        raise InvalidArgument(
            f"ps column {name!r} is not known here; known are {', '.join(sorted(_COLUMNS))}"
        )
    return (title, column[1]) if equals else column


def _read(pid: int, thread: int, boot_s: int, memory_bytes: int) -> _Facts:
    with open(f"/proc/{pid}/task/{thread}/stat", encoding="utf-8", errors="replace") as file:
        text = file.read()
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().rstrip(b"\0").split(b"\0")
    started_s = boot_s + int(fields[19]) / _CLOCK_TICKS
    return _Facts(
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
        memory_bytes=memory_bytes,
    )


def _terminal(device: int) -> str:
    if not device:
        return "?"
    major, minor = os.major(device), os.minor(device)
    return f"pts/{minor}" if major == 136 else f"{major}/{minor}"
