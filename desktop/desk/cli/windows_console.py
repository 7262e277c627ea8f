"""Raw mode of the Windows console: keys as VT sequences in, VT sequences out.

Modes are those of ``SetConsoleMode`` in Microsoft's console documentation.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

_STDIN, _STDOUT = -10, -11
_ENABLE_PROCESSED_INPUT = 0x0001
_ENABLE_LINE_INPUT = 0x0002
_ENABLE_ECHO_INPUT = 0x0004
_ENABLE_VIRTUAL_TERMINAL_INPUT = 0x0200
_ENABLE_VIRTUAL_TERMINAL_PROCESSING = 0x0004
_DISABLE_NEWLINE_AUTO_RETURN = 0x0008


@contextlib.contextmanager
def raw() -> Iterator[None]:
    """Switch the console to raw mode and back."""
    if sys.platform != "win32":
        raise RuntimeError("the Windows console exists on Windows only")
    import ctypes

    kernel32: Any = ctypes.WinDLL("kernel32", use_last_error=True)
    with (
        _mode(
            kernel32,
            _STDIN,
            off=_ENABLE_PROCESSED_INPUT | _ENABLE_LINE_INPUT | _ENABLE_ECHO_INPUT,
            on=_ENABLE_VIRTUAL_TERMINAL_INPUT,
        ),
        _mode(
            kernel32,
            _STDOUT,
            off=0,
            on=_ENABLE_VIRTUAL_TERMINAL_PROCESSING | _DISABLE_NEWLINE_AUTO_RETURN,
        ),
    ):
        yield


@contextlib.contextmanager
def _mode(kernel32: Any, which: int, *, off: int, on: int) -> Iterator[None]:
    import ctypes

    handle = kernel32.GetStdHandle(which)
    before = ctypes.c_uint32()
    if not kernel32.GetConsoleMode(handle, ctypes.byref(before)):
        yield  # redirected: there is no console to switch
        return
    kernel32.SetConsoleMode(handle, (before.value & ~off) | on)
    try:
        yield
    finally:
        kernel32.SetConsoleMode(handle, before.value)
