"""Network faults as the command line reads and prints them: rates, percentages, who and what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from desk.cli.units import parse_duration_s
from desk.errors import UsageError

_RATE = re.compile(r"(\d+(?:\.\d+)?) ?(|k|m|g)bit(?:/s)?\Z", re.IGNORECASE)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%?\Z")
_PREFIXES = ("", "k", "m", "g")


def parse_rate_bits(text: str) -> int:
    """Return the bits per second in ``512kbit`` or ``1.5mbit``; ``UsageError`` otherwise."""
    match = _RATE.match(text.strip())
    if not match:
        raise UsageError(
            f"invalid rate {text!r}",
            hint="Write bits per second with their unit, such as 512kbit, 10mbit or 1gbit.",
        )
    return int(float(match[1]) * 1000 ** _PREFIXES.index(match[2].lower()))


def parse_percent(text: str, *, flag: str) -> float:
    """Return 2.5 for ``2.5%`` or ``2.5``; ``UsageError`` otherwise."""
    match = _PERCENT.match(text.strip())
    if not match:
        raise UsageError(f"invalid {flag} {text!r}", hint="Write a percentage, such as 5%.")
    return float(match[1])


def parse_milliseconds(text: str, *, flag: str) -> float:
    """Return the milliseconds in ``100ms`` or ``1.5s``; ``UsageError`` otherwise."""
    return parse_duration_s(text, what=flag) * 1000


def rate_text(bits: int) -> str:
    """Render bits per second as they are given: ``1.5mbit``."""
    value, index = float(bits), 0
    while value >= 1000 and index < len(_PREFIXES) - 1:
        value /= 1000
        index += 1
    return f"{value:g}{_PREFIXES[index]}bit"


def milliseconds_text(delay_ms: float) -> str:
    return f"{delay_ms / 1000:g}s" if delay_ms >= 1000 else f"{delay_ms:g}ms"


def remaining_text(remaining_ms: int) -> str:
    """Render the time until a fault heals as in ``1m30s``; empty for one without an end."""
    if not remaining_ms:
        return ""
    seconds = max(round(remaining_ms / 1000), 1)
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    if hours:
        return f"{hours}h{minutes}m"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def links_text(fault: Mapping[str, Any]) -> str:
    """Tell whom a fault concerns: ``n1 | n2,n3``, ``n1 -> n2``, ``n1 <-> n2``; ``*`` for all."""

    def group(names: Iterable[str]) -> str:
        return ",".join(names) or "*"

    if fault["Partition"]:
        groups = [*fault["Partition"], *([[]] if len(fault["Partition"]) == 1 else [])]
        return " | ".join(group(names) for names in groups)
    if fault["Between"]:
        return " <-> ".join(fault["Between"])
    if fault["Kind"] == "dns" or not (fault["From"] or fault["To"]):
        return group(fault["From"])
    return f"{group(fault['From'])} -> {group(fault['To'])}"


def effect_text(fault: Mapping[str, Any]) -> str:
    """Tell what a fault does: ``latency 100ms±10ms, loss 5%``."""
    if fault["Dns"]:
        return _dns_text(fault["Dns"])
    if not fault["Link"]:
        return "severed"
    link = fault["Link"]
    parts = []
    if latency := link.get("LatencyMs"):
        jitter = link.get("JitterMs")
        spread = f"±{milliseconds_text(jitter)}" if jitter else ""
        parts.append(f"latency {milliseconds_text(latency)}{spread}")
    for key, word in (
        ("LossPercent", "loss"),
        ("DuplicatePercent", "duplicate"),
        ("ReorderPercent", "reorder"),
    ):
        if percent := link.get(key):
            parts.append(f"{word} {percent:g}%")
    if bits := link.get("BandwidthBits"):
        parts.append(f"rate {rate_text(bits)}")
    return ", ".join(parts)


def _dns_text(dns: Mapping[str, Any]) -> str:
    answer = {"none": "no answer", "slow": f"{milliseconds_text(dns.get('DelayMs', 0))} late"}
    names = f" for {','.join(dns['Names'])}" if dns.get("Names") else ""
    return f"DNS {answer.get(dns['Answer'], dns['Answer'])}{names}"
