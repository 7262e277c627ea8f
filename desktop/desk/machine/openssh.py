"""OpenSSH's programs for a machine: with Desk's key and its known host key, nothing of the user."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from desk.ssh.endpoint import Endpoint


def ssh_options(endpoint: Endpoint) -> list[str]:
    """Return options of ``ssh``."""
    settings = _settings(endpoint)
    port, key = settings.pop("Port"), str(endpoint.private_key)
    del settings["IdentityFile"]
    options = ["-F", os.devnull, "-p", port, "-i", key]
    for name, value in settings.items():
        options += ["-o", f"{name}={value}"]
    return options


def ssh_config(hosts: Mapping[str, Endpoint]) -> str:
    """Return a configuration file for several machines at once, ssh_config(5), by their aliases."""
    lines = []
    for alias, endpoint in hosts.items():
        lines += [f"Host {alias}", f"  HostName {endpoint.host}", f"  User {endpoint.user}"]
        lines += [f"  {name} {value}" for name, value in _settings(endpoint).items()]
    return "\n".join(lines) + "\n"


def _settings(endpoint: Endpoint) -> dict[str, str]:
    return {
        "Port": str(endpoint.port),
        "IdentityFile": _quoted(endpoint.private_key),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": _quoted(endpoint.known_hosts),
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
    }


def _quoted(path: Path) -> str:
    return f'"{path}"'  # the option takes a list separated by blanks
