"""Folders as virtiofs devices of a libvirt VM: Vagrant's synced folders, which the agent mounts.

libvirt starts the servers, as root, and can neither cover what is in a folder nor serve it for
reading only. So a folder of which the machine may not have everything is not given to it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from desk.agent.host_paths import in_machine, is_below
from desk.agent.spec import FolderSharing
from desk.errors import DriverError

PROVIDER = "libvirt"
"""The only one whose synced folders are virtiofs devices."""
_TAG_CHARACTERS = 31


@dataclass(frozen=True, slots=True)
class SyncedFolder:
    """A folder of this computer, at the absolute path ``place``."""

    place: str

    @property
    def tag(self) -> str:
        """The tag that vagrant-libvirt gives the device (``cap/synced_folder_virtiofs.rb``)."""
        digest = hashlib.md5(os.fsencode(self.place), usedforsecurity=False)
        return digest.hexdigest()[:_TAG_CHARACTERS]


def synced_folders(name: str, provider: str, sharing: FolderSharing) -> dict[str, SyncedFolder]:
    """Return the folders that machine ``name`` is to have as devices, by their paths there. Raises
    ``DriverError`` where one cannot be had so."""
    if provider != PROVIDER:
        raise _refusal(name, f"they need the provider {PROVIDER}, and this machine's is {provider}")
    found: dict[str, SyncedFolder] = {}
    for text in sharing.folders:
        path = text.removesuffix(":ro")
        if path != text:
            raise _refusal(name, f"libvirt cannot share {path} for reading only")
        place = os.path.realpath(path)
        for hidden in filter(os.path.isdir, map(os.path.realpath, sharing.hidden)):
            if is_below(hidden, place) or is_below(place, hidden):
                raise _refusal(name, f"libvirt cannot keep {hidden} from it")
        found[in_machine(path, windows=False)] = SyncedFolder(place)
    return found


def _refusal(name: str, why: str) -> DriverError:
    return DriverError(
        f"machine {name} cannot have this computer's folders by virtiofs: {why}",
        hint="Share by SFTP (share-by=sftp), or other folders (share-folder=FOLDER,...).",
    )
