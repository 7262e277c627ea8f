"""Going on with an upload that broke off, with registries that say how far it came.

The distribution specification has a client ask for an upload's status (GET, answered with
``Range``) and send the rest in pieces with ``Content-Range``. docker-registry 2.8 answers 404
after a request that broke off; a blob is sent there from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from deskd import errors
from deskd.registry.failures import Broken, RegistryError, Unreachable
from deskd.registry.repository import Repository

TRIES = 4
PIECE_BYTES = 4 * 1024 * 1024

Body = TypeVar("Body", bound=Iterable[bytes])


def resume(
    repository: Repository,
    location: str,
    begin: Callable[[], Body],
    pause: Callable[[int], None],
) -> tuple[str, Body] | None:
    """Send what a registry lacks of an upload. Return where to complete it and the whole body,
    which was iterated over; None where it has to be sent anew.

    ``begin`` gives the same bytes again, from the first on; ``pause`` waits after failure N.
    """
    for failures in range(TRIES):
        if failures:
            pause(failures - 1)
        try:
            status = repository.upload_status(location)
            if status is None:
                return None
            location, position = status
            body = begin()
            return _send_rest(repository, location, body, position), body
        except (Unreachable, Broken):
            continue
        except RegistryError as error:
            if not error.is_passing:
                return None
        except errors.Unauthorized:
            return None
    return None


def _send_rest(repository: Repository, location: str, body: Iterable[bytes], position: int) -> str:
    for piece in _pieces(_without(body, position)):
        location = repository.send_piece(location, piece, position)
        position += len(piece)
    return location


def _without(body: Iterable[bytes], left: int) -> Iterator[bytes]:
    """Yield a body without its first bytes, which are hashed all the same."""
    for data in body:
        yield data[left:]
        left = max(0, left - len(data))


def _pieces(body: Iterable[bytes]) -> Iterator[bytes]:
    pending = bytearray()
    for data in body:
        pending += data
        if len(pending) >= PIECE_BYTES:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)
