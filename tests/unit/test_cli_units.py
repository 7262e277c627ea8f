"""Sizes, durations and times in the command line, as Docker reads and prints them."""

from __future__ import annotations

import time

import pytest

from desk import sizes
from desk.cli import units
from desk.errors import InvalidRequest, UsageError


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (2 * 3600, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_durations_are_told_roughly(seconds: float, text: str) -> None:
    assert units.human_duration(seconds) == text


def test_sizes_in_powers_of_1000_and_1024() -> None:
    assert units.human_size(0) == "0B"
    assert units.human_size(1_980_000) == "1.98MB"
    assert units.human_size(1_982_345, digits=4) == "1.982MB"
    assert sizes.binary_size(25_270_000_000) == "23.53GiB"


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512m", 512 << 20), ("1.5g", 3 << 29), ("2GiB", 2 << 30), ("10kb", 10240)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert sizes.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1x", "1 2", "m"])
def test_wrong_sizes_are_named(text: str) -> None:
    with pytest.raises(UsageError, match="invalid memory"):
        sizes.parse_size(text, what="memory")


def test_durations_are_read() -> None:
    assert units.parse_duration_s("1h30m") == 5400
    assert units.parse_duration_s("500ms") == 0.5
    assert units.parse_duration_s("0") == 0
    for wrong in ("", "5", "1x", "1h x", "h"):
        with pytest.raises(UsageError):
            units.parse_duration_s(wrong)


def test_moments_are_unix_times_dates_or_spans() -> None:
    assert units.parse_moment("1700000000.5") == "1700000000.5"
    assert float(units.parse_moment("2024-01-31T12:00:00Z")) == 1706702400
    assert float(units.parse_moment("2024-01-31T12:00:00.123456789+00:00")) == pytest.approx(
        1706702400.123456
    )
    assert time.time() - float(units.parse_moment("10m")) == pytest.approx(600, abs=5)
    with pytest.raises(InvalidRequest, match="invalid time 'yesterday'"):
        units.parse_moment("yesterday")


def test_the_engines_zero_time_is_no_time() -> None:
    assert units.parse_timestamp("0001-01-01T00:00:00Z") == 0
    assert units.ago(0) == "N/A"
