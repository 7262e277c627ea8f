"""Volumes on file servers: NFS and SMB, mounted by the machine's own kernel from real servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.file_servers import nfs_server, smb_server
from tests.guest_image import guest_image
from tests.laptop import LAPTOP, Laptop, laptop_with_machine

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def laptop(guest_image: Path) -> Iterator[Laptop]:
    with laptop_with_machine(guest_image) as made:
        yield made


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The served directory, with one file."""
    place = tmp_path / "shared"
    place.mkdir()
    (place / "from").write_text("the server\n")
    return place


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    place = tmp_path / "scratch"
    place.mkdir()
    return place


def make_volume(laptop: Laptop, name: str, kind: str, device: str, options: str) -> None:
    words = ("--opt", f"type={kind}", "--opt", f"device={device}", "--opt", f"o={options}")
    laptop.docker("volume", "create", "--driver", "local", *words, name)


def mounted(laptop: Laptop, kind: str) -> list[str]:
    """Return the places in the machine, outside of containers, that have such a file system."""
    lines = laptop.desk("machine", "ssh", "default", "cat", "/proc/mounts").splitlines()
    return [fields[1] for fields in map(str.split, lines) if fields[2] == kind]


def check_volume(laptop: Laptop, shared: Path, kind: str) -> None:
    """Use the volume ``files`` from two containers, and remove it."""
    assert mounted(laptop, kind) == []
    laptop.docker("run", "-d", "--name", "first", "-v", "files:/s", "busybox", "sleep", "600")
    second = ("run", "--rm", "-v", "files:/s:ro", "busybox")
    assert laptop.docker(*second, "cat", "/s/from") == "the server\n"
    laptop.docker("exec", "first", "sh", "-c", "echo a container >/s/back")
    assert (shared / "back").read_text() == "a container\n"
    assert "Read-only file system" in laptop.docker(*second, "touch", "/s/no", code=1)
    (place,) = mounted(laptop, kind)
    assert place.endswith("/volumes/files/_data")
    assert "volume is in use" in laptop.docker("volume", "rm", "files", code=1)
    laptop.docker("rm", "-f", "first")
    assert mounted(laptop, kind) == []
    laptop.docker("volume", "rm", "files")
    assert (shared / "from").read_text() == "the server\n"


def test_a_volume_on_an_nfs_server(laptop: Laptop, shared: Path, scratch: Path) -> None:
    with nfs_server(shared, scratch) as port:
        options = f"addr={LAPTOP},port={port},nfsvers=4.1,rw,soft,timeo=50,retrans=2"
        make_volume(laptop, "files", "nfs", ":/shared", options)
        check_volume(laptop, shared, "nfs4")
        make_volume(laptop, "elsewhere", "nfs", ":/elsewhere", options)
        # Docker's client takes "no such file" for a missing command.
        told = laptop.docker("run", "--rm", "-v", "elsewhere:/s", "busybox", "true", code=127)
        assert "failed to mount local volume: mount :/elsewhere:" in told
        assert "no such file or directory" in told
    told = laptop.docker("run", "--rm", "-v", "elsewhere:/s", "busybox", "true", code=125)
    assert "connection refused" in told
    assert laptop.docker("ps", "-aq") == ""
    laptop.docker("volume", "rm", "elsewhere")


def test_a_volume_on_an_smb_server(laptop: Laptop, shared: Path, scratch: Path) -> None:
    with smb_server(shared, scratch) as port:
        options = f"addr={LAPTOP},port={port},vers=3.0,username=nobody,password=not-to-be-shown"
        make_volume(laptop, "files", "cifs", f"//{LAPTOP}/shared", options)
        check_volume(laptop, shared, "cifs")
        make_volume(laptop, "elsewhere", "cifs", f"//{LAPTOP}/elsewhere", options)
        told = laptop.docker("run", "--rm", "-v", "elsewhere:/s", "busybox", "true", code=127)
        assert f"failed to mount local volume: mount //{LAPTOP}/elsewhere:" in told
        assert "not-to-be-shown" not in told
    assert laptop.docker("ps", "-aq") == ""
    laptop.docker("volume", "rm", "elsewhere")
