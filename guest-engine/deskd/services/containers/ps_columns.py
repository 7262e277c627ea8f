"""The columns that ``ps`` knows of a process: their titles, and what proc(5) tells for them."""

from __future__ import annotations

import grp
import os
import pwd
import time
from collections.abc import Callable
from typing import Any

from deskd.record import Record

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_WAIT_CHANNEL_WIDTH = 6
_POLICIES = {0: "TS", 1: "FF", 2: "RR", 3: "B", 5: "IDL", 6: "DLN"}
_REAL_TIME_POLICIES = (1, 2)


class Facts(Record):
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
    flags: int
    priority: int
    policy: int
    major_faults: int
    minor_faults: int
    program_bytes: int
    memory_bytes: int
    branch: str = ""

    @property
    def cpu_percent(self) -> float:
        return min(self.cpu_s / max(self.elapsed_s, 1.0) * 100, 999.0)


def _user(facts: Facts) -> str:
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


def _stat(facts: Facts) -> str:
    marks = (
        (facts.nice < 0, "<"),
        (facts.nice > 0, "N"),
        (facts.session == facts.pid, "s"),
        (facts.threads > 1, "l"),
        (facts.foreground_group == facts.group, "+"),
    )
    return facts.state + "".join(mark for told, mark in marks if told)


def _elapsed(facts: Facts) -> str:
    return _clock(facts.elapsed_s).removeprefix("00:")


def _start(facts: Facts) -> str:
    form = "%H:%M" if facts.elapsed_s < 86400 else "%b%d"
    return time.strftime(form, time.localtime(facts.started_s))


def _label(facts: Facts) -> str:
    """Return the security module's name for the process, as ``ps -Z`` does."""
    try:
        with open(f"/proc/{facts.pid}/attr/current", encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n") or "-"
    except OSError:  # no security module, or the process has ended
        return "-"


def _wait_channel(facts: Facts) -> str:
    try:
        with open(f"/proc/{facts.pid}/task/{facts.thread}/wchan", encoding="ascii") as file:
            name = file.read()
    except OSError:
        return "-"
    return name[:_WAIT_CHANNEL_WIDTH] if name not in ("", "0") else "-"


def _status(facts: Facts, name: str, position: int = 0) -> str:
    """Return a value of /proc/PID/status, ``-`` where the process has ended."""
    try:
        with open(f"/proc/{facts.pid}/status", encoding="utf-8", errors="replace") as file:
            found = next(line for line in file if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return "-"
    return found.split()[1 + position]


def _group(facts: Facts, position: int) -> str:
    number = _status(facts, "Gid", position)
    try:
        return grp.getgrgid(int(number)).gr_name
    except (KeyError, ValueError):
        return number


def group_id(facts: Facts) -> int:
    """Return the effective group, -1 where the process has ended."""
    number = _status(facts, "Gid", 1)
    return int(number) if number.isdecimal() else -1


def _real_user(facts: Facts) -> str:
    number = _status(facts, "Uid")
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (KeyError, ValueError):
        return number


def _nice(facts: Facts) -> str:
    return "-" if facts.policy in _REAL_TIME_POLICIES else str(facts.nice)


Column = tuple[str, Callable[[Facts], str]]
COLUMNS: dict[str, Column] = {
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
    "ni": ("NI", _nice),
    "nice": ("NI", _nice),
    "pri": ("PRI", lambda f: str(39 - f.priority)),
    "opri": ("PRI", lambda f: str(60 + f.priority)),
    "priority": ("PRI", lambda f: str(f.priority)),
    "cls": ("CLS", lambda f: _POLICIES.get(f.policy, "?")),
    "class": ("CLS", lambda f: _POLICIES.get(f.policy, "?")),
    "policy": ("POL", lambda f: _POLICIES.get(f.policy, "?")),
    "f": ("F", lambda f: f"{f.flags >> 6 & 7:x}"),
    "flags": ("F", lambda f: f"{f.flags >> 6 & 7:x}"),
    "addr": ("ADDR", lambda f: "-"),
    "wchan": ("WCHAN", _wait_channel),
    "label": ("LABEL", _label),
    "context": ("CONTEXT", _label),
    "sess": ("SESS", lambda f: str(f.session)),
    "session": ("SESS", lambda f: str(f.session)),
    "gid": ("GID", lambda f: _status(f, "Gid", 1)),
    "egid": ("EGID", lambda f: _status(f, "Gid", 1)),
    "rgid": ("RGID", lambda f: _status(f, "Gid")),
    "group": ("GROUP", lambda f: _group(f, 1)),
    "egroup": ("EGROUP", lambda f: _group(f, 1)),
    "rgroup": ("RGROUP", lambda f: _group(f, 0)),
    "euid": ("EUID", lambda f: str(f.uid)),
    "ruid": ("RUID", lambda f: _status(f, "Uid")),
    "ruser": ("RUSER", _real_user),
    "pending": ("PENDING", lambda f: _status(f, "SigPnd")),
    "blocked": ("BLOCKED", lambda f: _status(f, "SigBlk")),
    "ignored": ("IGNORED", lambda f: _status(f, "SigIgn")),
    "caught": ("CAUGHT", lambda f: _status(f, "SigCgt")),
    "maj_flt": ("MAJFL", lambda f: str(f.major_faults)),
    "min_flt": ("MINFL", lambda f: str(f.minor_faults)),
    "trs": ("TRS", lambda f: str(f.program_bytes // 1024)),
    "drs": ("DRS", lambda f: str((f.virtual_bytes - f.program_bytes) // 1024)),
}
SORT_KEYS: dict[str, Callable[[Facts], Any]] = {
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
