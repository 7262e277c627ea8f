"""virtiofs: which server is found and how it is started; what the machine is told of changes."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from desk.agent.folder_devices import GREETING, Change, FolderDevices
from desk.agent.spec import FolderSharing
from desk.errors import DriverError, MachineError, UsageError
from desk.machine.drivers import virtiofs
from desk.machine.drivers.vagrant_folders import SyncedFolder, synced_folders
from desk.machine.drivers.virtiofs import Login, Virtiofsd, VirtiofsServers, find_virtiofsd
from desk.machine.sharing import check_sharing, takes_devices, wants_devices
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
    features = ["migrate-precopy", "separate-options"]
    describe(described / "usr" / "60-new.json", type="fs", binary=new, features=features)
    assert find_virtiofsd() == Virtiofsd(Path(new), new=True, saves=True)
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


def test_what_virtiofs_would_cost_is_said(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (7, 2, 22), (8, 2, 0)
    assert "before 8.2" in virtiofs.cost(old)
    assert "virtiofsd is not installed" in virtiofs.cost(new)
    server = {"type": "fs", "binary": program(described, "server")}
    describe(described / "usr" / "1.json", **server, features=["separate-options"])
    assert "cannot be parked" in virtiofs.cost(new)
    features = ["separate-options", "migrate-precopy"]
    describe(described / "usr" / "1.json", **server, features=features)
    login = Login(1000, 1000)
    monkeypatch.setattr(Login, "own", lambda: login)
    assert "/etc/subuid" in virtiofs.cost(new)
    login = Login(1000, 1000, range(100_000, 165_535), range(100_000, 165_535))
    assert virtiofs.cost(new) == ""
    assert "before 8.2" in virtiofs.cost(old)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert virtiofs.cost(new) == "QEMU has no virtiofs on this system"


def test_each_server_is_started_by_its_own_options() -> None:
    root = Login(0, 0)
    old = Virtiofsd(Path("/old"), new=False).command(7, "/home/me,you", root)
    assert old[:2] == ["/old", "--fd=7"]
    assert [old[i + 1] for i, word in enumerate(old) if word == "-o"] == [
        r"source=/home/me\,you", "cache=auto", "sandbox=chroot", "modcaps=-mknod",
    ]  # fmt: skip
    new = Virtiofsd(Path("/new"), new=True)
    words = new.command(7, "/home/me", root)
    assert words[words.index("--shared-dir") + 1] == "/home/me"
    assert not {"--translate-uid", "--migration-on-error"} & set(words)
    server = Virtiofsd(Path("/new"), new=True, saves=True)
    saving = server.command(7, str(Path.home()), Login(1000, 100))
    assert {"--migration-on-error", "--migration-verify-handles"} < set(saving)
    without = server.command(7, "/proc/self", root)  # no file there has a handle
    assert "--migration-on-error" in without
    assert "--migration-verify-handles" not in without
    assert rules(saving, "gid")[0] == "map:100:0:1"


def rules(words: list[str], kind: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == f"--translate-{kind}"]


@pytest.mark.parametrize("own", [1000, 70_000, 5])
@pytest.mark.parametrize("count", [0, 100, 65_535])
def test_each_number_has_one_place(own: int, count: int) -> None:
    """Subordinate IDs of there are themselves here, and everybody else is the login."""
    ids = range(300_000, 300_000 + count)
    login = Login(own, own, ids, ids)
    to_host: dict[int, int] = {}
    to_guest: dict[int, int] = {}
    probes = {*range(0, 1200), own, count - 1, count, count + 1, 65_533, 65_534, 70_001, 2**32 - 2}
    for rule in rules(login.translation(), "uid"):
        kind, *numbers = rule.split(":")
        guest, host, length = map(int, numbers)
        for probe in probes:
            if guest <= probe < guest + length:
                assert probe not in to_host  # virtiofsd refuses rules that overlap
                to_host[probe] = host + probe - guest if kind == "map" else host
            if kind == "map" and host <= probe < host + length:
                to_guest[probe] = guest + probe - host
    kept = {each for each in probes if 1 <= each <= count and each != own}
    assert to_host == {each: each if each in kept else 0 for each in probes if each >= 0}
    assert to_guest == {0: own, **{each: each for each in kept}}
    assert login.namespace() == [
        "--user",
        "--map-root-user",
        *([f"--map-{who}=300000,1,{count}" for who in ("users", "groups")] if count else []),
    ]


def test_whose_the_subordinate_ids_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = (tmp_path / "subuid", tmp_path / "subgid")
    monkeypatch.setattr(virtiofs, "SUBORDINATE_IDS", files)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_001)
    monkeypatch.setattr(os, "getegid", lambda: 4_000_001)
    found: list[str | None] = ["/usr/bin/newuidmap"]
    monkeypatch.setattr(shutil, "which", lambda _: found[0])
    assert Login.own() == Login(4_000_001, 4_000_001)
    files[0].write_text("other:100000:65536\n4000001:165536:65536\n4000001:300000:65536\n")
    assert not Login.own().keeps_owners  # only half of it
    files[1].write_text("nonsense\n4000001:7:three\n")
    assert not Login.own().keeps_owners
    files[1].write_text("4000001:165536:1000\n")
    login = Login.own()
    assert (login.uids, login.gids) == (range(165536, 231071), range(165536, 166536))
    assert login.keeps_owners
    found[0] = None
    assert not Login.own().keeps_owners
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Login.own().keeps_owners


def test_the_way_of_sharing_is_checked() -> None:
    wishes = {
        "virtiofs": (True, True),
        "auto": (False, True),
        "": (False, True),
        "sftp": (False,) * 2,
    }
    for way, wish in wishes.items():
        options = {"share_by": way}
        check_sharing(options)
        assert (wants_devices(options), takes_devices(options)) == wish
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
