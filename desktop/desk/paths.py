"""Every file name on the host side, in one place.

``DESK_HOME`` decides where Desk lives; without it, the platform's own data directory does.
Named tuples, because every command imports this: each data class costs half a millisecond.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple


def default_home() -> Path:
    """Return ``$DESK_HOME``, else the platform's directory for an application's data."""
    chosen = os.environ.get("DESK_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "Desk"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "Desk"
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "desk"


def docker_certificates() -> Path:
    """Return where Docker's clients keep certificates of registries, by ``HOST:PORT/``."""
    chosen = os.environ.get("DOCKER_CONFIG")
    return (Path(chosen) if chosen else Path.home() / ".docker") / "certs.d"


class MachinePaths(NamedTuple):
    """The files of one machine, all inside ``directory``."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "machine.json"

    @property
    def checkpoint(self) -> Path:
        """Says of a directory in the bin that it is a checkpoint, and before what it was made."""
        return self.directory / "checkpoint.json"

    @property
    def settings(self) -> Path:
        """The machine's settings for a person to edit."""
        return self.directory / "machine.toml"

    @property
    def lock(self) -> Path:
        """Lock file; it lies beside the directory, so that it outlives a removal."""
        return self.directory.with_name(f".{self.directory.name}.lock")

    @property
    def data_disk(self) -> Path:
        return self.directory / "data.img"

    @property
    def snapshots(self) -> Path:
        """Directory of snapshots, each a directory with ``data.img`` and ``snapshot.json``."""
        return self.directory / "snapshots"

    @property
    def seed_disk(self) -> Path:
        return self.directory / "seed.img"

    @property
    def private_key(self) -> Path:
        return self.directory / "id_ed25519"

    @property
    def public_key(self) -> Path:
        return self.directory / "id_ed25519.pub"

    @property
    def guest_host_key(self) -> Path:
        """Private half of the host key that the guest will show."""
        return self.directory / "guest_host_ed25519_key"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """What OpenSSH's programs are told of the machine while a directory of it is mounted."""
        return self.directory / "ssh_config"

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"

    @property
    def qemu_pid(self) -> Path:
        return self.directory / "qemu.pid"

    @property
    def qemu_log(self) -> Path:
        return self.directory / "qemu.log"

    @property
    def qmp_socket(self) -> Path:
        return self.directory / "qmp.sock"

    @property
    def qemu_arguments(self) -> Path:
        """With which arguments QEMU was started last."""
        return self.directory / "qemu-arguments.json"

    @property
    def parked(self) -> Path:
        """There while the machine is parked: how to start the QEMU that takes its state up."""
        return self.directory / "parked.json"

    @property
    def parked_state(self) -> Path:
        return self.directory / "parked.state"

    @property
    def agent_pid(self) -> Path:
        return self.directory / "agent.pid"

    @property
    def agent_socket(self) -> Path:
        return self.directory / "agent.sock"

    @property
    def agent_log(self) -> Path:
        return self.directory / "agent.log"

    @property
    def folders_socket(self) -> Path:
        """Where the agent takes the guest's connections to shared folders from QEMU."""
        return self.directory / "folders.sock"

    @property
    def virtiofs(self) -> Path:
        """Directory of virtiofs servers: sockets (``N.sock``), processes (``N.pid``), logs."""
        return self.directory / "virtiofs"

    @property
    def engine_socket(self) -> Path:
        return self.directory / "engine.sock"

    @property
    def engine_data(self) -> Path:
        """Data root of the ``local`` driver's engine."""
        return self.directory / "engine-data"

    @property
    def engine_run(self) -> Path:
        """Exec root of the ``local`` driver's engine."""
        return self.directory / "engine-run"

    @property
    def engine_log(self) -> Path:
        return self.directory / "engine.log"

    @property
    def engine_pid(self) -> Path:
        return self.directory / "engine.pid"

    @property
    def vagrant_directory(self) -> Path:
        """Working directory of the ``vagrant`` driver."""
        return self.directory / "vagrant"

    @property
    def vagrant_log(self) -> Path:
        """Everything that Vagrant printed for this machine."""
        return self.directory / "vagrant.log"


class Home(NamedTuple):
    """The files that belong to no single machine."""

    directory: Path

    @property
    def settings(self) -> Path:
        return self.directory / "settings.json"

    @property
    def images(self) -> Path:
        return self.directory / "images"

    @property
    def machines(self) -> Path:
        return self.directory / "machines"

    @property
    def bin(self) -> Path:
        """Removed machines, each as ``NAME@NANOSECONDS`` (when it was removed)."""
        return self.directory / "bin"

    @property
    def accelerators(self) -> Path:
        """Remembered verdicts of the accelerator probe."""
        return self.directory / "accelerators.json"

    @property
    def certificates(self) -> Path:
        """Certificates of registries by ``HOST:PORT/``, for every machine with a seed."""
        return self.directory / "certs.d"

    def machine(self, name: str) -> MachinePaths:
        """Return the paths of machine ``name`` (a valid machine name; not checked here)."""
        return MachinePaths(self.machines / name)
