"""What the engine says about the limits of its machine."""

from __future__ import annotations

import pytest

from deskd.kernel.cgroup.features import Features
from deskd.record import replace
from deskd.services.limit_support import limit_flags, limit_warnings

CONTROLLERS = frozenset(("memory", "cpu", "cpuset", "pids", "io"))
GUEST = Features(2, frozenset((0, 1)), frozenset((0,)), True, False, CONTROLLERS)


def test_a_machine_with_everything_has_no_warning() -> None:
    assert limit_warnings(GUEST) == []
    flags = limit_flags(GUEST)
    assert flags.pop("OomKillDisable") is False
    assert all(flags.values())
    assert limit_flags(replace(GUEST, version=1))["OomKillDisable"] is True


@pytest.mark.parametrize(
    ("features", "warnings"),
    [
        (replace(GUEST, swap_limit=False), ["No swap limit support"]),
        (
            replace(GUEST, controllers=CONTROLLERS - {"memory"}),
            ["No memory limit support", "No swap limit support"],
        ),
        (
            replace(GUEST, controllers=CONTROLLERS - {"cpu", "pids"}),
            [
                "No cpu cfs quota support",
                "No cpu cfs period support",
                "No cpu shares support",
                "No pids limit support",
            ],
        ),
        (
            replace(GUEST, io_weight=False),
            ["No io.weight support", "No io.weight (per device) support"],
        ),
        (
            replace(GUEST, version=1, io_rates=False),
            [
                "No blkio throttle.read_bps_device support",
                "No blkio throttle.write_bps_device support",
                "No blkio throttle.read_iops_device support",
                "No blkio throttle.write_iops_device support",
            ],
        ),
    ],
)
def test_what_is_lacking_is_named(features: Features, warnings: list[str]) -> None:
    assert limit_warnings(features) == [f"WARNING: {text}" for text in warnings]
