"""Progress of transfers that consist of many: a line for each layer that is rewritten in its place
on a terminal, and one line for each new state elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from desk.cli.units import human_size

_BAR_WIDTH = 30


def show_layers(
    messages: Iterable[Mapping[str, Any]], stream: TextIO | None = None
) -> list[Mapping[str, Any]]:
    """Print the progress objects of a pull, push or load; return those that carry data
    (``aux``)."""
    output = stream or sys.stdout
    lines = _Lines(output) if output.isatty() else None
    results: list[Mapping[str, Any]] = []
    try:
        for message in messages:
            if message.get("aux"):
                results.append(message["aux"])
            status = str(message.get("status") or message.get("stream") or "").rstrip("\n")
            identifier = str(message.get("id") or "")
            detail = message.get("progressDetail")
            if not status:
                continue
            prefix = f"{identifier}: " if identifier else ""
            if lines is not None and detail is not None and identifier:
                lines.put(identifier, f"{prefix}{status}{_figures(detail)}")
            elif lines is not None:
                lines.above(f"{prefix}{status}")
            elif not detail:
                output.write(f"{prefix}{status}\n")
                output.flush()
    finally:
        output.flush()
    return results


def _figures(detail: Mapping[str, Any]) -> str:
    current, total = detail.get("current"), detail.get("total")
    if not current:
        return ""
    if not total or current > total:
        return f" {human_size(current)}"
    done = current * _BAR_WIDTH // total
    bar = f"[{'=' * done}>{' ' * (_BAR_WIDTH - done)}]"
    return f" {bar} {human_size(current)}/{human_size(total)}"


class _Lines:
    """A block of lines at the cursor, of which each can be rewritten.

    Where there are more layers than the window has lines, those that ended scroll away first.
    """

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._texts: dict[str, str] = {}

    def put(self, identifier: str, text: str) -> None:
        """Show a layer's line, in the place that it has or as the last."""
        size = shutil.get_terminal_size()
        text = text[: size.columns - 1]
        if identifier in self._texts:
            position = list(self._texts).index(identifier)
            up = len(self._texts) - position
            self._texts[identifier] = text
            self._output.write(f"\x1b[{up}A\r\x1b[2K{text}\x1b[{up}B\r")
        else:
            if len(self._texts) >= max(1, size.lines - 1):
                # The line on top leaves the window now and cannot be reached any more.
                del self._texts[next(iter(self._texts))]
            self._texts[identifier] = text
            self._output.write(f"{text}\n")
        self._output.flush()

    def above(self, text: str) -> None:
        """Print a line of its own; the layers before it have had their say."""
        self._texts.clear()
        self._output.write(f"{text}\n")
        self._output.flush()
