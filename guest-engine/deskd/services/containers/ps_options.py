"""ps(1)'s command line: which columns, which processes and in which order.

Both families of options are understood as procps does: UNIX ones with a dash (``-ef``, ``-u 20``)
and BSD ones without (``aux``, ``o pid,comm``), alone or in one word, and the long ones.
"""

from __future__ import annotations

import grp
import pwd
import re

from deskd.errors import InvalidArgument
from deskd.record import Record, field

_FOREIGN_PID = re.compile(r"\s+(\S*)=\s*(PID\S*)")
_BSD_FORMATS: dict[str, tuple[str, ...]] = {
    "": ("pid", "tname", "stat", "bsdtime", "command"),
    "u": (
        *("user", "pid", "%cpu", "%mem", "vsz", "rss", "tname", "stat", "start_time"),
        *("bsdtime", "command"),
    ),
    "j": (
        *("ppid", "pid", "pgid", "sid", "tname", "tpgid", "stat", "uid", "bsdtime"),
        "command",
    ),
    "l": (
        *("f", "uid", "pid", "ppid", "priority", "ni", "vsz", "rss", "wchan", "stat", "tname"),
        *("bsdtime", "command"),
    ),
    "s": (
        *("uid", "pid", "pending", "blocked", "ignored", "caught", "stat", "tname", "bsdtime"),
        "command",
    ),
    "v": (
        *("pid", "tname", "stat", "bsdtime", "maj_flt", "trs", "drs", "rss", "%mem", "command"),
    ),
}  # fmt: skip
_FLAGS: dict[str, tuple[str, str | bool]] = {
    "-e": ("everything", True),
    "-A": ("everything", True),
    "-N": ("inverted", True),
    "-L": ("threads", "lwp"),
    "-T": ("threads", "spid"),
    "-H": ("forest", True),
    "bsdf": ("forest", True),
}
_FORMAT_LETTERS = {"-": "fFjlcyPZM", "bsd": "ujlsvZ"}
_NO_EFFECT = {"-": "adw", "bsd": "axwegcSh"}  # on what a table of one container's processes shows
_WITH_VALUE = {"-": "opquUCgGstO", "bsd": "opqUkOt"}
_MAY_LACK_VALUE = ("-g", "-t", "bsdt")
_LONG = {
    "pid": "-p", "quick-pid": "-q", "user": "-u", "User": "-U", "format": "-o", "ppid": "ppid",
    "sort": "bsdk", "group": "egroup", "Group": "-G", "sid": "-s", "tty": "-t",
}  # fmt: skip
_SIZES = ("cols", "columns", "width", "rows", "lines")  # of a terminal, which Docker's is not


class PsOptions(Record, frozen=False):
    """What a command line asks for. Selections are one set: a process in any of them is shown;
    without one all are."""

    columns: list[str] = field(default_factory=list)  # as written: name or name=title
    more_columns: list[str] = field(default_factory=list)  # those of -O, beside the usual ones
    family: str = ""  # of the format: "" UNIX, "bsd" BSD
    format: set[str] = field(default_factory=set)  # the letters that shape it
    titles: bool = True
    threads: str = ""  # the column that tells them apart: lwp, spid
    forest: bool = False
    everything: bool = False
    inverted: bool = False
    pids: set[int] = field(default_factory=set)
    parents: set[int] = field(default_factory=set)
    users: set[int] = field(default_factory=set)
    groups: set[int] = field(default_factory=set)
    sessions: set[int] = field(default_factory=set)
    terminals: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    sort: list[str] = field(default_factory=list)

    @property
    def selects(self) -> bool:
        """Whether only some processes are wanted."""
        chosen = (self.pids, self.parents, self.users, self.groups, self.sessions)
        return any((*chosen, self.terminals, self.names)) and not self.everything

    def column_texts(self) -> list[str]:
        """Return the columns: those of -o, else those of the format."""
        if self.columns:
            return self.columns
        if self.more_columns:
            return ["pid", *self.more_columns, "s", "tname", "time", "command"]
        if self.family != "bsd":
            return self._unix_columns()
        letter = next((letter for letter in "ujlsv" if letter in self.format), "")
        found = [*(["label"] if "Z" in self.format else []), *_BSD_FORMATS[letter]]
        if self.threads:
            found.insert(found.index("pid") + 1, self.threads)
        return found

    def _unix_columns(self) -> list[str]:
        """Return the columns of -f, -F, -j, -l and what changes them, in ps's order."""
        letters = self.format
        full, very_full, long = letters & {"f", "F"}, "F" in letters, "l" in letters
        scheduling = "c" in letters
        parts: list[tuple[object, list[str]]] = [
            (letters & {"Z", "M"}, ["label"]),
            (long and "y" not in letters, ["f"]),
            (long, ["s"]),
            (full, ["uid_name"]),
            (long and not full, ["uid"]),
            (True, ["pid"]),
            (self.threads == "spid", ["spid"]),
            (full or long, ["ppid"]),
            ("j" in letters, ["pgid", "sid"]),
            (self.threads == "lwp", ["lwp"]),
            ("P" in letters, ["psr"]),
            ((full or long) and not scheduling, ["c"]),
            (full and self.threads == "lwp", ["nlwp"]),
            (scheduling, ["cls", "pri"]),
            (long and not scheduling, ["opri", "ni"]),
            (long, ["rss" if "y" in letters else "addr"]),
            (long or very_full, ["sz"]),
            (long, ["wchan"]),
            (very_full, ["rss"] if "P" in letters else ["rss", "psr"]),
            (full, ["stime"]),
        ]
        found = [name for wanted, names in parts if wanted for name in names]
        return [*found, "tname", "time", "cmd" if full else "ucmd"]


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
                self._options.family = "bsd"
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
        elif name == "deselect":
            self._options.inverted = True
        elif name == "context":
            self._options.columns = ["pid", "context", "command"]
        elif name in ("no-headers", "no-heading", "no-headings"):
            self._options.titles = False
        elif name in _SIZES:
            _numbers(value if equals else self._next(f"--{name}"), "number")
        elif name in _LONG:
            self._value(_LONG[name], value if equals else self._next(f"--{name}"))
        elif name not in ("cumulative", "headers", "heading"):
            raise _unknown(f"--{name}")

    def _cluster(self, letters: str, family: str) -> None:
        dash = "-" if family == "-" else ""
        if not letters:
            raise _unknown("-")
        if family == "bsd" and not self._options.format:
            self._options.family = "bsd"
        for position, letter in enumerate(letters, 1):
            if letter in _WITH_VALUE[family]:
                option = family + letter if family == "bsd" else f"-{letter}"
                rest = letters[position:]
                if not rest and option in _MAY_LACK_VALUE and not self._has_value():
                    self._options.family = "bsd"  # ps takes it for the BSD option of that name
                    return
                self._value(option, rest or self._next(dash + letter))
                return
            self._flag(letter, family)

    def _has_value(self) -> bool:
        return bool(self._words) and not self._words[0].startswith("-")

    def _flag(self, letter: str, family: str) -> None:
        if letter in _FORMAT_LETTERS[family]:
            self._options.format.add(letter)
        elif family + letter in _FLAGS:
            setattr(self._options, *_FLAGS[family + letter])
        elif letter not in _NO_EFFECT[family]:
            raise _unknown(("-" if family == "-" else "") + letter)

    def _value(self, option: str, value: str) -> None:
        options, letter = self._options, option.removeprefix("bsd").removeprefix("-")
        if letter == "o":
            options.columns += value.split(",")
        elif letter == "O":
            options.more_columns += value.split(",")
        elif letter == "k":
            options.sort += value.split(",")
        elif letter in ("p", "q"):
            options.pids |= _numbers(value, "process ID")
        elif letter == "ppid":
            options.parents |= _numbers(value, "process ID")
        elif letter in ("u", "U"):
            options.users |= {_user_id(name) for name in value.split(",")}
        elif letter == "s" or (letter == "g" and value.replace(",", "").isdecimal()):
            options.sessions |= _numbers(value, "session")
        elif letter in ("g", "G", "egroup"):
            options.groups |= {_group_id(name) for name in value.split(",")}
        elif letter == "t":
            options.terminals |= {name.removeprefix("/dev/") for name in value.split(",")}
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
        f"ps: unsupported option {option!r}; use -ef, -l, aux, -o with columns, and -p, -u or -C "
        "to choose processes"
    )


def _numbers(text: str, what: str) -> set[int]:
    try:
        return {int(word) for word in text.split(",")}
    except ValueError:
        raise InvalidArgument(f"ps: {text!r} is no list of {what}s") from None


def _group_id(text: str) -> int:
    if text.isdecimal():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise InvalidArgument(f"ps: group name does not exist: {text}") from None


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
