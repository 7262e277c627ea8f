"""This computer's folders as the machine gets them: over SFTP, and nothing beside them."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import paramiko
import pytest

from desk.agent.changes import FolderChanges
from desk.agent.echoes import Echoes
from desk.agent.guest_mounts import _as_in_mounts
from desk.agent.host_paths import in_machine, is_below, on_host
from desk.agent.sftp import SftpConnection
from desk.agent.shared_tree import UNCHANGED_S, SharedFolder, SharedTree
from desk.errors import UsageError
from desk.machine.model import MachineSpec
from desk.machine.sharing import check_sharing, folder_sharing
from desk.paths import Home


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home folder with keys in it; beside it, what is nobody's business."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id").write_text("key")
    (home / "src").mkdir()
    (home / "src" / "main.c").write_text("int main;")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "secret").write_text("secret")
    return home


@pytest.fixture
def tree(place: Path) -> SharedTree:
    folders = [
        SharedFolder("/home/me", str(place)),
        SharedFolder("/data", str(place / "src"), writable=False),
    ]
    return SharedTree(folders, [str(place / ".ssh")], Echoes())


REFUSED = "denied|No such file|Not a directory|Read-only|Too many levels|Failure|No such device"


class Named(socket.socket):
    """A socket as paramiko's client wants its channel."""

    def get_name(self) -> str:
        return "test"


def serve(connection: Any, tree: SharedTree) -> None:
    SftpConnection(connection, tree).serve()


@pytest.fixture
def client(tree: SharedTree) -> Iterator[paramiko.SFTPClient]:
    end, theirs = socket.socketpair()
    ours = Named(fileno=end.detach())

    def answer() -> None:
        with theirs:
            serve(theirs, tree)

    thread = threading.Thread(target=answer)
    thread.start()
    with ours:
        yield paramiko.SFTPClient(ours)
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(60)
    assert not thread.is_alive()


def test_files_are_written_read_renamed_and_removed(
    client: paramiko.SFTPClient, place: Path
) -> None:
    content = os.urandom(300_000)
    with client.open("/home/me/src/größe", "wb") as file:
        file.write(content)
    assert (place / "src" / "größe").read_bytes() == content
    with client.open("/home/me/src/größe", "rb") as file:
        assert file.read() == content
        assert file.stat().st_size == len(content)
    client.posix_rename("/home/me/src/größe", "/home/me/src/main.c")
    assert (place / "src" / "main.c").read_bytes() == content
    client.mkdir("/home/me/src/new", 0o750)
    assert stat.S_IMODE((place / "src" / "new").stat().st_mode) == 0o750
    assert sorted(client.listdir("/home/me/src")) == ["main.c", "new"]
    client.rmdir("/home/me/src/new")
    client.remove("/home/me/src/main.c")
    assert list((place / "src").iterdir()) == []
    with pytest.raises(FileNotFoundError):
        client.stat("/home/me/src/main.c")


def test_modes_times_owners_and_links(client: paramiko.SFTPClient, place: Path) -> None:
    file = place / "src" / "main.c"
    client.chmod("/home/me/src/main.c", 0o4755)
    assert stat.S_IMODE(file.stat().st_mode) == 0o755  # no program of this user becomes set-user-ID
    client.chown("/home/me/src/main.c", 1000, 1000)
    assert (file.stat().st_uid, client.stat("/home/me/src/main.c").st_uid) == (os.geteuid(), 0)
    client.utime("/home/me/src/main.c", (1_000_000_000, 1_100_000_000))
    assert file.stat().st_mtime == 1_100_000_000
    client.symlink("main.c", "/home/me/src/link")
    assert str((place / "src" / "link").readlink()) == "main.c"
    assert client.readlink("/home/me/src/link") == "main.c"
    assert stat.S_ISLNK(client.lstat("/home/me/src/link").st_mode or 0)


def test_a_touch_that_only_tells_changes_nothing(client: paramiko.SFTPClient, place: Path) -> None:
    before = (place / "src" / "main.c").stat()
    for path in ("/home/me/src/main.c", "/data/main.c"):  # also where the machine may only read
        client.utime(path, (5, UNCHANGED_S))
    assert (place / "src" / "main.c").stat() == before


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/home",
        "/home/me/../beside/secret",
        "/home/me/out/secret",  # through a link to the folder beside
        "/home/me/file",  # a link to the secret itself
        "/home/me/.ssh/id",
        "/home/me/keys/id",  # through a link to .ssh
    ],
)
def test_what_is_not_shared_is_out_of_reach(
    client: paramiko.SFTPClient, place: Path, path: str
) -> None:
    (place / "out").symlink_to(place.parent / "beside")
    (place / "file").symlink_to(place.parent / "beside" / "secret")
    (place / "keys").symlink_to(place / ".ssh")
    with pytest.raises(OSError, match=REFUSED):
        client.open(path, "rb").read()
    with pytest.raises(OSError, match=REFUSED):
        client.open(path, "wb").write(b"mine now")
    assert (place.parent / "beside" / "secret").read_text() == "secret"
    assert (place / ".ssh" / "id").read_text() == "key"


def test_hidden_folders_are_not_listed_nor_moved_out(
    client: paramiko.SFTPClient, place: Path
) -> None:
    with pytest.raises(PermissionError):
        client.listdir("/home/me/.ssh")
    with pytest.raises(PermissionError):
        client.posix_rename("/home/me/.ssh/id", "/home/me/id")
    with pytest.raises(PermissionError):
        client.posix_rename("/home/me/.ssh", "/home/me/src/keys")
    (place / ".ssh").rename(place / "src" / "keys")
    for path in ("/home/me/src/keys", "/home/me/src/keys/id"):
        with pytest.raises(PermissionError):
            client.listdir(path)


def test_a_folder_may_be_shared_for_reading_only(client: paramiko.SFTPClient, place: Path) -> None:
    assert client.open("/data/main.c", "rb").read() == b"int main;"
    for change in (
        lambda: client.open("/data/main.c", "wb"),
        lambda: client.remove("/data/main.c"),
        lambda: client.chmod("/data/main.c", 0o600),
        lambda: client.mkdir("/data/new"),
        lambda: client.posix_rename("/data/main.c", "/home/me/main.c"),
    ):
        with pytest.raises(OSError, match=REFUSED):
            change()
    assert (place / "src" / "main.c").read_text() == "int main;"


def test_pipes_are_not_waited_for(client: paramiko.SFTPClient, place: Path) -> None:
    os.mkfifo(place / "pipe")
    with pytest.raises(OSError, match=REFUSED):
        client.open("/home/me/pipe", "rb")
    with pytest.raises(OSError, match=REFUSED):
        client.open("/home/me/pipe", "wb")


def test_who_does_not_know_the_secret_is_told_nothing(tree: SharedTree, place: Path) -> None:
    (place / "note").write_text("mine")
    (place / "link").symlink_to("note")
    end, theirs = socket.socketpair()
    connection = SftpConnection(theirs, tree, "/5ec2e7")
    thread = threading.Thread(target=connection.serve)
    thread.start()
    with theirs, Named(fileno=end.detach()) as ours:
        client = paramiko.SFTPClient(ours)
        for root in ("", "/5ec2e", "/5ec2e70", "/5ec2e8", "/..", "/5ec2e7x/.."):
            for ask in (client.stat, client.open, client.listdir, client.readlink, client.remove):
                with pytest.raises(PermissionError):
                    ask(f"{root}/home/me/note")
            for ask in (client.rename, client.posix_rename):
                with pytest.raises(PermissionError):
                    ask("/5ec2e7/home/me/note", f"{root}/home/me/note2")
        with client.open("/5ec2e7/home/me/note") as file:
            assert file.read() == b"mine"
        assert sorted(client.listdir("/5ec2e7/home/me")) == sorted(
            entry.name for entry in place.iterdir()
        )
        assert client.readlink("/5ec2e7/home/me/link") == "note"
        client.symlink("/etc/hosts", "/5ec2e7/home/me/away")  # where it leads is its own
        assert (place / "away").readlink() == Path("/etc/hosts")
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(60)
    assert not thread.is_alive()


def test_what_is_no_sftp_ends_the_connection(tree: SharedTree) -> None:
    for packet in (b"\xff\xff\xff\xff\x01", b"\0\0\0\0\x01", b"\0\0"):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(packet)
            ours.shutdown(socket.SHUT_WR)
            serve(theirs, tree)


def test_broken_packets_are_answered(tree: SharedTree) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for kind in range(3, 21):
            ours.sendall(b"\0\0\0\x09" + bytes((kind,)) + b"\0\0\0\x07" + b"\xff\xff\xff\xff")
        ours.shutdown(socket.SHUT_WR)
        serve(theirs, tree)
        for _ in range(3, 21):
            size = int.from_bytes(ours.recv(4, socket.MSG_WAITALL))
            answer = ours.recv(size, socket.MSG_WAITALL)
            assert (answer[0], answer[1:5], answer[5:9]) == (101, b"\0\0\0\7", b"\0\0\0\5")


class Told(list[str]):
    """Names in the machine of what it was told, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self._arrived = threading.Condition()

    def tell(self, names: Sequence[str]) -> None:
        with self._arrived:
            self.extend(names)
            self._arrived.notify_all()

    def wait_for(self, name: str) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: name in self, timeout=120), self


@pytest.fixture
def told(tree: SharedTree, place: Path) -> Iterator[Told]:
    """What the machine is told of the folder ``src``, which is watched."""
    told = Told()
    changes = FolderChanges(tree.echoes.is_one, told.tell)
    changes.watch({str(place / "src"): "/home/me/src"})
    yield told
    changes.close()


def test_changes_made_here_are_told_and_those_of_the_machine_are_not(
    tree: SharedTree, place: Path, told: Told
) -> None:
    (place / "src" / "main.c").write_text("changed")
    told.wait_for("/home/me/src/main.c")
    (place / "src" / "deep").mkdir()
    told.wait_for("/home/me/src/deep")
    descriptor = tree.open("/home/me/src/by-machine", os.O_CREAT | os.O_WRONLY, 0o644)
    os.close(descriptor)
    tree.mkdir("/home/me/src/dir-by-machine", 0o755)
    tree.rename("/home/me/src/by-machine", "/home/me/src/renamed", replace=True)
    (place / "src" / "last").write_text("here")
    told.wait_for("/home/me/src/last")
    assert not [name for name in told if "machine" in name or "renamed" in name]
    (place / "src" / "deep").rmdir()
    told.wait_for("/home/me/src")  # what is gone cannot be touched


def test_a_change_that_the_machine_is_making_is_judged_when_it_is_made(
    tree: SharedTree, place: Path, told: Told
) -> None:
    written = place / "src" / "written"
    name = f"/home/me/src/{written.name}"

    def change_here(other: str) -> None:
        (place / "src" / other).write_text("here")
        told.wait_for(f"/home/me/src/{other}")

    with tree.echoes.changing(name):
        written.write_text("by the machine")
        change_here("first")
        change_here("second")
        assert name not in told
        tree.echoes.note(name, written.stat())
    change_here("third")
    change_here("fourth")
    assert name not in told
    # Somebody here wrote into it after the machine, and before anybody looked.
    with tree.echoes.changing(name):
        tree.echoes.note(name, written.stat())
        written.write_text("by both")
        change_here("fifth")
        assert name not in told
    told.wait_for(name)


def test_a_state_that_the_machine_leaves_while_somebody_looks_is_no_answer(place: Path) -> None:
    echoes, file = Echoes(), place / "src" / "main.c"

    def look_while_it_changes() -> os.stat_result:
        before = file.stat()
        with echoes.changing("/main.c"):
            file.write_text("by the machine")
            echoes.note("/main.c", file.stat())
        return before

    assert echoes.is_one("/main.c", file.stat) is False
    assert echoes.is_one("/main.c", look_while_it_changes) is None
    assert echoes.is_one("/main.c", file.stat) is True


@pytest.mark.parametrize(
    ("path", "windows", "name", "here"),
    [
        ("/Users/me/src", False, "/Users/me/src", "/Users/me/src"),
        ("/Users/me/../you", False, "/Users/you", "/Users/you"),
        ("src", False, "", ""),
        (r"C:\src", False, "", ""),
        (r"C:\src", True, "/c/src", r"C:\src"),
        ("C:/src/../x", True, "/c/x", r"C:\x"),
        ("/c/Users/me", True, "/c/Users/me", r"C:\Users\me"),
        ("c:\\", True, "/c", "C:\\"),
        (r"\\server\share", True, "", ""),
        ("/home/me", True, "", ""),
    ],
)
def test_paths_of_both_sides(path: str, *, windows: bool, name: str, here: str) -> None:
    assert in_machine(path, windows=windows) == name
    assert on_host(name, windows=windows) == here


def test_one_path_below_another() -> None:
    assert is_below("/a/b", "/a")
    assert is_below("/a", "/a")
    assert is_below("/a", "/")
    assert not is_below("/ab", "/a")


def test_places_as_the_kernel_lists_them() -> None:
    assert _as_in_mounts("/a b/c\\d\n") == r"/a\040b/c\134d\012"


def test_what_a_machine_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (".ssh", ".gnupg", "src"):
        (tmp_path / name).mkdir()
    home = Home(tmp_path / ".local")

    def shared(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        check_sharing({"share_folder": text})
        found = folder_sharing(MachineSpec("m", options={"share_folder": text}), home)
        return found.folders, found.hidden

    me, ssh, gnupg = str(tmp_path), str(tmp_path / ".ssh"), str(tmp_path / ".gnupg")
    assert shared("") == ((me,), (ssh, gnupg, str(home.directory)))
    assert shared("~/src:ro,~/.ssh") == (
        (f"{me}/src:ro", ssh),
        (gnupg, str(home.directory)),
    )
    assert shared("none")[0] == ()
    for wrong in ("src", "~/nothing", f"{me}/src,relative"):
        with pytest.raises(UsageError, match="share-folder cannot be"):
            check_sharing({"share_folder": wrong})
