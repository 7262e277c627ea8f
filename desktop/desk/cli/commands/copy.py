"""``desk cp``: files between a container and this computer, by Docker's rules.

The copy of a directory becomes the target when that does not exist, and goes into it when it is
a directory; ``DIRECTORY/.`` copies the content only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import click

from desk.cli import complete, render
from desk.cli.archive import ArchiveSource, local_archive, pack, unpack
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session
from desk.engine.client import EngineClient
from desk.errors import Conflict, EngineError, InvalidRequest, NotFound

_DIRECTORY = 1 << 31  # Go's file mode bits, in which the API tells a path's stat
_SYMLINK = 1 << 27


class Place(NamedTuple):
    """One end of a copy; ``container`` is empty for this computer."""

    container: str
    path: str


def parse_place(text: str) -> Place:
    """Split ``CONTAINER:PATH``; an absolute or dotted path is this computer's, and so is a
    Windows path with a drive letter."""
    if text == "-" or text.startswith(("/", ".", "~")):
        return Place("", text)
    container, separator, path = text.partition(":")
    if not separator or (sys.platform == "win32" and len(container) == 1):
        return Place("", text)
    return Place(container, path)


@click.command(
    cls=DeskCommand,
    example="desk cp web:/etc/nginx/nginx.conf .\ndesk cp site/. web:/usr/share/nginx/html",
)
@click.option("-a", "--archive", is_flag=True, help="Give the files to the container's user.")
@click.option("-L", "--follow-link", is_flag=True, help="Follow a symbolic link in the source.")
@click.option("-q", "--quiet", is_flag=True, help="Do not tell what was copied.")
@click.argument("source", metavar="[CONTAINER:]SOURCE|-", shell_complete=complete.places)
@click.argument("target", metavar="[CONTAINER:]TARGET|-", shell_complete=complete.places)
@pass_session
def cp(
    session: Session, source: str, target: str, archive: bool, follow_link: bool, quiet: bool
) -> None:
    """Copy files between a container and this computer."""
    origin, goal = parse_place(source), parse_place(target)
    if bool(origin.container) == bool(goal.container):
        raise InvalidRequest(
            "one side must be a container, the other this computer",
            hint="Write CONTAINER:PATH for the container's side.",
        )
    for place, text in ((origin, source), (goal, target)):
        if not place.path:
            raise InvalidRequest(f"{text!r} names no path", hint="Write CONTAINER:/path.")
    client = session.client
    if origin.container:
        count = _copy_out(client, origin, goal.path, follow_link=follow_link)
    else:
        count = _copy_in(client, origin.path, goal, keep_owner=archive, follow_link=follow_link)
    if not quiet and count is not None and sys.stderr.isatty():
        from desk.cli.units import human_size

        render.note(f"Successfully copied {human_size(count)} to {target}")


# --- from a container ---------------------------------------------------------------------------


def _copy_out(client: EngineClient, origin: Place, target: str, *, follow_link: bool) -> int | None:
    path = origin.path
    if follow_link:
        stat = client.containers.stat_archive(origin.container, path)
        if stat["mode"] & _SYMLINK:
            path = str(PurePosixPath(path).parent / stat["linkTarget"])
    stream, stat = client.containers.get_archive(origin.container, path)
    with stream:
        if target == "-":
            for piece in stream:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return None
        is_directory = bool(stat["mode"] & _DIRECTORY)
        content_only = is_directory and _means_content(path)
        return unpack(
            stream,
            Path(target).expanduser(),
            ends_with_slash=target.endswith(("/", os.sep)),
            is_directory=is_directory,
            content_only=content_only,
        )


def _means_content(path: str) -> bool:
    return path.endswith("/.") or path == "."


# --- into a container ---------------------------------------------------------------------------


def _copy_in(
    client: EngineClient, source: str, goal: Place, *, keep_owner: bool, follow_link: bool
) -> int | None:
    calls = client.containers
    stat = _stat(client, goal)
    if stat is not None and stat["mode"] & _SYMLINK:
        link = str(PurePosixPath(goal.path).parent / stat["linkTarget"])
        goal = Place(goal.container, link)
        stat = _stat(client, goal)
    is_directory = stat is not None and bool(stat["mode"] & _DIRECTORY)
    if source == "-":
        if not is_directory:
            raise NotFound(
                f"{goal.path} in container {goal.container} is no directory",
                hint="An archive from standard input is unpacked into a directory.",
            )
        pieces = iter(lambda: sys.stdin.buffer.read(256 * 1024), b"")
        calls.put_archive(goal.container, goal.path, pieces, keep_owner=keep_owner)
        return None
    origin = local_archive(Path(source).expanduser(), source, follow_link=follow_link)
    directory, name = _placement(origin, goal, exists=stat is not None, is_directory=is_directory)
    pieces = pack(origin, name)
    calls.put_archive(
        goal.container, directory, pieces, overwrite_directories=False, keep_owner=keep_owner
    )
    return origin.size_bytes


def _placement(
    origin: ArchiveSource, goal: Place, *, exists: bool, is_directory: bool
) -> tuple[str, str]:
    """Return the directory to unpack into, and the name that the source gets there (empty for
    its content only)."""
    if is_directory:
        return goal.path, "" if origin.content_only else origin.path.name
    path = PurePosixPath(goal.path)
    if origin.is_directory and exists:
        raise Conflict(f"cannot copy a directory onto the file {goal.path}")
    if not origin.is_directory and goal.path.endswith("/"):
        raise NotFound(
            f"directory {goal.path} does not exist in container {goal.container}",
            hint="Make it first, or leave the slash out to give the file that name.",
        )
    return str(path.parent), path.name


def _stat(client: EngineClient, goal: Place) -> dict[str, Any] | None:
    try:
        return client.containers.stat_archive(goal.container, goal.path)
    except EngineError as error:
        if error.status != 404:
            raise
        # Tell a missing container from a missing path.
        client.containers.inspect(goal.container)
        return None
