"""virtiofs: shared folders as devices of a QEMU machine, each with a server on this computer.

A server is found as QEMU's specification says (docs/interop/vhost-user.json): by the descriptions
that packages put into ``/usr/share/qemu/vhost-user``. It runs in a mount namespace of its own, in
which what the machine may not see is covered, and what it may only read is mounted so. For a login
that is not root's that is a user namespace too: whatever user a program in a container has, its
files are the login's here. The server ends with the QEMU that it serves.
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
from dataclasses import dataclass
from pathlib import Path

from desk.agent.host_paths import in_machine, is_below
from desk.agent.spec import FolderSharing
from desk.errors import DriverError
from desk.machine import process
from desk.machine.qemu_command import FolderDevice
from desk.paths import MachinePaths

DESCRIPTIONS = (Path("/etc/qemu/vhost-user"), Path("/usr/share/qemu/vhost-user"))
"""Directories of descriptions of servers, the administrator's first."""
_MOST_FILES = 1_000_000
_IDS = (1 << 32) - 1  # user IDs are 32 bits, and the last one means none

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


@dataclass(frozen=True, slots=True)
class Virtiofsd:
    """An installed server. ``new`` is the one in Rust from 1.11 on, which has options of its own
    and serves without root's rights too (it translates IDs since 1.13); older ones take those of
    the one in C, which came with QEMU until version 7.2."""

    program: Path
    new: bool

    def command(self, listener: int, folder: str, uid: int, gid: int) -> list[str]:
        """Return the arguments by which this user serves ``folder`` on a listening descriptor.

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
        if uid:
            words += [*_all_are("uid", uid), *_all_are("gid", gid)]
        return [str(self.program), *both, *words]


def find_virtiofsd(*, as_root: bool | None = None) -> Virtiofsd:
    """Return this computer's server, for root (``None``: if that is who asks). Raises
    ``DriverError`` where it has none that would do."""
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
    raise DriverError(
        f"this computer's folders cannot be had by virtiofs: {problem}",
        hint="Install virtiofsd 1.13 or newer (the package virtiofsd of Debian 13 and Fedora), or"
        " `desk machine set MACHINE share-by=sftp`.",
    )


def _described(file: Path) -> Iterator[Virtiofsd]:
    try:
        told = json.loads(file.read_text("utf-8"))
        program = Path(told["binary"])
        if told["type"] == "fs" and os.access(program, os.X_OK):
            yield Virtiofsd(program, new="separate-options" in told.get("features", ()))
    except (OSError, ValueError, KeyError, TypeError):
        return  # a description of something else, or for another QEMU


def _all_are(kind: str, own: int) -> list[str]:
    """Return options by which every ID of the machine is the login's here, and the login's files
    are the login's there. In the server's user namespace the login's ID is 0."""
    squashed = [(0, own), (own + 1, _IDS - own - 1)]
    words = ["--translate-" + kind, f"map:{own}:0:1"]
    for first, count in squashed:
        if count > 0:
            words += ["--translate-" + kind, f"squash-guest:{first}:0:{count}"]
    return words


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
        """Return what would serve. Raises ``DriverError`` where there is nothing."""
        if sys.platform != "linux":
            raise DriverError(
                "virtiofs needs a Linux computer: QEMU has no virtiofs on this system",
                hint=f"`desk machine set {self._name} share-by=sftp` shares folders by SFTP.",
            )
        return find_virtiofsd()

    def start(self, sharing: FolderSharing) -> dict[str, FolderDevice]:
        """Start a server for each folder; return their devices, by the folders' names there.

        Raises ``DriverError``; none runs then.
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
        except BaseException:
            self.end()
            raise
        return devices

    def _serve(
        self,
        server: Virtiofsd,
        at: Path,
        folder: str,
        read_only: Sequence[str],
        covered: Sequence[str],
    ) -> None:
        uid, gid = os.geteuid(), os.getegid()
        # The server is given the socket: its directory is one of those that are covered for it.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(str(at))
            except OSError as error:
                raise DriverError(
                    f"cannot listen on {at}: {error.strerror or error}",
                    hint="Set DESK_HOME to a shorter directory, if it is the path's length.",
                ) from error
            listener.listen(1)
            argv = [
                *("unshare", *(("--user", "--map-root-user") if uid else ())),
                *("--mount", "--propagation", "slave", "--", "sh", "-ec", _ENTER, "desk-folder"),
                *(folder, str(len(read_only)), *read_only, str(len(covered)), *covered),
                *server.command(listener.fileno(), folder, uid, gid),
            ]
            log = at.with_suffix(".log")
            started = process.spawn_detached(argv, log=log, descriptors=[listener.fileno()])
            process.remember(started, at.with_suffix(".pid"))

    def trouble(self) -> DriverError | None:
        """Return what a server said that has ended before QEMU was connected to it."""
        for file in sorted(self._paths.virtiofs.glob("*.pid")):
            log = file.with_suffix(".log")
            words = process.last_lines(log, 20)
            if process.recall(file) is None and not any(map(_SERVES.search, words)):
                told = " ".join(words[-2:]) or "without a word"
                why = _NO_NAMESPACE if told.startswith("unshare: ") else f"See {log}."
                return DriverError(
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
