"""Folders as virtiofs devices of a libvirt VM: Vagrant's synced folders, which the agent mounts.

libvirt starts the servers, as root, and can neither cover what is in a folder nor serve it for
reading only. So a folder of which the machine may not have everything is not given to it, and one
for reading only is served by the agent, by SFTP.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

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
    """Return the folders that machine ``name`` is to have as devices, by their paths there: all but
    those for reading only. Raises ``DriverError`` where one cannot be had so."""
    if provider != PROVIDER:
        raise _refusal(name, f"they need the provider {PROVIDER}, and this machine's is {provider}")
    reading = [text.removesuffix(":ro") for text in sharing.folders if text.endswith(":ro")]
    hidden = [place for place in map(os.path.realpath, sharing.hidden) if Path(place).is_dir()]
    found: dict[str, SyncedFolder] = {}
    for path in sharing.folders:
        if path.endswith(":ro"):
            continue
        place = os.path.realpath(path)
        for secret in hidden:
            if is_below(secret, place) or is_below(place, secret):
                raise _refusal(name, f"libvirt cannot keep {secret} from it")
        for kept in map(os.path.realpath, reading):
            if is_below(kept, place):
                raise _refusal(name, f"libvirt cannot keep it from writing {kept}")
        found[in_machine(path, windows=False)] = SyncedFolder(place)
    return found


def _refusal(name: str, why: str) -> DriverError:
    return DriverError(
        f"machine {name} cannot have this computer's folders by virtiofs: {why}",
        hint="Share by SFTP (share-by=sftp), or other folders (share-folder=FOLDER,...).",
    )
