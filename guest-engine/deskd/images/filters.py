"""Which images a client's filters choose (``GET /images/json`` and ``POST /images/prune``)."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from deskd import errors
from deskd.domain.image import ImageRecord
from deskd.domain.reference import Reference
from deskd.images.catalog import Catalog
from deskd.images.changes import duration_ns

Filters = Mapping[str, Sequence[str]]
LIST_FILTERS = frozenset({"before", "dangling", "label", "label!", "reference", "since", "until"})
PRUNE_FILTERS = frozenset({"dangling", "label", "label!", "until"})
_TRUE, _FALSE = ("1", "true", "t"), ("0", "false", "f")


def select(catalog: Catalog, filters: Filters, *, include_intermediate: bool) -> list[ImageRecord]:
    """Return the images that the filters let through, newest first."""
    _check(filters, LIST_FILTERS)
    names = catalog.all_names()
    parents = {image.parent for image in catalog.all() if image.parent}
    dangling = boolean(filters, "dangling", default=None)
    before = [created_ns(catalog.get(name)) for name in filters.get("before", ())]
    since = [created_ns(catalog.get(name)) for name in filters.get("since", ())]
    until = [moment_ns(text) for text in filters.get("until", ())]
    chosen: list[ImageRecord] = []
    for image in catalog.all():
        own = names.get(image.id, [])
        created = created_ns(image)
        if not own and image.id in parents and (dangling or not include_intermediate):
            continue
        if dangling is not None and dangling == bool(own):
            continue
        if any(created >= moment for moment in before) or any(created <= m for m in since):
            continue
        if any(created > moment for moment in until) or not _labels_match(image, filters):
            continue
        patterns = filters.get("reference", ())
        if patterns and not any(matches(name, p) for name in own for p in patterns):
            continue
        chosen.append(image)
    return sorted(chosen, key=created_ns, reverse=True)


def prunable(catalog: Catalog, filters: Filters) -> list[ImageRecord]:
    """Return the images that the filters of a prune let through, children before parents."""
    _check(filters, PRUNE_FILTERS)
    until = [moment_ns(text) for text in filters.get("until", ())]
    return [
        image
        for image in reversed(catalog.all())
        if not any(created_ns(image) > moment for moment in until) and _labels_match(image, filters)
    ]


def _check(filters: Filters, known: frozenset[str]) -> None:
    for name in filters:
        if name not in known:
            raise errors.InvalidArgument(
                f"invalid filter '{name}': use {', '.join(sorted(known - {'label!'}))}"
            )


def boolean(filters: Filters, name: str, *, default: bool | None) -> bool | None:
    """Return the value of a boolean filter; raises ``InvalidArgument``."""
    values = {value.lower() for value in filters.get(name, ())}
    if not values:
        return default
    if len(values) == 1 and (value := values.pop()) in _TRUE + _FALSE:
        return value in _TRUE
    raise errors.InvalidArgument(f"invalid filter '{name}={','.join(values)}': use true or false")


def matches(name: Reference, pattern: str) -> bool:
    """Match ``busybox``, ``busybox:*``, ``*/nginx`` as Docker does: ``*`` stops at a slash."""
    expression = _glob(pattern)
    candidates = (name.familiar, name.familiar_name, str(name), name.name)
    return any(expression.fullmatch(candidate) for candidate in candidates)


def _glob(pattern: str) -> re.Pattern[str]:
    translated = "".join(
        {"*": "[^/]*", "?": "[^/]"}.get(part, part if part.startswith("[") else re.escape(part))
        for part in re.findall(r"\[[^\]]+\]|.", pattern, re.DOTALL)
    )
    try:
        return re.compile(translated)
    except re.error as error:
        raise errors.InvalidArgument(f"invalid reference filter {pattern!r}: {error}") from error


def _labels_match(image: ImageRecord, filters: Filters) -> bool:
    labels = image.container_config.labels or {}
    return all(_has_label(labels, wanted) for wanted in filters.get("label", ())) and not any(
        _has_label(labels, unwanted) for unwanted in filters.get("label!", ())
    )


def _has_label(labels: Mapping[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def created_ns(image: ImageRecord) -> int:
    """Return when the image was made, in nanoseconds since the epoch (0 where it is not said)."""
    text = image.config.created
    return parse_time_ns(text) if text else 0


def parse_time_ns(text: str) -> int:
    """Parse an RFC 3339 time with up to nanoseconds; raises ``InvalidArgument``."""
    whole, point, rest = text.partition(".")
    digits = re.match(r"\d*", rest)
    fraction = digits[0] if digits else ""
    zone = rest[len(fraction) :] if point else ""
    try:
        parsed = datetime.fromisoformat(whole + zone)
    except ValueError as error:
        raise errors.InvalidArgument(f"invalid time {text!r}: {error}") from error
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return int(parsed.timestamp()) * 1_000_000_000 + int((fraction + "0" * 9)[:9])


def moment_ns(text: str) -> int:
    """Parse a Unix time, an RFC 3339 time, or a duration that counts back from now."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return int(float(text) * 1_000_000_000)
    if re.match(r"\d{4}-\d{2}-\d{2}", text):
        return parse_time_ns(text)
    return time.time_ns() - duration_ns(text)
