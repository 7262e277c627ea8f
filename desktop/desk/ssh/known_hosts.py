"""Which host keys a person's own known_hosts files have for a host, hashed names included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import paramiko

from desk.errors import SshError
from desk.ssh.keys import host_pattern


def user_files() -> tuple[Path, ...]:
    """Return where OpenSSH keeps known hosts by default: the user's file and the system's."""
    return (Path.home() / ".ssh" / "known_hosts", Path("/etc/ssh/ssh_known_hosts"))


def known_keys(files: Sequence[Path], host: str, port: int) -> tuple[str, ...]:
    """Return the public lines (type and base64) that ``files`` know for the host."""
    found: dict[str, None] = {}
    for file in files:
        if not file.is_file():
            continue
        try:
            entries = paramiko.HostKeys(str(file)).lookup(host_pattern(host, port)) or {}
        except OSError as error:
            raise SshError(
                f"cannot read {file}: {error.strerror}", hint="Check the file's permissions."
            ) from error
        for kind, key in entries.items():
            found[f"{kind} {key.get_base64()}"] = None
    return tuple(found)
