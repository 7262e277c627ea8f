"""Every file name on the engine's side, in one place. Plain strings: the launcher imports this."""

from __future__ import annotations

import os

DEFAULT_DATA_ROOT = "/var/lib/desk"
DEFAULT_EXEC_ROOT = "/run/desk"
DEFAULT_CONFIG_FILE = "/etc/desk/daemon.json"
BUNDLED_IMAGES = "/usr/share/desk/images"
"""Image archives that ship with the guest, loaded at the engine's first start."""

AGENTS_DIRECTORY = "/run/desk-folders"
"""Agents make it, and the guest image has it: where it is, one comes and shares its folders."""

GUEST_RECLAIM = "/usr/lib/desk/reclaim"
"""A program of the guest image: where it is, the machine's memory is Desk's to set."""

SUBUID_FILE = "/etc/subuid"
SUBGID_FILE = "/etc/subgid"


CERTIFICATES = ("/etc/desk/certs.d", "/etc/docker/certs.d")
"""CAs and client certificates of registries, in a directory HOST or HOST:PORT each."""


BIN_PREFIX = ".bin-"


class DataRoot:
    """Names below ``--data-root``: everything that outlives a reboot."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.database = os.path.join(path, "engine.db")
        self.lock = os.path.join(path, "engine.lock")
        self.reserve = os.path.join(path, "reserve")
        self.layers = os.path.join(path, "layers")
        self.mount_points = os.path.join(self.layers, "base")
        self.images = os.path.join(path, "images")
        self.containers = os.path.join(path, "containers")
        self.volumes = os.path.join(path, "volumes")
        self.temporary = os.path.join(path, "tmp")
        self.certificates = os.path.join(path, "certs.d")

    def container(self, container_id: str) -> str:
        return os.path.join(self.containers, container_id)

    def container_file(self, container_id: str, name: str) -> str:
        """``name`` is ``upper``, ``work``, ``hostname``, ``hosts`` or ``resolv.conf``; ``work`` and
        the last three are there while the container runs."""
        return os.path.join(self.containers, container_id, name)

    def container_log(self, container_id: str, driver: str = "json-file") -> str:
        end = "json" if driver == "json-file" else driver
        return os.path.join(self.containers, container_id, f"{container_id}-{end}.log")

    def container_of_sibling(self, container_id: str) -> bool:
        """Say whether an engine with another ``--userns-remap`` has this container: remapped data
        roots lie side by side in the one without."""
        own = os.path.basename(self.path)
        base = os.path.dirname(self.path) if _is_remapped(own) else self.path
        roots = [
            base,
            *(os.path.join(base, name) for name in os.listdir(base) if _is_remapped(name)),
        ]
        return any(
            root != self.path and os.path.isdir(os.path.join(root, "containers", container_id))
            for root in roots
        )

    def binned_volume(self, entry_id: str) -> str:
        """Where a removed volume is kept: beside the others, on the same disk, by a name that no
        volume can have."""
        return os.path.join(self.volumes, f"{BIN_PREFIX}{entry_id}")

    def volume_data(self, name: str) -> str:
        return os.path.join(self.volumes, name, "_data")


def remapped_root(path: str, uid: int, gid: int) -> str:
    """Return the data root of containers whose root is this user and group: apart from others, as
    with dockerd."""
    return os.path.join(path, f"{uid}.{gid}")


def _is_remapped(name: str) -> bool:
    return len(parts := name.split(".")) == 2 and all(part.isdecimal() for part in parts)


class ExecRoot:
    """Names below ``--exec-root``: everything that a reboot takes away."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.socket = os.path.join(path, "engine.sock")
        self.pidfile = os.path.join(path, "engine.pid")
        self.processes = os.path.join(path, "processes")
        self.seccomp_cache = os.path.join(path, "seccomp")

    def process(self, key: str) -> str:
        """Directory of one container's or exec's monitor; kept short, socket paths end at 107."""
        return os.path.join(self.processes, key[:24])

    def monitor_socket(self, key: str) -> str:
        return os.path.join(self.process(key), "monitor.sock")

    def exit_record(self, key: str) -> str:
        return os.path.join(self.process(key), "exit.json")
