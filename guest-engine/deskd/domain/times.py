"""Times as the API writes and reads them: RFC 3339 with nanoseconds, UNIX seconds, durations."""

from __future__ import annotations

import time

from deskd.errors import InvalidArgument

NEVER = "0001-01-01T00:00:00Z"
SECOND_NS = 1_000_000_000
_LONGEST_NS = 2**63  # Go's longest duration, 292 years
_MOST_DIGITS = 12  # of UNIX seconds: some 30 thousand years; of a fraction: more than it has
_UNITS_NS = {"h": 3600 * SECOND_NS, "m": 60 * SECOND_NS, "s": SECOND_NS, "ms": 10**6,
             "us": 10**3, "ns": 1}  # fmt: skip


def rfc3339(time_ns: int) -> str:
    """Write a time as Go does: UTC, no trailing zeros in the fraction; 0 is Go's zero time."""
    if not time_ns:
        return NEVER
    seconds, nanoseconds = divmod(time_ns, SECOND_NS)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{whole}{fraction}Z"


def rfc3339_fixed(time_ns: int) -> str:
    """Write a time with all nine digits, as log timestamps have them."""
    seconds, nanoseconds = divmod(time_ns, SECOND_NS)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"


def parse_rfc3339(text: str) -> int:
    """Read an RFC 3339 time with up to nanoseconds; raises ``ValueError``."""
    from datetime import datetime

    head, dot, rest = text.partition(".")
    digits = ""
    if dot:
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        rest = rest[len(digits) :]
    else:
        rest = ""
    moment = datetime.fromisoformat(f"{head}{rest}".replace("Z", "+00:00"))
    if moment.tzinfo is None:
        from datetime import UTC

        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * SECOND_NS + int(digits[:9].ljust(9, "0") or 0)


def parse_duration(text: str) -> int:
    """Read Go's duration (``1h30m``, ``1.5s``) as nanoseconds; raises ``ValueError``."""
    import re

    if not re.fullmatch(r"(\d+(\.\d+)?(h|ms|us|ns|m|s))+", text, re.ASCII):
        raise ValueError(f"{text!r} is not a duration")
    parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|ns|m|s)", text)
    total = sum(float(number) * _UNITS_NS[unit] for number, unit in parts)
    if total > _LONGEST_NS:
        raise ValueError(f"{text!r} is longer than 292 years")
    return int(total)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS


def parse_moment(text: str, name: str) -> int | None:
    """Read a ``since`` or ``until`` parameter: UNIX seconds with a fraction, RFC 3339, or a
    duration before now. Returns nanoseconds, or None for "" and "0".

    Raises ``InvalidArgument`` that names the parameter.
    """
    if text in ("", "0"):
        return None
    seconds, dot, fraction = text.partition(".")
    if _is_number(seconds.removeprefix("-")) and (not dot or _is_number(fraction)):
        return int(seconds) * SECOND_NS + int(fraction[:9].ljust(9, "0") or 0)
    for parse in (parse_rfc3339, lambda value: time.time_ns() - parse_duration(value)):
        try:
            return parse(text)
        except ValueError:
            continue
    raise InvalidArgument(
        f'failed to parse value as time or duration: "{text}": use UNIX seconds, RFC 3339 or a '
        f"duration for {name}"
    )
