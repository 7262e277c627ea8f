"""Sizes in sentences for people."""

from __future__ import annotations

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def binary_size(size_bytes: float) -> str:
    """Render bytes in powers of 1024 with four digits: ``1.465KiB``."""
    value, power = float(size_bytes), 0
    while value >= 1024 and power < len(_UNITS) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.4g}{_UNITS[power]}"
