"""Sizes, durations and times as Docker's command line reads and prints them."""

from __future__ import annotations

import datetime
import re
import time

from desk.errors import InvalidRequest, UsageError
from desk.sizes import scaled

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def human_duration(seconds: float) -> str:
    """Render a span of time roughly, as in ``Up 3 minutes``."""
    whole = int(seconds)
    minutes, hours = whole // 60, round(whole / 3600)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    if hours == 1:
        return "About an hour"
    for limit_h, size_h, name in (
        (48, 1, "hours"),
        (24 * 7 * 2, 24, "days"),
        (24 * 30 * 2, 24 * 7, "weeks"),
        (24 * 365 * 2, 24 * 30, "months"),
    ):
        if hours < limit_h:
            return f"{hours // size_h} {name}"
    return f"{hours // (24 * 365)} years"


def human_size(size_bytes: float, *, digits: int = 3) -> str:
    """Render bytes in powers of 1000: ``1.5kB``."""
    return scaled(size_bytes, 1000, ("B", "kB", "MB", "GB", "TB", "PB", "EB"), digits)


def parse_duration_s(text: str, *, what: str = "duration") -> float:
    """Return the seconds in ``1h30m``, ``500ms`` or ``0``; ``UsageError`` otherwise."""
    rest = text.removeprefix("-")
    if rest == "0":
        return 0.0
    total_s, position = 0.0, 0
    for match in _DURATION.finditer(rest):
        if match.start() != position:
            break
        total_s += float(match[1]) * _SECONDS[match[2]]
        position = match.end()
    if not rest or position != len(rest):
        raise UsageError(f"invalid {what} {text!r}", hint="Write it as 30s, 5m or 1h30m.")
    return -total_s if text.startswith("-") else total_s


def parse_duration_ns(text: str, *, what: str) -> int:
    return round(parse_duration_s(text, what=what) * 1e9)


def parse_moment(text: str) -> str:
    """Return the Unix time for ``--since``: a Unix time, a date, or a duration before now."""
    if re.fullmatch(r"\d+(\.\d{1,9})?", text):
        return text
    moment = _parse_date(text)
    if moment is not None:
        return f"{moment.timestamp():.9f}"
    try:
        ago_s = parse_duration_s(text)
    except UsageError:
        raise InvalidRequest(
            f"invalid time {text!r}",
            hint="Write 10m, 2024-01-31T12:00:00Z or a Unix time.",
        ) from None
    return f"{time.time() - ago_s:.9f}"


def _parse_date(text: str) -> datetime.datetime | None:
    if not re.match(r"\d{4}-\d\d-\d\d", text):
        return None
    # Nanoseconds are more than datetime holds.
    shortened = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        return datetime.datetime.fromisoformat(shortened)
    except ValueError:
        return None


def parse_timestamp(text: str) -> float:
    """Return the Unix time of the engine's RFC 3339 time, 0 for Go's zero time or none."""
    moment = _parse_date(text)
    if moment is None or moment.year <= 1:
        return 0.0
    return moment.timestamp()


def format_created_at(unix_s: float) -> str:
    """Render a time as Docker's ``CreatedAt`` column does."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(unix_s))


def format_rfc3339(unix_s: float) -> str:
    """Render a time as in ``2024-01-31T12:00:00Z``, in the local zone."""
    local = time.localtime(unix_s)
    zone = time.strftime("%z", local)
    offset = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}{offset}"


def ago(unix_s: float) -> str:
    """Render a past time as in ``2 minutes ago``; ``N/A`` where it is not known."""
    if unix_s <= 0:
        return "N/A"
    return f"{human_duration(max(0.0, time.time() - unix_s))} ago"
