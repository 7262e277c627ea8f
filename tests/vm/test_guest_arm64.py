"""The guest of the other processor: built here, booted under emulation, with all that containers
of a Mac or a Raspberry Pi need of its kernel."""

from __future__ import annotations

import http.client
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine_process import until
from tests.guest_image import REPOSITORY, built
from tests.laptop import Laptop, laptop_with_machine

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def box() -> Iterator[Laptop]:
    image = built(REPOSITORY / "build" / "guest-arm64", "--arch", "arm64")
    with laptop_with_machine(image, memory="1g", disk="2g") as made:
        yield made


def test_it_is_what_it_says(box: Laptop) -> None:
    assert box.desk("version", "-f", "{{.Server.Arch}}") == "arm64\n"
    assert box.desk("run", "--rm", "busybox", "uname", "-m") == "aarch64\n"
    assert box.desk("image", "inspect", "-f", "{{.Architecture}}", "busybox") == "arm64\n"


def test_containers_are_confined_and_limited(box: Laptop) -> None:
    look = (
        "grep ^Seccomp: /proc/1/status; cat /proc/1/attr/current;"
        " cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max;"
        " mount -t tmpfs none /tmp 2>/dev/null; echo $?; unshare -U true 2>/dev/null; echo $?"
    )
    words = ("--rm", "--memory", "64m", "--cpus", "0.5", "busybox", "sh", "-c", look)
    assert box.desk("run", *words).split("\n") == [
        "Seccomp:\t2", "docker-default (enforce)", str(64 << 20), "50000 100000", "1", "1", "",
    ]  # fmt: skip
    assert box.desk("run", *words[:1], "--privileged", *words[5:]).split("\n")[-3:] == [
        "0", "0", "",
    ]  # fmt: skip


def test_ports_networks_and_folders(box: Laptop) -> None:
    with tempfile.TemporaryDirectory(dir=Path.home(), prefix=".desk-test-") as folder:
        Path(folder, "index.html").write_text("from here")
        box.desk("network", "create", "lan")
        box.desk("run", "-d", "--name", "web", "--network", "lan", "-p", "127.0.0.1::80",
                 "-v", f"{folder}:/www", "busybox", "httpd", "-f", "-h", "/www")  # fmt: skip
        get = ("wget", "-q", "-O", "-", "http://web/")
        assert box.desk("run", "--rm", "--network", "lan", "busybox", *get) == "from here"
        port = int(box.desk("port", "web", "80").rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/index.html")
        assert connection.getresponse().read() == b"from here"
        connection.close()
        box.desk("exec", "web", "sh", "-c", "echo from there >/www/note")
        assert Path(folder, "note").read_text() == "from there\n"
        box.desk("rm", "-f", "web")


def test_memory_moves_while_it_runs(box: Laptop) -> None:
    def total_mib() -> int:
        shown = box.desk("machine", "ssh", "default", "--", "cat", "/proc/meminfo")
        found = re.search(r"MemTotal: +(\d+) kB", shown)
        assert found
        return int(found[1]) // 1024

    pid = (box.home / "machines" / "default" / "qemu.pid").read_text()
    box.desk("machine", "set", "--memory", "1536m")
    until(lambda: total_mib() > 1400, 60)
    box.desk("machine", "set", "--memory", "1g")
    until(lambda: total_mib() < 1024, 60)
    assert (box.home / "machines" / "default" / "qemu.pid").read_text() == pid


def test_the_power_button_ends_it_and_containers_come_back(box: Laptop) -> None:
    box.desk("run", "-d", "--name", "kept", "busybox", "sleep", "3600")
    box.desk("machine", "stop")
    console = box.home / "machines" / "default" / "console.log"
    assert "Power down" in console.read_text("utf-8", "replace")
    box.desk("machine", "start")
    box.desk("start", "kept")
    assert box.desk("exec", "kept", "uname", "-m") == "aarch64\n"
