"""Driver ``vagrant``: the machine as a Vagrant box, with whatever provider Vagrant has.

It drives the repository's Vagrantfile (its head lists the environment variables) from a copy in
the machine's directory. Options: ``provider`` (libvirt, virtualbox, hyperv, …), ``vagrantfile``,
``accelerator``, ``share_by``. The machine's ``image`` is the box: a path or a URL.

Vagrant needs a second or more to answer anything, so what it says is asked once, after ``up``, and
kept as facts: ``host``, ``port``, ``power``, ``folder_tags``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import desk
from desk.agent.spec import EngineAccess
from desk.errors import DriverError, ImageError, MachineError
from desk.machine import process
from desk.machine.driver import Features, Progress
from desk.machine.drivers.options import check_known
from desk.machine.drivers.table import DriverContext
from desk.machine.model import MachineSpec, State
from desk.machine.power_options import POWER_OPTIONS
from desk.machine.sharing import (
    DEVICE_OPTIONS,
    SHARING_OPTIONS,
    folder_sharing,
    kept_tags,
    tags_fact,
    wants_devices,
)
from desk.ssh.endpoint import Endpoint

if TYPE_CHECKING:
    from desk.machine.drivers.vagrant_folders import SyncedFolder

OPTIONS = frozenset(
    {
        "provider",
        "vagrantfile",
        "accelerator",
        *SHARING_OPTIONS,
        *DEVICE_OPTIONS,
        *POWER_OPTIONS,
    }
)
_PARTS = ("Vagrantfile", "vm-images/boxes/provision.sh")
_USUAL_BOX = "build/desk-{provider}.box"
_PROBE_S = 2.0
_HALT_S = 60  # Vagrant's own default
_NOISE = re.compile(r"^(?:==> \S+: |    \S+: )|\x1b\[[0-9;]*[A-Za-z]")
_BAR = "Progress: "


class VagrantDriver:
    """One Vagrant environment in the machine's directory."""

    features = Features(
        needs_guest_image=False,
        has_ssh=True,
        can_power=True,
        has_console=False,
        live_memory=False,
        own_guest=True,
        shares_power=True,
        led_back_by_agent=True,
        folder_devices=True,
        state_interval_s=5.0,
        options=OPTIONS,
    )

    def __init__(self, context: DriverContext) -> None:
        self._home = context.home
        self._name = context.name
        self._paths = context.paths
        self._record = context.record

    def create(self, spec: MachineSpec, progress: Progress) -> None:
        """Copy the Vagrantfile, make keys and find the box; the VM itself comes with ``start``."""
        check_known(spec, OPTIONS)
        if shutil.which("vagrant") is None:
            raise DriverError(
                "vagrant is not installed",
                hint="Install it from your package manager or from vagrantup.com.",
            )
        source = _source_directory(spec)
        self.check_sharing(spec)
        box = spec.image or str(source / _USUAL_BOX.format(provider=_provider(spec)))
        if "://" not in box:
            box = str(Path(box).expanduser().absolute())
        progress("Reading the Vagrant box")
        facts = {"box": box, "box_name": _box_name(box), "power": "off"}
        self._record.update(facts)
        progress("Making keys")
        self._write_files(spec, source)

    def provision(self, progress: Progress) -> None:
        """Write Vagrant's files and keys that are missing or damaged, and have Vagrant provision
        a machine that runs."""
        spec = self._record.read().spec
        progress("Making Vagrant's files anew")
        self._write_files(spec, _source_directory(spec))
        if self.state() is State.RUNNING:
            progress("Running vagrant provision")
            with self._vagrant("provision") as vagrant:
                vagrant.provision(self._name)

    def _write_files(self, spec: MachineSpec, source: Path) -> None:
        try:
            for part in _PARTS:
                target = self._paths.vagrant_directory / part
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                shutil.copyfile(source / part, target)
            self._make_keys(spec)
        except OSError as error:
            raise MachineError(
                f"cannot write {error.filename or self._paths.directory}: {error.strerror}",
                hint="Make room on that disk, or set DESK_HOME to a directory on another one.",
            ) from error

    def _make_keys(self, spec: MachineSpec) -> None:
        from desk.ssh.keys import repair_key_pair

        repair_key_pair(self._paths.private_key, self._paths.public_key, f"desk-{spec.name}")
        repair_key_pair(self._paths.guest_host_key, None, f"desk-guest-{spec.name}")

    # --- power -----------------------------------------------------------------------------

    def start(self, progress: Progress) -> None:
        """``vagrant up``, from whatever state; nothing where sshd answers."""
        if self.state() is State.RUNNING:
            return
        spec = self._record.read().spec
        folders = self._folders(spec)
        progress("Starting Vagrant")
        # Two names of one folder are one device.
        places = list(dict.fromkeys(folder.place for folder in folders.values()))
        with self._vagrant("up", places) as vagrant:
            provider = spec.options.get("provider") or None
            for line in vagrant.up(self._name, provider=provider, stream_output=True):
                self._note(line, progress)
            found = vagrant.conf(vm_name=self._name)
        host, port = found.get("HostName", ""), found.get("Port", "22")
        if not host or not str(port).isdecimal():
            raise DriverError(
                f"Vagrant does not tell the address of machine {self._name}: {found}",
                hint=f"See {self._paths.vagrant_log}.",
            )
        from desk.ssh.keys import public_line, write_known_hosts

        public = public_line(self._paths.guest_host_key)
        write_known_hosts(self._paths.known_hosts, host, int(port), public)
        tags = {name: folder.tag for name, folder in folders.items()}
        self._record.update({"host": host, "port": str(port), "power": "on", **tags_fact(tags)})

    def _folders(self, spec: MachineSpec) -> dict[str, SyncedFolder]:
        """Return the folders that are to be devices, by their paths there. Raises ``DriverError``
        where they cannot be."""
        if not wants_devices(spec.options):
            return {}
        from desk.machine.drivers.vagrant_folders import synced_folders
        from desk.machine.drivers.virtiofs import find_virtiofsd

        found = synced_folders(self._name, _provider(spec), folder_sharing(spec, self._home))
        if found:
            find_virtiofsd(as_root=True)
        return found

    def stop(self, *, grace_s: float) -> None:
        """``vagrant halt``, which asks by SSH, then by the power button, then pulls the plug."""
        if not self._may_run():
            return
        try:
            with self._vagrant("halt", patience_s=max(1, math.ceil(grace_s))) as vagrant:
                vagrant.halt(self._name)
        except DriverError:
            # vagrant-libvirt gives up where the guest ignores the power button.
            self.kill()
        self._record.update({"power": "off"})

    def kill(self) -> None:
        if not self._may_run():
            return
        with self._vagrant("halt", patience_s=0) as vagrant:
            vagrant.halt(self._name, force=True)
        self._record.update({"power": "off"})

    def _may_run(self) -> bool:
        return self._record.get("power") == "on" or self._has_vm()

    def freeze(self) -> None:
        return

    def thaw(self) -> None:
        return

    def park(self) -> None:
        return

    def check_sharing(self, spec: MachineSpec) -> None:
        self._folders(spec)

    def remove(self) -> None:
        """``vagrant destroy``; the box stays in Vagrant's own store, for the next machine."""
        if not self._has_vm():
            return
        with self._vagrant("destroy") as vagrant:
            vagrant.destroy(self._name)
        self._record.update({"power": "off"})

    def _has_vm(self) -> bool:
        """Whether Vagrant has made a VM here: it keeps the VM's identifier in a file ``id``."""
        kept = self._paths.vagrant_directory / ".vagrant" / "machines" / self._name
        return any(kept.glob("*/id"))

    # --- what it is now --------------------------------------------------------------------

    def state(self) -> State:
        """From the kept facts, and whether the guest answers at all where sshd was."""
        if self._record.get("power") != "on":
            return State.STOPPED
        endpoint = self.endpoint()
        try:
            socket.create_connection((endpoint.host, endpoint.port), _PROBE_S).close()
        except ConnectionRefusedError:
            return State.RUNNING  # the guest answers; its sshd reads new keys, or starts
        except OSError:
            return State.STOPPED
        return State.RUNNING

    def endpoint(self) -> Endpoint:
        return Endpoint(
            host=self._record.get("host"),
            port=int(self._record.get("port") or 22),
            user="root",
            private_key=self._paths.private_key,
            known_hosts=self._paths.known_hosts,
        )

    def engine_access(self) -> EngineAccess:
        return EngineAccess(folder_tags=kept_tags(self._record))

    def host_memory_bytes(self) -> int | None:
        return None  # the provider's process is not ours to find

    def live_memory(self) -> None:
        return None

    def data_disk(self) -> None:
        return None

    def diagnose(self) -> str:
        return f"{self._last_words()} (see {self._paths.vagrant_log})"

    # --- Vagrant ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _vagrant(
        self,
        verb: str,
        folders: Sequence[str] = (),
        *,
        patience_s: int = _HALT_S,
    ) -> Iterator[Any]:
        """Lend python-vagrant's object; its failures come back as ``DriverError``.

        A guest gets ``patience_s`` seconds to end in order. ``folders`` are to be devices of it.
        """
        if shutil.which("vagrant") is None:
            raise DriverError(
                "vagrant is not installed",
                hint="Install it from your package manager or from vagrantup.com.",
            )
        import vagrant

        make: Any = vagrant.Vagrant  # the library has no types
        spec = self._record.read().spec
        client = make(
            root=str(self._paths.vagrant_directory),
            env={
                **self._environment(spec),
                "DESK_HALT_S": str(patience_s),
                "DESK_FOLDERS": json.dumps(folders),
            },
            out_cm=self._log,
            err_cm=self._log,
        )
        try:
            yield client
        except subprocess.CalledProcessError as error:
            raise DriverError(
                f"vagrant {verb} of machine {self._name} failed: {self._last_words()}",
                hint=f"See {self._paths.vagrant_log}.",
            ) from error
        except OSError as error:
            raise DriverError(
                f"vagrant {verb} of machine {self._name} failed: {error}",
                hint="Check that Vagrant works: `vagrant version`.",
            ) from error

    def _environment(self, spec: MachineSpec) -> dict[str, str]:
        chosen = {
            "VAGRANT_CWD": str(self._paths.vagrant_directory),
            "VAGRANT_DOTFILE_PATH": str(self._paths.vagrant_directory / ".vagrant"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "DESK_MACHINE": self._name,
            "DESK_BOX": self._record.get("box"),
            "DESK_BOX_NAME": self._record.get("box_name"),
            "DESK_MEMORY_MIB": str(spec.memory_mib),
            "DESK_CPUS": str(spec.cpus),
            "DESK_DISK_GIB": str(spec.disk_gib),
            "DESK_AUTHORIZED_KEYS": str(self._paths.public_key),
            "DESK_HOST_KEY": str(self._paths.guest_host_key),
        }
        if spec.options.get("accelerator"):
            chosen["DESK_ACCELERATOR"] = spec.options["accelerator"]
        if spec.options.get("provider"):
            chosen["VAGRANT_DEFAULT_PROVIDER"] = spec.options["provider"]
        return {**os.environ, **chosen}

    @contextlib.contextmanager
    def _log(self) -> Iterator[IO[str]]:
        with self._paths.vagrant_log.open("a", encoding="utf-8") as log:
            yield log

    def _note(self, line: str, progress: Progress) -> None:
        with self._log() as log:
            log.write(line if line.endswith("\n") else f"{line}\n")
        said = _NOISE.sub("", line).strip()
        if said and not said.startswith(_BAR):
            progress(said)

    def _last_words(self) -> str:
        """Return Vagrant's last sentence, without its decoration."""
        lines = [_NOISE.sub("", line) for line in process.last_lines(self._paths.vagrant_log, 8)]
        said = [line.strip() for line in lines if line.strip() and not line.startswith(_BAR)]
        return " ".join(said[-3:]) or "Vagrant said nothing"


def _source_directory(spec: MachineSpec) -> Path:
    """Return the directory with the Vagrantfile to copy: the option's, else the source tree's."""
    option = spec.options.get("vagrantfile", "")
    # desktop/desk/__init__.py in the source tree
    tree = Path(option).expanduser().parent if option else Path(desk.__file__).parents[2]
    missing = [part for part in _PARTS if not (tree / part).is_file()]
    if missing:
        raise DriverError(
            f"{tree / missing[0]} does not exist",
            hint="Name Desk's Vagrantfile in its source tree with the option vagrantfile.",
        )
    return tree.absolute()


def _provider(spec: MachineSpec) -> str:
    """Return the provider that Vagrant uses, as the Vagrantfile has it."""
    return spec.options.get("provider") or os.environ.get("VAGRANT_DEFAULT_PROVIDER") or "libvirt"


def _box_name(box: str) -> str:
    """Return a name for Vagrant's own store that changes with the box."""
    if "://" in box:
        return f"desk-{hashlib.sha256(box.encode()).hexdigest()[:12]}"
    file = Path(box)
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(
            f"the Vagrant box {box} cannot be read: {error.strerror}",
            hint="`vm-images/build --box libvirt` in Desk's source tree builds it; "
            "name one with --image.",
        ) from error
    return f"desk-{digest[:12]}"
