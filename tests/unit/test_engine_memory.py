"""The engine's reading of the machine's memory, from files as kernels write them."""

from __future__ import annotations

from pathlib import Path

from deskd.kernel.cgroup.memory import held_bytes, reading
from deskd.kernel.machine_memory import read_machine_memory

MEMINFO = """\
MemTotal:        2000000 kB
MemFree:          900000 kB
MemAvailable:    1500000 kB
Buffers:           10000 kB
Cached:           640000 kB
SwapCached:            0 kB
Shmem:             40000 kB
SReclaimable:      30000 kB
HugePages_Total:       0
"""


def test_shared_memory_is_used_and_no_cache(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    memory = read_machine_memory(str(tmp_path))
    assert memory.total == 2_000_000 * 1024
    assert memory.cache == 640_000 * 1024
    assert memory.used == 460_000 * 1024
    assert memory.pressure_percent == 0.0  # no pressure stall information in this kernel


def test_pressure_is_that_of_ten_seconds(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/memory").write_text(
        "some avg10=1.53 avg60=0.87 avg300=0.10 total=1234\n"
        "full avg10=0.50 avg60=0.20 avg300=0.00 total=567\n"
    )
    assert read_machine_memory(str(tmp_path)).pressure_percent == 1.53


def test_what_a_container_holds_is_not_its_page_cache() -> None:
    v2 = {"anon": 100, "file": 5000, "shmem": 30, "slab_unreclaimable": 7, "slab_reclaimable": 900}
    assert held_bytes(v2) == 137
    v1 = {"total_rss": 100, "total_cache": 5000, "total_shmem": 30, "rss": 1}
    assert held_bytes(v1) == 130
    assert held_bytes({}) == 0


def test_the_highest_is_never_below_what_is_used_now() -> None:
    assert reading(10, 7, {}).peak == 10
    assert reading(7, 10, {}).peak == 10
