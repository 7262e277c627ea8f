"""``--filter NAME=VALUE`` as the API takes it."""

from __future__ import annotations

from collections.abc import Iterable

from desk.errors import UsageError


def parse_filters(items: Iterable[str]) -> dict[str, list[str]]:
    """Return the filters by name; ``UsageError`` for one without a value."""
    filters: dict[str, list[str]] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or not name.strip():
            raise UsageError(f"invalid filter {item!r}", hint="Write --filter NAME=VALUE.")
        filters.setdefault(name.strip().lower(), []).append(value.strip())
    return filters
