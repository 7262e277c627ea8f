"""Docker's progress objects: one line for each layer, told now and then while bytes pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Tell = Callable[[dict[str, Any]], None]
STEP_S = 0.1
_BAR_WIDTH = 50
_UNITS = ("B", "kB", "MB", "GB", "TB")


def human_size(size: float) -> str:
    """Write bytes as Docker does: four digits, decimal units."""
    unit = 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.4g}{_UNITS[unit]}"


def bar(current: int, total: int) -> str:
    """Draw the bar that clients show which do not draw one themselves."""
    if total <= 0 or current > total:
        return f"{human_size(current):>8}"
    done = min(current * _BAR_WIDTH // total, _BAR_WIDTH)
    drawn = f"[{'=' * done}>{' ' * (_BAR_WIDTH - done)}]"
    return f"{drawn} {human_size(current):>8}/{human_size(total)}"


class LayerProgress:
    """The line of one layer (or of anything else with an ID). May be used from any thread."""

    def __init__(self, tell: Tell, identifier: str, total: int = 0) -> None:
        self._tell = tell
        self._id = identifier
        self._total = total
        self._next_s = 0.0

    def say(self, status: str) -> None:
        """Tell a new state of the layer."""
        self._tell({"status": status, "progressDetail": {}, "id": self._id})

    def count(self, status: str, current: int) -> None:
        """Tell how many bytes are done, unless that was told a moment ago."""
        now = time.monotonic()
        if now < self._next_s and current != self._total:
            return
        self._next_s = now + STEP_S
        detail = {"current": current, "total": self._total} if self._total else {"current": current}
        self._tell(
            {
                "status": status,
                "progressDetail": detail,
                "progress": bar(current, self._total),
                **({"id": self._id} if self._id else {}),
            }
        )
