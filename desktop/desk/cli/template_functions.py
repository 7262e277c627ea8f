"""Functions that ``--format`` templates call, and how their values print and compare."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote_plus

from desk.cli.structures import NilList, NilMap, Structure

MISSING = object()


class TemplateFailure(Exception):
    """An action cannot be carried out; the text says why."""


class Missing:
    """What a key that is not there gives: false in a condition, an error when used."""

    def __init__(self, name: str) -> None:
        self.name = name


def truth(value: Any) -> bool:
    """Return whether Go's templates take a value for true."""
    if isinstance(value, Structure):  # even one without a value in it
        return True
    return not isinstance(value, Missing) and (callable(value) or bool(value))


def text_of(value: Any) -> str:
    """Render a value as Go prints it: ``map[a:1]``, ``[a b]``, ``true``, ``<nil>``."""
    if isinstance(value, str):
        return value
    if isinstance(value, Missing):
        raise TemplateFailure(f'map has no entry for key "{value.name}"')
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, Structure):
        return f"{{{' '.join(map(text_of, value.values_in_order()))}}}"
    if isinstance(value, Mapping):
        pairs = (f"{text_of(key)}:{text_of(value[key])}" for key in sorted(value))
        return f"map[{' '.join(pairs)}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(text_of(item) for item in value)}]"
    return str(value)


def _float_text(value: float) -> str:
    # Go's %v is the shortest form, with an exponent from 1e21 on.
    if value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return re.sub(r"e([+-])(\d)\Z", r"e\g<1>0\2", repr(value))


class TableRow(dict[str, Any]):
    """A line of a list command: as JSON its names are sorted and HTML's signs escaped."""


_HTML_SIGNS = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def to_json(value: Any) -> str:
    """Render JSON without spaces; functions of a row (``Label``) are left out."""
    row = isinstance(value, TableRow)
    text = json.dumps(_plain(value), separators=(",", ":"), ensure_ascii=False, sort_keys=row)
    if row:
        for sign, escape in _HTML_SIGNS.items():
            text = text.replace(sign, escape)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Missing):
        raise TemplateFailure(f'map has no entry for key "{value.name}"')
    if isinstance(value, NilList | NilMap):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if not callable(item)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _join(items: Any, separator: str) -> str:
    if items is None:
        return ""
    if not isinstance(items, list | tuple):
        raise TemplateFailure("join wants a list")
    return separator.join(text_of(item) for item in items)


def _split(text: str, separator: str) -> list[str]:
    return text.split(separator) if separator else list(text)


def _title(text: str) -> str:
    return re.sub(r"\b\w", lambda match: match[0].upper(), text)


def _truncate(text: str, length: int) -> str:
    return text[:length] if length >= 0 else text


def _pad(text: str, before: int, after: int) -> str:
    return f"{' ' * before}{text}{' ' * after}" if text else text


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key, "")
        elif isinstance(value, list | tuple | str):
            if isinstance(key, bool) or not isinstance(key, int):
                raise TemplateFailure(f"cannot index a list with {text_of(key)!r}")
            if not 0 <= key < len(value):
                raise TemplateFailure(f"index out of range: {key}")
            value = ord(value[key]) if isinstance(value, str) else value[key]
        else:
            raise TemplateFailure(f"cannot index {text_of(value)[:40]}")
    return value


def _slice(value: Any, *bounds: int) -> Any:
    start = bounds[0] if bounds else 0
    end = bounds[1] if len(bounds) > 1 else len(value)
    if not 0 <= start <= end <= len(value):
        raise TemplateFailure(f"slice index out of range: {start}:{end}")
    return value[start:end]


def _printf(form: str, *arguments: Any) -> str:
    remaining = list(arguments)

    def replace(match: re.Match[str]) -> str:
        flags, verb = match[1], match[2]
        if verb == "%":
            return "%"
        if not remaining:
            return f"%!{verb}(MISSING)"
        value = remaining.pop(0)
        if verb in "vs":
            return f"%{flags}s" % text_of(value)
        if verb == "q":
            return f"%{flags}s" % json.dumps(text_of(value), ensure_ascii=False)
        if verb == "t":
            return "true" if value else "false"
        return str(f"%{flags}{verb}" % value)

    text = re.sub(r"%([-+ #0]*\d*(?:\.\d+)?)([vsqtdxXofeEgGc%])", replace, form)
    if remaining:
        text += "%!(EXTRA " + ", ".join(text_of(item) for item in remaining) + ")"
    return text


def _print(*values: Any) -> str:
    parts: list[str] = []
    for position, value in enumerate(values):
        # Go puts a space between two operands when neither is a string.
        if position and not isinstance(value, str) and not isinstance(values[position - 1], str):
            parts.append(" ")
        parts.append(text_of(value))
    return "".join(parts)


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise TemplateFailure("missing argument for comparison")
    return any(_same(first, other) for other in others)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Missing) or isinstance(second, Missing):
        return False
    if isinstance(first, bool) != isinstance(second, bool):
        raise TemplateFailure("incompatible types for comparison")
    numbers = isinstance(first, int | float), isinstance(second, int | float)
    if None not in (first, second) and numbers[0] != numbers[1]:
        raise TemplateFailure("incompatible types for comparison")
    return bool(first == second)


def _escape_html(value: Any) -> str:
    text = text_of(value)
    for raw, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;")):
        text = text.replace(raw, escaped)
    return text.replace("'", "&#39;")


_JS_ESCAPES = {
    "\\": "\\\\",
    "'": "\\'",
    '"': '\\"',
    "<": "\\u003C",
    ">": "\\u003E",
    "&": "\\u0026",
    "=": "\\u003D",
}


def _escape_js(value: Any) -> str:
    return "".join(
        _JS_ESCAPES.get(sign) or (f"\\u{ord(sign):04X}" if ord(sign) < 32 else sign)
        for sign in text_of(value)
    )


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": _equal,
    "ge": lambda a, b: a >= b,
    "gt": lambda a, b: a > b,
    "html": _escape_html,
    "index": _index,
    "join": _join,
    "js": _escape_js,
    "json": to_json,
    "le": lambda a, b: a <= b,
    "len": len,
    "lower": str.lower,
    "lt": lambda a, b: a < b,
    "ne": lambda a, b: not _same(a, b),
    "not": lambda value: not truth(value),
    "pad": _pad,
    "print": _print,
    "printf": _printf,
    "println": lambda *values: " ".join(text_of(value) for value in values) + "\n",
    "slice": _slice,
    "split": _split,
    "title": _title,
    "truncate": _truncate,
    "upper": str.upper,
    "urlquery": lambda value: quote_plus(text_of(value)),
}
