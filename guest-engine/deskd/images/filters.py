"""Which images a client's filters choose (``GET /images/json`` and ``POST /images/prune``)."""

from __future__ import annotations

import re

from deskd import errors
from deskd.domain.filters import Filters
from deskd.domain.image import ImageRecord
from deskd.domain.reference import Reference
from deskd.domain.times import parse_moment, parse_rfc3339
from deskd.images.catalog import Catalog

LIST_FILTERS = ("before", "dangling", "label", "label!", "reference", "since", "until")
PRUNE_FILTERS = ("dangling", "label", "label!", "until")
_WILDCARD = re.compile(r"[*?[]")


def select(catalog: Catalog, filters: Filters, *, include_intermediate: bool) -> list[ImageRecord]:
    """Return the images that the filters let through, newest first."""
    filters.check(LIST_FILTERS)
    names = catalog.all_names()
    parents = {image.parent for image in catalog.all() if image.parent}
    dangling = filters.flag("dangling") if filters.get("dangling") else None
    before = [created_ns(catalog.get(name)) for name in filters.get("before")]
    since = [created_ns(catalog.get(name)) for name in filters.get("since")]
    until = _until_ns(filters)
    chosen: list[ImageRecord] = []
    for image in catalog.all():
        own = names.get(image.id, [])
        created = created_ns(image)
        if not own and image.id in parents and (dangling or not include_intermediate):
            continue
        if dangling is not None and (any(name.tag for name in own) if dangling else not own):
            continue
        if any(created >= moment for moment in before) or any(created <= m for m in since):
            continue
        if any(created > moment for moment in until):
            continue
        if not filters.allows_prune(image.container_config.labels or {}):
            continue
        patterns = filters.get("reference")
        if patterns and not any(matches(name, p) for name in own for p in patterns):
            continue
        chosen.append(image)
    return sorted(chosen, key=created_ns, reverse=True)


def prunable(catalog: Catalog, filters: Filters) -> list[ImageRecord]:
    """Return the images that the filters of a prune let through, children before parents."""
    filters.check(PRUNE_FILTERS)
    until = _until_ns(filters)
    return [
        image
        for image in reversed(catalog.all())
        if not any(created_ns(image) > moment for moment in until)
        and filters.allows_prune(image.container_config.labels or {})
    ]


def _until_ns(filters: Filters) -> list[int]:
    return [parse_moment(text, "until") or 0 for text in filters.get("until")]


def matches(name: Reference, pattern: str) -> bool:
    """Match ``busybox``, ``busybox:*``, ``*/nginx`` as Docker does: with the name as it is shown,
    and ``*`` stops at a slash. Without wildcards the whole name is good, too."""
    candidates = [name.familiar, name.familiar_name]
    if not _WILDCARD.search(pattern):
        candidates += [str(name), name.name]
    expression = _glob(pattern)
    return any(expression.fullmatch(candidate) for candidate in candidates)


def _glob(pattern: str) -> re.Pattern[str]:
    translated = "".join(
        {"*": "[^/]*", "?": "[^/]"}.get(part, part if part.startswith("[") else re.escape(part))
        for part in re.findall(r"\[[^\]]+\]|.", pattern, re.DOTALL)
    )
    try:
        return re.compile(translated)
    except re.error as error:
        raise errors.InvalidArgument(
            f"syntax error in pattern of the reference filter {pattern!r}: {error}"
        ) from error


def created_ns(image: ImageRecord) -> int:
    """Return when the image was made, in nanoseconds since the epoch (0 where it is not said)."""
    return time_ns(image.config.created)


def time_ns(text: str | None) -> int:
    """Read a time of an image's configuration; one that cannot be read counts as not said."""
    try:
        return parse_rfc3339(text) if text else 0
    except ValueError:
        return 0
