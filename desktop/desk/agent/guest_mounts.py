"""Mounting this computer's folders in the machine: sshfs there, over the agent's SSH connection.

sshfs does not dial an SSH server: ``deskd dial-stdio`` joins it to a socket on which the machine's
sshd listens for the agent. Where the machine has an address for folders (``direct_folders``), sshfs
connects to that by itself, which is three times as fast. When the connection breaks, sshfs answers
with errors until the next agent listens, and goes on then (``-o reconnect``).

A folder that the machine has as a virtiofs device is mounted by its tag, and the agent serves
nothing of it.
"""

from __future__ import annotations

import logging
import math
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from desk.errors import MachineError, SshError
from desk.ssh.session import CommandResult, Session

_log = logging.getLogger(__name__)

DIRECTORY = "/run/desk-folders"
_PATIENCE_S = 45.0
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

_PREPARE = """
mkdir -p "$1" && chmod 711 "$1" && rm -f "$3" && mkdir -p "$2" && chmod 700 "$2" &&
chown "${SUDO_UID:-$(id -u)}" "$2" && cat /proc/sys/kernel/random/boot_id
"""

# Arguments: the mount's name or the device's tag, the folder, the command that connects (empty: it
# is a device), the address for folders or an empty text, the secret, then one place after the
# other, each followed by its spelling in /proc/mounts. Tells how it is mounted ("direct", "by ssh",
# "by virtiofs", "before") and, on another line, where.
_MOUNT = """
name=$1 folder=$2 dial=$3 address=$4 secret=$5
shift 5
links= kind=fuse.sshfs
if [ -z "$dial" ]; then
  kind=virtiofs
  modprobe virtiofs 2>/dev/null
else
  command -v sshfs >/dev/null || { echo "sshfs is not installed there" >&2; exit 1; }
  [ -c /dev/fuse ] || modprobe fuse 2>/dev/null
  # Debian's sshfs refuses links with ".." and absolute ones unless told otherwise. A link means
  # what it means in the container that follows it.
  case "$(sshfs --help 2>&1)" in *no_contain_symlinks*) links=,no_contain_symlinks ;; esac
fi
words="no place for it is free there"
# Each connection to the address starts a process on the other computer: only what is in this
# control group may have one, and no container, not even one in the machine's own network.
guard() {
  mkdir -p /sys/fs/cgroup/desk-folders && nft -f - <<END
table ip desk_folders
delete table ip desk_folders
table ip desk_folders {
  chain forward { type filter hook forward priority -10; ip daddr $1 drop; }
  chain output {
    type filter hook output priority -10
    ip daddr $1 socket cgroupv2 level 1 "desk-folders" accept
    ip daddr $1 drop
  }
}
END
}
directly() (
  [ -n "$address" ] && guard "${address%:*}" || exit 1
  echo 0 >/sys/fs/cgroup/desk-folders/cgroup.procs || exit 1
  from="${address%:*}:/$secret$folder"
  sshfs "$from" "$place" -o "directport=${address#*:}" -o "fsname=$name" -o "OPTIONS$links"
)
by_ssh() {
  sshfs "$name:$folder" "$place" -o "ssh_command=$dial" -o "fsname=$name" -o "OPTIONS$links"
}
attach() {
  if [ $kind = virtiofs ]; then
    way="by virtiofs"
    words=$(mount -t virtiofs -o nosuid,nodev,noatime "$name" "$place" 2>&1)
  elif directly >/dev/null 2>&1 </dev/null; then
    way=direct
  else
    way="by ssh"
    words=$(by_ssh 2>&1 </dev/null)
  fi
}
while [ $# -gt 1 ]; do
  place=$1 spelled=$2
  shift 2
  if grep -qF "$name $spelled $kind " /proc/mounts; then
    for try in 1 2; do
      timeout 15 ls -d "$place/." >/dev/null 2>&1 && { printf 'before\n%s' "$place"; exit 0; }
    done
    umount -l "$place"
  fi
  grep -qF " $spelled " /proc/mounts && continue
  mkdir -p "$place" 2>/dev/null && [ -z "$(ls -A "$place")" ] || continue
  attach && { printf '%s\n%s' "$way" "$place"; exit 0; }
  rmdir "$place"
done
echo "$words" >&2
exit 1
"""

# default_permissions is not among them: whether a file may be read or written is decided by who
# this computer's user is, whichever user the program in the container has.
OPTIONS = (
    "allow_other,reconnect,nosuid,nodev,noatime,dcache_timeout=1,entry_timeout=1,attr_timeout=1,"
    "max_read=131072"
)

_UNMOUNT = """
umount "$1" && rmdir "$1"
"""

# The time is UNCHANGED of the SFTP server: nothing changes but what watchers in the machine see.
_TELL = "xargs -0 touch -c -h -m -d @{time} 2>/dev/null"


@dataclass(frozen=True, slots=True)
class GuestMounts:
    """The mounts of one agent. ``dial`` is the machine's command that joins its standard streams
    to a socket, ``by_sudo`` whether the login is not root's, ``address`` where the machine reaches
    the agent without SSH (empty: nowhere), with ``secret`` before each path."""

    agent: str
    dial: str
    by_sudo: bool = False
    address: str = ""
    secret: str = ""

    @property
    def socket(self) -> str:
        """Where the machine's sshd listens for this agent."""
        return f"{DIRECTORY}/{self.agent}/agent.sock"

    @property
    def local_services(self) -> str:
        """Where it listens for connections to this agent's computer."""
        return f"{DIRECTORY}/{self.agent}/services.sock"

    @property
    def name(self) -> str:
        """How the mounts are named in the machine's list of mounts."""
        return f"desk-{self.agent}"

    def prepare(self, session: Session, path: str) -> bool:
        """Make way for a socket; return whether the machine is another computer than this one,
        which has its own folders already. Raises ``MachineError``."""
        done = self._run(session, _PREPARE, (DIRECTORY, f"{DIRECTORY}/{self.agent}", path))
        try:
            return done.stdout.strip() != Path(_BOOT_ID).read_bytes().strip()
        except OSError:
            return True  # this is no Linux

    def mount(self, session: Session, folder: str, tag: str = "") -> str:
        """Return where ``folder`` (a path of the machine) is mounted, after mounting it there: at
        the same path, or aside where the machine has something of its own there. ``tag`` is that of
        the device that it is in the machine; without one it is served by the agent.

        Raises ``MachineError``; nothing is mounted then.
        """
        script = _MOUNT.replace("OPTIONS", OPTIONS)
        dial = "" if tag else f"{self.dial} --host=unix://{self.socket}"
        spelled = [text for place in self._places(folder) for text in (place, _as_in_mounts(place))]
        words = (tag or self.name, folder, dial, self.address, self.secret, *spelled)
        way, _, place = self._run(session, script, words).stdout.decode().partition("\n")
        if way != "before":
            _log.info("%s is mounted in the machine, %s", folder, way)
        return place

    def is_place_of(self, folder: str, place: str) -> bool:
        """Tell whether ``place`` is one where ``mount`` puts ``folder``."""
        return place in self._places(folder)

    def _places(self, folder: str) -> tuple[str, str]:
        return folder, f"{DIRECTORY}/{self.agent}/mounts{folder}"

    def mounted(self, session: Session, tags: Collection[str] = ()) -> list[str]:
        """Return the places of this agent's mounts that the machine has now, and of the devices
        with these tags."""
        lines = session.run("cat /proc/mounts").stdout.decode("utf-8", "surrogateescape")
        fields = [line.split(" ") for line in lines.splitlines()]
        return [
            _ESCAPE.sub(_unescape, name)
            for source, name, kind, *_ in fields
            if source == self.name or (kind == "virtiofs" and source in tags)
        ]

    def unmount(self, session: Session, place: str) -> bool:
        """Unmount what ``mount`` returned; return false where something uses it."""
        return self._command(session, _UNMOUNT, (place,)).exit_code == 0

    def trouble(self, session: Session, place: str, timeout_s: float) -> str:
        """Return why a mounted folder cannot be read; empty where it can."""
        seconds = max(1, math.ceil(timeout_s))
        command = shlex.join(["timeout", str(seconds), "stat", "-t", f"{place}/."])
        try:
            done = session.run(f"{self._sudo}{command} >/dev/null", timeout_s=timeout_s + 1)
        except SshError as error:
            return error.text
        if done.exit_code == 0:
            return ""
        words = " ".join(done.stderr.decode("utf-8", "replace").split())
        return words or f"no answer within {seconds} s"

    def tell(self, session: Session, paths: Sequence[str], time_s: int) -> None:
        """Have watchers in the machine see a change of ``paths`` there."""
        data = b"".join(path.encode("utf-8", "surrogateescape") + b"\0" for path in paths)
        session.run(f"{self._sudo}{_TELL.format(time=time_s)}", stdin=data, timeout_s=_PATIENCE_S)

    @property
    def _sudo(self) -> str:
        return "sudo -n " if self.by_sudo else ""

    def _command(self, session: Session, script: str, arguments: Sequence[str]) -> CommandResult:
        command = shlex.join(["sh", "-c", script, "desk-folders", *arguments])
        try:
            return session.run(f"{self._sudo}{command}", timeout_s=_PATIENCE_S)
        except SshError as error:
            raise MachineError(
                f"the machine does not mount folders of this computer within {_PATIENCE_S:g} s",
                hint="Try again; `desk machine restart` restarts a machine that is stuck.",
            ) from error

    def _run(self, session: Session, script: str, arguments: Sequence[str]) -> CommandResult:
        done = self._command(session, script, arguments)
        if done.exit_code != 0:
            words = " ".join(done.stderr.decode("utf-8", "replace").split())
            raise MachineError(
                f"the machine does not mount folders of this computer: {words or 'it is silent'}",
                hint="It needs sshfs and FUSE; `desk machine ssh` is the way to look.",
            )
        return done


_ESCAPE = re.compile(r"\\([0-7]{3})")


def _unescape(found: re.Match[str]) -> str:
    return chr(int(found[1], 8))


def _as_in_mounts(path: str) -> str:
    """Return a path as /proc/mounts writes it, see proc_mounts(5)."""
    for character in "\\ \t\n#":
        path = path.replace(character, f"\\{ord(character):03o}")
    return path
