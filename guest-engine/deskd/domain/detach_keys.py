"""The keys by which a person leaves a container's terminal without ending it."""

from __future__ import annotations

from deskd.errors import InvalidArgument

DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"

_CONTROL_KEYS = {chr(code): bytes((code - 96,)) for code in range(ord("a"), ord("z") + 1)} | {
    "@": b"\x00",
    "[": b"\x1b",
    "\\": b"\x1c",
    "]": b"\x1d",
    "^": b"\x1e",
    "_": b"\x1f",
}


def parse_detach_keys(text: str) -> bytes:
    """Turn ``ctrl-p,ctrl-q`` into bytes. Raises ``InvalidArgument`` for an unknown key."""
    sequence = b""
    for key in (text or DEFAULT_DETACH_KEYS).split(","):
        if len(key) == 1 and key.isascii():
            sequence += key.encode()
        elif key.startswith("ctrl-") and key[5:].lower() in _CONTROL_KEYS:
            sequence += _CONTROL_KEYS[key[5:].lower()]
        else:
            raise InvalidArgument(
                f"invalid detach keys {text!r}: write single characters or ctrl-X, with commas"
            )
    return sequence
