"""QEMU's arguments on every host, without any QEMU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from desk.errors import DriverError
from desk.machine.model import MachineSpec
from desk.machine.qemu_command import (
    BootFiles,
    FolderDevice,
    HostFacts,
    binary_name,
    boot_command,
    candidate_accelerators,
    cpu_model,
    machine_command,
    plug_memory_mib,
)

SPEC = MachineSpec("box", memory_mib=3072, cpus=4)
FILES = BootFiles(
    kernel=Path("/i/vmlinux"),
    initramfs=Path("/i/initramfs"),
    console_log=Path("/m/console.log"),
    root=Path("/i/root.erofs"),
    data=Path("/m/data.img"),
    seed=Path("/m/seed.img"),
    qmp="unix:/m/qmp.sock",
)
LINUX = HostFacts("linux", "amd64", "/usr/bin/qemu-system-x86_64", (7, 2, 22))
MAC = HostFacts("darwin", "arm64", "/opt/homebrew/bin/qemu-system-aarch64", (9, 2, 0))
OLD_MAC = HostFacts("darwin", "amd64", "/usr/local/bin/qemu-system-x86_64", (9, 2, 0))
WINDOWS = HostFacts("win32", "amd64", r"C:\Program Files\qemu\qemu-system-x86_64.exe", (10, 0, 2))


def command(host: HostFacts, accelerator: str, files: BootFiles = FILES) -> list[str]:
    return machine_command(
        SPEC, host, host.arch, accelerator, files, cmdline="console=ttyS0 quiet", ssh_port=20222
    )


def values(argv: list[str], option: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv) if word == option]


@pytest.mark.parametrize(
    ("host", "accelerators", "machine", "cpu"),
    [
        (LINUX, ("kvm", "tcg"), "pc,", "host"),
        (OLD_MAC, ("hvf", "tcg"), "pc,", "host"),
        (MAC, ("hvf", "tcg"), "virt,", "host"),
        (WINDOWS, ("whpx", "tcg"), "pc,", "Westmere"),
    ],
)
def test_each_platform_has_its_accelerator_machine_and_cpu(
    host: HostFacts, accelerators: tuple[str, ...], machine: str, cpu: str
) -> None:
    assert candidate_accelerators(host, host.arch) == accelerators
    argv = command(host, accelerators[0])
    assert argv[0] == host.qemu_binary
    assert values(argv, "-machine")[0].startswith(machine)
    assert values(argv, "-cpu") == [cpu]
    assert values(argv, "-accel")[0].split(",")[0] == accelerators[0]
    assert values(argv, "-smp") == ["4"]
    assert values(argv, "-m") == ["3072M"]
    emulated = accelerators[0] == "tcg"
    assert values(argv, "-append") == [
        "console=ttyS0 quiet" + " rodata=off init_on_alloc=0 norandmaps" * emulated
    ]


def test_folders_as_devices_share_the_guests_memory() -> None:
    devices = [FolderDevice("desk-folder-0", Path("/m/a,b/0.sock"))]
    host = replace(LINUX, memory_mib=8192)
    argv = machine_command(
        SPEC, host, "amd64", "kvm", FILES, cmdline="", ssh_port=20222, devices=devices
    )
    assert values(argv, "-object") == [
        "memory-backend-memfd,share=on,id=plug-ram,size=5120M,reserve=off",
        "memory-backend-memfd,id=ram,size=3072M,share=on",
    ]
    assert values(argv, "-machine")[1:] == ["memory-backend=ram"]
    assert "socket,id=desk-folder-0,path=/m/a,,b/0.sock" in values(argv, "-chardev")
    assert values(argv, "-device")[-1] == (
        "vhost-user-fs-pci,chardev=desk-folder-0,tag=desk-folder-0"
    )
    assert "memfd" not in " ".join(command(host, "kvm"))


def test_a_program_takes_the_guests_connections_to_folders() -> None:
    door = ["/opt/my python/bin/python3", "-I", "/a,b/folder_door.py", "/m/folders.sock"]
    argv = machine_command(
        SPEC, LINUX, "amd64", "kvm", FILES, cmdline="", ssh_port=20222, folders=door
    )
    assert values(argv, "-netdev") == [
        "user,id=net,hostfwd=tcp:127.0.0.1:20222-10.0.2.15:22,guestfwd=tcp:10.0.2.100:115-cmd:"
        "'/opt/my python/bin/python3' -I /a,,b/folder_door.py /m/folders.sock"
    ]
    assert "guestfwd" not in " ".join(command(LINUX, "kvm"))


def test_foreign_guests_are_emulated() -> None:
    assert candidate_accelerators(MAC, "amd64") == ("tcg",)
    assert candidate_accelerators(LINUX, "arm64") == ("tcg",)
    assert cpu_model("tcg", LINUX, "arm64") == "max,pauth-impdef=on"


def test_old_qemu_hides_the_instruction_it_emulates_wrongly() -> None:
    assert "-cx16" in cpu_model("tcg", LINUX, "amd64").split(",")
    assert "-cx16" not in cpu_model("tcg", WINDOWS, "amd64").split(",")


def test_emulation_bounds_its_translation_cache() -> None:
    assert values(command(LINUX, "tcg"), "-accel") == ["tcg,thread=multi,tb-size=256"]


def test_only_ssh_is_forwarded_and_only_from_loopback() -> None:
    argv = command(LINUX, "tcg")
    assert values(argv, "-netdev") == ["user,id=net,hostfwd=tcp:127.0.0.1:20222-10.0.2.15:22"]
    assert "hostfwd" not in " ".join(
        boot_command(LINUX, "amd64", "tcg", FILES, cmdline="", memory_mib=256, cpus=1)
    )


def test_disks_have_their_serials_and_rights() -> None:
    argv = command(LINUX, "kvm")
    nodes = {
        value.split("node-name=")[1].split(",")[0]: value for value in values(argv, "-blockdev")
    }
    assert "read-only=on" in nodes["root"]
    assert "read-only=on" in nodes["seed"]
    assert "discard=unmap,detect-zeroes=unmap" in nodes["data"]
    assert "read-only" not in nodes["data"]
    devices = values(argv, "-device")
    for node, serial in (("root", "desk-root"), ("data", "desk-data"), ("seed", "desk-seed")):
        assert f"virtio-blk-pci,drive={node},serial={serial}" in devices
    assert any(
        d.startswith("virtio-balloon-pci") and "free-page-reporting=on" in d for d in devices
    )
    assert "virtio-rng-pci" in devices


def test_memory_can_be_added_where_qemu_and_the_host_have_it() -> None:
    roomy = replace(LINUX, memory_mib=8192)
    argv = command(roomy, "kvm")
    assert values(argv, "-m") == ["3072M,maxmem=8192M"]
    assert "memory-backend-ram,id=plug-ram,size=5120M,reserve=off" in values(argv, "-object")
    assert values(argv, "-append") == ["console=ttyS0 quiet swiotlb=noforce"]
    assert "virtio-mem-pci,id=plug,memdev=plug-ram,requested-size=0" in values(argv, "-device")
    assert "virtio-mem-pci,id=plug,memdev=plug-ram,requested-size=0" in values(
        command(replace(roomy, arch="arm64"), "tcg"), "-device"
    )
    for host in (
        replace(LINUX, memory_mib=3100),
        replace(roomy, qemu_version=(6, 0, 0)),
        replace(roomy, arch="arm64", qemu_version=(6, 2, 0)),
        replace(OLD_MAC, memory_mib=8192),
        replace(WINDOWS, memory_mib=8192),
    ):
        argv = command(host, "tcg")
        assert values(argv, "-m") == ["3072M"]
        assert not any("virtio-mem" in device for device in values(argv, "-device"))


def test_an_older_guest_image_gets_no_memory_device() -> None:
    roomy = replace(LINUX, memory_mib=8192)
    spec = MachineSpec("box", memory_mib=3072)
    assert plug_memory_mib(spec, roomy, "amd64", "console=ttyS0 acpi=noirq") == 5120
    assert plug_memory_mib(spec, roomy, "amd64", "console=ttyS0 pci=noacpi quiet") == 0


def test_what_the_balloon_holds_is_not_taken_back() -> None:
    balloons = [d for d in values(command(LINUX, "kvm"), "-device") if "balloon" in d]
    assert len(balloons) == 1
    assert "deflate-on-oom=off" in balloons[0]


def test_nothing_needless_is_there() -> None:
    argv = command(LINUX, "kvm")
    assert {"-nodefaults", "-no-user-config"} <= set(argv)
    assert values(argv, "-display") == ["none"]
    assert values(argv, "-qmp") == ["unix:/m/qmp.sock,server=on,wait=off"]
    assert not any("usb" in word and "usb=off" not in word for word in argv)


def test_commas_in_paths_are_escaped() -> None:
    odd = BootFiles(
        Path("/a,b/vmlinux"),
        Path("/a,b/initramfs"),
        Path("/a,b/console.log"),
        Path("/a,b/root"),
        Path("/a,b/data"),
        Path("/a,b/seed"),
        "unix:/a,b/qmp.sock",
    )
    argv = command(LINUX, "tcg", odd)
    assert all("/a,,b/" in value for value in values(argv, "-blockdev"))
    assert values(argv, "-chardev") == ["file,id=console,path=/a,,b/console.log"]
    assert values(argv, "-qmp") == ["unix:/a,,b/qmp.sock,server=on,wait=off"]
    assert values(argv, "-kernel") == ["/a,b/vmlinux"]


def test_programs_by_architecture() -> None:
    assert binary_name("amd64") == "qemu-system-x86_64"
    assert binary_name("arm64") == "qemu-system-aarch64"
    with pytest.raises(DriverError, match="riscv64"):
        binary_name("riscv64")
