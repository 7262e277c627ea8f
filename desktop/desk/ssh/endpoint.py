"""Where a machine's sshd is and what proves both sides to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An sshd: address, login, our private key, and the file with its known host key."""

    host: str
    port: int
    user: str
    private_key: Path
    known_hosts: Path
