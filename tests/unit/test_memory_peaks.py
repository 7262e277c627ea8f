"""The engine's rules of memory peaks: what is observed, what is kept, and what does not fit."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskd.domain.memory_peak import MemoryPeak, PastPeak, after_run, raised, together, too_many
from deskd.kernel.cgroup.memory import MemoryReading, cache_bytes, reading
from deskd.services.containers.memory_fit import Need, misfit
from deskd.services.containers.names import is_random, random_name

MIB = 1 << 20
sizes = st.integers(min_value=0, max_value=1 << 40)


def test_a_tmpfs_is_no_cache_in_either_version() -> None:
    assert cache_bytes({"anon": 1, "file": 50, "shmem": 30, "slab_reclaimable": 7}) == 27
    assert cache_bytes({"total_rss": 1, "total_cache": 50, "total_shmem": 30}) == 20
    assert cache_bytes({}) == 0


def test_without_the_kernels_mark_the_present_is_the_highest_known() -> None:
    stats = {"anon": 60, "file": 40, "shmem": 0}
    assert reading(100, 0, stats) == MemoryReading(usage=100, peak=100, held=60, cache=40)


def test_a_peak_between_two_looks_is_reckoned_from_the_kernels_mark() -> None:
    peak = raised(MemoryPeak(), held=10, cache=30, highest=500, highest_before=100)
    assert (peak.held_bytes, peak.usage_bytes) == (470, 500)
    # Cache that has gone since makes no peak of an old mark.
    again = raised(peak, held=20, cache=0, highest=500, highest_before=500)
    assert again == peak


@given(st.lists(st.tuples(sizes, sizes, sizes), max_size=20))
def test_peaks_only_rise_and_are_never_above_the_kernels(
    looks: list[tuple[int, int, int]],
) -> None:
    peak, highest = MemoryPeak(), 0
    for held, cache, mark in looks:
        usage = held + cache
        now = max(highest, usage, mark)
        found = raised(peak, held=held, cache=cache, highest=now, highest_before=highest)
        assert found.held_bytes >= max(peak.held_bytes, held)
        assert peak.usage_bytes <= found.usage_bytes == now
        assert found.held_bytes <= found.usage_bytes
        peak, highest = found, now


def test_runs_and_their_time_add_up() -> None:
    peak = after_run(after_run(MemoryPeak(held_bytes=5), 1000), 500)
    assert (peak.runs, peak.observed_ns, peak.held_bytes) == (2, 1500, 5)
    both = together(peak, MemoryPeak(held_bytes=9, usage_bytes=9, runs=1, observed_ns=1))
    assert (both.held_bytes, both.usage_bytes, both.runs, both.observed_ns) == (9, 9, 3, 1501)
    assert together(None, peak) == peak


def past(number: int, *, name: str = "") -> PastPeak:
    return PastPeak(
        image="box",
        name=name,
        command=f"{number}",
        peak=MemoryPeak(held_bytes=1),
        started_at_ns=number,
        finished_at_ns=number,
    )


def test_unnamed_ones_are_forgotten_first_and_then_the_oldest() -> None:
    peaks = [past(1, name="db"), past(9), past(8), past(2, name="web")]
    assert too_many(peaks, 4) == []
    assert [each.finished_at_ns for each in too_many(peaks, 1)] == [8, 9, 1]
    assert len({each.key for each in [*peaks, past(3, name="db")]}) == 4  # db is the same


def test_random_names_are_known_and_those_of_people_are_not() -> None:
    assert all(is_random(random_name(attempt)) for attempt in range(10))
    for name in ("web", "project-web-1", "project_web_1", "able", "web_owl", "able_db"):
        assert not is_random(name), name


def told(need: Need, *, total: int = 2000, used: int = 800, dial: bool = True) -> str:
    return misfit("web", "box", need, total * MIB, used * MIB, dial=dial)


def test_a_peak_that_fits_no_more_is_told_with_figures_and_remedy() -> None:
    assert told(Need(peak=1200 * MIB)) == ""
    assert told(Need(peak=1300 * MIB)) == (
        "web has held up to 1.27GiB, but 1.172GiB of the machine's memory are left:"
        " `desk machine set --memory 2304m` gives it more"
    )
    assert told(Need(alike=1300 * MIB), dial=False) == (
        "containers of box with this command have held up to 1.27GiB, but 1.172GiB of the machine's"
        " memory are left: stop or limit other containers"
    )
    assert told(Need(reservation=1300 * MIB)).startswith("web reserves 1.27GiB, but ")


def test_a_limit_keeps_a_peak_below_it_and_alone_must_be_larger_than_the_machine() -> None:
    assert told(Need(limit=1000 * MIB, peak=1900 * MIB)) == ""
    assert told(Need(limit=1300 * MIB)) == ""  # it need not come to its limit
    assert told(Need(limit=2048 * MIB)) == ""  # all of a machine of 2 GiB
    assert told(Need(limit=8192 * MIB)) == (
        "web may use 8GiB, but the machine's memory of 1.953GiB is used up before:"
        " `desk machine set --memory 9472m` gives it more"
    )
    assert told(Need(limit=8192 * MIB), dial=False).endswith(
        ": a lower limit protects what else runs"
    )


@given(st.integers(64, 65536), st.integers(0, 65536), st.integers(1, 65536))
def test_with_what_the_remedy_says_it_fits(total: int, used: int, peak: int) -> None:
    used = min(used, total)
    text = told(Need(peak=peak * MIB), total=total, used=used)
    if used + peak <= total:
        assert text == ""
        return
    size, unit = re.findall(r"--memory (\d+)([mg])`", text)[0]
    given_mib = int(size) * (1024 if unit == "g" else 1)
    assert given_mib % 256 == 0
    # The kernel takes a part of what the machine is given.
    assert used + peak <= given_mib - given_mib // 33 - 48


@pytest.mark.parametrize("need", [Need(), Need(limit=0, reservation=0)])
def test_nothing_known_is_nothing_to_compare(need: Need) -> None:
    assert not need.known
    assert told(need, used=2000) == ""
