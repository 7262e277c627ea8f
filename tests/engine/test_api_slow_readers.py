"""Clients that half-close and read late: they get every byte to the end."""

from __future__ import annotations

import time

import pytest

from tests.engine_process import Api, EngineProcess, Hijacked, frames

pytestmark = pytest.mark.root

SIZES_BYTES = (100_000, 260_000, 500_000)
"""Around what the kernel and the engine hold back for one client."""


@pytest.mark.parametrize("size_bytes", SIZES_BYTES)
def test_the_end_of_an_execs_output_waits_for_its_reader(
    engine: EngineProcess, api: Api, size_bytes: int
) -> None:
    container = api.run("sleep", "60")
    command = ["dd", "if=/dev/zero", f"bs={size_bytes}", "count=1"]
    document = {"Cmd": command, "AttachStdout": True}
    exec_id = api.post(f"/containers/{container}/exec", document)["Id"]
    stream = Hijacked(engine.socket, f"/exec/{exec_id}/start", {"Detach": False})
    stream.end_input()
    deadline = time.monotonic() + 60
    while api.get(f"/exec/{exec_id}/json")["Running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # the engine is done with it, were it not for the reader
    received = b"".join(part for _, part in frames(stream.read_all()))
    stream.close()
    assert len(received) == size_bytes
