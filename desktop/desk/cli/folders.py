"""Folders of this computer, mounted into containers: who has them, and who does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from desk.errors import UsageError

if TYPE_CHECKING:
    from desk.cli.session import Session

_OF_THE_MACHINE = (
    "/dev", "/lib/modules", "/proc", "/run/desk", "/sys", "/var/lib/desk", "/var/run/docker.sock",
)  # fmt: skip
"""Paths that mean the machine's own, whatever this computer has there: the kernel that a container
runs on is the machine's, and so are its modules."""


def check(session: Session, folders: Iterable[str]) -> None:
    """Raise ``UsageError`` for the first folder that the machine in use does not have.

    An engine that was named by its address gets paths as they are, as from any Docker client.
    """
    wanted = [folder for folder in folders if not _is_the_machines(folder)]
    if not wanted or session.engine_url or not session.desk.has_machine(session.machine):
        return
    details = session.desk.manager.inspect(session.machine)
    if not details["features"]["has_ssh"]:
        return  # the engine is on this very computer
    raise UsageError(
        f"machine {session.machine} does not share folders of this computer, so {wanted[0]}"
        " would be empty in the container",
        hint="Copy with `desk cp`, or keep the files in a named volume (-v NAME:/path).",
    )


def _is_the_machines(folder: str) -> bool:
    return any(folder == root or folder.startswith(root + "/") for root in _OF_THE_MACHINE)
