"""How the IDs of containers in a user namespace map to the machine's. Standard library only: the
launcher's jobs use it."""

from __future__ import annotations

from collections.abc import Sequence

from deskd.errors import InvalidArgument
from deskd.record import Record

IdRanges = tuple[tuple[int, int, int], ...]
"""Ranges as /proc/PID/uid_map has them: first ID inside, first ID outside, count."""

OVERFLOW_ID = 65534
"""What the kernel shows in the place of an ID that has no mapping."""


class IdMapping(Record):
    """Users and groups of a user namespace. Without ranges there is none: IDs stay as they are."""

    uids: IdRanges = ()
    gids: IdRanges = ()

    def __bool__(self) -> bool:
        return bool(self.uids)

    @property
    def root(self) -> tuple[int, int]:
        """The machine's user and group that root inside is."""
        return self.to_host(0, 0)

    def to_host(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the machine's IDs. Raises ``InvalidArgument`` for one outside of the ranges."""
        if not self.uids:
            return uid, gid
        return _outside(self.uids, uid, "user"), _outside(self.gids, gid, "group")

    def to_container(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the IDs that the container sees."""
        if not self.uids:
            return uid, gid
        return _inside(self.uids, uid), _inside(self.gids, gid)


NO_MAPPING = IdMapping()


def _outside(ranges: Sequence[tuple[int, int, int]], number: int, kind: str) -> int:
    for inside, outside, count in ranges:
        if inside <= number < inside + count:
            return outside + number - inside
    raise InvalidArgument(
        f"the {kind} ID {number} has no ID on the machine: it is outside of the subordinate IDs"
        " that --userns-remap gives to containers; use a lower one or extend the range in"
        f" /etc/sub{kind[0]}id"
    )


def _inside(ranges: Sequence[tuple[int, int, int]], number: int) -> int:
    for inside, outside, count in ranges:
        if outside <= number < outside + count:
            return inside + number - outside
    return OVERFLOW_ID
