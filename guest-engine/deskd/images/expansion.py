"""Quotes, escapes and variables in the words of Dockerfile instructions.

Rules from the Dockerfile reference ("Environment replacement"): ``$NAME``, ``${NAME}``, and
``${NAME…}`` with ``-``, ``+`` or ``?`` (after ``:`` what is empty counts as not set), with ``#``,
``##``, ``%``, ``%%`` (cut off the shortest or longest match of a pattern), ``/``, ``//``
(replace it). Nothing is expanded within single quotes or after a backslash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from deskd import errors

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?\-$!]", re.ASCII)
_MODIFIER = re.compile(r":?[-+?]|##?|%%?|//?")
_ESCAPED_IN_DOUBLE_QUOTES = '"$\\'

_Piece = tuple[str, bool]  # text, and whether quotes or backslashes keep its blanks


def expand(text: str, environment: Sequence[str]) -> str:
    """Return ``text`` without its quotes and with ``environment`` (``NAME=VALUE``) put in.

    Raises ``InvalidArgument``.
    """
    return _joined(_Scanner(text, environment).pieces())


def expand_words(text: str, environment: Sequence[str]) -> list[str]:
    """Like ``expand``, split at the blanks that no quotes keep: one variable may hold several
    words."""
    words: list[str] = []
    open_word = False
    for piece, kept in _Scanner(text, environment).pieces():
        parts = [piece] if kept else re.split(r"\s+", piece)
        for number, part in enumerate(parts):
            if number or not open_word:
                words.append("")
            words[-1] += part
            open_word = True
    return [word for word in words if word]


def _joined(pieces: Sequence[_Piece]) -> str:
    return "".join(piece for piece, _ in pieces)


class _Scanner:
    """Reads one text from left to right."""

    def __init__(self, text: str, environment: Sequence[str]) -> None:
        self._text = text
        self._values: Mapping[str, str] = dict(e.partition("=")[::2] for e in environment)
        self._at = 0

    def pieces(self, stop: str = "") -> list[_Piece]:
        """Return what comes before the character ``stop``, which is passed, or before the end."""
        found: list[_Piece] = []
        while self._at < len(self._text):
            character = self._take()
            if character == stop:
                return found
            if character == "'":
                found.append((self._single_quoted(), True))
            elif character == '"':
                found.append((self._double_quoted(), True))
            elif character == "$":
                found.append((self._variable(), False))
            elif character == "\\":
                found.append((self._take(), True))
            else:
                found.append((character, False))
        if stop:
            raise self._wrong(f"syntax error: missing '{stop}'")
        return found

    def _take(self) -> str:
        taken = self._text[self._at : self._at + 1]
        self._at += len(taken)
        return taken

    def _single_quoted(self) -> str:
        inside, quote, _ = self._text[self._at :].partition("'")
        if not quote:
            raise self._wrong("unexpected end of statement while looking for matching single-quote")
        self._at += len(inside) + 1
        return inside

    def _double_quoted(self) -> str:
        found = ""
        while character := self._take():
            if character == '"':
                return found
            if character == "$":
                found += self._variable()
            elif character == "\\":
                following = self._take()
                found += following if following in _ESCAPED_IN_DOUBLE_QUOTES else "\\" + following
            else:
                found += character
        raise self._wrong("unexpected end of statement while looking for matching double-quote")

    def _variable(self) -> str:
        """Return the value of what stands after a ``$``."""
        if self._text.startswith("{", self._at):
            self._at += 1
            return self._in_braces()
        name = self._matched(_NAME)
        return self._values.get(name, "") if name else "$"

    def _matched(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return found[0] if found else ""

    def _in_braces(self) -> str:
        name = self._matched(_NAME)
        if not name:
            missing = self._at >= len(self._text)
            problem = "missing '}'" if missing else "bad substitution"
            raise self._wrong(f"syntax error: {problem}")
        value = self._values.get(name)
        if self._text.startswith("}", self._at):
            self._at += 1
            return value or ""
        if self._at >= len(self._text):
            raise self._wrong("syntax error: missing '}'")
        modifier = self._matched(_MODIFIER)
        if not modifier:
            said = self._text[self._at :][:2].partition("}")[0]
            raise self._wrong(f"unsupported modifier ({said}) in substitution")
        if modifier.startswith("/"):
            pattern, replacement = _joined(self.pieces("/")), _joined(self.pieces("}"))
            count = 0 if modifier == "//" else 1
            return re.sub(_glob(pattern), lambda _: replacement, value or "", count=count)
        word = _joined(self.pieces("}"))
        if modifier[0] in "#%":
            return _cut(value or "", modifier, word)
        return self._or_else(name, value, modifier, word)

    def _or_else(self, name: str, value: str | None, modifier: str, word: str) -> str:
        is_set = bool(value) if modifier.startswith(":") else value is not None
        kind = modifier[-1]
        if kind == "+":
            return word if is_set else ""
        if kind == "?" and not is_set:
            what = "empty" if modifier.startswith(":") else "unset"
            raise self._wrong(f"{name}: {word or f'is not allowed to be {what}'}")
        return value or "" if is_set else word

    def _wrong(self, what: str) -> errors.InvalidArgument:
        return errors.InvalidArgument(f'failed to process "{self._text}": {what}')


def _cut(value: str, modifier: str, pattern: str) -> str:
    """Cut what matches off the beginning (``#``) or the end (``%``), twice the sign: at most."""
    matching = re.compile(_glob(pattern), re.DOTALL)
    lengths = range(len(value) + 1)
    for length in reversed(lengths) if len(modifier) > 1 else lengths:
        head, tail = (length, None) if modifier[0] == "#" else (None, len(value) - length)
        cut = value[:head] if tail is None else value[tail:]
        if matching.fullmatch(cut):
            return value[head:] if tail is None else value[:tail]
    return value


def _glob(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(part, re.escape(part)) for part in pattern)
