"""The folders that this computer shares with its machine: found, served, mounted, watched."""

from __future__ import annotations

import logging
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from desk.agent.changes import FolderChanges
from desk.agent.checkup import Finding
from desk.agent.echoes import Echoes
from desk.agent.folder_devices import Change, FolderDevices
from desk.agent.guest_mounts import GuestMounts
from desk.agent.host_paths import in_machine, is_below, on_host
from desk.agent.link import Link
from desk.agent.sftp import SftpConnection
from desk.agent.shared_tree import UNCHANGED_S, SharedFolder, SharedTree
from desk.agent.spec import FolderSharing
from desk.errors import DeskError, MachineError
from desk.ssh.session import Session
from desk.ssh.stream import ChannelStream

_log = logging.getLogger(__name__)

_LINK_S = 5.0
_UNUSED_S = 60.0
_PROBE_PAUSE_S = 0.05
_WINDOWS = sys.platform == "win32"


@dataclass(frozen=True, slots=True)
class FolderAnswer:
    """What the engine is told of the paths it asked for: ``places`` in the machine, ``reasons`` why
    a path has none; ``refusal`` where it has, but nothing can be mounted."""

    places: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""


@dataclass(slots=True)
class _Mount:
    place: str
    asked_at: float
    users: int = 0


class SharedFolders:
    """One agent's folders; calls may come from any thread.

    A folder is mounted when a container that wants something in it is about to start, and stays for
    as long as one runs that has it; then until nobody asked for a minute.
    """

    def __init__(
        self,
        machine: str,
        link: Link,
        sharing: FolderSharing,
        mounts: GuestMounts,
        devices: FolderDevices,
    ) -> None:
        self._machine = machine
        self._link = link
        self._mounts = mounts
        self._devices = devices
        self._lock = threading.Lock()  # held for moments only
        self._mounting = threading.Lock()  # held while the machine mounts
        self._mounted: dict[str, _Mount] = {}
        self._served: Session | None = None
        self._elsewhere = True  # the machine is another computer
        self._folders = [folder for root in sharing.folders if (folder := _shared(root))]
        self._hidden = [os.path.realpath(place) for place in sharing.hidden]
        self._tree = SharedTree(self._folders, self._hidden, Echoes())
        self._changes = FolderChanges(self._is_echo, self._tell)
        self._error = ""

    # --- the connection ------------------------------------------------------------------------

    def connect(self, session: Session) -> None:
        """Serve over ``session`` from now on, what is mounted already too. Raises ``DeskError``."""
        with self._mounting:
            self._connect(session)

    def _connect(self, session: Session) -> None:
        if self._served is not session and self._folders:
            try:
                self._elsewhere = self._mounts.prepare(session, self._mounts.socket)
                if self._elsewhere:
                    session.listen_unix(self._mounts.socket, self._serve)
                    self._recall(session)
            except DeskError as error:
                self._error = error.text
                raise
            self._served, self._error = session, ""

    def _recall(self, session: Session) -> None:
        """Take over what an earlier agent mounted."""
        places = self._mounts.mounted(session, self._devices.tags.values())
        for folder in self._folders:
            for place in places:
                if self._mounts.is_place_of(folder.name, place):
                    with self._lock:
                        known = self._mounted.get(folder.name)
                        self._mounted[folder.name] = known or _Mount(place, time.monotonic())

    def _serve(self, stream: ChannelStream) -> None:
        try:
            SftpConnection(stream, self._tree).serve()
        finally:
            stream.close()

    def serve_direct(self, connection: socket.socket) -> None:
        """Serve a connection that came past SSH; the caller closes it."""
        SftpConnection(connection, self._tree, f"/{self._mounts.secret}").serve()

    def close(self) -> None:
        """Watch no more, and unmount what nobody uses."""
        self._changes.close()
        self._devices.close()
        session = self._served
        for mount in list(self._mounted.values()):
            if session is None or not session.alive or mount.users:
                continue
            try:
                self._mounts.unmount(session, mount.place)
            except DeskError as error:
                _log.info("%s stays mounted: %s", mount.place, error.text)
                return

    # --- questions -----------------------------------------------------------------------------

    def answer(self, paths: Sequence[str]) -> FolderAnswer:
        """Find folders for a container, and have them mounted."""
        places: dict[str, str] = {}
        reasons: dict[str, str] = {}
        for path in paths:
            found = self._find(path)
            if isinstance(found, str):
                reasons[path] = found
                continue
            folder, below = found
            try:
                places[path] = self._mount(folder) + below
            except DeskError as error:
                return FolderAnswer(refusal=f"{error.text} ({path})")
        return FolderAnswer(places, reasons)

    def _find(self, path: str) -> tuple[SharedFolder, str] | str:
        """Return the shared folder of ``path`` and the way in it, or why there is none."""
        here = on_host(in_machine(path, windows=_WINDOWS), windows=_WINDOWS)
        if not here:
            return f"{path} is no path of this computer: give an absolute one"
        real = os.path.realpath(here)
        folder = next((f for f in self._tree.folders if _is_in(real, f.place)), None)
        try:
            kind = Path(real).stat().st_mode
        except OSError as error:
            if isinstance(error, PermissionError):
                return f"the folder {path} may not be read on this computer by you"
            # These are Docker's words for what --mount does not find.
            return (
                f"bind source path does not exist: {path}: neither this computer nor the machine "
                "has it; make the folder first"
            )
        if folder is None or any(_is_in(real, hidden) for hidden in self._hidden):
            return (
                f"the folder {path} is not shared with the machine: `desk machine set "
                f"{self._machine} share-folder=~,{real}` shares it"
            )
        if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
            return f"{path} is neither a folder nor a file, and nothing else can be shared"
        below = os.path.relpath(real, folder.place).replace(os.sep, "/")
        return folder, "" if below == "." else f"/{below}"

    def _mount(self, folder: SharedFolder) -> str:
        tag = self._devices.tags.get(folder.name, "")
        if tag and (trouble := self._devices.trouble()):
            raise MachineError(
                f"the machine does not have this computer's folders now: {trouble}; `desk machine"
                f" restart {self._machine}` starts it again"
            )
        session = self._link.session(_LINK_S)
        with self._mounting:
            self._connect(session)
            if not self._elsewhere:
                return folder.name
            place = self._mounts.mount(session, folder.name, tag)
        with self._lock:
            known = self._mounted.get(folder.name)
            if known is None or known.place != place:
                known = self._mounted[folder.name] = _Mount(place, 0.0)
            known.asked_at = time.monotonic()
            return place

    # --- use -----------------------------------------------------------------------------------

    def reconcile(self, containers: Iterable[Mapping[str, Any]]) -> None:
        """Learn what running containers (``/containers/json``) use: watch it, unmount the rest."""
        sources = [
            str(mount.get("Source", ""))
            for container in containers
            for mount in container.get("Mounts") or []
        ]
        watched: dict[str, str] = {}
        devices: list[str] = []
        with self._lock:
            for folder in self._folders:
                mount = self._mounted.get(folder.name)
                if mount is None:
                    continue
                used = [source for source in sources if is_below(source, mount.place)]
                mount.users = len(used)
                if used and folder.name in self._devices.tags:
                    devices.append(mount.place)
                for source in used:
                    below = source[len(mount.place) :].strip("/")
                    here = str(Path(folder.place, *below.split("/")))
                    watched[here] = f"{folder.name}/{below}".rstrip("/")
        self._devices.use(devices)
        self._unmount_unused()
        self._changes.watch(watched)  # soon: what changes before that is not told
        if self._served is not None:
            self._devices.follow(self._served)

    @property
    def has_unused(self) -> bool:
        """Whether something is mounted that no container uses."""
        with self._lock:
            return any(not mount.users for mount in self._mounted.values())

    def _unmount_unused(self) -> None:
        session = self._served
        if session is None or not session.alive or not self._mounting.acquire(blocking=False):
            return
        try:
            for name, mount in list(self._mounted.items()):
                now = time.monotonic()
                if mount.users or now - mount.asked_at < _UNUSED_S:
                    continue
                if self._mounts.unmount(session, mount.place):
                    _log.info("%s is unmounted in the machine", name)
                    with self._lock:
                        del self._mounted[name]
                else:
                    mount.asked_at = now  # not before another while
        except DeskError as error:
            _log.info("unused folders stay mounted: %s", error.text)
        finally:
            self._mounting.release()

    def _is_echo(self, name: str, look: Callable[[], os.stat_result | None]) -> bool | None:
        folder = next((f.name for f in self._tree.folders if is_below(name, f.name)), "")
        if folder in self._devices.tags:
            return self._devices.is_echo(name, look())
        return self._tree.echoes.is_one(name, look)

    def _tell(self, names: Sequence[str]) -> None:
        """Have the machine's watchers see changes of these files, by their names in the machine."""
        session = self._link.session(_LINK_S, urgent=False)
        with self._lock:
            places = {
                folder.name: (folder, mount.place)
                for folder in self._folders
                if (mount := self._mounted.get(folder.name)) is not None
            }
        paths: list[str] = []
        changes: list[Change] = []
        for name in names:
            for root, (folder, place) in places.items():
                if not is_below(name, root):
                    continue
                below = name[len(root) :]
                if root in self._devices.tags:
                    here = folder.place + below.replace("/", os.sep)
                    changes.append(Change(name, here, place + below))
                else:
                    paths.append(place + below)
        if paths:
            self._mounts.tell(session, paths, UNCHANGED_S)
        if changes:
            self._devices.tell(session, changes)

    def describe(self) -> list[dict[str, object]]:
        """Return every shared folder with its place in the machine, for status."""
        with self._lock:
            return [
                {
                    "folder": folder.place,
                    "mounted": mount.place if mount else "",
                    "containers": mount.users if mount else 0,
                    "error": self._error or self._changes.error,
                    "way": "virtiofs" if folder.name in self._devices.tags else "sftp",
                }
                for folder in self._folders
                for mount in [self._mounted.get(folder.name)]
            ]

    def probe(self, session: Session, timeout_s: float) -> list[Finding]:
        """Look at every mounted folder in the machine; return a finding for each."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            mounted = [(name, mount.place) for name, mount in self._mounted.items()]
        while mounted and self._served is not session and time.monotonic() < deadline:
            time.sleep(_PROBE_PAUSE_S)  # they are served over the new connection in a moment
        findings = []
        for name, place in mounted:
            left_s = max(0.0, deadline - time.monotonic())
            trouble = self._devices.trouble() if name in self._devices.tags else ""
            trouble = trouble or self._mounts.trouble(session, place, left_s)
            fault = f"folder {name} cannot be read in the machine: {trouble}" if trouble else ""
            findings.append(Finding("folder", fault=fault))
        return findings


def _shared(text: str) -> SharedFolder | None:
    """Return the folder that a setting names: a path, with ``:ro`` at its end or not."""
    path = text.removesuffix(":ro")
    name = in_machine(path, windows=_WINDOWS)
    if not name:
        _log.warning("%s cannot be shared: it is no absolute path", path)
        return None
    return SharedFolder(name, os.path.realpath(path), writable=path == text)


def _is_in(path: str, root: str) -> bool:
    path, root = os.path.normcase(path), os.path.normcase(root)
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
