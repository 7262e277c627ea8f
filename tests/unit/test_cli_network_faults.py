"""How the command line reads and prints network faults."""

from __future__ import annotations

from typing import Any

import pytest

from desk.cli import fault_texts
from desk.cli.commands.faults import fault_row
from desk.errors import UsageError

FAULT: dict[str, Any] = {
    "Name": "partition1",
    "Kind": "partition",
    "Network": "net",
    "NetworkID": "f" * 64,
    "Created": "2026-01-31T12:00:00Z",
    "Ends": "0001-01-01T00:00:00Z",
    "RemainingMs": 0,
    "Partition": [],
    "Between": [],
    "From": [],
    "To": [],
    "Block": False,
    "Link": None,
    "Dns": None,
}


@pytest.mark.parametrize(
    ("text", "bits"),
    [("512kbit", 512_000), ("1.5mbit", 1_500_000), ("1 Gbit/s", 10**9), ("9600bit", 9600)],
)
def test_rates(text: str, bits: int) -> None:
    assert fault_texts.parse_rate_bits(text) == bits
    assert fault_texts.parse_rate_bits(fault_texts.rate_text(bits)) == bits


@pytest.mark.parametrize("text", ["", "fast", "10", "10mb", "10MB/s", "-1mbit", "1mbits"])
def test_rates_without_a_clear_unit_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid rate"):
        fault_texts.parse_rate_bits(text)


def test_percentages() -> None:
    assert fault_texts.parse_percent("2.5%", flag="--loss") == 2.5
    assert fault_texts.parse_percent("100", flag="--loss") == 100
    for text in ("", "%", "-5%", "half", "5 %%"):
        with pytest.raises(UsageError, match="invalid --loss"):
            fault_texts.parse_percent(text, flag="--loss")


@pytest.mark.parametrize(
    ("fields", "links", "effect"),
    [
        ({"Partition": [["n1"], ["n2", "n3"]]}, "n1 | n2,n3", "severed"),
        ({"Partition": [["n1"]]}, "n1 | *", "severed"),
        ({"Block": True, "Between": ["n1", "n2"]}, "n1 <-> n2", "severed"),
        ({"Block": True, "From": ["n1"]}, "n1 -> *", "severed"),
        (
            {"Link": {"LatencyMs": 100, "JitterMs": 12.5, "LossPercent": 0.5}, "To": ["n2"]},
            "* -> n2",
            "latency 100ms±12.5ms, loss 0.5%",
        ),
        (
            {"Link": {"LatencyMs": 1500, "ReorderPercent": 5, "BandwidthBits": 2_500_000}},
            "*",
            "latency 1.5s, reorder 5%, rate 2.5mbit",
        ),
        (
            {"Kind": "dns", "Dns": {"Answer": "servfail", "Names": ["db", "x"]}, "From": ["n1"]},
            "n1",
            "DNS servfail for db,x",
        ),
        ({"Kind": "dns", "Dns": {"Answer": "slow", "DelayMs": 2000}}, "*", "DNS 2s late"),
        ({"Kind": "dns", "Dns": {"Answer": "none"}}, "*", "DNS no answer"),
    ],
)
def test_who_and_what(fields: dict[str, Any], links: str, effect: str) -> None:
    row = fault_row({**FAULT, **fields}, truncate=False)
    assert (row["Links"], row["Effect"]) == (links, effect)


def test_a_row_fits_80_columns() -> None:
    crowd = [f"node{number}" for number in range(40)]
    link = {"LatencyMs": 100, "JitterMs": 10, "LossPercent": 5, "BandwidthBits": 1_000_000}
    row = fault_row({**FAULT, "From": crowd, "Link": link, "RemainingMs": 90_000}, truncate=True)
    shown = [row[name] for name in ("Name", "Network", "Links", "Effect", "HealsIn")]
    assert len("   ".join(shown)) <= 80
    assert row["Effect"] == "latency 100ms±10ms, l…"


@pytest.mark.parametrize(
    ("remaining_ms", "text"),
    [(0, ""), (1, "1s"), (29_600, "30s"), (90_000, "1m30s"), (7_260_000, "2h1m")],
)
def test_the_time_that_is_left(remaining_ms: int, text: str) -> None:
    assert fault_texts.remaining_text(remaining_ms) == text
