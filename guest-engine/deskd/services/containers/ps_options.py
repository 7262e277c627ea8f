"""ps(1)'s command line: which columns, which processes and in which order.

Both families of options are understood as procps does: UNIX ones with a dash (``-ef``, ``-u 20``)
and BSD ones without (``aux``, ``o pid,comm``), alone or in one word, and the long ones.
"""

from __future__ import annotations

import pwd
import re

from deskd.errors import InvalidArgument
from deskd.record import Record, field

_FOREIGN_PID = re.compile(r"\s+(\S*)=\s*(PID\S*)")
_FULL = ("uid_name", "pid", "ppid", "c", "stime", "tname", "time", "cmd")
_FORMATS: dict[str, tuple[str, ...]] = {
    "": ("pid", "tname", "time", "ucmd"),
    "-f": _FULL,
    "-fL": ("uid_name", "pid", "ppid", "lwp", "c", "nlwp", "stime", "tname", "time", "cmd"),
    "-F": ("uid_name", "pid", "ppid", "c", "sz", "rss", "psr", "stime", "tname", "time", "cmd"),
    "-j": ("pid", "pgid", "sid", "tname", "time", "ucmd"),
    "bsd": ("pid", "tname", "stat", "bsdtime", "command"),
    "u": (
        *("user", "pid", "%cpu", "%mem", "vsz", "rss", "tname", "stat", "start_time"),
        *("bsdtime", "command"),
    ),
    "j": (
        *("ppid", "pid", "pgid", "sid", "tname", "tpgid", "stat", "uid", "bsdtime"),
        "command",
    ),
}  # fmt: skip
_FLAGS: dict[str, tuple[str, str | bool]] = {
    "-e": ("everything", True),
    "-A": ("everything", True),
    "-L": ("threads", "lwp"),
    "-T": ("threads", "spid"),
    "-H": ("forest", True),
    "bsdf": ("forest", True),
    "-f": ("format", "-f"),
    "-F": ("format", "-F"),
    "-j": ("format", "-j"),
    "bsdu": ("format", "u"),
    "bsdj": ("format", "j"),
}
_WITH_VALUE = {"-": "opquUC", "bsd": "opqUk"}
_LONG = {
    "pid": "-p", "quick-pid": "-q", "user": "-u", "User": "-U", "format": "-o", "ppid": "ppid",
    "sort": "bsdk",
}  # fmt: skip


class PsOptions(Record, frozen=False):
    """What a command line asks for. Selections are one set: a process in any of them is shown;
    without one all are."""

    columns: list[str] = field(default_factory=list)  # as written: name or name=title
    format: str = ""
    threads: str = ""  # the column that tells them apart: lwp, spid
    forest: bool = False
    everything: bool = False
    pids: set[int] = field(default_factory=set)
    parents: set[int] = field(default_factory=set)
    users: set[int] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    sort: list[str] = field(default_factory=list)

    @property
    def selects(self) -> bool:
        """Whether only some processes are wanted."""
        chosen = self.pids or self.parents or self.users or self.names
        return bool(chosen) and not self.everything

    def column_texts(self) -> list[str]:
        """Return the columns: those of -o, else those of the format."""
        if self.columns:
            return self.columns
        if self.format == "-f" and self.threads == "lwp":
            return list(_FORMATS["-fL"])
        found = list(_FORMATS[self.format])
        if self.threads:
            found.insert(found.index("pid") + 1, self.threads)
        return found


def parse(arguments: str) -> PsOptions:
    """Read a command line; an empty one means ``-ef``. Raises ``InvalidArgument``."""
    for column, title in _FOREIGN_PID.findall(arguments):
        if column != "pid":
            raise InvalidArgument(f'specifying "{column}={title}" is not allowed')
    return _Parser(arguments.split() or ["-ef"]).run()


class _Parser:
    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._options = PsOptions()

    def run(self) -> PsOptions:
        while self._words:
            word = self._words.pop(0)
            if word.startswith("--"):
                self._long(word[2:])
            elif word.startswith("-") and not self._is_bsd(word[1:]):
                self._cluster(word[1:], "-")
            elif word[0].isdigit():
                self._options.format = self._options.format or "bsd"
                self._options.pids |= _numbers(word, "process ID")
            else:
                self._cluster(word.removeprefix("-"), "bsd")
        return self._options

    def _is_bsd(self, letters: str) -> bool:
        """``-aux`` means ``aux`` where there is no user ``x``."""
        before, found, rest = letters.partition("u")
        return bool(found and rest) and set(before) <= set("ax") and not _is_user(rest)

    def _long(self, text: str) -> None:
        name, equals, value = text.partition("=")
        if name == "forest":
            self._options.forest = True
        elif name in _LONG:
            self._value(_LONG[name], value if equals else self._next(f"--{name}"))
        elif name not in ("cumulative", "headers"):
            raise _unknown(f"--{name}")

    def _cluster(self, letters: str, family: str) -> None:
        dash = "-" if family == "-" else ""
        if not letters:
            raise _unknown("-")
        if family == "bsd" and not self._options.format:
            self._options.format = "bsd"
        for position, letter in enumerate(letters, 1):
            if letter in _WITH_VALUE[family]:
                rest = letters[position:] or self._next(dash + letter)
                self._value(family + letter if family == "bsd" else f"-{letter}", rest)
                return
            self._flag(letter, family)

    def _flag(self, letter: str, family: str) -> None:
        if family + letter in _FLAGS:
            setattr(self._options, *_FLAGS[family + letter])
        elif letter not in ("adw" if family == "-" else "axwe"):
            raise _unknown(("-" if family == "-" else "") + letter)

    def _value(self, option: str, value: str) -> None:
        options, letter = self._options, option.removeprefix("bsd").removeprefix("-")
        if letter == "o":
            options.columns += value.split(",")
        elif letter == "k":
            options.sort += value.split(",")
        elif letter in ("p", "q"):
            options.pids |= _numbers(value, "process ID")
        elif letter == "ppid":
            options.parents |= _numbers(value, "process ID")
        elif letter in ("u", "U"):
            options.users |= {_user_id(name) for name in value.split(",")}
        elif letter == "C":
            options.names |= {name[:15] for name in value.split(",")}
        else:
            raise _unknown(option)

    def _next(self, option: str) -> str:
        if not self._words:
            raise InvalidArgument(f"ps: {option} needs a value, such as a list of IDs or columns")
        return self._words.pop(0)


def _unknown(option: str) -> InvalidArgument:
    return InvalidArgument(
        f"ps: option {option!r} is not supported here; use -ef, aux, -o with columns, and -p, -u "
        "or -C to choose processes"
    )


def _numbers(text: str, what: str) -> set[int]:
    try:
        return {int(word) for word in text.split(",")}
    except ValueError:
        raise InvalidArgument(f"ps: {text!r} is no list of {what}s") from None


def _is_user(text: str) -> bool:
    try:
        _user_id(text)
    except InvalidArgument:
        return False
    return True


def _user_id(text: str) -> int:
    if text.isdecimal():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise InvalidArgument(f"ps: user name does not exist: {text}") from None
