"""``deskd tell-changes`` on a file system of this computer: what it tells, what it passes over.

inotify and fanotify are the kernel's own; the file system is a tmpfs, which stands for virtiofs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deskd.folder_changes import GREETING
from deskd.kernel.inotify import IN_MODIFY, Watch

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "folder"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "folder", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


class Teller:
    """The program, and what inotify tells meanwhile of one directory."""

    def __init__(self, place: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deskd", "tell-changes", str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stdout.read(len(GREETING)) == GREETING
        self.input = self.process.stdin
        self.watch = Watch(str(place), IN_MODIFY)

    def tell(self, *paths: Path, older_ns: int = 0) -> None:
        for path in paths:
            found = path.lstat()
            text = f"{found.st_mtime_ns - older_ns} {found.st_size} {path}\0"
            self.input.write(text.encode("utf-8", "surrogateescape"))
        self.input.flush()

    def end(self) -> bytes:
        """Let the program come to its end; return what inotify told since the start."""
        self.input.close()
        assert self.process.wait(60) == 0
        try:
            return os.read(self.watch.fileno(), 1 << 16)
        except BlockingIOError:
            return b""
        finally:
            self.watch.close()
            assert self.process.stdout is not None
            self.process.stdout.close()


def test_watchers_see_a_change_and_the_file_stays_as_it_is(place: Path) -> None:
    names = ["a file", "größe", os.fsdecode(b"no \xff text")]
    for name in names:
        (place / name).write_text(name, errors="surrogateescape")
        os.utime(place / name, ns=(1_234_567_891, 2_345_678_912))
    (place / "link").symlink_to("nowhere")
    (place / "folder").mkdir()
    before = {path.name: path.lstat() for path in place.iterdir()}
    teller = Teller(place)
    teller.tell(*place.iterdir())
    teller.input.write(b"1 1 /no/such/file\0")
    told = teller.end()
    for name in (*names, "link", "folder"):
        assert os.fsencode(name) + b"\0" in told
        after = (place / name).lstat()
        assert (after.st_mtime_ns, after.st_size) == (
            before[name].st_mtime_ns,
            before[name].st_size,
        )
        assert after.st_atime_ns == before[name].st_atime_ns


def test_what_was_written_here_is_not_told_again(place: Path) -> None:
    own, theirs = place / "own", place / "theirs"
    theirs.write_text("before")
    teller = Teller(place)
    own.write_text("written here")
    teller.watch.drain()
    teller.tell(own, theirs)
    # Another state of it than the one that was left here is somebody else's change.
    assert teller.end().count(b"own\0") == 0
    teller = Teller(place)
    own.write_text("written here, too")
    teller.watch.drain()
    teller.tell(own, older_ns=1)
    assert teller.end().count(b"own\0") == 1


def test_a_place_that_is_none_is_an_error(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deskd", "tell-changes", str(tmp_path / "missing")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().endswith("missing cannot be watched: No such file or directory\n")
