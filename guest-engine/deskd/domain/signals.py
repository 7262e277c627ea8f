"""Signals as people name them."""

from __future__ import annotations

import re

from deskd.errors import InvalidArgument


def parse_signal(text: str) -> int:
    """Read a signal's name (with or without SIG) or number. Raises ``InvalidArgument``."""
    import signal

    word = text.strip().upper()
    if word.isascii() and word.isdigit():
        number = int(word[:6])
        if 0 < number < signal.NSIG:
            return number
        if number:
            raise InvalidArgument(f"the linux daemon does not support signal {text}")
    name = word if word.startswith("SIG") else f"SIG{word}"
    if match := re.fullmatch(r"SIGRT(MIN|MAX)([+-]\d+)?", name):
        base = signal.SIGRTMIN if match[1] == "MIN" else signal.SIGRTMAX
        number = base + int(match[2] or 0)
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    try:
        return int(signal.Signals[name])
    except KeyError:
        raise InvalidArgument(f"invalid signal: {text}") from None
