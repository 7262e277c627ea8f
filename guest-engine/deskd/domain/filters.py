"""The API's ``filters`` parameter: parsing, checking of names, matching."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from deskd.domain.foreign_json import FOREIGN_JSON_ERRORS
from deskd.errors import InvalidArgument


class Filters:
    """Wanted values by filter name; an absent name matches everything."""

    def __init__(self, values: Mapping[str, Iterable[str]] | None = None) -> None:
        self._values = {name: list(items) for name, items in (values or {}).items()}

    def __bool__(self) -> bool:
        return any(self._values.values())

    def get(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def as_mapping(self) -> Mapping[str, list[str]]:
        """Return the wanted values by filter name."""
        return self._values

    def check(self, accepted: Iterable[str]) -> None:
        """Raise ``InvalidArgument`` for a filter that the operation does not have."""
        for name in self._values:
            if name not in set(accepted):
                raise InvalidArgument(f"invalid filter '{name}'")

    def allows(self, name: str, value: str) -> bool:
        """True where ``name`` is not asked for or ``value`` is one of the wanted."""
        wanted = self.get(name)
        return not wanted or value in wanted

    def allows_prefix(self, name: str, value: str) -> bool:
        """Like ``allows``, where a wanted value may be the beginning."""
        wanted = self.get(name)
        return not wanted or any(value.startswith(item) for item in wanted)

    def allows_pattern(self, name: str, value: str) -> bool:
        """Like ``allows``, where a wanted value may be a regular expression or part of the
        text. A pattern that is none counts as plain text."""
        wanted = self.get(name)
        if not wanted:
            return True
        import re

        for item in wanted:
            try:
                if re.search(item, value):
                    return True
            except re.error:
                if item in value:
                    return True
        return False

    def allows_labels(self, labels: Mapping[str, str], name: str = "label") -> bool:
        """True where all wanted ``key`` and ``key=value`` are among ``labels``."""
        return all(_has_label(item, labels) for item in self.get(name))

    def allows_prune(self, labels: Mapping[str, str]) -> bool:
        """Apply ``label`` and ``label!`` as the prune operations do."""
        unwanted = any(_has_label(item, labels) for item in self.get("label!"))
        return self.allows_labels(labels) and not unwanted

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Read a boolean filter. Raises ``InvalidArgument`` for other values."""
        wanted = self.get(name)
        if not wanted:
            return default
        is_true = any(item in ("1", "true", "True", "TRUE", "t") for item in wanted)
        is_false = any(item in ("0", "false", "False", "FALSE", "f") for item in wanted)
        if is_true == is_false:
            raise InvalidArgument(
                f"invalid filter '{name}=[{' '.join(wanted)}]': use true or false"
            )
        return is_true


def _has_label(wanted: str, labels: Mapping[str, str]) -> bool:
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def parse_filters(text: str) -> Filters:
    """Parse ``{"name": ["a"]}`` or the older ``{"name": {"a": true}}``.

    Raises ``InvalidArgument``.
    """
    if not text:
        return Filters()
    try:
        parsed = msgspec.json.decode(text.encode())
    except FOREIGN_JSON_ERRORS as error:
        raise InvalidArgument(f"invalid filter: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidArgument("invalid filter: a JSON object of lists is expected")
    values: dict[str, list[str]] = {}
    for name, items in parsed.items():
        if isinstance(items, dict):
            values[name] = [item for item, wanted in items.items() if wanted]
        elif isinstance(items, list) and all(isinstance(item, str) for item in items):
            values[name] = items
        else:
            raise InvalidArgument(f"invalid filter '{name}': a list of strings is expected")
    return Filters(values)
