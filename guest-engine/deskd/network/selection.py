"""Which networks the API's filters want."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from deskd.domain.filters import Filters
from deskd.domain.network import NetworkRecord
from deskd.domain.times import parse_moment, rfc3339_fixed
from deskd.errors import InvalidArgument
from deskd.network.catalog import PREDEFINED

LIST_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
PRUNE_FILTERS = ("label", "label!", "until")


def selected(
    records: Sequence[NetworkRecord],
    filters: Mapping[str, Sequence[str]],
    in_use: Collection[str],
    *,
    accepted: Collection[str] = LIST_FILTERS,
) -> list[NetworkRecord]:
    """Return the networks that pass all filters; ``in_use`` has the IDs with endpoints.

    Values of one filter are alternatives, labels excepted; names and IDs may be regular
    expressions. Raises ``InvalidArgument`` for a filter that is not ``accepted``, and for values
    that mean nothing.
    """
    wanted = Filters(filters)
    wanted.check(accepted)
    kinds = set(wanted.get("type"))
    if not kinds <= {"builtin", "custom"}:
        raise InvalidArgument(
            f"invalid filter: 'type'={wanted.get('type')[0]!r}: use custom or builtin"
        )
    dangling = wanted.flag("dangling") if wanted.get("dangling") else None
    moments = [rfc3339_fixed(parse_moment(text, "until") or 0) for text in wanted.get("until")]

    def passes(record: NetworkRecord) -> bool:
        builtin = record.name in PREDEFINED
        return (
            wanted.allows("driver", record.driver)
            and wanted.allows("scope", "local")
            and wanted.allows_pattern("name", record.name)
            and wanted.allows_pattern("id", record.id)
            and wanted.allows_prune(record.labels)
            and (not kinds or ("builtin" if builtin else "custom") in kinds)
            and (dangling is None or (not builtin and record.id not in in_use) == dangling)
            and all(record.created < moment for moment in moments)
        )

    return [record for record in records if passes(record)]
