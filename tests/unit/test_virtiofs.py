"""virtiofs: which server is found and how it is started; what the machine is told of changes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from desk.agent.folder_devices import GREETING, Change, FolderDevices
from desk.agent.spec import FolderSharing
from desk.errors import DriverError, MachineError, UsageError
from desk.machine.drivers import virtiofs
from desk.machine.drivers.vagrant_folders import SyncedFolder, synced_folders
from desk.machine.drivers.virtiofs import Virtiofsd, VirtiofsServers, find_virtiofsd
from desk.machine.sharing import check_sharing, wants_devices
from desk.paths import MachinePaths
from desk.ssh.session import Session


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A computer whose descriptions of servers are in two directories; return their parent."""
    directories = (tmp_path / "etc", tmp_path / "usr")
    for directory in directories:
        directory.mkdir()
    monkeypatch.setattr(virtiofs, "DESCRIPTIONS", directories)
    return tmp_path


def program(place: Path, name: str) -> str:
    (place / name).write_text("#!/bin/sh\n")
    (place / name).chmod(0o755)
    return str(place / name)


def describe(file: Path, **told: object) -> None:
    file.write_text(json.dumps({"description": "a server", **told}))


def test_the_server_is_the_one_that_is_described(described: Path) -> None:
    old, new = program(described, "old"), program(described, "new")
    gpu = program(described, "gpu")
    describe(described / "usr" / "10-gpu.json", type="gpu", binary=gpu)
    describe(described / "usr" / "20-gone.json", type="fs", binary="/no/such/program")
    (described / "usr" / "30-broken.json").write_text("{")
    (described / "usr" / "40-list.json").write_text("[]")
    describe(described / "usr" / "50-old.json", type="fs", binary=old)
    describe(
        described / "usr" / "60-new.json", type="fs", binary=new, features=["separate-options"]
    )
    assert find_virtiofsd() == Virtiofsd(Path(new), new=True)
    # The administrator's description of the same name takes the package's place.
    describe(described / "etc" / "60-new.json", type="gpu", binary=gpu)
    if os.geteuid() == 0:
        assert find_virtiofsd() == Virtiofsd(Path(old), new=False)


def test_without_a_server_that_would_do_there_is_an_error(
    described: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DriverError, match="virtiofsd is not installed"):
        find_virtiofsd()
    describe(described / "usr" / "50.json", type="fs", binary=program(described, "old"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(DriverError, match="old serves folders to root only") as raised:
        find_virtiofsd()
    assert "share-by=sftp" in raised.value.hint


def test_each_server_is_started_by_its_own_options() -> None:
    old = Virtiofsd(Path("/old"), new=False).command(7, "/home/me,you", 0, 0)
    assert old[:2] == ["/old", "--fd=7"]
    assert [old[i + 1] for i, word in enumerate(old) if word == "-o"] == [
        r"source=/home/me\,you", "cache=auto", "sandbox=chroot", "modcaps=-mknod",
    ]  # fmt: skip
    new = Virtiofsd(Path("/new"), new=True)
    assert "--translate-uid" not in new.command(7, "/home/me", 0, 0)
    words = new.command(7, "/home/me", 1000, 100)
    assert words[words.index("--shared-dir") + 1] == "/home/me"

    def rules(kind: str) -> list[str]:
        return [words[i + 1] for i, word in enumerate(words) if word == f"--translate-{kind}"]

    assert rules("uid") == [
        "map:1000:0:1", "squash-guest:0:0:1000", f"squash-guest:1001:0:{2**32 - 1 - 1001}",
    ]  # fmt: skip
    assert rules("gid")[0] == "map:100:0:1"


def test_the_way_of_sharing_is_checked() -> None:
    check_sharing({"share_by": "virtiofs"})
    assert wants_devices({"share_by": "virtiofs"})
    assert not wants_devices({})
    with pytest.raises(UsageError, match="share-by cannot be 'nfs'"):
        check_sharing({"share_by": "nfs"})


def test_what_libvirt_would_give_away_is_refused(tmp_path: Path) -> None:
    home, source = tmp_path / "home", tmp_path / "home" / "src"
    (home / ".ssh").mkdir(parents=True)
    source.mkdir()
    (tmp_path / "link").symlink_to(source)
    hidden = (str(home / ".ssh"), str(home / "not-there"))

    def share(*folders: str, provider: str = "libvirt") -> dict[str, SyncedFolder]:
        return synced_folders("box", provider, FolderSharing(folders, hidden))

    found = share(str(source), str(tmp_path / "link"), f"{home}:ro")
    assert found == {
        str(source): SyncedFolder(str(source)),
        str(tmp_path / "link"): SyncedFolder(str(source)),
    }
    for folders, why in (
        ((str(home),), f"libvirt cannot keep {home / '.ssh'} from it"),
        ((str(home / ".ssh"),), "from it"),
        ((str(source), f"{source}:ro"), f"cannot keep it from writing {source}"),
    ):
        with pytest.raises(DriverError, match=why) as raised:
            share(*folders)
        assert "share-by=sftp" in raised.value.hint
    with pytest.raises(DriverError, match="this machine's is virtualbox"):
        share(str(source), provider="virtualbox")


def ended(paths: MachinePaths, number: int, log: str) -> None:
    """Leave what a server that has ended leaves."""
    paths.virtiofs.mkdir(exist_ok=True)
    gone = {"pid": os.getpid(), "started": "1"}
    (paths.virtiofs / f"{number}.pid").write_text(json.dumps(gone))
    (paths.virtiofs / f"{number}.log").write_text(log)


@pytest.mark.parametrize(
    "served",
    ["Received vhost-user socket connection\nvirtio_loop: Exit\n", "[INFO] Client connected, …\n"],
)
def test_the_server_to_blame_is_the_one_that_never_served(tmp_path: Path, served: str) -> None:
    paths = MachinePaths(tmp_path)
    servers = VirtiofsServers("box", paths)
    assert servers.trouble() is None
    ended(paths, 0, served)
    assert servers.trouble() is None  # QEMU's own end was before the server's
    ended(paths, 1, "Waiting for vhost-user socket connection\nmount: /x: no such folder\n")
    trouble = servers.trouble()
    assert trouble is not None
    assert trouble.text.endswith("mount: /x: no such folder")
    ended(paths, 1, "unshare: write failed /proc/self/uid_map: Operation not permitted\n")
    trouble = servers.trouble()
    assert trouble is not None
    assert "kernel.apparmor_restrict_unprivileged_userns=0" in trouble.hint
    servers.end()
    assert [path.name for path in paths.virtiofs.glob("*.pid")] == []


def test_a_directory_with_too_long_a_name_is_an_error(described: Path) -> None:
    server = program(described, "new")
    describe(described / "usr" / "1.json", type="fs", binary=server, features=["separate-options"])
    paths = MachinePaths(described / ("long" * 30))
    paths.directory.mkdir()
    with pytest.raises(DriverError, match=r"cannot listen on .*too long") as raised:
        VirtiofsServers("box", paths).start(FolderSharing((str(described),)))
    assert "DESK_HOME" in raised.value.hint
    assert list(paths.virtiofs.glob("*")) == []


# --- changes ------------------------------------------------------------------------------------


class Stream:
    """The machine's end of ``deskd tell-changes``."""

    def __init__(self, greeting: bytes, words: bytes = b"") -> None:
        self.greeting, self.words = greeting, words
        self.texts = b""
        self.closed = False

    def recv_exactly(self, size: int) -> bytes:
        piece, self.greeting = self.greeting[:size], self.greeting[size:]
        return piece

    def sendall(self, data: bytes) -> None:
        if self.closed:
            raise BrokenPipeError("gone")
        self.texts += data

    def iter_stderr(self) -> list[bytes]:
        return [self.words]

    def settimeout(self, timeout_s: float | None) -> None:
        assert timeout_s is None or timeout_s > 0

    def close(self) -> None:
        self.closed = True


class Machine:
    """Stands for the session with a machine: a stream for each command."""

    def __init__(self, *streams: Stream) -> None:
        self.streams = list(streams)
        self.commands: list[str] = []

    def open_exec(self, command: str) -> Any:
        self.commands.append(command)
        return self.streams[len(self.commands) - 1]


def session(machine: Machine) -> Session:
    return cast(Session, machine)


def test_a_change_is_told_once_and_its_echo_is_known(tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text("int main;")
    devices = FolderDevices({"/home/me": "desk-folder-0"}, "deskd", tmp_path / "virtiofs")
    stream = Stream(GREETING)
    machine = Machine(stream)
    name = "/home/me/main.c"
    change = Change(name, str(tmp_path / "main.c"), "/run/there/main.c")
    devices.tell(session(machine), [change])
    assert machine.commands == []  # no container uses the folder
    devices.follow(session(machine))
    assert machine.commands == []
    devices.use(["/run/the re"])
    devices.follow(session(machine))
    assert machine.commands == ["deskd tell-changes '/run/the re'"]
    devices.use(["/run/the re"])
    devices.follow(session(machine))
    gone = Change("/home/me/gone", str(tmp_path / "gone"), "/run/there/gone")
    devices.tell(session(machine), [change, gone])
    found = (tmp_path / "main.c").lstat()
    assert stream.texts == b"%d 9 /run/there/main.c\0" % found.st_mtime_ns
    assert devices.is_echo(name, found)
    assert not devices.is_echo(name, None)
    (tmp_path / "main.c").write_text("int main();")
    assert not devices.is_echo(name, (tmp_path / "main.c").lstat())
    assert len(machine.commands) == 1
    devices.use([])
    assert stream.closed


def test_a_machine_that_cannot_tell_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    devices = FolderDevices({"/home/me": "desk-folder-0"}, "deskd", tmp_path / "virtiofs")
    broken, lost, good = Stream(b"", b"deskd: no\n"), Stream(GREETING), Stream(GREETING)
    machine = Machine(broken, lost, good)
    devices.use(["/there"])
    devices.follow(session(machine))
    assert broken.closed
    devices.follow(session(machine))
    lost.closed = True
    change = Change("/home/me/file", str(tmp_path / "file"), "/there/file")
    devices.tell(session(machine), [change])
    assert good.texts.endswith(b" 0 /there/file\0")
    devices.close()
    assert good.closed


def test_why_a_machine_cannot_tell_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    devices = FolderDevices({"/home/me": "desk-folder-0"}, "deskd", tmp_path / "virtiofs")
    machine = Machine(Stream(b"", b"deskd: no fanotify\n"), Stream(b"", b"deskd: no fanotify\n"))
    devices.use(["/there"])  # a change before the machine's program runs starts it
    change = Change("/home/me/file", str(tmp_path / "file"), "/there/file")
    with pytest.raises(MachineError, match="deskd: no fanotify"):
        devices.tell(session(machine), [change])


def test_a_server_that_has_ended_is_noticed(tmp_path: Path) -> None:
    servers = tmp_path / "virtiofs"
    servers.mkdir()
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    own = {"pid": os.getpid(), "started": stat[19]}
    (servers / "0.pid").write_text(json.dumps(own))
    devices = FolderDevices({"/home/me": "desk-folder-0"}, "deskd", servers)
    assert devices.trouble() == ""
    (servers / "1.pid").write_text(json.dumps({**own, "started": "1"}))
    assert devices.trouble() == "their virtiofs server on this computer has ended"
    assert FolderDevices({}, "deskd", servers).trouble() == ""
