"""Driver ``qemu``: a virtual machine of our own, run by QEMU without anything in between.

Options: ``ssh_port`` fixes the port on 127.0.0.1, ``qemu`` the path of QEMU's program,
``accelerator`` skips the trial boots, ``share_by`` is how folders are shared. Facts:
``image``, ``ssh_port``, ``qmp_port`` (Windows).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from desk.agent.spec import EngineAccess
from desk.errors import DriverError, MachineError, UsageError
from desk.machine import console, ports, process
from desk.machine.driver import Features, Progress
from desk.machine.drivers.options import check_known, port_option
from desk.machine.drivers.qemu_disk import FACT_FILE_SYSTEM, QemuDisk, file_system_id, is_new
from desk.machine.drivers.qemu_memory import FACT_BOOT, FACT_PLUG, QemuMemory, host_memory_mib
from desk.machine.drivers.table import DriverContext
from desk.machine.engine_settings import ENGINE_OPTIONS, check_engine_options
from desk.machine.model import LEAST_MEMORY_MIB, MachineSpec, State
from desk.machine.power_options import POWER_OPTIONS
from desk.machine.qemu_command import (
    FOLDERS_ADDRESS,
    SAVES_FOLDERS_SINCE,
    BootFiles,
    FolderDevice,
    HostFacts,
    binary_name,
    candidate_accelerators,
    machine_command,
    plug_memory_mib,
)
from desk.machine.sharing import (
    DEVICE_OPTIONS,
    SHARING_OPTIONS,
    folder_sharing,
    kept_tags,
    tags_fact,
    takes_devices,
    wants_devices,
)
from desk.machine.sparse import make_sparse
from desk.machine.store import MachineStore
from desk.paths import docker_certificates
from desk.ssh.endpoint import Endpoint

if TYPE_CHECKING:
    from desk.machine.drivers.qemu_parking import QemuParking
    from desk.machine.drivers.virtiofs import VirtiofsServers
    from desk.machine.images import GuestImage, ImageStore

OPTIONS = frozenset(
    {
        *("ssh_port", "qemu", "accelerator"),
        *ENGINE_OPTIONS,
        *SHARING_OPTIONS,
        *DEVICE_OPTIONS,
        *POWER_OPTIONS,
    }
)
_FACT_FOLDERS = "folders_address"
_PORT_TAKEN = "Could not set up host forwarding rule"
"""QEMU's words (net/slirp.c)."""
_POWER_ON_S = 20.0
_QMP_GRACE_S = 3.0
_GIB = 1 << 30
_INSTALL_HINTS = {
    "linux": "Install it: `apt install qemu-system` on Debian and Ubuntu, "
    "`dnf install qemu-system-x86` on Fedora.",
    "darwin": "Install it: `brew install qemu`.",
    "win32": "Install it: `winget install SoftwareFreedomConservancy.QEMU`.",
}


class QemuDriver:
    """One QEMU process; its PID file, QMP socket and console log lie in the machine's directory."""

    features = Features(
        needs_guest_image=True,
        has_ssh=True,
        can_power=True,
        has_console=True,
        live_memory=True,
        own_guest=True,
        shares_power=True,
        has_seed=True,
        portable=True,
        folder_devices=True,
        parks=True,
        options=OPTIONS,
    )

    def __init__(self, context: DriverContext) -> None:
        self._home = context.home
        self._name = context.name
        self._paths = context.paths
        self._record = context.record

    @cached_property
    def _images(self) -> ImageStore:
        from desk.machine.images import ImageStore

        return ImageStore(self._home)

    @cached_property
    def _servers(self) -> VirtiofsServers:
        from desk.machine.drivers.virtiofs import VirtiofsServers

        return VirtiofsServers(self._name, self._paths)

    @cached_property
    def _parking(self) -> QemuParking:
        from desk.machine.drivers.qemu_parking import QemuParking

        return QemuParking(self._name, self._paths, self._qmp)

    # --- making and removing ---------------------------------------------------------------

    def create(self, spec: MachineSpec, progress: Progress) -> None:
        """Choose the image and the port, make keys, seed and an empty, sparse data disk."""
        from desk.machine.images import host_architecture

        _check_spec(spec)
        find_qemu(host_architecture(), spec.options.get("qemu", ""))
        self.check_sharing(spec)
        image = self._choose_image(spec, progress)
        self._record.update({"image": image.manifest.identity})
        self._choose_port(spec)
        progress("Making keys and disks")
        with _named_errors(self._paths.directory):
            self._write_identity(spec)
            make_sparse(self._paths.data_disk, spec.disk_gib * _GIB)

    def check_sharing(self, spec: MachineSpec) -> None:
        if wants_devices(spec.options) and folder_sharing(spec, self._home).folders:
            self._servers.check()

    def _choose_image(self, spec: MachineSpec, progress: Progress) -> GuestImage:
        if not spec.image:
            return self._images.newest()
        progress(f"Installing the guest image {spec.image}")
        return self._images.install(spec.image)

    def _write_identity(self, spec: MachineSpec) -> None:
        """Make keys that are missing or damaged, and write the seed and the known host."""
        from desk.ssh.keys import repair_key_pair

        repair_key_pair(self._paths.private_key, self._paths.public_key, f"desk-{spec.name}")
        repair_key_pair(self._paths.guest_host_key, None, f"desk-guest-{spec.name}")
        self._write_seed(spec)
        self._write_known_hosts()

    def _write_seed(self, spec: MachineSpec) -> None:
        """Tell the guest its keys, and what was set since its last start."""
        from desk.machine.seed import certificate_members, seed_members, write_seed
        from desk.ssh.keys import public_line

        host = self._paths.guest_host_key
        members = seed_members(
            spec,
            host_key=host.read_bytes(),
            host_key_public=public_line(host),
            authorized=self._paths.public_key.read_text("ascii"),
            network="qemu-user",
        )
        members |= certificate_members((self._home.certificates, docker_certificates()))
        write_seed(self._paths.seed_disk, members)

    def _write_known_hosts(self) -> None:
        from desk.ssh.keys import public_line, write_known_hosts

        public = public_line(self._paths.guest_host_key)
        write_known_hosts(self._paths.known_hosts, "127.0.0.1", self._port(), public)

    def provision(self, progress: Progress) -> None:
        spec = self._record.read().spec
        self._images.check(self._images.get(self._record.get("image")))
        progress("Making keys and the seed anew")
        with _named_errors(self._paths.directory):
            self._write_identity(spec)

    def remove(self) -> None:
        """End QEMU; the files go with the machine's directory."""
        self.kill()

    # --- power -----------------------------------------------------------------------------

    def start(self, progress: Progress) -> None:
        """Start QEMU and return when its QMP socket answers; nothing where it runs already."""
        running = process.recall(self._paths.qemu_pid)
        if running is not None:
            self._resume(running)
            if not self._parking.is_parked:
                self._parking.go_on()
                return
            running.kill()  # its state was written; only its end was not seen
            self._forget()
        if self._parking.is_parked:
            self._take_up(progress)
            return
        spec = self._record.read().spec
        image = self._images.get(self._record.get("image"))
        self._images.check(image)
        self._check_disks(spec)
        host = _host_facts(spec, image.manifest.arch)
        accelerator = self._accelerator(spec, host, image, progress)
        self._write_seed(spec)
        door = self._folder_door()
        plug_mib = plug_memory_mib(spec, host, image.manifest.arch, image.manifest.cmdline)
        self._record.update(
            {
                FACT_BOOT: str(spec.memory_mib),
                FACT_PLUG: str(plug_mib),
                _FACT_FOLDERS: FOLDERS_ADDRESS if door else "",
            }
        )

        def arguments(*, devices: bool) -> list[str]:
            served = self._start_folder_servers(spec, wanted=devices)
            argv = machine_command(
                spec,
                host,
                image.manifest.arch,
                accelerator,
                self._boot_files(image),
                cmdline=image.manifest.cmdline,
                ssh_port=self._port(),
                folders=door,
                devices=served,
            )
            self._parking.note_arguments(argv)
            return argv

        self._paths.console_log.unlink(missing_ok=True)
        progress(f"Starting QEMU with {accelerator}")
        wanted = self._chooses_devices(spec, host)
        try:
            self._launch_on_a_port(spec, progress, lambda: arguments(devices=wanted))
        except DriverError as error:
            if not wanted or wants_devices(spec.options) or not self._is_of_servers(error):
                raise
            progress(f"Sharing folders by SFTP: {error.text}")
            self._launch_on_a_port(spec, progress, lambda: arguments(devices=False))

    def _chooses_devices(self, spec: MachineSpec, host: HostFacts) -> bool:
        """Whether folders are shared as devices, which is the fastest way: where that is asked for,
        or where nothing is asked for and nothing is lost by it."""
        if wants_devices(spec.options):
            return True
        if not takes_devices(spec.options):
            return False
        from desk.machine.drivers.virtiofs import cost

        return not cost(host.qemu_version)

    def _is_of_servers(self, error: DriverError) -> bool:
        from desk.machine.drivers.virtiofs import ServerError

        return isinstance(error, ServerError)

    def _start_folder_servers(self, spec: MachineSpec, *, wanted: bool) -> list[FolderDevice]:
        """Start what serves folders as devices, and remember which; end what an earlier start of
        QEMU left."""
        devices: dict[str, FolderDevice] = {}
        if wanted:
            devices = self._servers.start(folder_sharing(spec, self._home))
        else:
            self._end_folder_servers()
        tags = {folder: device.tag for folder, device in devices.items()}
        self._record.update(tags_fact(tags))
        return list(devices.values())

    def _end_folder_servers(self) -> None:
        if self._paths.virtiofs.exists():  # else there is no need to load what ends them
            self._servers.end()

    def _folder_trouble(self) -> DriverError | None:
        return self._servers.trouble() if self._paths.virtiofs.exists() else None

    def _folder_door(self) -> list[str]:
        """Return what QEMU starts for the guest's connections to shared folders."""
        if sys.platform == "win32":  # it hands over no open connection
            return []
        from desk.agent.direct_folders import door_program

        return [sys.executable, "-I", str(door_program()), str(self._paths.folders_socket)]

    def _launch_on_a_port(
        self, spec: MachineSpec, progress: Progress, arguments: Callable[[], list[str]]
    ) -> None:
        """Start QEMU on the machine's port, or on another one where a program, such as a machine of
        another Desk home, takes it between the look at it and QEMU's start."""
        for attempts_left in (2, 1, 0):
            self._settle_port(spec, progress)
            try:
                self._launch(arguments())
                return
            except DriverError as error:
                if attempts_left and _PORT_TAKEN in error.text:
                    continue
                trouble = self._folder_trouble()
                self._end_folder_servers()
                if trouble is not None:
                    raise trouble from error
                raise

    def _launch(self, argv: list[str]) -> None:
        for stale in (self._paths.qmp_socket, self._paths.qemu_log):
            stale.unlink(missing_ok=True)
        started = process.spawn_detached(argv, log=self._paths.qemu_log)
        process.remember(started, self._paths.qemu_pid)
        deadline = time.monotonic() + _POWER_ON_S
        while not self._qmp_answers():
            if not started.alive:
                self._paths.qemu_pid.unlink(missing_ok=True)
                words = " ".join(process.last_lines(self._paths.qemu_log, 2)) or "without a word"
                raise DriverError(
                    f"QEMU did not start machine {self._name}: {words}",
                    hint=f"See {self._paths.qemu_log}; `desk doctor` checks QEMU.",
                )
            if time.monotonic() >= deadline:
                started.kill()
                self._paths.qemu_pid.unlink(missing_ok=True)
                raise DriverError(
                    f"QEMU of machine {self._name} did not open its control socket",
                    hint=f"See {self._paths.qemu_log}.",
                )
            time.sleep(0.01)

    def park(self) -> None:
        running = process.recall(self._paths.qemu_pid)
        if running is None:
            return
        if kept_tags(self._record):
            self._check_folders_are_saved()
        self._parking.check_can_park(running.resident_bytes())
        self._parking.write_state()
        with contextlib.suppress(DriverError):
            self._qmp("quit")
            running.wait_gone(_QMP_GRACE_S)
        running.kill()
        self._forget()

    def _check_folders_are_saved(self) -> None:
        """Raise ``DriverError`` where the state of folder devices cannot be saved."""
        if self._parking.qemu_version() >= SAVES_FOLDERS_SINCE and self._servers.check().saves:
            return
        raise DriverError(
            f"machine {self._name} cannot be parked: it has folders by virtiofs, whose state is"
            " saved by QEMU 8.2 and virtiofsd 1.11 and newer only",
            hint=f"`desk machine set {self._name} share-by=sftp` and a restart make it"
            f" possible; `desk machine stop {self._name}` frees its memory now.",
        )

    def _take_up(self, progress: Progress) -> None:
        """Let a parked machine go on; where that fails it stays parked."""
        spec, port = self._record.read().spec, self._port()
        self._check_disks(spec)
        progress(f"Taking up the saved state of machine {self._name}")

        def arguments() -> list[str]:
            if kept_tags(self._record):
                self._servers.start_again()
            return self._parking.arguments(port, self._port())

        try:
            self._launch_on_a_port(spec, progress, arguments)
        except DriverError as error:
            if not self._is_of_servers(error):
                raise
            raise DriverError(
                error.text,
                hint=f"Mend that and start it again, or `desk machine kill {self._name}` gives the"
                " saved state up.",
            ) from error
        try:
            self._parking.read_state()
        except DriverError as error:
            running = process.recall(self._paths.qemu_pid)
            if running is not None:
                running.kill()
            self._forget()
            words = " ".join(process.last_lines(self._paths.qemu_log, 2))
            raise DriverError(f"{error.text} {words}".rstrip(), hint=error.hint) from error
        self._parking.discard()

    def freeze(self) -> None:
        running = process.recall(self._paths.qemu_pid)
        if running is None:
            return
        if sys.platform == "win32":
            raise DriverError(
                f"machine {self._name} cannot stand still here while it runs",
                hint=f"`desk machine stop {self._name}` stops it.",
            )
        import signal

        running.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        running = process.recall(self._paths.qemu_pid)
        if running is not None:
            self._resume(running)

    def _resume(self, running: process.Process) -> None:
        if running.suspended and sys.platform != "win32":
            import signal

            running.signal(signal.SIGCONT)

    def stop(self, *, grace_s: float) -> None:
        """Press the guest's power button; after ``grace_s`` tell QEMU to quit, then kill it."""
        running = process.recall(self._paths.qemu_pid)
        if running is None:
            self._forget()
            return
        self._resume(running)
        # A hanging QEMU answers nothing: then only the hard way is left.
        with contextlib.suppress(DriverError):
            self._press_power_button(running, grace_s)
        if running.alive:
            with contextlib.suppress(DriverError):
                self._qmp("quit")
                running.wait_gone(_QMP_GRACE_S)
        self.kill()
        with contextlib.suppress(MachineError):  # it is missing, say: the next start tells
            self._note_file_system(file_system_id(self._paths.data_disk))

    def _press_power_button(self, running: process.Process, grace_s: float) -> None:
        """Press it again each second: a guest in mid-boot has nobody yet who would notice."""
        deadline = time.monotonic() + grace_s
        while (left_s := deadline - time.monotonic()) > 0:
            self._qmp("system_powerdown")
            if running.wait_gone(min(1.0, left_s)):
                return

    def kill(self) -> None:
        """End QEMU at once; what the guest had not written is lost, a saved state too."""
        running = process.recall(self._paths.qemu_pid)
        if running is not None:
            running.kill()
        self._forget()
        self._parking.discard()

    def _forget(self) -> None:
        self._paths.qemu_pid.unlink(missing_ok=True)
        self._paths.qmp_socket.unlink(missing_ok=True)
        self._end_folder_servers()

    # --- what it is now --------------------------------------------------------------------

    def state(self) -> State:
        running = process.recall(self._paths.qemu_pid)
        if running is None:
            return State.SAVED if self._paths.parked.exists() else State.STOPPED
        return State.PAUSED if running.suspended else State.RUNNING

    def endpoint(self) -> Endpoint:
        return Endpoint(
            "127.0.0.1", self._port(), "root", self._paths.private_key, self._paths.known_hosts
        )

    def engine_access(self) -> EngineAccess:
        return EngineAccess(
            folders_address=self._record.get(_FACT_FOLDERS),
            folder_tags=kept_tags(self._record),
        )

    def host_memory_bytes(self) -> int | None:
        running = process.recall(self._paths.qemu_pid)
        return None if running is None else running.resident_bytes()

    def live_memory(self) -> QemuMemory | None:
        running = process.recall(self._paths.qemu_pid)
        # One that an older Desk started says nothing of its memory.
        if running is None or not self._record.get(FACT_BOOT):
            return None
        return QemuMemory(self._name, running, self._record, self._qmp)

    def data_disk(self) -> QemuDisk:
        runs = process.recall(self._paths.qemu_pid) is not None
        return QemuDisk(self._paths.data_disk, self._qmp if runs else None)

    def diagnose(self) -> str:
        if self.state() is State.STOPPED:
            words = process.last_lines(self._paths.qemu_log)
            if words:
                return f"QEMU has ended: {words[0]} (see {self._paths.qemu_log})"
        return console.explain(self._paths.console_log)

    # --- parts -----------------------------------------------------------------------------

    def _accelerator(
        self, spec: MachineSpec, host: HostFacts, image: GuestImage, progress: Progress
    ) -> str:
        wanted = spec.options.get("accelerator", "")
        if wanted:
            return wanted
        from desk.machine.accelerator import Accelerators

        return Accelerators(self._home).choose(host, image, progress).accelerator

    def _boot_files(self, image: GuestImage) -> BootFiles:
        qmp = f"unix:{self._paths.qmp_socket}"
        if sys.platform == "win32":
            port = ports.choose(f"{self._name}-qmp", {self._port()})
            self._record.update({"qmp_port": str(port)})
            qmp = f"tcp:127.0.0.1:{port}"
        return BootFiles(
            kernel=image.kernel,
            initramfs=image.initramfs,
            console_log=self._paths.console_log,
            root=image.root,
            data=self._paths.data_disk,
            seed=self._paths.seed_disk,
            qmp=qmp,
        )

    def _qmp_address(self) -> str | tuple[str, int]:
        port = self._record.get("qmp_port")
        return ("127.0.0.1", int(port)) if port else str(self._paths.qmp_socket)

    def _qmp(self, command: str, **arguments: object) -> Any:
        from desk.machine.qmp import execute

        return execute(self._qmp_address(), command, arguments)

    def _qmp_answers(self) -> bool:
        """Whether QEMU takes a command on its QMP socket: it listens early, newer ones greet early
        too, and all of them take commands once the machine's devices are there."""
        import socket

        address = self._qmp_address()
        family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.25)
            try:
                probe.connect(address)
                with probe.makefile("rwb", buffering=0) as lines:
                    lines.readline()
                    lines.write(b'{"execute": "qmp_capabilities"}\n')
                    return bool(lines.readline())
            except OSError:
                return False

    def _check_disks(self, spec: MachineSpec) -> None:
        for disk in (self._paths.data_disk, self._paths.seed_disk, self._paths.known_hosts):
            if not disk.is_file():
                raise MachineError(
                    f"{disk} is missing",
                    hint=f"Restore the file, or remove machine {self._name} with its data: "
                    f"`desk machine rm -f {self._name}`.",
                )
        size_bytes = self._paths.data_disk.stat().st_size
        if size_bytes < spec.disk_gib * _GIB:
            raise MachineError(
                f"{self._paths.data_disk} is cut off: it has {size_bytes / _GIB:.2f} of"
                f" {spec.disk_gib} GiB",
                hint=f"Restore the file from a backup, or a snapshot with `desk machine restore "
                f"{self._name}`.",
            )
        self._check_file_system()

    def _check_file_system(self) -> None:
        """Refuse a disk that is not the machine's own, before anything writes to it."""
        own, found = self._record.get(FACT_FILE_SYSTEM), file_system_id(self._paths.data_disk)
        # A damaged one is the guest's to mend, or to explain.
        if own and found != own and (found or is_new(self._paths.data_disk)):
            owner = "belongs to another machine" if found else "is an empty one"
            raise MachineError(
                f"{self._paths.data_disk} is not the disk of machine {self._name}: it {owner}",
                hint="Put the machine's own file back; `desk machine export` and `import` bring a"
                " machine from elsewhere, and `desk machine clone` copies one.",
            )
        self._note_file_system(found)

    def _note_file_system(self, found: str) -> None:
        """Remember which file system is the machine's, once there is one."""
        if found and self._record.get(FACT_FILE_SYSTEM) != found:
            self._record.update({FACT_FILE_SYSTEM: found})

    def _port(self) -> int:
        return int(self._record.get("ssh_port") or 0)

    def _choose_port(self, spec: MachineSpec) -> int:
        port = _fixed_port(spec) or ports.choose(self._name, self._ports_of_others())
        self._record.update({"ssh_port": str(port)})
        return port

    def _settle_port(self, spec: MachineSpec, progress: Progress) -> None:
        """Keep the machine's port, or move to another one where a program has taken it.

        Nobody but the agent uses this port, and known_hosts moves with it. A port that the user
        fixed stays: then it is an error.
        """
        port = self._port()
        if port and ports.is_free(port):
            return
        if _fixed_port(spec):
            raise DriverError(
                f"port {port} on 127.0.0.1, which machine {self._name} wants for SSH, is taken",
                hint="Stop the program that listens there, or recreate the machine without "
                "the option ssh_port.",
            )
        new = self._choose_port(spec)
        self._write_known_hosts()
        progress(f"Using port {new} for SSH, since {port} is taken")

    def _ports_of_others(self) -> set[int]:
        store = MachineStore(self._home)
        taken: set[int] = set()
        for name in store.names():
            if name != self._name:
                with contextlib.suppress(MachineError):  # a damaged machine holds no port
                    taken.add(int(store.file(name).get("ssh_port") or 0))
        return taken


@contextlib.contextmanager
def _named_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"cannot write {error.filename or directory}: {error.strerror}",
            hint="Make room on that disk, or set DESK_HOME to a directory on another one.",
        ) from error


def _check_spec(spec: MachineSpec) -> None:
    check_known(spec, OPTIONS)
    check_engine_options(spec.options)
    if spec.memory_mib < LEAST_MEMORY_MIB:
        raise UsageError(
            f"{spec.memory_mib} MiB of memory are too few for a machine",
            hint=f"Give at least {LEAST_MEMORY_MIB} MiB; 2048 suit most work.",
        )
    if spec.cpus < 1 or spec.disk_gib < 1:
        raise UsageError("a machine needs at least one CPU and 1 GiB of disk")
    _fixed_port(spec)


def _fixed_port(spec: MachineSpec) -> int:
    return port_option(spec, "ssh_port", 0)


def find_qemu(arch: str, program: str = "") -> str:
    """Return the path of QEMU for guests of ``arch``, or of ``program``; ``DriverError``."""
    import shutil

    wanted = program or binary_name(arch)
    found = shutil.which(wanted)
    if found is None and sys.platform == "win32":
        found = shutil.which(wanted, path=r"C:\Program Files\qemu")
    if found is None:
        raise DriverError(
            f"{wanted} is not installed", hint=_INSTALL_HINTS.get(sys.platform, "Install QEMU.")
        )
    return found


def _host_facts(spec: MachineSpec, guest_arch: str) -> HostFacts:
    from desk.machine.accelerator import qemu_version
    from desk.machine.images import host_architecture

    binary = find_qemu(guest_arch, spec.options.get("qemu", ""))
    facts = HostFacts(
        sys.platform, host_architecture(), binary, qemu_version(binary), host_memory_mib()
    )
    wanted = spec.options.get("accelerator", "")
    usable = candidate_accelerators(facts, guest_arch)
    if wanted and wanted not in usable:
        raise UsageError(
            f"the accelerator {wanted} does not exist here",
            hint=f"Use one of: {', '.join(usable)}.",
        )
    return facts
