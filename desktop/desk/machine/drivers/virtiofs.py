"""virtiofs: shared folders as devices of a QEMU machine, each with a server on this computer.

A server is found as QEMU's specification says (docs/interop/vhost-user.json): by the descriptions
that packages put into ``/usr/share/qemu/vhost-user``. It runs in a mount namespace of its own, in
which what the machine may not see is covered, and what it may only read is mounted so. For a login
that is not root's that is a user namespace too: what root and the login's own number write in the
machine is the login's here, and other users of containers have the login's subordinate IDs
(subuid(5)). The server ends with the QEMU that it serves.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from desk.agent.host_paths import in_machine, is_below
from desk.agent.spec import FolderSharing
from desk.errors import DriverError
from desk.machine import process
from desk.machine.qemu_command import SAVES_FOLDERS_SINCE, FolderDevice
from desk.paths import MachinePaths
from desk.whole_file import replace_file

DESCRIPTIONS = (Path("/etc/qemu/vhost-user"), Path("/usr/share/qemu/vhost-user"))
"""Directories of descriptions of servers, the administrator's first."""
SUBORDINATE_IDS = (Path("/etc/subuid"), Path("/etc/subgid"))
_MOST_FILES = 1_000_000
_IDS = (1 << 32) - 1  # user IDs are 32 bits, and the last one means none
_MOST_OWNERS = (1 << 16) - 1  # what images use; the number of nobody is the last but one
_MOST_HANDLE_BYTES, _AT_FDCWD = 128, -100  # of fcntl.h

_SERVES = re.compile("Client connected|Received vhost-user socket connection")
"""What the servers say when QEMU has connected: what follows is the end of QEMU, not theirs."""

_NO_NAMESPACE = (
    "This system refuses user namespaces to programs: `sysctl"
    " kernel.apparmor_restrict_unprivileged_userns=0` (Ubuntu) allows them."
)

# Arguments: the folder; how many places in it are for reading only, and these; how many are to be
# covered, and these; the server's command.
_ENTER = """
read_only() {
  while read -r _ _ _ _ place options _; do
    place=$(printf %b. "$place")
    case ${place%.} in
      # With the flags that a mount has: those of another user's mounts are not ours to drop.
      "$1" | "${1%/}"/*) mount -o "remount,bind,$options,ro" "${place%.}" ;;
    esac
  done </proc/self/mountinfo
}
mount --rbind "$1" "$1"
shift
for what in read_only cover; do
  count=$1
  shift
  while [ "$count" -gt 0 ]; do
    if [ $what = cover ]; then
      mount -t tmpfs -o ro,nosuid,nodev,noexec,mode=000,size=4k none "$1"
    else
      mount --rbind "$1" "$1"
      read_only "$1"
    fi
    shift
    count=$((count - 1))
  done
done
exec "$@"
"""


class ServerError(DriverError):
    """A server cannot be had, or did not start."""


@dataclass(frozen=True, slots=True)
class Login:
    """Whom a server works for, by number, and how many subordinate IDs the login has, from the
    first of them on, for users and groups of containers; none without ``newuidmap``."""

    uid: int
    gid: int
    uids: range = range(0)
    gids: range = range(0)

    @classmethod
    def own(cls) -> Login:
        """Return who asks."""
        uid, gid = os.geteuid(), os.getegid()
        if uid == 0 or None in map(shutil.which, ("newuidmap", "newgidmap")):
            return cls(uid, gid)
        uids, gids = (_subordinate(file, uid) for file in SUBORDINATE_IDS)
        return cls(uid, gid, uids, gids) if uids and gids else cls(uid, gid)

    @property
    def keeps_owners(self) -> bool:
        """Whether users of containers stay apart in what they write."""
        return self.uid == 0 or bool(self.uids)

    def namespace(self) -> list[str]:
        """Return options of ``unshare`` for a user namespace in which this login is root, and its
        subordinate IDs are the numbers from 1 on; none for root, who needs no such namespace."""
        if not self.uid:
            return []
        blocks = (("users", self.uids), ("groups", self.gids))
        more = [f"--map-{who}={ids.start},1,{len(ids)}" for who, ids in blocks if ids]
        return ["--user", "--map-root-user", *more]

    def translation(self) -> list[str]:
        """Return the options by which virtiofsd translates the machine's IDs to the namespace's:
        the login's number and root's are the login, those of which there are subordinate IDs
        themselves, and all others the login again. None for root."""
        if not self.uid:
            return []
        return [*_translated("uid", self.uid, self.uids), *_translated("gid", self.gid, self.gids)]


@dataclass(frozen=True, slots=True)
class Virtiofsd:
    """An installed server. ``new`` is the one in Rust from 1.11 on, which has options of its own
    and serves without root's rights too (it translates IDs since 1.13); older ones take those of
    the one in C, which came with QEMU until version 7.2. One that ``saves`` gives QEMU its state to
    save with the machine's."""

    program: Path
    new: bool
    saves: bool = False

    def command(self, listener: int, folder: str, login: Login) -> list[str]:
        """Return the arguments for serving ``folder`` to ``login`` on a listening descriptor.

        What changes here is seen in the machine within a second ("auto"), as with SFTP; device
        files are not made, since they would be this computer's.
        """
        both = [f"--fd={listener}", f"--rlimit-nofile={_file_limit()}"]
        if not self.new:
            source = folder.replace("\\", "\\\\").replace(",", "\\,")
            options = (f"source={source}", "cache=auto", "sandbox=chroot", "modcaps=-mknod")
            words = [word for option in options for word in ("-o", option)]
            return [str(self.program), *both, *words]
        words = ["--shared-dir", folder, "--cache", "auto", "--sandbox", "chroot"]
        words += ["--no-announce-submounts", "--modcaps=-mknod"]
        if self.saves:
            # A parked machine's files go on changing here: what is another file, or gone, when the
            # machine goes on is an error for those who had it open, and for nobody else.
            words += ["--migration-on-error", "guest-error"]
            if _has_handles(folder):
                words.append("--migration-verify-handles")
        return [str(self.program), *both, *words, *login.translation()]


def find_virtiofsd(*, as_root: bool | None = None) -> Virtiofsd:
    """Return this computer's server, for root (``None``: if that is who asks). Raises
    ``ServerError`` where it has none that would do."""
    by_name: dict[str, Path] = {}
    for directory in DESCRIPTIONS:
        with contextlib.suppress(OSError):
            for file in directory.glob("*.json"):
                by_name.setdefault(file.name, file)  # the administrator's hides the package's
    found = [server for name in sorted(by_name) for server in _described(by_name[name])]
    as_root = os.geteuid() == 0 if as_root is None else as_root
    usable = [server for server in found if server.new or as_root]
    if usable:
        return max(usable, key=lambda server: server.new)
    problem = (
        f"{found[0].program} serves folders to root only" if found else "virtiofsd is not installed"
    )
    raise ServerError(
        f"this computer's folders cannot be had by virtiofs: {problem}",
        hint="Install virtiofsd 1.13 or newer (the package virtiofsd of Debian 13 and Fedora), or"
        " `desk machine set MACHINE share-by=sftp`.",
    )


def cost(qemu_version: tuple[int, int, int]) -> str:
    """Return what somebody who is asked for nothing would lose by virtiofs on this computer, or
    why there is none; empty where it can be had without a loss."""
    if sys.platform != "linux":
        return "QEMU has no virtiofs on this system"
    if qemu_version < SAVES_FOLDERS_SINCE:
        return "QEMU parks no machine with virtiofs before 8.2"
    try:
        server = find_virtiofsd()
    except ServerError as error:
        return error.text
    if not server.saves:
        return f"{server.program} is older than 1.11, and a machine with it cannot be parked"
    if not Login.own().keeps_owners:
        return (
            "users of containers would not stay apart without subordinate IDs of yours in"
            " /etc/subuid and /etc/subgid, and newuidmap (the package uidmap)"
        )
    return ""


def _described(file: Path) -> Iterator[Virtiofsd]:
    try:
        told = json.loads(file.read_text("utf-8"))
        program = Path(told["binary"])
        if told["type"] == "fs" and os.access(program, os.X_OK):
            features = told.get("features", ())
            new = "separate-options" in features
            yield Virtiofsd(program, new=new, saves=new and "migrate-precopy" in features)
    except (OSError, ValueError, KeyError, TypeError):
        return  # a description of something else, or for another QEMU


def _subordinate(file: Path, uid: int) -> range:
    """Return the first block of IDs that a file of subuid(5) gives to a login; empty for none."""
    import pwd

    owners = {str(uid)}
    with contextlib.suppress(KeyError):
        owners.add(pwd.getpwuid(uid).pw_name)
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text("utf-8", "replace").splitlines():
            owner, _, block = line.partition(":")
            if owner in owners:
                first, count = map(int, block.split(":"))
                return range(first, first + min(count, _MOST_OWNERS))
    return range(0)


def _translated(kind: str, own: int, subordinate: range) -> list[str]:
    """Return the options of one kind of ID. Subordinate IDs are the namespace's from 1 on; its 0 is
    the login."""
    last = len(subordinate)
    rules = [f"map:{own}:0:1", "squash-guest:0:0:1"]
    for first, end in ((1, min(own, last + 1)), (own + 1, last + 1)):
        if first < end:
            rules.append(f"map:{first}:{first}:{end - first}")
    for first, end in ((last + 1, own), (max(last, own) + 1, _IDS)):
        if first < end:
            rules.append(f"squash-guest:{first}:0:{end - first}")
    return [word for rule in rules for word in (f"--translate-{kind}", rule)]


def _has_handles(folder: str) -> bool:
    """Whether the file system has handles for its files (name_to_handle_at(2)), by which a file is
    told from another one of its name. An overlay has none; there the names count."""
    import ctypes

    handle = (ctypes.c_ubyte * (8 + _MOST_HANDLE_BYTES))()
    ctypes.c_uint.from_buffer(handle).value = _MOST_HANDLE_BYTES
    mount = ctypes.c_int()
    ask = ctypes.CDLL(None).name_to_handle_at
    return bool(ask(_AT_FDCWD, os.fsencode(folder), handle, ctypes.byref(mount), 0) == 0)


def _file_limit() -> int:
    """Return how many files a server may hold: one for each that the machine knows."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)


class VirtiofsServers:
    """The servers of one machine."""

    def __init__(self, name: str, paths: MachinePaths) -> None:
        self._name = name
        self._paths = paths

    def check(self) -> Virtiofsd:
        """Return what would serve. Raises ``ServerError`` where there is nothing."""
        if sys.platform != "linux":
            raise ServerError(
                "virtiofs needs a Linux computer: QEMU has no virtiofs on this system",
                hint=f"`desk machine set {self._name} share-by=sftp` shares folders by SFTP.",
            )
        return find_virtiofsd()

    def start(self, sharing: FolderSharing) -> dict[str, FolderDevice]:
        """Start a server for each folder; return their devices, by the folders' names there.

        Raises ``ServerError``; none runs then.
        """
        self.end()
        shutil.rmtree(self._paths.virtiofs, ignore_errors=True)
        if not sharing.folders:
            return {}
        server = self.check()
        self._paths.virtiofs.mkdir(mode=0o700, exist_ok=True)
        hidden = [place for place in sharing.hidden if Path(place).is_dir()]
        devices: dict[str, FolderDevice] = {}
        try:
            roots = [(os.path.realpath(text.removesuffix(":ro")), text) for text in sharing.folders]
            reading = [folder for folder, text in roots if text.endswith(":ro")]
            for number, (folder, text) in enumerate(roots):
                if any(is_below(folder, place) for place in hidden):
                    continue  # nothing of it may be seen
                at = self._paths.virtiofs / f"{number}.sock"
                self._serve(server, at, folder, _in(folder, reading), _in(folder, hidden))
                name = in_machine(text.removesuffix(":ro"), windows=False)
                devices[name] = FolderDevice(f"desk-folder-{number}", at)
            replace_file(self._served, json.dumps(asdict(sharing)).encode())
        except BaseException:
            self.end()
            raise
        return devices

    def start_again(self) -> None:
        """Start the servers that there were, whatever was set since: a saved machine has just
        these. Raises ``ServerError``; none runs then."""
        try:
            told = json.loads(self._served.read_text("utf-8"))
            sharing = FolderSharing(tuple(told["folders"]), tuple(told["hidden"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{self._served} is damaged") from error
        self.start(sharing)

    @property
    def _served(self) -> Path:
        return self._paths.virtiofs / "sharing.json"

    def _serve(
        self,
        server: Virtiofsd,
        at: Path,
        folder: str,
        read_only: Sequence[str],
        covered: Sequence[str],
    ) -> None:
        login = Login.own()
        # The server is given the socket: its directory is one of those that are covered for it.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(str(at))
            except OSError as error:
                raise ServerError(
                    f"cannot listen on {at}: {error.strerror or error}",
                    hint="Set DESK_HOME to a shorter directory, if it is the path's length.",
                ) from error
            listener.listen(1)
            argv = [
                *("unshare", *login.namespace()),
                *("--mount", "--propagation", "slave", "--", "sh", "-ec", _ENTER, "desk-folder"),
                *(folder, str(len(read_only)), *read_only, str(len(covered)), *covered),
                *server.command(listener.fileno(), folder, login),
            ]
            log = at.with_suffix(".log")
            started = process.spawn_detached(argv, log=log, descriptors=[listener.fileno()])
            process.remember(started, at.with_suffix(".pid"))

    def trouble(self) -> ServerError | None:
        """Return what a server said that has ended before QEMU was connected to it."""
        for file in sorted(self._paths.virtiofs.glob("*.pid")):
            log = file.with_suffix(".log")
            words = process.last_lines(log, 20)
            if process.recall(file) is None and not any(map(_SERVES.search, words)):
                told = " ".join(words[-2:]) or "without a word"
                why = _NO_NAMESPACE if told.startswith("unshare: ") else f"See {log}."
                return ServerError(
                    f"a virtiofs server of machine {self._name} did not start: {told}",
                    hint=f"{why} `desk machine set {self._name} share-by=sftp` shares folders"
                    " without it.",
                )
        return None

    def end(self) -> None:
        """End what runs of them; their logs stay. Idempotent."""
        for file in self._paths.virtiofs.glob("*.pid"):
            running = process.recall(file)
            if running is not None:
                running.kill()
            file.unlink()
        for file in self._paths.virtiofs.glob("*.sock"):
            file.unlink()


def _in(folder: str, places: Sequence[str]) -> list[str]:
    return [place for place in places if is_below(place, folder)]
