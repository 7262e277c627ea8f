"""Names of this process's ancestors on Windows, from a Toolhelp snapshot.

Structure and functions are those of ``tlhelp32.h`` in Microsoft's documentation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def ancestors(most: int) -> Iterator[str]:
    """Yield the program names of parent, grandparent …, at most so many."""
    if sys.platform != "win32":
        raise RuntimeError("Toolhelp exists on Windows only")
    import os

    processes = _snapshot()
    pid = os.getppid()
    for _ in range(most):
        found = processes.get(pid)
        if found is None:
            return
        pid, name = found
        yield name


def _snapshot() -> dict[int, tuple[int, str]]:
    """Return parent and program name of every process, by its ID."""
    if sys.platform != "win32":
        raise RuntimeError("Toolhelp exists on Windows only")
    import ctypes
    from ctypes import wintypes

    class ProcessEntry(ctypes.Structure):
        _fields_ = (
            ("dwSize", wintypes.DWORD),
            ("cntUsage", wintypes.DWORD),
            ("th32ProcessID", wintypes.DWORD),
            ("th32DefaultHeapID", ctypes.c_size_t),
            ("th32ModuleID", wintypes.DWORD),
            ("cntThreads", wintypes.DWORD),
            ("th32ParentProcessID", wintypes.DWORD),
            ("pcPriClassBase", wintypes.LONG),
            ("dwFlags", wintypes.DWORD),
            ("szExeFile", wintypes.WCHAR * 260),
        )

    kernel32: Any = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel32.CreateToolhelp32Snapshot.restype = wintypes.HANDLE
    handle = kernel32.CreateToolhelp32Snapshot(0x2, 0)
    result: dict[int, tuple[int, str]] = {}
    try:
        entry = ProcessEntry()
        entry.dwSize = ctypes.sizeof(ProcessEntry)
        more = kernel32.Process32FirstW(handle, ctypes.byref(entry))
        while more:
            result[entry.th32ProcessID] = (entry.th32ParentProcessID, entry.szExeFile)
            more = kernel32.Process32NextW(handle, ctypes.byref(entry))
    finally:
        kernel32.CloseHandle(handle)
    return result
