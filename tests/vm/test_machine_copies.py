"""A real machine copied with what is in it: scp, clone, snapshot, rename, export and import."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guest_image import guest_image
from tests.laptop import Host

from desk.machine.copies import copy_disk

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]


class Laptop:
    """A DESK_HOME with one machine, box, that has a container in it."""

    def __init__(self, home: Path) -> None:
        self.host = Host(None, home)

    def __call__(self, *words: str, code: int = 0) -> str:
        done = self.host(*words)
        assert done.code == code, done
        return done.out if code == 0 else done.err

    def inside(self, machine: str, *command: str) -> str:
        return self("machine", "ssh", machine, *command).strip()

    def write(self, machine: str, text: str) -> None:
        self.inside(machine, f"echo {text} >/var/lib/desk/local/note")

    def note(self, machine: str) -> str:
        return self.inside(machine, "cat", "/var/lib/desk/local/note")


@pytest.fixture(scope="module")
def laptop(guest_image: Path) -> Iterator[Laptop]:
    home = Path(tempfile.mkdtemp(prefix="desk-"))
    laptop = Laptop(home)
    laptop("machine", "image", "install", str(guest_image))
    laptop("machine", "create", "--memory", "512m", "--disk", "4g", "-o", "accelerator=tcg", "box")
    try:
        laptop("machine", "start", "box")
        laptop("-m", "box", "run", "--name", "done", "busybox", "sh", "-c", "echo made >/made")
        yield laptop
    finally:
        names = laptop("machine", "ls", "-q").split()
        laptop("machine", "rm", "-f", *names)
        shutil.rmtree(home)


def test_files_go_to_a_machine_and_from_one_to_another(laptop: Laptop, tmp_path: Path) -> None:
    laptop.write("box", "original")
    laptop("machine", "clone", "box", "twin")  # while it runs
    laptop("machine", "start", "twin")
    assert laptop.note("twin") == "original"
    assert laptop.inside("twin", "hostname") == "twin"
    assert "done" in laptop("-m", "twin", "ps", "-a", "--format", "{{.Names}}")
    key = "/etc/ssh/ssh_host_ed25519_key.pub"
    assert laptop.inside("box", "cat", key) != laptop.inside("twin", "cat", key)

    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "one").write_text("1")
    (folder / "two").write_text("2" * 100_000)
    laptop("machine", "scp", "-q", "-r", str(folder), "box:/root/here")
    laptop("machine", "scp", "-q", "-r", "box:/root/here", "twin:/root/there")
    laptop("machine", "scp", "-q", "twin:/root/there/two", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "2" * 100_000
    assert "No such file" in laptop("machine", "scp", "-q", "box:/none", str(tmp_path), code=1)
    laptop("machine", "stop", "twin")
    told = laptop("machine", "scp", "box:/etc/hostname", "twin:/root", code=1)
    assert told.startswith("desk: machine twin is stopped")
    told = laptop("machine", "scp", "a", "b", code=125)
    assert told.startswith("desk: neither place is in a machine")
    laptop("machine", "rm", "-f", "twin")


def test_a_snapshot_comes_back_under_another_name_and_on_another_computer(
    laptop: Laptop, tmp_path: Path
) -> None:
    laptop.write("box", "good")
    assert laptop("machine", "snapshot", "box", "good") == "good\n"
    laptop.write("box", "spoiled")
    laptop("-m", "box", "rm", "done")
    assert "is running" in laptop("machine", "restore", "-f", "box", "good", code=1)
    assert "is running" in laptop("machine", "rename", "box", "work", code=1)
    laptop("machine", "use", "box")
    laptop("machine", "stop", "box")
    laptop("machine", "restore", "-f", "box", "good")
    laptop("machine", "rename", "box", "work")
    assert laptop("machine", "active") == "work\n"
    assert laptop("machine", "snapshots", "-q") == "good\n"
    file = tmp_path / "work.tar.gz"
    laptop("machine", "export", "-o", str(file))
    assert file.stat().st_size < 200 << 20
    laptop("machine", "import", str(file), "moved")
    laptop("machine", "start", "moved")
    assert laptop.note("moved") == "good"
    laptop("-m", "moved", "start", "-a", "done")
    assert laptop.inside("moved", "hostname") == "moved"
    laptop("machine", "rm", "-f", "moved")
    laptop("machine", "rename", "work", "box")
    laptop("machine", "start", "box")
    assert laptop.note("box") == "good"


def test_a_disk_of_another_machine_is_refused_and_stays_as_it_is(laptop: Laptop) -> None:
    for name in ("mine", "other"):
        laptop("machine", "create", "--disk", "1g", "-o", "accelerator=tcg", name)
        laptop("machine", "start", name)
        laptop("machine", "stop", name)
    mine, other = (laptop.host.home / "machines" / name / "data.img" for name in ("mine", "other"))
    kept = mine.rename(mine.with_name("kept.img"))
    copy_disk(other, mine)
    before = mine.stat().st_mtime_ns
    told = laptop("machine", "start", "mine", code=1)
    assert "is not the disk of machine mine: it belongs to another machine" in told
    assert "Put the machine's own file back" in told
    assert mine.stat().st_mtime_ns == before
    with mine.open("wb") as disk:
        disk.truncate(1 << 30)
    assert "it is an empty one" in laptop("machine", "start", "mine", code=1)
    kept.rename(mine)
    laptop("machine", "start", "mine")
    laptop("machine", "rm", "-f", "mine", "other")
