"""Limits as clients ask for them, read back from the kernel inside of the container."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.cgroup_layouts import Layout
from tests.engine_places import layout_of
from tests.engine_process import IMAGE, Api

pytestmark = pytest.mark.root

MIB = 1024 * 1024
PLACE = "/sys/fs/cgroup"

# What to ask for, the file of each cgroup version that shows it, and what stands there.
LIMITS: list[tuple[dict[str, Any], str, str, str, str]] = [
    ({"Memory": 64 * MIB}, "memory/memory.limit_in_bytes", "67108864", "memory.max", "67108864"),
    (
        {"Memory": 64 * MIB},
        "memory/memory.memsw.limit_in_bytes", "134217728", "memory.swap.max", "67108864",
    ),
    (
        {"Memory": 64 * MIB, "MemorySwap": 80 * MIB},
        "memory/memory.memsw.limit_in_bytes", "83886080", "memory.swap.max", "16777216",
    ),
    (
        {"MemoryReservation": 32 * MIB},
        "memory/memory.soft_limit_in_bytes", "33554432", "memory.low", "33554432",
    ),
    ({"CpuShares": 512}, "cpu/cpu.shares", "512", "cpu.weight", "20"),
    ({"CpuQuota": 20000}, "cpu/cpu.cfs_quota_us", "20000", "cpu.max", "20000 100000"),
    (
        {"CpuPeriod": 50000, "CpuQuota": 20000},
        "cpu/cpu.cfs_period_us", "50000", "cpu.max", "20000 50000",
    ),
    ({"NanoCpus": 1_500_000_000}, "cpu/cpu.cfs_quota_us", "150000", "cpu.max", "150000 100000"),
    ({"CpusetCpus": "0"}, "cpuset/cpuset.cpus", "0", "cpuset.cpus", "0"),
    ({"CpusetMems": "0"}, "cpuset/cpuset.mems", "0", "cpuset.mems", "0"),
    ({"PidsLimit": 77}, "pids/pids.max", "77", "pids.max", "77"),
    ({"PidsLimit": -1}, "pids/pids.max", "max", "pids.max", "max"),
    ({"PidsLimit": 0}, "pids/pids.max", "max", "pids.max", "max"),
]  # fmt: skip


@pytest.fixture
def layout(api: Api) -> Layout:
    return layout_of(api)


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: str(limit[0]))
def test_a_limit_reaches_the_kernel(
    api: Api, layout: Layout, limit: tuple[dict[str, Any], str, str, str, str]
) -> None:
    wanted, *shown = limit
    file, value = layout.choose(shown[:2], shown[2:])
    assert api.output("cat", f"{PLACE}/{file}", HostConfig=wanted).strip() == value


@pytest.mark.parametrize(
    ("wanted", "file", "value"),
    [
        ({"MemorySwappiness": 13}, "memory/memory.swappiness", "13"),
        ({"OomKillDisable": True, "Memory": 64 * MIB}, "memory/memory.oom_control", "1"),
        ({"CpuRealtimePeriod": 500_000}, "cpu/cpu.rt_period_us", "500000"),
        ({"CpuRealtimeRuntime": 50_000}, "cpu/cpu.rt_runtime_us", "50000"),
    ],
)
def test_a_limit_that_only_version_1_has(
    api: Api, layout: Layout, wanted: dict[str, Any], file: str, value: str
) -> None:
    field = next(iter(wanted))
    if "Realtime" in field and not Path(PLACE, "cpu/cpu.rt_period_us").exists():
        assert "real-time" in refusal(api, wanted)
        return
    if field in layout.discarded:
        wish = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": wanted}
        answer = api.post("/containers/create", wish)
        assert [text.rpartition(" ")[2] for text in answer["Warnings"]] == ["discarded."]
        assert api.inspect(answer["Id"])["HostConfig"][field] is None
        return
    text = api.output("cat", f"{PLACE}/{file}", HostConfig=wanted)
    assert text.split("\n")[0].split()[-1] == value


def refusal(api: Api, host: dict[str, Any]) -> str:
    error = api.error("POST", "/containers/create", {"Image": IMAGE, "HostConfig": host})
    assert error.status == 400
    return error.message


def block_device() -> str:
    """Return a whole disk of the machine, and its numbers."""
    for entry in sorted(Path("/sys/block").iterdir()):
        if not entry.name.startswith(("loop", "ram", "zram")):
            return f"/dev/{entry.name}"
    pytest.fail("this machine has no disk")


@pytest.mark.parametrize(
    ("field", "old_name", "new_name"),
    [
        ("BlkioDeviceReadBps", "read_bps", "rbps"),
        ("BlkioDeviceWriteBps", "write_bps", "wbps"),
        ("BlkioDeviceReadIOps", "read_iops", "riops"),
        ("BlkioDeviceWriteIOps", "write_iops", "wiops"),
    ],
)
def test_the_rate_of_a_disk_is_limited(
    api: Api, layout: Layout, field: str, old_name: str, new_name: str
) -> None:
    disk = block_device()
    number = Path(disk).stat().st_rdev
    device = f"{os.major(number)}:{os.minor(number)}"
    host = {field: [{"Path": disk, "Rate": 1_000_000}]}
    file, value = layout.choose(
        (f"blkio/blkio.throttle.{old_name}_device", "1000000"), ("io.max", f"{new_name}=1000000")
    )
    shown = api.output("cat", f"{PLACE}/{file}", HostConfig=host).split()
    assert shown[0] == device
    assert value in shown


def test_the_rate_of_no_disk_is_refused(api: Api) -> None:
    for path, reason in (("/dev/nothing", "no such file"), ("/etc/passwd", "not a block device")):
        assert reason in refusal(api, {"BlkioDeviceReadBps": [{"Path": path, "Rate": 1}]})


def test_update_changes_each_limit_of_a_living_container(api: Api, layout: Layout) -> None:
    container = api.run("sleep", "600")
    steps: list[tuple[dict[str, Any], str, str, str, str]] = [
        limit for limit in LIMITS if "PidsLimit" not in limit[0] and "NanoCpus" not in limit[0]
    ]
    steps.append(({"PidsLimit": 77}, "pids/pids.max", "77", "pids.max", "77"))
    steps.append(({"PidsLimit": -1}, "pids/pids.max", "max", "pids.max", "max"))
    for wanted, *places in steps:
        if "MemorySwap" not in wanted and "Memory" in wanted:
            continue  # an update leaves the swap limit alone
        assert api.post(f"/containers/{container}/update", wanted) == {"Warnings": []}
        file, value = layout.choose(places[:2], places[2:])
        assert inside(api, container, "cat", f"{PLACE}/{file}").strip() == value, wanted
        shown = api.inspect(container)["HostConfig"]
        assert {name: shown[name] for name in wanted} == {
            name: max(item, 0) if name == "PidsLimit" else item for name, item in wanted.items()
        }


def inside(api: Api, container: str, *command: str) -> str:
    """Run a command in a container; return its output."""
    wish = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True, "Tty": True}
    made = api.post(f"/containers/{container}/exec", wish)["Id"]
    text: bytes = api.post(f"/exec/{made}/start", {"Tty": True})
    return text.decode().replace("\r\n", "\n")


def test_an_update_that_the_kernel_refuses_changes_nothing(api: Api, layout: Layout) -> None:
    container = api.run("sleep", "600", HostConfig={"CpuShares": 700})
    bad = {
        "CpuShares": 300,
        "CpuQuota": 5000,
        "BlkioDeviceReadBps": [{"Path": "/dev/no", "Rate": 1}],
    }
    assert api.error("POST", f"/containers/{container}/update", bad).status == 400
    assert api.inspect(container)["HostConfig"]["CpuShares"] == 700
    file, value = layout.choose(("cpu/cpu.shares", "700"), ("cpu.weight", "27"))
    assert inside(api, container, "cat", f"{PLACE}/{file}").strip() == value


def test_ulimits_shm_and_oom_score(api: Api) -> None:
    text = api.output(
        *("sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c; df -k /dev/shm | tail -n 1;"
          "cat /proc/self/oom_score_adj"),
        HostConfig={
            "Ulimits": [
                {"Name": "nofile", "Soft": 100, "Hard": 200},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "ShmSize": 3 * MIB,
            "OomScoreAdj": 321,
        },
    ).splitlines()  # fmt: skip
    assert text[:3] == ["100", "200", "0"]
    assert text[3].split()[1] == "3072"
    assert text[4] == "321"


def test_what_was_taken_away_is_told(api: Api, layout: Layout) -> None:
    answer = api.post(
        "/containers/create",
        {"Image": IMAGE, "Cmd": ["true"], "HostConfig": {"OomKillDisable": True, "CpuPercent": 9}},
    )
    assert len(answer["Warnings"]) == 2
    host = api.inspect(answer["Id"])["HostConfig"]
    assert host["CpuPercent"] == 0
    assert host["OomKillDisable"] is layout.choose(True, None)


def test_a_health_check_is_no_reason_to_warn(api: Api) -> None:
    check = {"Test": ["CMD", "true"]}
    answer = api.post("/containers/create", {"Image": IMAGE, "Cmd": ["true"], "Healthcheck": check})
    assert answer["Warnings"] == []
