"""The arithmetic of ``desk machine advise``, and how it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from desk.cli.commands.machine_advice import _DEFAULT, _HEADINGS, advice_rows, sentence
from desk.cli.render import Table
from desk.machine.memory_advice import (
    RECENT_S,
    STEP_MIB,
    Advice,
    Memory,
    Observed,
    Verdict,
    advise,
    largest_together,
)

MIB = 1 << 20
NOW_S = 1_000_000.0
HOUR_S = 3600.0


def seen(
    name: str,
    peak_mib: int,
    *,
    held_mib: int = 0,
    limit_mib: int = 0,
    ran: tuple[float, float | None] = (NOW_S - HOUR_S, None),
    observed_s: float = 2 * HOUR_S,
    runs: int = 1,
) -> Observed:
    return Observed(
        name=name,
        image="box",
        held_bytes=held_mib * MIB,
        peak_bytes=peak_mib * MIB,
        peak_usage_bytes=2 * peak_mib * MIB,
        limit_bytes=limit_mib * MIB,
        observed_s=observed_s,
        runs=runs,
        started_s=ran[0],
        finished_s=ran[1],
    )


def advice_of(
    *observed: Observed, ceiling_mib: int = 2048, own_mib: int = 200, sized: bool = True
) -> Advice:
    held = sum(each.held_bytes for each in observed if each.running) // MIB
    memory = Memory(ceiling_mib, own_mib * MIB, own_mib + held + 48)
    return advise(memory, observed, now_s=NOW_S, sized=sized)


def names(advice: Advice) -> list[str]:
    return [each.name for each in advice.together]


def test_peaks_of_those_that_ran_at_one_time_are_added() -> None:
    advice = advice_of(
        seen("web", 300),
        seen("db", 500),
        seen("before", 700, ran=(NOW_S - 9 * HOUR_S, NOW_S - 8 * HOUR_S)),
    )
    assert names(advice) == ["db", "web"]
    assert (advice.needed_mib, advice.advised_mib) == (1000, 1280)  # 200 of headroom
    assert advice.verdict is Verdict.LOWER
    assert advice.size == "1280m"


def test_what_ran_together_before_counts_where_it_was_more() -> None:
    early, late = NOW_S - 9 * HOUR_S, NOW_S - 8 * HOUR_S
    advice = advice_of(
        seen("now", 800), seen("a", 500, ran=(early, late)), seen("b", 400, ran=(early + 5, late))
    )
    assert names(advice) == ["a", "b"]
    assert advice.needed_mib == 1100


def test_one_that_began_when_another_ended_did_not_run_beside_it() -> None:
    advice = advice_of(seen("a", 500, ran=(10, 20)), seen("b", 400, ran=(20, NOW_S)))
    assert names(advice) == ["b"]  # the other one is not of the last week, too
    assert len(largest_together([seen("a", 5, ran=(1, 2)), seen("b", 4, ran=(2, 3))])) == 1


def test_what_ended_long_ago_counts_no_more() -> None:
    old = seen("old", 900, ran=(0, NOW_S - RECENT_S - 1))
    assert advice_of(old).verdict is Verdict.UNKNOWN
    assert names(advice_of(old, seen("new", 10))) == ["new"]


def test_a_limit_is_never_exceeded_and_what_is_held_is_needed() -> None:
    assert seen("a", 900, limit_mib=300).needed_bytes == 300 * MIB
    assert seen("a", 900, limit_mib=300, held_mib=350).needed_bytes == 350 * MIB


@pytest.mark.parametrize(
    ("ceiling_mib", "verdict"),
    [
        (1000, Verdict.RAISE),
        (1099, Verdict.RAISE),
        (1100, Verdict.RIGHT),  # half of the headroom is there
        (1280, Verdict.RIGHT),
        (1791, Verdict.RIGHT),  # less than two steps are not worth a change
        (1792, Verdict.LOWER),
    ],
)
def test_only_what_is_worth_it_is_changed(ceiling_mib: int, verdict: Verdict) -> None:
    advice = advice_of(seen("web", 800), ceiling_mib=ceiling_mib)
    assert (advice.needed_mib, advice.advised_mib) == (1000, 1280)
    assert advice.verdict is verdict


containers = st.lists(
    st.builds(
        seen,
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 4096),
        held_mib=st.integers(0, 4096),
        limit_mib=st.sampled_from([0, 64, 1024]),
        ran=st.tuples(st.floats(NOW_S - 100, NOW_S), st.none() | st.floats(NOW_S - 100, NOW_S)),
    ),
    max_size=8,
)


@given(containers, st.integers(128, 65536), st.integers(20, 2048))
def test_what_is_advised_holds_all_and_is_right_once_it_is_there(
    observed: list[Observed], ceiling_mib: int, own_mib: int
) -> None:
    # Those that have ended hold nothing.
    observed = [each if each.running else replace(each, held_bytes=0) for each in observed]
    advice = advice_of(*observed, ceiling_mib=ceiling_mib, own_mib=own_mib)
    assert advice.advised_mib % STEP_MIB == 0
    assert advice.advised_mib > advice.needed_mib
    runs = [each for each in observed if each.running]
    assert advice.needed_mib >= own_mib + sum(each.held_bytes for each in runs) // MIB
    again = advice_of(*observed, ceiling_mib=advice.advised_mib, own_mib=own_mib)
    assert again.verdict in (Verdict.RIGHT, Verdict.UNKNOWN)
    more = advice_of(*observed, seen("more", 256), ceiling_mib=ceiling_mib, own_mib=own_mib)
    assert more.advised_mib >= advice.advised_mib


@given(containers)
def test_no_moment_has_a_larger_sum(observed: list[Observed]) -> None:
    best = sum(each.needed_bytes for each in largest_together(observed))
    for moment in [each.started_s for each in observed] + [NOW_S, NOW_S - 50]:
        at_once = [
            each.needed_bytes
            for each in observed
            if each.started_s <= moment and (each.finished_s is None or moment < each.finished_s)
        ]
        assert sum(at_once) <= best


# --- how it is told ------------------------------------------------------------------------------


def test_the_sentence_has_figures_the_command_and_how_long_it_looked() -> None:
    web = seen("web", 800)
    low = advice_of(web, ceiling_mib=768)
    assert sentence("box", low, by_itself=True) == (
        "What ran at one time (1 container) needs up to 1000MiB with kernel and engine; machine"
        " box has 768MiB: `desk machine set --memory 1280m` gives it room. Observed for 2 hours."
    )
    high = advice_of(web, seen("db", 1400), ceiling_mib=8192)
    assert sentence("box", high, by_itself=False) == (
        "What ran at one time (2 containers) needs up to 2.344GiB with kernel and engine; machine"
        " box has 8GiB: `desk machine set --memory 3g box` would do. Observed for 2 hours."
    )
    right = sentence("box", advice_of(web, ceiling_mib=1280), by_itself=True)
    assert "machine box has 1.25GiB, which is right." in right
    assert "desk machine set" not in right
    own = sentence("box", advice_of(web, ceiling_mib=16384, sized=False), by_itself=True)
    assert "has 16GiB, and 1.25GiB would do, but Desk does not set it." in own
    assert "desk machine set" not in own
    assert "No container of machine box was observed" in sentence(
        "box", advice_of(), by_itself=True
    )


def test_advice_that_stands_on_little_says_so() -> None:
    brief = [seen(name, 100, observed_s=180, runs=2) for name in ("a", "b", "c")]
    text = sentence("box", advice_of(*brief), by_itself=True)
    assert text.endswith(" This is weak advice: a, b, 1 more were observed for 3 minutes only.")
    text = sentence("box", advice_of(seen("web", 9, observed_s=60), seen("db", 9)), by_itself=True)
    assert text.endswith(" weak advice: web was observed for about a minute only.")
    often = seen("job", 100, observed_s=10, runs=3)
    assert sentence("box", advice_of(often), by_itself=True).endswith(" Observed for 10 seconds.")


def test_the_table_has_its_place_in_80_columns() -> None:
    long = "a-project-with-a-long-name-and-a-service-1"
    advice = advice_of(
        seen(long, 1009, held_mib=1009, limit_mib=1023, observed_s=0.5),
        seen("", 1008, held_mib=1000, limit_mib=1009),
        seen("past", 3, ran=(NOW_S - 100, NOW_S - 50)),
    )
    table = Table(_HEADINGS, default=_DEFAULT)
    lines = table.render(advice_rows("box", advice, cut=True)).splitlines()
    assert lines[0].split() == ["CONTAINER", "NOW", "PEAK", "LIMIT", "OBSERVED"]
    shown = [line.split()[0] for line in lines[1:]]
    assert shown == ["a-project-with-a-long-nam…", "(box)", "past"]
    assert max(map(len, lines)) <= 80
    row = advice_rows("box", advice, cut=False)[0]
    assert (row["Container"], row["Counts"], row["MachineMemory"]) == (long, True, 2048 * MIB)
    assert row["AdvisedMemory"] == advice.advised_mib * MIB
