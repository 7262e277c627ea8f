"""The boxes for VirtualBox and Hyper-V boot to an answering engine, from the very files in them.

QEMU shows the disk controller, the firmware and the network card of those hypervisors: AHCI and an
82540EM, IDE and a DEC 21140 (here its successor 21143), each with a BIOS. What describes the disk
to the hypervisor is read as Vagrant and VirtualBox read it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.free_ports import free_port
from tests.guest_image import IMAGE, REPOSITORY

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]

_GIB = 1 << 30
_OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
_RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
_BOOT_S = 240.0


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """What a hypervisor shows to the guest, in QEMU's words, and the modules that serve it."""

    disk: str
    format: str
    devices: tuple[str, ...]
    drivers: tuple[str, ...]


HYPERVISORS = {
    "virtualbox": Hypervisor(
        "box.vmdk",
        "vmdk",
        (
            *("-device", "ich9-ahci,id=sata", "-device", "ide-hd,bus=sata.0,drive=disk"),
            *("-device", "e1000,netdev=net"),
        ),
        ("ahci", "e1000"),
    ),
    "hyperv": Hypervisor(
        "Virtual Hard Disks/box.vhdx",
        "vhdx",
        ("-device", "ide-hd,bus=ide.0,drive=disk", "-device", "tulip,netdev=net"),
        ("ata_piix", "tulip"),
    ),
}


@pytest.fixture(scope="module", params=HYPERVISORS)
def box(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the unpacked box; it has the name of its provider."""
    provider = str(request.param)
    place = tmp_path_factory.mktemp("boxes")
    packed, directory = place / "desk.box", place / provider
    done = subprocess.run(
        [
            *(str(REPOSITORY / "vm-images" / "build"), "--output", str(IMAGE)),
            *("--box", provider, "--box-output", str(packed)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(packed) as archive:
        archive.extractall(directory, filter="data")
    packed.unlink()
    return directory


def test_the_description_fits_the_disk(box: Path) -> None:
    hypervisor = HYPERVISORS[box.name]
    disk = box / hypervisor.disk
    assert json.loads((box / "metadata.json").read_text()) == {"provider": box.name}
    assert "Vagrant.configure" in (box / "Vagrantfile").read_text()
    told = subprocess.run(
        ["qemu-img", "info", "--output=json", disk], capture_output=True, check=True, timeout=60
    )
    seen = json.loads(told.stdout)
    assert (seen["format"], seen["virtual-size"]) == (hypervisor.format, 20 * _GIB)
    if box.name == "virtualbox":
        _check_ovf(box, disk, seen["virtual-size"])
    else:
        _check_machine(box, disk)


def _check_ovf(box: Path, disk: Path, size_bytes: int) -> None:
    tree = ElementTree.parse(box / "box.ovf").getroot()
    file, described = tree.find(f".//{_OVF}File"), tree.find(f".//{_OVF}Disk")
    assert file is not None
    assert described is not None
    assert box / file.attrib[f"{_OVF}href"] == disk
    assert int(file.attrib[f"{_OVF}size"]) == disk.stat().st_size
    assert int(described.attrib[f"{_OVF}capacity"]) == size_bytes
    assert described.attrib[f"{_OVF}format"].endswith("#streamOptimized")
    subtypes = {node.text for node in tree.iter(f"{_RASD}ResourceSubType")}
    assert subtypes == {"AHCI", "E1000"}
    hosts = [node.text for node in tree.iter(f"{_RASD}HostResource")]
    assert hosts == [f"/disk/{described.attrib[f'{_OVF}diskId']}"]


def _check_machine(box: Path, disk: Path) -> None:
    """Read the configuration by the paths that Vagrant's provider asks for."""
    machine = ElementTree.parse(box / "Virtual Machines" / "box.xml").getroot()
    assert machine.findtext("properties/subtype") == "0"  # generation 1
    assert machine.findtext(".//boot/device0") == "HardDrive"
    assert machine.findtext(".//controller0/drive0/pathname") == disk.name
    assert machine.findtext(".//controller0/drive0/type") == "VHD"
    assert machine.findtext("settings/processors/count") == "2"
    limits = [
        machine.findtext(f".//memory/bank/{name}") for name in ("reservation", "size", "limit")
    ]
    assert limits == ["512", "1024", "2048"]


def test_the_engine_answers_and_the_disk_grows(box: Path, tmp_path: Path) -> None:
    hypervisor = HYPERVISORS[box.name]
    with _running(box, hypervisor, tmp_path) as ssh:
        answer = ssh("deskd dial-stdio", stdin="GET /version HTTP/1.0\r\n\r\n")
        assert answer.startswith("HTTP/1.1 200")
        assert '"ApiVersion":"1.47"' in answer
        assert ssh("docker ps").startswith("CONTAINER ID ")
        modules = ssh("cut -d' ' -f1 /proc/modules").split()
        assert set(hypervisor.drivers) <= set(modules)
        ssh("i=0; until [ -e /run/desk-settled ] || [ $i -ge 120 ]; do i=$((i+1)); sleep 1; done")
        size_kib, place = ssh("df -k /var/lib/desk | tail -n 1").split()[1::4]
        assert place == "/var/lib/desk"
        assert int(size_kib) > 17 * 1024 * 1024


@contextlib.contextmanager
def _running(box: Path, hypervisor: Hypervisor, scratch: Path) -> Iterator[_Ssh]:
    """Boot the box's disk, which stays as it is; give the login that Vagrant has first."""
    port = free_port()
    console = scratch / "console.log"
    drive = f"if=none,id=disk,file={box / hypervisor.disk},format={hypervisor.format},snapshot=on"
    qemu = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-machine", "pc,accel=tcg", "-smp", "2", "-m", "1024"),
            *("-cpu", "max,-cx16", "-nodefaults", "-display", "none", "-serial", f"file:{console}"),
            *("-drive", drive, "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22"),
            *hypervisor.devices,
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        ssh = _Ssh(port, _vagrant_key(scratch))
        deadline = time.monotonic() + _BOOT_S
        while "ready" not in ssh("echo ready", check=False):
            assert qemu.poll() is None, "QEMU ended"
            assert time.monotonic() < deadline, console.read_text("utf-8", "replace")[-3000:]
            time.sleep(0.5)
        yield ssh
    finally:
        qemu.kill()
        qemu.wait()


def _vagrant_key(scratch: Path) -> Path:
    """Return a copy of the key that every Vagrant knows, as private as ssh wants it."""
    program = shutil.which("vagrant")
    assert program, "vagrant is missing: apt-get install vagrant"
    gems = Path("/usr/share/rubygems-integration/all/gems")
    source = sorted(gems.glob("vagrant-[0-9]*/keys/vagrant"))[-1]
    key = scratch / "vagrant-key"
    key.write_bytes(source.read_bytes())
    key.chmod(0o600)
    return key


@dataclass(frozen=True, slots=True)
class _Ssh:
    port: int
    key: Path

    def __call__(self, command: str, *, stdin: str = "", check: bool = True) -> str:
        options = [
            *("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"),
            *("BatchMode=yes", "ConnectTimeout=10"),
        ]
        argv = ["ssh", "-F", "none", "-i", str(self.key), "-p", str(self.port)]
        for option in options:
            argv += ["-o", option]
        done = subprocess.run(
            [*argv, "vagrant@127.0.0.1", command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout
