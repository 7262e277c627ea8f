"""The seed disk: what one machine's guest learns from its host at every boot.

A tar on a raw disk; its members stand in docs/architecture.md. It holds the private half of the
guest's host key, so the file belongs to its owner alone.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from desk.errors import UsageError
from desk.machine.engine_settings import engine_environment, engine_settings
from desk.machine.model import MachineSpec

_SECTOR_BYTES = 512
_CERTIFICATE_SUFFIXES = (".crt", ".cert", ".key")
_CERTIFICATE_BYTES = 1 << 20


def certificate_members(roots: Iterable[Path]) -> dict[str, bytes]:
    """Return the files below ``HOST/`` of these ``certs.d`` directories; an earlier one wins."""
    members: dict[str, bytes] = {}
    for root in roots:
        for file in sorted(root.glob("*/*")):
            name = f"certs.d/{file.parent.name}/{file.name}"
            fits = file.suffix in _CERTIFICATE_SUFFIXES and file.is_file()
            if fits and file.stat().st_size <= _CERTIFICATE_BYTES:
                members.setdefault(name, file.read_bytes())
    return members


def seed_members(
    spec: MachineSpec, *, host_key: bytes, host_key_public: str, authorized: str, network: str
) -> dict[str, bytes]:
    """Return the seed's files. ``network`` is ``qemu-user`` or empty (DHCP)."""
    machine = {"name": spec.name, "hostname": _hostname(spec.name)}
    if network:
        machine["network"] = network
    members = {
        "machine.json": _json(machine),
        "ssh_host_ed25519_key": host_key,
        "ssh_host_ed25519_key.pub": f"{host_key_public.strip()}\n".encode(),
        "authorized_keys": f"{authorized.strip()}\n".encode(),
        "daemon.json": _json(engine_settings(spec)),
    }
    environment = engine_environment(spec)
    if environment:
        members["engine.env"] = environment.encode()
    return members


def write_seed(file: Path, members: Mapping[str, bytes]) -> None:
    """Write the seed disk, mode 0600, in whole sectors."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    data = buffer.getvalue()
    data += bytes(-len(data) % _SECTOR_BYTES)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


def _hostname(name: str) -> str:
    """Return a valid host name (RFC 1123) for a machine's name."""
    hostname = "".join(c if c.isalnum() or c == "-" else "-" for c in name.lower()).strip("-")
    if not hostname:
        raise UsageError(
            f"{name!r} gives no host name", hint="Use letters or digits in the machine's name."
        )
    return hostname


def _json(document: Mapping[str, object]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()
