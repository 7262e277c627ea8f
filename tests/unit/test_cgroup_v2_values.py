"""The texts that limits become in version 2; plain files take the place of the kernel's, which has
weights of single devices only where a disk's scheduler knows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from deskd.kernel.cgroup.hierarchy import Hierarchy
from deskd.kernel.cgroup.limits import Limits, Throttle
from deskd.kernel.cgroup.v2 import CgroupV2


@pytest.fixture
def cgroup(tmp_path: Path) -> CgroupV2:
    made = CgroupV2(Hierarchy(2, str(tmp_path), {}), "parent", "one")
    Path(made.path).mkdir(parents=True)
    return made


@pytest.mark.parametrize(("wanted", "written"), [(10, 1), (500, 4950), (1000, 10000)])
def test_a_devices_weight_has_the_scale_of_its_file(
    cgroup: CgroupV2, wanted: int, written: int
) -> None:
    limits = Limits(blkio_weight_devices=(Throttle(8, 16, wanted),))
    weight = Path(cgroup.path, "io.weight")
    weight.touch()
    cgroup.apply(limits)
    assert weight.read_text() == f"8:16 {written}"
    bfq = Path(cgroup.path, "io.bfq.weight")
    bfq.touch()
    cgroup.apply(limits)
    assert bfq.read_text() == f"8:16 {wanted}"


def test_no_rate_is_the_kernels_word_for_it(cgroup: CgroupV2) -> None:
    rates = Path(cgroup.path, "io.max")
    rates.touch()
    cgroup.apply(Limits(read_bps=(Throttle(8, 0, 0),)))
    assert rates.read_text() == "8:0 rbps=max"


@pytest.mark.parametrize(
    ("memory", "swap", "written"), [(64, 96, "32"), (64, 64, "0"), (64, -1, "max"), (-1, -1, "max")]
)
def test_swap_is_without_the_memory(cgroup: CgroupV2, memory: int, swap: int, written: str) -> None:
    for name in ("memory.max", "memory.swap.max"):
        Path(cgroup.path, name).touch()
    cgroup.apply(Limits(memory_bytes=memory, memory_swap_bytes=swap))
    assert Path(cgroup.path, "memory.swap.max").read_text() == written


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 39), (262144, 10000)])
def test_shares_become_a_weight(cgroup: CgroupV2, shares: int, weight: int) -> None:
    Path(cgroup.path, "cpu.weight").touch()
    cgroup.apply(Limits(cpu_shares=shares))
    assert Path(cgroup.path, "cpu.weight").read_text() == str(weight)
