"""``GET /desk/memory`` and ``/desk/disk``: the machine's memory, who holds it; its disk."""

from __future__ import annotations

import os

import pytest

from tests.engine_process import Api, EngineProcess, until

pytestmark = pytest.mark.root

HELD_BYTES = 48 << 20


def test_the_largest_holder_comes_first_and_its_cache_does_not_count(api: Api) -> None:
    fill = f"dd if=/dev/zero of=/m/held bs=1048576 count={HELD_BYTES >> 20} && echo full; sleep 600"
    host = {"Tmpfs": {"/m": "size=64m"}}
    big = api.run("sh", "-c", fill, name="big", HostConfig=host)
    write = "dd if=/dev/zero of=/cached bs=1048576 count=24 && echo full; sleep 600"
    small = api.run("sh", "-c", write, name="small")
    until(lambda: b"full" in api.logs(big) and b"full" in api.logs(small))

    def holders() -> list[str]:
        told = api.get("/desk/memory")
        return [c["Name"] for c in told["Containers"] if c["Held"] >= HELD_BYTES]

    until(lambda: holders() == ["big"])
    told = api.get("/desk/memory")
    assert [c["Id"] for c in told["Containers"]] == [big, small]
    assert told["Containers"][1]["Held"] < 16 << 20
    assert told["Total"] >= told["Used"] + told["Free"]
    assert told["Used"] >= HELD_BYTES
    assert told["History"]
    assert {"Time", "Total", "Used", "Cache"} <= told["History"][-1].keys()


def test_the_disk_is_the_data_roots(api: Api, engine: EngineProcess) -> None:
    told = api.get("/desk/disk")
    found = os.statvfs(engine.data_root)
    assert told["Total"] == found.f_blocks * found.f_frsize
    assert 0 < told["Used"] <= told["Total"]
    assert told["Used"] + told["Available"] + told["Reserve"] == told["Total"]
