"""``--userns-remap`` read: whose subordinate IDs the containers get, and which these are.

The forms are dockerd's: ``default``, a user or a user ID, each with ``:group`` or ``:gid``. The
ranges come from /etc/subuid and /etc/subgid (subuid(5)) by the user's name or number.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Sequence

from deskd.domain.id_mapping import IdMapping, IdRanges
from deskd.errors import InvalidArgument, NotFound
from deskd.layout import SUBGID_FILE, SUBUID_FILE
from deskd.record import Record

DEFAULT = "default"
DEFAULT_USER = "dockremap"
NEEDED_IDS = 65536
"""What images count on: user IDs go up to 65534, nobody."""

_MAX_ID = 2**32 - 2


class RemapUser(Record):
    """The user that the ranges belong to."""

    name: str
    uid: int
    group: str


def look_up(text: str) -> RemapUser:
    """Find user and group. Raises ``NotFound`` where one does not exist and ``InvalidArgument``
    for a malformed value."""
    user_text, colon, group_text = text.partition(":")
    if not user_text or (colon and not group_text) or ":" in group_text:
        raise InvalidArgument(
            f'Invalid user/group specification in --userns-remap: "{text}"; write default, USER,'
            " USER:GROUP, UID or UID:GID"
        )
    name = DEFAULT_USER if user_text == DEFAULT else user_text
    try:
        user = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        raise NotFound(_no_user(name)) from None
    # As dockerd: a number or name alone stands for the group, too.
    wanted = group_text or name
    try:
        group = grp.getgrgid(int(wanted)) if wanted.isdecimal() else grp.getgrnam(wanted)
    except (KeyError, OverflowError):
        raise NotFound(
            f"--userns-remap {text}: there is no group {wanted} in /etc/group; add it, or name"
            " another one as USER:GROUP"
        ) from None
    return RemapUser(user.pw_name, user.pw_uid, group.gr_name)


def _no_user(name: str) -> str:
    if name != DEFAULT_USER:
        return f"--userns-remap: there is no user {name} in /etc/passwd; add it or name another"
    return (
        f"--userns-remap default needs the user {DEFAULT_USER}, which is missing: run `useradd"
        f" --system --user-group --no-create-home {DEFAULT_USER}`, and add a line as"
        f" `{DEFAULT_USER}:165536:{NEEDED_IDS}` to {SUBUID_FILE} and to {SUBGID_FILE}"
    )


def id_mapping(
    user: RemapUser, subuid_file: str = SUBUID_FILE, subgid_file: str = SUBGID_FILE
) -> IdMapping:
    """Read the ranges of a user. Raises ``NotFound`` where there are none, ``InvalidArgument``
    for those that cannot be used."""
    return IdMapping(_ranges(subuid_file, user), _ranges(subgid_file, user))


def read_ranges(path: str) -> list[tuple[str, int, int]]:
    """Return the lines of a file as (owner, first ID, count); a missing file has none.

    Raises ``InvalidArgument`` for a line that is none.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.strip().split(":")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts[1:]):
            raise InvalidArgument(
                f"{path}, line {number}: {line.strip()!r} must have the form USER:FIRST-ID:COUNT"
            )
        found.append((parts[0], int(parts[1]), int(parts[2])))
    return found


def free_range(files: Sequence[str] = (SUBUID_FILE, SUBGID_FILE)) -> int:
    """Return where ``NEEDED_IDS`` IDs begin that no user has: from 100000 on, as useradd does."""
    taken = sorted((first, count) for path in files for _, first, count in read_ranges(path))
    start = 100_000
    for first, count in taken:
        if first < start + NEEDED_IDS and start < first + count:
            start = first + count
    return start


def _ranges(path: str, user: RemapUser) -> IdRanges:
    own = sorted(
        (first, count)
        for owner, first, count in read_ranges(path)
        if owner in (user.name, str(user.uid))
    )
    if not own:
        raise NotFound(
            f"--userns-remap: {path} has no range for the user {user.name}; add a line as"
            f" `{user.name}:{free_range((path,))}:{NEEDED_IDS}`"
        )
    inside = 0
    found = []
    end = 0
    for first, count in own:
        if first == 0 or first < end or first + count > _MAX_ID:
            raise InvalidArgument(
                f"{path}: the range {user.name}:{first}:{count} cannot be used, ranges must not"
                " overlap, include 0 or go beyond 4294967294; correct it"
            )
        found.append((inside, first, count))
        inside += count
        end = first + count
    if inside < NEEDED_IDS:
        raise InvalidArgument(
            f"{path}: the range of the user {user.name} is too small, it has {inside} IDs and"
            f" containers need {NEEDED_IDS}; raise the last number of its line"
        )
    return tuple(found)
