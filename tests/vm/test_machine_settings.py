"""A real machine's settings file, its disk that grows, its mounts, ports and provisioning."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.guest_image import guest_image
from tests.laptop import Host

from desk.compose import Desk
from desk.errors import SshError
from desk.machine.disks import DiskUsage
from desk.paths import Home
from desk.ssh.session import Session

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "default"
GIB = 1 << 30
PATIENCE_S = 120.0


@dataclass
class Box:
    """The machine of this module. Each test leaves it running."""

    host: Host
    desk: Desk

    def __call__(self, *words: str, code: int = 0, stdin: bytes = b"") -> str:
        done = self.host(*words, stdin=stdin)
        assert done.code == code, done
        return done.out if code == 0 else done.err

    def guest(self, command: str) -> str:
        with self._session() as session:
            done = session.run(command)
        assert done.exit_code == 0, (command, done.stdout, done.stderr)
        return done.stdout.decode().strip()

    def _session(self) -> Session:
        """Connect; a guest on a busy computer may let a handshake wait for too long."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return Session.connect(self.desk.manager.endpoint(NAME))
            except SshError:
                if time.monotonic() >= deadline:
                    raise

    def usage(self) -> DiskUsage:
        return self.desk.disks.usage(NAME)


@pytest.fixture(scope="module")
def box(guest_image: Path) -> Iterator[Box]:
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    made = Box(Host(None, home), Desk(Home(home)))
    made("machine", "image", "install", str(guest_image))
    made("machine", "create", "--memory", "768m", "--disk", "1g", "-o", "accelerator=tcg", NAME)
    try:
        settings = made.desk.home.machine(NAME).settings
        text = settings.read_text()
        for old, new in (
            ("cpus = 2", "cpus = 1 # for a test"),
            ('# dns = ["1.1.1.1"]', 'dns = ["10.0.2.3", "9.9.9.9"]'),
            ('# labels = ["zone=a"]', 'labels = ["zone=a"]'),
            ('# environment = ["NAME=VALUE"]', 'environment = ["DESK_TEST=one two"]'),
            ('# options = ["icc=false", "log-opt=max-size=10m"]', 'options = ["mtu=1400"]'),
        ):
            assert old in text
            text = text.replace(old, new)
        settings.write_text(text)
        made("machine", "start", NAME)
        yield made
    finally:
        made("machine", "rm", "-f", NAME)
        shutil.rmtree(home)


def test_what_was_written_into_the_settings_file_is_in_force(box: Box) -> None:
    assert box.guest("nproc") == "1"
    environment = "tr '\\0' '\\n' </proc/$(pidof python3.13 | tr ' ' '\\n' | tail -n 1)/environ"
    assert "DESK_TEST=one two" in box.guest(environment).splitlines()
    assert box("info", "-f", "{{json .Labels}}") == '["zone=a"]\n'
    resolv = box("run", "--rm", "busybox", "cat", "/etc/resolv.conf")
    assert "nameserver 9.9.9.9" in resolv
    assert box("run", "--rm", "busybox", "cat", "/sys/class/net/eth0/mtu") == "1400\n"


def test_a_directory_of_the_machine_is_mounted_here(box: Box, tmp_path: Path) -> None:
    place = tmp_path / "m"
    assert "is no directory" in box("machine", "mount", f"{NAME}:/root", str(place), code=125)
    place.mkdir()
    box.guest("mkdir -p /root/notes && echo there >/root/notes/file")
    told = box.host("machine", "mount", f"{NAME}:/root/notes", str(place))
    assert told.code == 0, told
    try:
        assert (place / "file").read_text() == "there\n"
        (place / "mine").write_text("from here\n")
        assert box.guest("cat /root/notes/mine") == "from here"
    finally:
        assert box("machine", "mount", "-u", str(place)) == ""
    assert list(place.iterdir()) == []
    assert "cannot be unmounted" in box("machine", "mount", "-u", str(place), code=1)
    lost = box("machine", "mount", f"{NAME}:/no/such", str(place), code=1)
    assert "/no/such of machine default cannot be mounted" in lost


def test_ports_codes_and_lists_are_docker_machines(box: Box) -> None:
    box("run", "-d", "--name", "web", "-p", "127.0.0.1::80", "busybox", "sleep", "600")
    port = box("port", "web", "80").strip()
    lines = [line.split() for line in box("machine", "port").splitlines()[1:]]
    ssh = box.desk.manager.endpoint(NAME).port
    assert lines == [["22/tcp", "(SSH)", f"127.0.0.1:{ssh}"], ["web", "80/tcp", port]]
    box("rm", "-f", "web")
    assert box.host("machine", "ssh", NAME, "exit", "7").code == 7
    shown = "{{.Name}} {{.Active}} {{.DriverName}} {{.State}} {{.ActiveHost}}"
    wanted = ["--filter", "label=zone=a", "-f", shown]
    assert box("machine", "ls", *wanted) == f"{NAME} * qemu Running true\n"
    assert box("machine", "ls", "-q", "--filter", "label=zone=b") == ""


def test_provisioning_a_running_machine_repairs_it(box: Box) -> None:
    paths = box.desk.home.machine(NAME)
    paths.private_key.write_text("half a key")
    paths.known_hosts.unlink()
    done = box.host("machine", "provision")
    assert (done.code, done.out) == (0, ""), done
    assert done.err.endswith("Provisioned machine default and restarted it.\n")
    assert box.guest("hostname") == NAME
    assert "zone=a" in box("info", "-f", "{{json .Labels}}")


def test_the_disk_grows_while_the_machine_runs(box: Box) -> None:
    boot = box.guest("cat /proc/sys/kernel/random/boot_id")
    shown = box("machine", "disk").splitlines()[1].split()
    assert shown[:2] == [NAME, "1GiB"]
    told = box.host("machine", "disk", "--resize", "2g")
    assert (told.code, told.out) == (0, ""), told
    assert told.err.endswith("Machine default has a disk of 2 GiB.\n")
    assert box.guest("cat /proc/sys/kernel/random/boot_id") == boot
    kilobytes = int(box.guest("df -k /var/lib/desk | tail -n 1 | awk '{print $2}'"))
    assert kilobytes > 1.8 * GIB / 1024
    usage = box.usage()
    assert usage.size_bytes == 2 * GIB
    assert usage.used_bytes is not None
    assert usage.host_bytes is not None
    assert usage.host_bytes < 0.5 * GIB
    assert "has 2 GiB and cannot become smaller" in box("machine", "disk", "--resize", "1g", code=1)
    assert 'disk = "2 GiB"' in box("machine", "config", "--show")
