"""QEMU's command line for a machine: a pure function of its specification and the host's facts.

Options are those of the manual page qemu-system(1), "Block device options" and "Network options".
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from desk.errors import DriverError
from desk.machine.model import MachineSpec

GUEST_ADDRESS = "10.0.2.15"
"""The guest's static address in QEMU's user network (docs/architecture.md)."""

FOLDERS_ADDRESS = "10.0.2.100:115"
"""Where the guest connects for this computer's folders. QEMU answers there itself: no computer has
this address."""

SAVES_FOLDERS_SINCE = (8, 2, 0)
"""The first QEMU that saves the state of virtiofs devices, if their servers do their part."""

DATA_NODE = "data"
"""QEMU's name of the data disk."""

DATA_SERIAL, ROOT_SERIAL, SEED_SERIAL = "desk-data", "desk-root", "desk-seed"

PLUG_ID = "plug"
"""QOM name of the virtio-mem device, by which memory is added while the machine runs."""

PLUG_UNIT_MIB = 128
"""Linux adds memory in blocks of this size on x86-64, and on arm64 with pages of 4 KiB."""

TB_CACHE_MIB = 256
"""TCG's cache of translated code. QEMU's default grows to a gigabyte of host memory; a boot alone
fills 150 MB, and a full cache is thrown away whole."""

_COSTLY_UNDER_TCG = "-erms,-la57,-smap"
"""Features of the CPU "max" that make an emulated guest slower. With "erms" Linux clears and copies
pages byte by byte (``rep movsb``), which TCG does one after the other; "la57" is one more level
of every page table walk; "smap" ends a translated block twice for each access to user memory."""

_CMDLINE_TCG = "rodata=off init_on_alloc=0 norandmaps"
"""What the guest's kernel leaves out under emulation. Write-protecting its memory against itself
interrupts the other processors for each module, and checking that walks all page tables; zeroing
all memory that it gives itself is work, too. Code that programs have at other addresses each time
is translated anew each time: 7 % of all translations of a boot. Once the engine answers, the
guest turns random addresses on (``wait-engine``), so that containers have them."""

_CMDLINE_PLUG = "swiotlb=noforce"
"""Where memory may come above 4 GiB, Linux keeps 64 MiB to bounce the data of devices that cannot
reach it. Virtio devices reach everything."""

_SYSTEMS = {"amd64": "x86_64", "arm64": "aarch64"}
_ACCELERATORS = {"linux": ("kvm",), "darwin": ("hvf",), "win32": ("whpx",)}


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The host, as far as QEMU's arguments depend on it."""

    platform: str  # as sys.platform: "linux", "darwin", "win32"
    arch: str  # "amd64" or "arm64"
    qemu_binary: str
    qemu_version: tuple[int, int, int]
    memory_mib: int = 0  # 0: not known


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What QEMU reads and writes. Disks that a trial boot does not need are ``None``."""

    kernel: Path
    initramfs: Path
    console_log: Path
    root: Path | None = None
    data: Path | None = None
    seed: Path | None = None
    qmp: str = ""  # "unix:PATH" or "tcp:HOST:PORT"; empty: no QMP


@dataclass(frozen=True, slots=True)
class FolderDevice:
    """A shared folder as a device: its name in the guest (36 bytes at most), and the socket of the
    virtiofs server on this computer."""

    tag: str
    socket: Path


def binary_name(arch: str) -> str:
    """Return the name of QEMU's program for a guest of this architecture."""
    try:
        return f"qemu-system-{_SYSTEMS[arch]}"
    except KeyError as error:
        raise DriverError(
            f"QEMU machines for {arch} are not supported",
            hint="Desk has guest images for amd64 and arm64.",
        ) from error


def candidate_accelerators(host: HostFacts, guest_arch: str) -> tuple[str, ...]:
    """Return the accelerators worth trying on this host, best first; ``tcg`` ends the list."""
    own = _ACCELERATORS.get(host.platform, ()) if host.arch == guest_arch else ()
    return (*own, "tcg")


def cpu_model(accelerator: str, host: HostFacts, guest_arch: str) -> str:
    """Return the CPU that the guest sees.

    WORKAROUND: QEMU before 10 translates cmpxchg16b wrongly (a guest kernel panics or hangs in a
    third of the boots), so TCG hides the feature there.
    """
    if accelerator in ("kvm", "hvf"):
        return "host"
    if accelerator == "whpx":
        return "Westmere"  # what WHPX can virtualise everywhere, with AES; "max" exceeds it
    if guest_arch == "arm64":
        return "max,pauth-impdef=on"  # real pointer authentication costs TCG half its speed
    model = f"max,{_COSTLY_UNDER_TCG}"
    return f"{model},-cx16" if host.qemu_version < (10, 0, 0) else model


def accelerator_option(accelerator: str) -> str:
    """Return the value of ``-accel``."""
    if accelerator == "tcg":
        return f"tcg,thread=multi,tb-size={TB_CACHE_MIB}"
    if accelerator == "whpx":
        return "whpx,kernel-irqchip=off"  # interrupts get lost with the other setting
    return accelerator


def machine_option(accelerator: str, host: HostFacts, guest_arch: str) -> str:
    """Return the value of ``-machine``: few devices, no USB, no dump of guest memory."""
    if guest_arch == "arm64":
        gic = {"kvm": "host", "hvf": "2"}.get(accelerator, "3")
        return f"virt,gic-version={gic},dump-guest-core=off"
    # "pc" boots faster and more evenly than "q35" under TCG in QEMU 7.2.
    return "pc,usb=off,vmport=off,dump-guest-core=off"


def plug_memory_mib(spec: MachineSpec, host: HostFacts, guest_arch: str, cmdline: str) -> int:
    """Return how much memory can be added to the running machine: up to all that the host has.

    QEMU has virtio-mem on Linux hosts only, for arm64 since 7.0, and memory without a reservation
    since 6.1. An older guest image, with ``pci=noacpi``, would put its devices where the memory is
    to be.
    """
    if "pci=noacpi" in cmdline.split():
        return 0
    least = (7, 0, 0) if guest_arch == "arm64" else (6, 1, 0)
    if host.platform != "linux" or host.qemu_version < least:
        return 0
    room_mib = host.memory_mib - spec.memory_mib
    return max(0, room_mib // PLUG_UNIT_MIB * PLUG_UNIT_MIB)


def boot_command(
    host: HostFacts,
    guest_arch: str,
    accelerator: str,
    files: BootFiles,
    *,
    cmdline: str,
    memory_mib: int,
    cpus: int,
    plug_mib: int = 0,
) -> list[str]:
    """Return the arguments for a kernel and an initramfs without network and disks."""
    arguments = [
        host.qemu_binary,
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", machine_option(accelerator, host, guest_arch)),
        *("-accel", accelerator_option(accelerator)),
        *("-cpu", cpu_model(accelerator, host, guest_arch)),
        *("-smp", str(cpus)),
        *("-m", _memory(memory_mib, plug_mib)),
        *("-kernel", str(files.kernel)),
        *("-initrd", str(files.initramfs)),
        *("-append", f"{cmdline} {_CMDLINE_TCG}" if accelerator == "tcg" else cmdline),
        *("-chardev", f"file,id=console,path={_value(files.console_log)}"),
        *("-serial", "chardev:console"),
    ]
    if files.qmp:
        arguments += ["-qmp", f"{_value(files.qmp)},server=on,wait=off"]
    return arguments


def machine_command(
    spec: MachineSpec,
    host: HostFacts,
    guest_arch: str,
    accelerator: str,
    files: BootFiles,
    *,
    cmdline: str,
    ssh_port: int,
    folders: Sequence[str] = (),
    devices: Sequence[FolderDevice] = (),
) -> list[str]:
    """Return the arguments for the whole machine.

    ``ssh_port`` on 127.0.0.1 leads to the guest's sshd; nothing else of the guest is reachable.
    ``folders`` is the program that is started here for each of the guest's connections to
    ``FOLDERS_ADDRESS``; without one the guest has no such address. With ``devices`` the guest's
    memory is shared with their servers.
    """
    if files.root is None or files.data is None or files.seed is None:
        raise ValueError("a machine needs its root, data and seed disks")
    plug_mib = plug_memory_mib(spec, host, guest_arch, cmdline)
    return [
        *boot_command(
            host,
            guest_arch,
            accelerator,
            files,
            cmdline=f"{cmdline} {_CMDLINE_PLUG}" if plug_mib else cmdline,
            memory_mib=spec.memory_mib,
            cpus=spec.cpus,
            plug_mib=plug_mib,
        ),
        *("-name", f"desk-{spec.name}"),
        *("-rtc", "base=utc"),
        *("-msg", "timestamp=on"),
        *_network(ssh_port, folders),
        *_disk("root", files.root, ROOT_SERIAL, {"read-only": "on"}),
        *_disk(DATA_NODE, files.data, DATA_SERIAL, {"discard": "unmap", "detect-zeroes": "unmap"}),
        *_disk("seed", files.seed, SEED_SERIAL, {"read-only": "on"}),
        *("-device", "virtio-rng-pci"),
        # What the balloon holds is not the guest's to take back: the ceiling is a ceiling.
        *("-device", "virtio-balloon-pci,id=balloon,free-page-reporting=on,deflate-on-oom=off"),
        *_plug(plug_mib, shared=bool(devices)),
        *_folder_devices(spec.memory_mib, devices),
    ]


def _memory(memory_mib: int, plug_mib: int) -> str:
    return f"{memory_mib}M,maxmem={memory_mib + plug_mib}M" if plug_mib else f"{memory_mib}M"


def _plug(plug_mib: int, *, shared: bool) -> list[str]:
    if not plug_mib:
        return []
    kind = "memory-backend-memfd,share=on" if shared else "memory-backend-ram"
    return [
        # Not reserved: most of it is never used, and the host may have less free than that.
        *("-object", f"{kind},id={PLUG_ID}-ram,size={plug_mib}M,reserve=off"),
        *("-device", f"virtio-mem-pci,id={PLUG_ID},memdev={PLUG_ID}-ram,requested-size=0"),
    ]


def _folder_devices(memory_mib: int, devices: Sequence[FolderDevice]) -> list[str]:
    if not devices:
        return []
    arguments = [
        *("-object", f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on"),
        *("-machine", "memory-backend=ram"),
    ]
    for device in devices:
        arguments += [
            *("-chardev", f"socket,id={device.tag},path={_value(device.socket)}"),
            *("-device", f"vhost-user-fs-pci,chardev={device.tag},tag={device.tag}"),
        ]
    return arguments


def _network(ssh_port: int, folders: Sequence[str]) -> list[str]:
    forward = f"hostfwd=tcp:127.0.0.1:{ssh_port}-{GUEST_ADDRESS}:22"
    if folders:
        forward += f",guestfwd=tcp:{FOLDERS_ADDRESS}-cmd:{_value(shlex.join(folders))}"
    return [
        *("-netdev", f"user,id=net,{forward}"),
        # Without its boot ROM the card costs no time in the firmware.
        *("-device", "virtio-net-pci,netdev=net,romfile="),
    ]


def _disk(node: str, path: Path, serial: str, options: Mapping[str, str]) -> list[str]:
    settings = {"driver": "raw", "node-name": node, **options}
    settings |= {"file.driver": "file", "file.filename": _value(path)}
    if "discard" in options:
        settings["file.discard"] = options["discard"]
    blockdev = ",".join(f"{key}={value}" for key, value in settings.items())
    return ["-blockdev", blockdev, "-device", f"virtio-blk-pci,drive={node},serial={serial}"]


def _value(path: Path | str) -> str:
    """Return a value with its commas doubled, as QEMU's option parser wants them."""
    return str(path).replace(",", ",,")
