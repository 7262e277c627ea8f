"""A container's processes as ``ps`` shows them, read from proc(5): the guest has no ps program."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable
from typing import Any

from deskd.errors import InvalidArgument
from deskd.record import Record

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class _Facts(Record):
    """What /proc tells of one process. Times are seconds."""

    pid: int
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
    memory_bytes: int

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
    return f"{hours:02}:{minutes:02}:{rest:02}"


def _elapsed(facts: _Facts) -> str:
    days, rest = divmod(int(facts.elapsed_s), 86400)
    text = _clock(rest)
    if days:
        return f"{days}-{text}"
    return text.removeprefix("00:")


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
    "uid": ("UID", lambda f: str(f.uid)),
    "user": ("USER", _user),
    "euser": ("EUSER", _user),
    "comm": ("COMMAND", lambda f: f.name),
    "ucmd": ("CMD", lambda f: f.name),
    "args": ("COMMAND", lambda f: f.command),
    "cmd": ("CMD", lambda f: f.command),
    "command": ("COMMAND", lambda f: f.command),
    "stat": ("STAT", lambda f: f.state),
    "state": ("S", lambda f: f.state),
    "s": ("S", lambda f: f.state),
    "tty": ("TT", lambda f: f.terminal),
    "tt": ("TT", lambda f: f.terminal),
    "tname": ("TTY", lambda f: f.terminal),
    "time": ("TIME", lambda f: _clock(f.cpu_s)),
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
    "rss": ("RSS", lambda f: str(f.resident_bytes // 1024)),
    "nlwp": ("NLWP", lambda f: str(f.threads)),
    "thcount": ("THCNT", lambda f: str(f.threads)),
    "ni": ("NI", lambda f: str(f.nice)),
    "nice": ("NI", lambda f: str(f.nice)),
}
_FULL: list[_Column] = [
    ("UID", _user),
    *(_COLUMNS[name] for name in ("pid", "ppid", "c", "stime")),
    ("TTY", lambda f: f.terminal),
    _COLUMNS["time"],
    ("CMD", lambda f: f.command),
]
_AUX: list[_Column] = [
    *(_COLUMNS[name] for name in ("user", "pid", "pcpu", "pmem", "vsz", "rss")),
    ("TTY", lambda f: f.terminal),
    *(_COLUMNS[name] for name in ("stat", "start_time", "time", "command")),
]


def process_table(pids: list[int], arguments: str) -> dict[str, Any]:
    """Return ``Titles`` and ``Processes`` for ps arguments: ``-ef`` (the default), ``aux`` and
    ``-o COLUMNS``. Raises ``InvalidArgument`` for others. Reads files."""
    columns = _parse(arguments)
    with open("/proc/stat", encoding="ascii") as file:
        boot_s = next(int(line.split()[1]) for line in file if line.startswith("btime"))
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES
    rows = []
    for pid in sorted(pids):
        try:
            facts = _read(pid, boot_s, memory_bytes)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended in this moment
        rows.append([render(facts) for _, render in columns])
    return {"Titles": [title for title, _ in columns], "Processes": rows}


def _parse(arguments: str) -> list[_Column]:
    words = arguments.split()
    names: list[str] = []
    full = not words
    aux = False
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        letters = word.removeprefix("-")
        if letters.endswith("o") and set(letters[:-1]) <= set("eAaxwf"):
            if position == len(words):
                raise InvalidArgument(f"ps {arguments}: -o needs a list of columns")
            names += words[position].split(",")
            position += 1
        elif letters in ("aux", "auxw", "auxww", "ux", "u"):
            aux = True
        elif letters and set(letters) <= set("eAfFaxw"):
            full = True
        else:
            raise InvalidArgument(
                f"ps option {word!r} is not supported here; use -ef, aux or -o with columns"
            )
    if names:
        return [_named(name) for name in names]
    return _AUX if aux and not full else _FULL


def _named(text: str) -> _Column:
    name, equals, title = text.partition("=")
    column = _COLUMNS.get(name.lower())
    if column is None:
        raise InvalidArgument(
            f"ps column {name!r} is not known here; known are {', '.join(sorted(_COLUMNS))}"
        )
    return (title, column[1]) if equals else column


def _read(pid: int, boot_s: int, memory_bytes: int) -> _Facts:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        text = file.read()
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().rstrip(b"\0").split(b"\0")
    started_s = boot_s + int(fields[19]) / _CLOCK_TICKS
    return _Facts(
        pid=pid,
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
        memory_bytes=memory_bytes,
    )


def _terminal(device: int) -> str:
    if not device:
        return "?"
    major, minor = os.major(device), os.minor(device)
    return f"pts/{minor}" if major == 136 else f"{major}/{minor}"
