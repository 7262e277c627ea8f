"""The engine on a Linux that somebody else runs: installed, started and ended over SSH.

Everything goes below one prefix (``/opt/desk``): each version in a directory of its own, complete
or absent, with the link ``current`` to the one in use. Where systemd runs the engine is a unit,
else a process of its own session with a PID file. All commands are POSIX shell and idempotent.
"""

from __future__ import annotations

import hashlib
import io
import re
import shlex
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from desk.agent.spec import EngineAccess
from desk.engine.transport import ChannelTransport, Connection
from desk.errors import DriverError
from desk.machine.driver import Progress
from desk.ssh.session import CommandResult, Session

_DISTRIBUTION = "desk-toolkit"
_INSTALL_S = 600.0
_COMMAND_S = 60.0
_ENGINE_GRACE_S = 15.0

_CHECK = """
set -eu
[ "$(uname -s)" = Linux ] || { echo "it runs $(uname -s), not Linux"; exit 3; }
if [ "$(id -u)" != 0 ]; then
  sudo -n true 2>/dev/null || {
    echo "user $(id -un) is neither root nor may use sudo without a password"; exit 3; }
fi
command -v python3 >/dev/null || { echo "Python 3 is not installed"; exit 3; }
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  { echo "its $(python3 --version) is older than 3.11"; exit 3; }
id -u
"""

_INSTALL = """
set -eu
prefix=$1 target=$2; shift 2
umask 022
mkdir -p "$prefix"
if [ ! -e "$target/complete" ]; then
  rm -rf "$target"
  trap 'rm -rf "$target"; rmdir "$prefix" 2>/dev/null' EXIT
  python3 -m venv --system-site-packages "$target" >&2 ||
    { echo "python3 -m venv failed; on Debian install python3-venv" >&2; exit 4; }
  site=$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  tar -xzf - -C "$site"
  needed='import dnslib, h11, isal, msgspec, pyroute2, wsproto, zstandard
from urllib3 import BaseHTTPResponse'
  "$target/bin/python" -c "$needed" 2>/dev/null ||
    "$target/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2
  "$target/bin/python" -c "import deskd
$needed"
  printf '%s\\n' '#!/bin/sh' "exec '$target/bin/python' -m deskd \\"\\$@\\"" >"$target/bin/deskd"
  chmod 755 "$target/bin/deskd"
  : >"$target/complete"
  trap - EXIT
else
  cat >/dev/null
fi
ln -sfn "$target" "$prefix/current"
"""

_START = """
set -eu
unit=$1 pidfile=$2 log=$3; shift 3
mkdir -p "$(dirname "$pidfile")"
if [ -d /run/systemd/system ]; then
  cat >"/etc/systemd/system/$unit.service"
  systemctl daemon-reload
  systemctl start "$unit.service"
  exit
fi
cat >/dev/null
if [ -s "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null; then exit 0; fi
setsid sh -c 'echo $$ >"$1"; shift; exec "$@"' sh "$pidfile" "$@" </dev/null >>"$log" 2>&1 &
"""

_STOP = """
set -eu
unit=$1 pidfile=$2 signal=$3 grace=$4
if [ -d /run/systemd/system ]; then
  if [ "$signal" = KILL ]; then
    systemctl kill --signal=KILL --kill-whom=main "$unit.service" 2>/dev/null || :
  fi
  systemctl stop "$unit.service" 2>/dev/null || :
elif [ -s "$pidfile" ]; then
  pid=$(cat "$pidfile")
  kill -s "$signal" "$pid" 2>/dev/null || :
  while kill -0 "$pid" 2>/dev/null && [ "$grace" -gt 0 ]; do sleep 0.1; grace=$((grace - 1)); done
  kill -s KILL "$pid" 2>/dev/null || :
fi
rm -f "$pidfile"
"""

_REMOVE = """
set -eu
unit=$1 prefix=$2 target=$3 data=$4 run=$5
rm -f "/etc/systemd/system/$unit.service"
[ ! -d /run/systemd/system ] || systemctl daemon-reload
if [ -x "$target/bin/deskd" ]; then
  "$target/bin/deskd" purge --data-root "$data" >/dev/null 2>&1 || :
fi
rm -rf "$data" "$run" "$target"
[ "$(readlink "$prefix/current" 2>/dev/null)" != "$target" ] || rm -f "$prefix/current"
rmdir "$prefix" 2>/dev/null || :
"""

_UNIT = """[Unit]
Description=Desk container engine
After=network-online.target

[Service]
ExecStart={command}
Restart=on-failure
# Containers outlive the engine: only its own process is ended with it.
KillMode=process
Delegate=yes
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the engine lives on the remote host."""

    machine: str
    prefix: str = "/opt/desk"
    data_root: str = "/var/lib/desk"
    exec_root: str = "/run/desk"
    options: tuple[str, ...] = ()  # further arguments of deskd

    @property
    def socket(self) -> str:
        return f"{self.exec_root}/engine.sock"

    @property
    def pid_file(self) -> str:
        return f"{self.exec_root}/desk-machine.pid"

    @property
    def log(self) -> str:
        return f"{self.exec_root}/engine.log"

    @property
    def unit(self) -> str:
        return f"desk-engine-{self.machine}"

    def arguments(self, program: str) -> list[str]:
        return [
            *(program, "--data-root", self.data_root, "--exec-root", self.exec_root),
            *("--host", f"unix://{self.socket}", *self.options),
        ]


class RemoteEngine:
    """Operations on the engine at ``place``, over one open session."""

    def __init__(self, session: Session, place: Place) -> None:
        self._session = session
        self._place = place
        self._where = f"{session.endpoint.user}@{session.endpoint.host}"
        self.is_root = False

    def check(self) -> None:
        """Raise ``DriverError`` where no engine can run there; must come first."""
        done = self._session.run("sh -s", stdin=_CHECK.encode(), timeout_s=_COMMAND_S)
        words = _words(done.stdout)
        if done.exit_code != 0:
            raise DriverError(
                f"{self._where} cannot be a machine: {words or _words(done.stderr)}",
                hint="A machine of the driver ssh is a Linux with Python 3.11 and newer, with "
                "root or sudo without a password.",
            )
        self.is_root = words == "0"

    @property
    def _root(self) -> str:
        return "" if self.is_root else "sudo -n "

    def has_engine(self) -> bool:
        """Whether an engine has lived at the place already."""
        done = self._run("test -e " + shlex.quote(f"{self._place.data_root}/engine.db"))
        return done.exit_code == 0

    def install(self, progress: Progress) -> str:
        """Put this version's engine there, unless a new enough one is; return its program."""
        present = self._run("deskd --version 2>/dev/null || true")
        if _version(_words(present.stdout)) >= _version(_own_version()) > (0,):
            return "deskd"
        package, digest = engine_package()
        target = f"{self._place.prefix}/engine-{_own_version()}-{digest[:12]}"
        progress(f"Installing the engine on {self._where}")
        arguments = [self._place.prefix, target, *engine_requirements()]
        done = self._script(_INSTALL, arguments, stdin=package, timeout_s=_INSTALL_S)
        self._demand(
            done,
            "the engine cannot be installed",
            "Install Python's venv there and let it reach pypi.org, or install the packages "
            "python3-dnslib, python3-h11, python3-isal, python3-msgspec, python3-pyroute2, "
            "python3-urllib3 (2.3 or newer), python3-wsproto and python3-zstandard.",
        )
        return f"{target}/bin/deskd"

    def start(self, program: str) -> None:
        """Start the engine where it does not run; its socket follows a moment later."""
        command = self._place.arguments(program)
        unit = _UNIT.format(command=" ".join(_systemd_quoted(word) for word in command))
        done = self._script(
            _START,
            [self._place.unit, self._place.pid_file, self._place.log, *command],
            stdin=unit.encode(),
        )
        self._demand(done, "the engine cannot be started", f"See {self._place.log} there.")

    def stop(self, *, hard: bool) -> None:
        """End the engine, not its containers; idempotent."""
        tenths = str(int(_ENGINE_GRACE_S * 10))
        arguments = [self._place.unit, self._place.pid_file, "KILL" if hard else "TERM", tenths]
        done = self._script(_STOP, arguments)
        self._demand(done, "the engine cannot be stopped", f"See {self._place.log} there.")

    def remove(self, program: str) -> None:
        """Delete the engine's data and, where we put it there, its program."""
        target = program.removesuffix("/bin/deskd") if "/" in program else "/nonexistent"
        place = self._place
        arguments = [place.unit, place.prefix, target, place.data_root, place.exec_root]
        done = self._script(_REMOVE, arguments)
        self._demand(done, "the engine cannot be removed", "Look for open files there.")

    def last_words(self) -> str:
        """Return the end of the engine's log, one line."""
        unit, log = shlex.quote(self._place.unit), shlex.quote(self._place.log)
        done = self._run(f"tail -n 1 {log} 2>/dev/null || journalctl -qn 1 -o cat -u {unit}")
        return _words(done.stdout)

    def transport(self, access: EngineAccess) -> ChannelTransport:
        """Return the Engine API's way through this session."""

        def dial(timeout_s: float) -> Connection:
            if access.socket:
                return self._session.open_unix(access.socket, timeout_s=timeout_s)
            return self._session.open_exec(access.command, timeout_s=timeout_s)

        return ChannelTransport(f"ssh://{self._where}", dial)

    # --- commands --------------------------------------------------------------------------

    def _run(self, command: str) -> CommandResult:
        line = f"{self._root}sh -c {shlex.quote(command)}"
        return self._session.run(line, timeout_s=_COMMAND_S)

    def _script(
        self,
        script: str,
        arguments: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = _COMMAND_S,
    ) -> CommandResult:
        words = " ".join(shlex.quote(argument) for argument in arguments)
        line = f"{self._root}sh -c {shlex.quote(script)} sh {words}"
        return self._session.run(line, stdin=stdin, timeout_s=timeout_s)

    def _demand(self, done: CommandResult, what: str, hint: str) -> None:
        if done.exit_code != 0:
            words = _words(done.stderr) or _words(done.stdout) or f"exit code {done.exit_code}"
            raise DriverError(f"{what} on {self._where}: {words}", hint=hint)


def engine_package() -> tuple[bytes, str]:
    """Return a ``.tar.gz`` of the package ``deskd`` as it is installed here, and its digest."""
    spec = find_spec("deskd")
    if spec is None or not spec.submodule_search_locations:
        raise DriverError(
            "the engine's package deskd is not installed beside desk",
            hint="Install Desk again: `pip install --force-reinstall desk-toolkit`.",
        )
    directory = Path(next(iter(spec.submodule_search_locations)))
    buffer, digest = io.BytesIO(), hashlib.sha256()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file in sorted(directory.rglob("*")):
            name = file.relative_to(directory)
            if not file.is_file() or "__pycache__" in name.parts:
                continue
            content = file.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
            entry = tarfile.TarInfo(f"deskd/{name.as_posix()}")
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue(), digest.hexdigest()


def engine_requirements() -> list[str]:
    """Return what the engine needs from PyPI, as the distribution's extra ``engine`` says it."""
    found = []
    for requirement in metadata.requires(_DISTRIBUTION) or []:
        package, _, marker = requirement.partition(";")
        if re.search(r"""extra\s*==\s*['"]engine['"]""", marker):
            found.append(package.strip())
    return found


def _own_version() -> str:
    return metadata.version(_DISTRIBUTION)


def _version(text: str) -> tuple[int, ...]:
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)


def _words(output: bytes) -> str:
    """Return the last line of a command's output that says anything."""
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")


def _systemd_quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
