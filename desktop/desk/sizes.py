"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re

from desk.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)i?b?\Z", re.IGNORECASE)


def parse_size(text: str, *, what: str = "size") -> int:
    """Return the bytes in ``512m`` or ``1.5g`` (powers of 1024); ``UsageError`` otherwise."""
    match = _SIZE.match(text.strip())
    if not match:
        raise UsageError(
            f"invalid {what} {text!r}",
            hint="Write a number with an optional unit, such as 512m or 2g.",
        )
    exponent = " kmgtp".index(match[2].lower() or " ")
    return int(float(match[1]) * 1024**exponent)


def binary_size(size_bytes: float) -> str:
    """Render bytes in powers of 1024: ``1.465KiB``."""
    return scaled(size_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"), 4)


def scaled(value: float, base: int, names: tuple[str, ...], digits: int) -> str:
    """Render a value in the unit of ``names`` that fits; each is ``base`` times the one before."""
    index = 0
    while value >= base and index < len(names) - 1:
        value /= base
        index += 1
    return f"{value:.{digits}g}{names[index]}"
