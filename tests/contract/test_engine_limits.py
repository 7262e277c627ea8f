"""What a container may use: limits, their change, out-of-memory, pause, statistics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.cgroup_layouts import UNLIMITED, Rates
from tests.engine_places import Disk, EnginePlace, execute, layout_of, limits_seen

MIB = 1 << 20
BUSY = "while :; do :; done"
BYTES, OPERATIONS = "io_service_bytes_recursive", "io_serviced_recursive"
GREEDY = "tail -c 200m /dev/zero"


def until(condition: Callable[[], Any], what: str, deadline_s: float = 60) -> Any:
    """Wait for a condition; return what it found."""
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def stats(place: EnginePlace, container: str) -> Any:
    return json.loads(
        place.api.raw("GET", f"/v1.47/containers/{container}/stats?stream=0&one-shot=1")[2]
    )


def test_every_limit_reaches_the_kernel(place: EnginePlace, disk: Disk) -> None:
    wishes = {
        "Memory": 64 * MIB,
        "MemorySwap": 96 * MIB,
        "MemoryReservation": 32 * MIB,
        "NanoCpus": 500_000_000,
        "CpuShares": 512,
        "CpusetCpus": "0",
        "CpusetMems": "0",
        "PidsLimit": 50,
        "BlkioDeviceReadBps": [{"Path": disk.node, "Rate": MIB}],
        "BlkioDeviceWriteBps": [{"Path": disk.node, "Rate": 2 * MIB}],
        "BlkioDeviceReadIOps": [{"Path": disk.node, "Rate": 300}],
        "BlkioDeviceWriteIOps": [{"Path": disk.node, "Rate": 400}],
    }
    container = place.api.run("sleep", "600", HostConfig=wishes)
    seen = limits_seen(place, container)
    assert (seen.memory_bytes, seen.memory_swap_bytes) == (64 * MIB, 96 * MIB)
    assert seen.reservation_bytes == 32 * MIB
    assert seen.cpu_weight == layout_of(place.api).cpu_weight(512)
    assert (seen.cpu_quota_us, seen.cpu_period_us) == (50_000, 100_000)
    assert (seen.cpuset_cpus, seen.cpuset_mems, seen.pids) == ("0", "0", 50)
    assert seen.rates == {disk.numbers: Rates(MIB, 2 * MIB, 300, 400)}
    told = place.api.inspect(container)["HostConfig"]
    assert {name: told[name] for name in wishes} == wishes
    assert "Cpus_allowed_list:\t0\n" in execute(place, container, "cat /proc/self/status")[1]


def test_without_wishes_there_is_no_limit(place: EnginePlace) -> None:
    seen = limits_seen(place, place.api.run("sleep", "600"))
    assert (seen.memory_bytes, seen.memory_swap_bytes, seen.pids) == (UNLIMITED,) * 3
    assert (seen.cpu_quota_us, seen.cpu_period_us) == (UNLIMITED, 100_000)
    assert seen.cpu_weight == {1: 1024, 2: 100}[layout_of(place.api).version]
    assert seen.reservation_bytes == layout_of(place.api).no_reservation
    assert seen.rates == {}


@pytest.mark.parametrize(
    ("memory_swap", "wanted"), [(0, 128 * MIB), (64 * MIB, 64 * MIB), (-1, UNLIMITED)]
)
def test_swap_is_as_much_as_memory_unless_said_otherwise(
    place: EnginePlace, memory_swap: int, wanted: int
) -> None:
    host = {"Memory": 64 * MIB, "MemorySwap": memory_swap}
    container = place.api.run("sleep", "600", HostConfig=host)
    seen = limits_seen(place, container)
    assert (seen.memory_bytes, seen.memory_swap_bytes) == (64 * MIB, wanted)


def test_an_update_is_obeyed_at_once(place: EnginePlace) -> None:
    container = place.api.run("sleep", "600", HostConfig={"Memory": 32 * MIB, "PidsLimit": 10})
    before = limits_seen(place, container)

    def update(**changes: Any) -> None:
        place.api.post(f"/containers/{container}/update", changes)

    update(Memory=64 * MIB, MemorySwap=80 * MIB, MemoryReservation=16 * MIB)
    update(CpuShares=2048, CpuPeriod=50_000, CpuQuota=20_000, CpusetCpus="0", PidsLimit=30)
    changed = limits_seen(place, container)
    assert changed == replace(
        before,
        memory_bytes=64 * MIB,
        memory_swap_bytes=80 * MIB,
        reservation_bytes=16 * MIB,
        cpu_weight=layout_of(place.api).cpu_weight(2048),
        cpu_quota_us=20_000,
        cpu_period_us=50_000,
        cpuset_cpus="0",
        pids=30,
    )
    update(CpuQuota=-1, PidsLimit=-1, MemorySwap=-1)
    assert limits_seen(place, container) == replace(
        changed, cpu_quota_us=UNLIMITED, pids=UNLIMITED, memory_swap_bytes=UNLIMITED
    )
    update(Memory=24 * MIB, MemorySwap=24 * MIB)
    again = limits_seen(place, container)
    assert (again.memory_bytes, again.memory_swap_bytes) == (24 * MIB, 24 * MIB)


def test_out_of_memory_of_the_first_process_is_told(place: EnginePlace) -> None:
    host = {"Memory": 32 * MIB, "MemorySwap": 32 * MIB}
    container = place.api.create("sh", "-c", f"exec {GREEDY}", HostConfig=host)
    with place.api.events(filters={"container": [container]}) as events:
        place.api.post(f"/containers/{container}/start")
        assert place.api.wait(container) == 137
        actions = []
        for event in events:
            actions.append(event["Action"])
            if event["Action"] == "die":
                break
    assert actions.count("oom") == 1
    state = place.api.inspect(container)["State"]
    assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)


def test_out_of_memory_of_a_child_is_told_while_the_container_runs(place: EnginePlace) -> None:
    host = {"Memory": 32 * MIB, "MemorySwap": 32 * MIB}
    script = f"test -e /again || {{ touch /again; {GREEDY}; echo went on $?; exec sleep 600; }}"
    container = place.api.create("sh", "-c", script, HostConfig=host)
    with place.api.events(filters={"container": [container], "event": ["oom"]}) as events:
        place.api.post(f"/containers/{container}/start")
        assert next(events)["Action"] == "oom"
        state = place.api.inspect(container)["State"]
        assert (state["Running"], state["OOMKilled"]) == (True, True)
    until(lambda: b"went on 137" in place.api.logs(container), "only its child was to be killed")
    place.api.post(f"/containers/{container}/kill")
    place.api.wait(container)
    assert place.api.inspect(container)["State"]["OOMKilled"] is True
    place.api.post(f"/containers/{container}/start")
    assert place.api.wait(container) == 0
    assert place.api.inspect(container)["State"]["OOMKilled"] is False


def test_the_most_that_was_held_is_known_while_it_runs_and_after(place: EnginePlace) -> None:
    fill = "dd if=/dev/zero of=/m/held bs=1M count=48 2>/dev/null; rm /m/held"
    write = "dd if=/dev/zero of=/cached bs=1M count=24 2>/dev/null; sync"
    host = {"Tmpfs": {"/m": "size=64m"}}
    for name, last in (("short", "true"), ("runs", "exec sleep 600")):
        container = place.api.create(
            "sh", "-c", f"{write}; {fill}; {last}", name=name, HostConfig=host
        )
        place.api.post(f"/containers/{container}/start")
    place.api.wait("short")

    def peaks() -> dict[str, dict[str, int]]:
        told = place.api.get("/desk/memory")
        return {each["Name"]: each for each in [*told["Containers"], *told["Ended"]]}

    until(
        lambda: peaks()["runs"]["Peak"] >= 48 * MIB and peaks()["runs"]["Held"] < 16 * MIB,
        "the peak was never seen",
    )
    for name in ("short", "runs"):
        found = peaks()[name]
        assert 48 * MIB <= found["Peak"] < 64 * MIB, found
        assert found["PeakUsage"] >= 68 * MIB, found


def test_a_fork_bomb_stays_within_its_limit(place: EnginePlace) -> None:
    script = "sh -c 'while :; do sleep 600 & done'; exec sleep 600"
    bomb = place.api.run("sh", "-c", script, HostConfig={"PidsLimit": 20})
    full = until(
        lambda: (found := stats(place, bomb)["pids_stats"])["current"] >= 19 and found,
        "the fork bomb never came to its limit",
    )
    assert full["limit"] == 20
    assert full["current"] <= 20
    assert place.api.output("echo", "others live").strip() == "others live"
    place.api.post(f"/containers/{bomb}/kill")
    assert place.api.wait(bomb) == 137


def test_a_quota_holds_a_busy_container_back(place: EnginePlace) -> None:
    host = {"CpuQuota": 5000, "CpuPeriod": 50_000}
    container = place.api.run("sh", "-c", BUSY, HostConfig=host)

    def throttled() -> Any:
        found = stats(place, container)["cpu_stats"]["throttling_data"]
        return found if found["throttled_periods"] > 3 else None

    found = until(throttled, "the kernel did not hold the container back")
    assert found["periods"] >= found["throttled_periods"]
    assert found["throttled_time"] > 0


@pytest.fixture
def loop_disk(place: EnginePlace) -> Iterator[Disk]:
    """A disk of 32 MiB in the machine's memory: whatever slows it down is a limit."""
    file = "/run/desk-test-disk"
    node = place.run(
        f"dd if=/dev/zero of={file} bs=1M count=32 2>/dev/null;"
        f"d=$(losetup -f) && losetup $d {file} && echo $d"
    ).strip()
    try:
        yield Disk(node, place.run(f"cat /sys/block/{node.removeprefix('/dev/')}/dev").strip())
    finally:
        place.run(f"losetup -d {node}; rm {file}")


@pytest.mark.parametrize(
    ("field", "rate", "block", "table"),
    [
        ("BlkioDeviceReadBps", MIB // 4, "64k", BYTES),
        ("BlkioDeviceWriteBps", MIB // 4, "64k", BYTES),
        ("BlkioDeviceReadIOps", 50, "4k", OPERATIONS),
        ("BlkioDeviceWriteIOps", 50, "4k", OPERATIONS),
    ],
)
def test_a_rate_holds_a_busy_disk_back(
    place: EnginePlace, loop_disk: Disk, field: str, rate: int, block: str, table: str
) -> None:
    """The kernel's own count of what was moved is compared with what the rate allows for the time
    that has passed at least; the same program without a limit shows that the disk could do more."""
    operation = "read" if "Read" in field else "write"
    way = {
        "read": "if=/dev/d of=/dev/null iflag=direct",
        "write": "if=/dev/zero of=/dev/d oflag=direct",
    }[operation]
    script = f"while :; do dd {way} bs={block} count=512 2>/dev/null; done"
    device = {"PathOnHost": loop_disk.node, "PathInContainer": "/dev/d", "CgroupPermissions": "rw"}
    limits = {field: [{"Path": loop_disk.node, "Rate": rate}]}

    def moved(container: str) -> int:
        entries = stats(place, container)["blkio_stats"][table] or []
        return sum(
            entry["value"]
            for entry in entries
            if f"{entry['major']}:{entry['minor']}" == loop_disk.numbers
            and entry["op"] == operation
        )

    begun_s = time.monotonic()
    held = place.api.run("sh", "-c", script, HostConfig={"Devices": [device], **limits})
    free = place.api.run("sh", "-c", script, HostConfig={"Devices": [device]})
    until(lambda: moved(held) > rate, "the limited container moves nothing")
    # Twice as much as it may: the clock of an emulated machine catches up in leaps.
    until(
        lambda: moved(free) > 2 * rate * (time.monotonic() - begun_s),
        "the container without a limit is not faster than the limit",
    )
    assert moved(held) <= 2 * rate * (time.monotonic() - begun_s)


def test_a_paused_container_stands_still(place: EnginePlace) -> None:
    container = place.api.run("sh", "-c", BUSY)

    def used_ns() -> int:
        used: int = stats(place, container)["cpu_stats"]["cpu_usage"]["total_usage"]
        return used

    until(used_ns, "the container does nothing")
    place.api.post(f"/containers/{container}/pause")
    state = place.api.inspect(container)["State"]
    assert (state["Status"], state["Paused"], state["Running"]) == ("paused", True, True)
    still_ns = used_ns()
    assert used_ns() == still_ns
    exec_refused = place.api.error("POST", f"/containers/{container}/exec", {"Cmd": ["true"]})
    assert exec_refused.status == 409
    place.api.post(f"/containers/{container}/unpause")
    until(lambda: used_ns() > still_ns, "the container does not go on")
    place.api.post(f"/containers/{container}/pause")
    place.api.post(f"/containers/{container}/stop", t=0)
    assert place.api.inspect(container)["State"]["ExitCode"] == 137


def test_statistics_tell_what_is_used(place: EnginePlace, disk: Disk) -> None:
    script = (
        "dd if=/dev/zero of=/file bs=1M count=8 oflag=direct 2>/dev/null;"
        "dd if=/file of=/dev/null bs=1M iflag=direct 2>/dev/null; cat /file >/dev/null;"
        "ping -c 1 -W 5 $GATEWAY >/dev/null; echo ready; sleep 600 & wait"
    )
    gateway = place.api.get("/networks/bridge")["IPAM"]["Config"][0]["Gateway"]
    container = place.api.run(
        "sh", "-c", script, Env=[f"GATEWAY={gateway}"], HostConfig={"Memory": 64 * MIB}
    )
    until(lambda: place.api.logs(container) == b"ready\n", "the container did not get ready")
    until(
        lambda: stats(place, container)["pids_stats"]["current"] == 2,
        "the shell and its sleep were not counted",
    )
    found = stats(place, container)
    cpu, memory, io = found["cpu_stats"], found["memory_stats"], found["blkio_stats"]
    assert 0 < cpu["cpu_usage"]["total_usage"] < cpu["system_cpu_usage"]
    assert cpu["online_cpus"] == place.api.get("/info")["NCPU"]
    assert memory["limit"] == 64 * MIB
    assert 0 < memory["usage"] < memory["limit"]
    # Clients subtract what the kernel would give up at once, by the name that each version has.
    cache = memory["stats"].get("total_inactive_file", memory["stats"].get("inactive_file"))
    assert cache is not None
    assert 0 <= cache < memory["usage"]
    moved: dict[str, int] = {}
    for entry in io["io_service_bytes_recursive"]:
        moved[entry["op"]] = moved.get(entry["op"], 0) + entry["value"]
    assert moved["read"] >= 8 * MIB
    assert moved["write"] >= 8 * MIB
    assert set(found["networks"]) == {"eth0"}
    assert found["networks"]["eth0"]["tx_bytes"] > 0
    assert found["networks"]["eth0"]["rx_bytes"] > 0


def test_top_lists_the_processes(place: EnginePlace) -> None:
    container = place.api.run("sh", "-c", "sleep 611 & wait")

    def sleeping() -> Any:
        listing = place.api.get(f"/containers/{container}/top")
        column = listing["Titles"].index("CMD")
        commands = [row[column] for row in listing["Processes"]]
        return listing if "sleep 611" in commands and len(commands) == 2 else None

    listing = until(sleeping, "top does not show both processes")
    pid = place.api.inspect(container)["State"]["Pid"]
    assert str(pid) in [row[listing["Titles"].index("PID")] for row in listing["Processes"]]


def test_the_engine_tells_its_cgroups(place: EnginePlace) -> None:
    info = place.api.get("/info")
    mounted = place.run("grep -c '^[^ ]* /sys/fs/cgroup cgroup2 ' /proc/mounts || true").strip()
    assert info["CgroupVersion"] == ("2" if mounted == "1" else "1")
    assert info["CgroupDriver"] == "cgroupfs"
    for name in ("MemoryLimit", "CpuCfsPeriod", "CpuCfsQuota", "CPUShares", "CPUSet", "PidsLimit"):
        assert info[name] is True, name
    assert ("name=cgroupns" in info["SecurityOptions"]) == (info["CgroupVersion"] == "2")
