"""The monitor's two small files in its directory: who it is, and how its process ended."""

from __future__ import annotations

import json
import os
from typing import Any

from deskd.domain.process import Exit
from deskd.record import Record, as_dict

STATE = "state.json"


class MonitorState(Record):
    """Who the monitor of ``key`` is. ``start_ticks`` and ``boot_id`` tell a recycled PID."""

    key: str
    monitor_pid: int
    start_ticks: int
    boot_id: str
    pid: int
    started_at_ns: int


def write_atomically(path: str, data: dict[str, Any]) -> None:
    """Replace a JSON file so that a reader sees the old or the new one, never a part."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(data).encode())
    finally:
        os.close(fd)
    os.replace(temporary, path)


def read_json(path: str) -> dict[str, Any] | None:
    """Read a JSON object; ``None`` where there is no such file or it is damaged."""
    try:
        with open(path) as file:
            data = json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def write_state(directory: str, state: MonitorState) -> None:
    """Write down who the monitor is."""
    write_atomically(f"{directory}/{STATE}", as_dict(state))


def read_state(directory: str) -> MonitorState | None:
    """Read who the monitor is or was."""
    data = read_json(f"{directory}/{STATE}")
    return None if data is None else MonitorState(**data)


def write_exit(path: str, ended: Exit) -> None:
    """Record the end of a process."""
    write_atomically(path, as_dict(ended))


def read_exit(path: str) -> Exit | None:
    """Read the record of an end."""
    data = read_json(path)
    return None if data is None else Exit(**data)
