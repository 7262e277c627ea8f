"""Compiled seccomp filters on disk, one file for each profile and set of capabilities."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence

from deskd.kernel import seccomp
from deskd.kernel.seccomp_profile import default_profile_text, read_profile

_FORMAT = "1"


class SeccompCache:
    """Files below a directory that only the engine writes; safe to delete at any time."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._known: dict[tuple[str, tuple[str, ...]], str] = {}

    def known(self, profile: str, capabilities: Sequence[str]) -> str:
        """Return the file where this run of the engine has already asked for it, else ``""``."""
        return self._known.get((profile, tuple(sorted(capabilities))), "")

    def path(self, profile: str, capabilities: Sequence[str]) -> str:
        """Return the file of a compiled profile (``"default"`` or JSON text).

        Takes some 50 ms for a new combination. Raises ``InvalidArgument`` for a bad profile.
        """
        with self._lock:
            return self.known(profile, capabilities) or self._find(profile, capabilities)

    def _find(self, profile: str, capabilities: Sequence[str]) -> str:
        key = (profile, tuple(sorted(capabilities)))
        text = default_profile_text() if profile == "default" else profile
        identity = "\0".join((_FORMAT, os.uname().release, text, *key[1]))
        name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        path = os.path.join(self._directory, f"{name}.bpf")
        if not os.path.exists(path):
            os.makedirs(self._directory, 0o700, exist_ok=True)
            program = seccomp.compile_profile(read_profile(text, capabilities))
            temporary = f"{path}.{os.getpid()}"
            with open(temporary, "wb") as file:
                file.write(program)
            os.replace(temporary, path)
        self._known[key] = path
        return path
