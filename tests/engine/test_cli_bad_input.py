"""Bad input, as a person types it: one sentence that names the thing, one with the remedy, an exit
code that is not zero, and nothing half-made.

What the parts do with the same input is in their own tests: ``tests/vm/test_machine_bad_input.py``
for machines, ``tests/faults`` for the agent, ``tests/engine/test_images_service.py`` for images.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from desk.ssh.keys import generate_key_pair, write_key_pair
from tests.cli_process import DESK, Result
from tests.engine_process import busybox_tar
from tests.free_ports import free_port
from tests.laptop import Host
from tests.ssh_server import SshServer

pytestmark = pytest.mark.root


@pytest.fixture
def laptop() -> Iterator[Host]:
    """A laptop for what must fail before there is a container."""
    with tempfile.TemporaryDirectory(prefix="desk-") as directory:
        yield Host(None, Path(directory, "h"))


def check_refusal(done: Result, code: int, sentence: str, remedy: str) -> None:
    """Progress may come first; then one line says what is wrong and one what to do."""
    assert (done.code, done.out) == (code, "")
    *progress, said, advice = done.err.splitlines()
    assert not any(line.startswith("desk:") for line in progress)
    assert said.startswith("desk: ")
    assert sentence in said
    assert remedy in advice


def check_no_machine(laptop: Host) -> None:
    assert laptop("machine", "ls", "-q").out == ""
    machines = laptop.home / "machines"
    assert [entry.name for entry in machines.glob("*") if entry.suffix != ".lock"] == []


def test_a_mistyped_command(laptop: Host) -> None:
    check_refusal(laptop("imags"), 1, "'imags' is not a desk command", "`desk images`")
    check_refusal(laptop("machine", "strat"), 1, "'strat' is not a desk machine", "machine start`")
    check_refusal(laptop("run", "--nmae", "web", "box"), 125, "'--nmae'", "desk run --help")


def test_a_stopped_machine(laptop: Host) -> None:
    assert laptop("machine", "create", "--driver", "local").code == 0
    for command in (["ps"], ["images"], ["logs", "web"], ["exec", "web", "true"]):
        done = laptop(*command)
        check_refusal(done, 1, "machine default is stopped", "`desk machine start default`")
    assert laptop("machine", "status").out == "Stopped\n"


_LISTENER = "import socket; s = socket.create_server(('', 8081)); print(flush=True); input()"


def test_a_busy_port(host: Host) -> None:
    """Taken by another container, and by another program on the computer of the engine."""
    assert host("up", "--driver", "local").code == 0
    assert host("import", "-", "box", stdin=busybox_tar()).code == 0
    assert host("run", "-d", "--name", "first", "-p", "8080:80", "box", "sleep", "600").code == 0
    with subprocess.Popen(
        host.command(sys.executable, "-c", _LISTENER), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for port in (8080, 8081):
            done = host("run", "--rm", "--name", "second", "-p", f"{port}:80", "box", "true")
            assert (done.code, done.out) == (125, "")
            assert f"Bind for 0.0.0.0:{port} failed: port is already allocated" in done.err
            assert host("ps", "-a", "--format", "{{.Names}}").out == "first\n"
        other.communicate(b"\n")
    assert host("stop", "-t", "0", "first").code == 0


@pytest.fixture
def small_disk(laptop: Host) -> Iterator[Path]:
    """Put a disk with 1 MiB below the laptop's DESK_HOME."""
    libc = ctypes.CDLL(None, use_errno=True)
    laptop.home.mkdir(exist_ok=True)
    path = os.fsencode(laptop.home)
    assert libc.mount(b"tmpfs", path, b"tmpfs", 0, b"size=1m") == 0
    yield laptop.home
    assert libc.umount2(path, 0) == 0


def test_a_full_disk(laptop: Host, small_disk: Path, tmp_path: Path) -> None:
    image = guest_image(tmp_path / "image", 4 << 20)
    done = laptop("up", "--image", str(image))
    check_refusal(done, 1, f"cannot write the guest image {small_disk}/images/", "Make room")
    assert "No space left on device" in done.err
    assert list((small_disk / "images").iterdir()) == []
    check_no_machine(laptop)


def guest_image(directory: Path, size_bytes: int) -> Path:
    """Make a directory with a whole guest image by its checksums, of zeros."""
    directory.mkdir()
    manifest: dict[str, object] = {"format": 1, "version": "9", "arch": "amd64", "cmdline": ""}
    for part in ("kernel", "initramfs", "root"):
        (directory / part).write_bytes(bytes(size_bytes))
        digest = hashlib.sha256(bytes(size_bytes)).hexdigest()
        manifest[part] = {"file": part, "sha256": digest, "size": size_bytes}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def test_a_corrupt_image_file(laptop: Host, tmp_path: Path) -> None:
    noise = tmp_path / "noise.tar"
    noise.write_bytes(os.urandom(100_000))
    done = laptop("up", "--image", str(noise))
    check_refusal(done, 1, f"{noise} is no whole tar archive", "desk machine image install")
    image = guest_image(tmp_path / "image", 4096)
    (image / "root").write_bytes(bytes(4095) + b"x")
    done = laptop("up", "--image", str(image))
    check_refusal(done, 1, f"{image / 'root'} is damaged", "desk machine image install")
    assert list((laptop.home / "images").iterdir()) == []
    check_no_machine(laptop)


def ssh_options(server: SshServer, port: int, key: Path) -> list[str]:
    host_key = server.host_key.public
    values = {"host": "127.0.0.1", "port": port, "user": server.user, "key": key}
    words = [f"ssh_{name}={value}" for name, value in values.items()]
    return [word for item in [*words, f"ssh_host_key={host_key}"] for word in ("-o", item)]


def test_an_unreachable_sshd(laptop: Host, tmp_path: Path) -> None:
    server, port = SshServer(tmp_path / "s"), free_port()  # it is not started
    options = ssh_options(server, port, server.endpoint.private_key)
    done = laptop("up", "--driver", "ssh", *options)
    check_refusal(done, 1, f"127.0.0.1:{port}", "sshd")
    check_no_machine(laptop)


def test_a_wrong_key(laptop: Host, tmp_path: Path) -> None:
    key = tmp_path / "other"
    write_key_pair(generate_key_pair("another laptop"), key, tmp_path / "other.pub")
    with SshServer(tmp_path / "s") as server:
        done = laptop("up", "--driver", "ssh", *ssh_options(server, server.port, key))
    check_refusal(done, 1, f"does not accept Desk's key {key}", "authorized_keys")
    check_no_machine(laptop)


def test_a_kernel_without_a_feature(host: Host, tmp_path: Path) -> None:
    """The engine looks at /proc/filesystems and at the modules; both are covered here."""
    without = [
        line
        for line in Path("/proc/filesystems").read_text().splitlines(keepends=True)
        if line.split()[-1] != "overlay"
    ]
    (tmp_path / "filesystems").write_text("".join(without))
    script = (
        f"mount --bind {tmp_path}/filesystems /proc/filesystems\n"
        "[ ! -d /lib/modules ] || mount -t tmpfs tmpfs /lib/modules\n"
        f"exec {DESK} up --driver local"
    )
    done = host.run("unshare", "--mount", "sh", "-ec", script)
    assert (done.code, done.out) == (1, "")
    said = done.err.splitlines()[-2]
    assert said.startswith("desk: ")
    assert "this kernel lacks the overlay file system (CONFIG_OVERLAY_FS)" in said
    assert "needed for container file systems" in said
    assert host("machine", "status").out == "Stopped\n"
