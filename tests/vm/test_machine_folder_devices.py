"""Folders by virtiofs for somebody who is not root, with a real machine and a real server.

Nobody asked for virtiofs: the person's QEMU and virtiofsd are such that nothing is lost by it. The
person has no rights here but their own (and may read this checkout, wherever it lies), and
subordinate IDs. The programs are those of Debian trixie; they are unpacked, and the server is found
by a description as a package would bring it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli_process import DESK
from tests.guest_image import guest_image
from tests.newer_qemu import describe_virtiofsd, newer_qemu

from desk.machine.manager import Manager
from desk.paths import Home
from desk.ssh.session import Session

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

PERSON = 4242
SUBORDINATE = 3_000_000
# A mount namespace of its own gives each command the descriptions, and the person a name here. To
# read everything is no right over any file; the server has none at all, since it enters a user
# namespace of its own.
AS_PERSON = f"""
mount --bind "$1/vhost-user" /usr/share/qemu/vhost-user
for file in passwd subuid subgid; do mount --bind "$1/$file" /etc/$file; done
mount -t tmpfs -o nosuid,nodev,mode=777 within "$2"
shift 2
exec setpriv --reuid {PERSON} --regid {PERSON} --clear-groups \
  --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search "$@"
"""

WAY = "sed -n 's#^[^ ]* /h \\([^ ]*\\) .*#\\1#p' /proc/mounts"
"""Prints what kind of file system the home folder is in a container."""


@dataclass
class Person:
    """Somebody with a home folder, in which keys are and Desk is, and a folder to read only.
    ``computer`` has what is special here: descriptions of servers, names and subordinate IDs."""

    home: Path
    reading: Path
    computer: Path

    @property
    def descriptions(self) -> Path:
        return self.computer / "vhost-user"

    def give_subordinate_ids(self, count: int) -> None:
        for name in ("subuid", "subgid"):
            (self.computer / name).write_text(f"pat:{SUBORDINATE}:{count}\n" if count else "")

    def desk(self, *words: str, code: int = 0) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DESK_", "DOCKER_"))}
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", AS_PERSON, "person",
             str(self.computer), str(self.reading / "within it"), DESK, *words],
            env={**kept, "HOME": str(self.home), "DESK_HOME": str(self.desk_home)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @property
    def desk_home(self) -> Path:
        return self.home / ".desk"

    @property
    def machine(self) -> Path:
        return self.desk_home / "machines" / "default"

    def servers(self) -> list[int]:
        """Return the numbers of the processes that serve the machine, or served it last."""
        return [json.loads(f.read_text())["pid"] for f in self.machine.glob("virtiofs/*.pid")]

    def in_machine(self, command: str) -> str:
        with Session.connect(Manager(Home(self.desk_home)).endpoint("default")) as session:
            done = session.run(f"exec 2>&1; {command}")
        return done.stdout.decode()

    def inside(self, script: str, *flags: str) -> str:
        """Run a script in a container that has the home folder at /h and the other at /r."""
        return self.with_reading(script, "-v", f"{self.home}:/h", *flags)

    def with_reading(self, script: str, *flags: str) -> str:
        """Run a script in a container that has the folder for reading at /r."""
        binds = ("-v", f"{self.reading}:/r")
        return self.desk("run", "--rm", *binds, *flags, "busybox", "sh", "-ec", script)


@pytest.fixture(scope="module")
def person(guest_image: Path) -> Iterator[Person]:
    top = Path(tempfile.mkdtemp(prefix="desk-"))
    top.chmod(0o755)
    person = Person(top / "h", top / "reading", top / "computer")
    notes = person.home / "notes"
    for directory in (person.home, person.home / ".ssh", notes, person.reading):
        directory.mkdir(mode=0o755)
        os.chown(directory, PERSON, PERSON)
    (person.home / ".ssh" / "id").write_text("a key")
    (person.reading / "note").write_text("read me\n")
    (person.reading / "within it").mkdir()
    person.descriptions.mkdir(parents=True)
    describe_virtiofsd(person.descriptions)
    pat = f"pat:x:{PERSON}:{PERSON}::{person.home}:/bin/sh\n"
    (person.computer / "passwd").write_text(Path("/etc/passwd").read_text() + pat)
    person.give_subordinate_ids(65536)
    try:
        person.desk("machine", "image", "install", str(guest_image))
        options = {
            "accelerator": "tcg",
            "qemu": str(newer_qemu(person.computer)),
            "share_folder": f"~,{person.reading}:ro,{person.home}/notes:ro",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        person.desk("machine", "create", "--memory", "768m", *words, "default")
        person.desk("machine", "start")
        yield person
    finally:
        person.desk("machine", "rm", "-f", "default")
        shutil.rmtree(top)


def test_the_servers_have_no_rights_but_the_persons(person: Person) -> None:
    servers = person.servers()
    assert len(servers) == 3
    for server in servers:
        told = Path(f"/proc/{server}/status").read_text()
        assert f"\nUid:\t{PERSON}\t{PERSON}\t{PERSON}\t{PERSON}\n" in told
        namespaces = [Path(f"/proc/{of}/ns/user").readlink() for of in (server, "self")]
        assert namespaces[0] != namespaces[1]


def test_files_of_root_and_of_the_person_are_the_persons(person: Person) -> None:
    script = """
        mkdir /h/made; echo root >/h/made/by-root; stat -c %u:%g /h/made /h/made/by-root
        ln -s by-root /h/made/link; cat /h/made/link
        umask 0377; echo as-git-does >/h/made/read-only; cat /h/made/read-only
    """
    ids = f"{PERSON}:{PERSON}"
    assert person.inside(script).split() == [ids, ids, "root", "as-git-does"]
    person.inside("echo own >/h/by-own; stat -c %u /h/by-own", "-u", ids)
    names = ("made", "made/by-root", "by-own")
    assert {(person.home / name).stat().st_uid for name in names} == {PERSON}
    # Others write where their numbers may: not here.
    person.inside("! echo 3 >/h/three 2>/dev/null", "-u", "999:999")
    assert not (person.home / "three").exists()


def test_a_user_of_a_container_has_a_folder_to_itself(person: Person) -> None:
    """As a database does it: root gives its user the folder, and the user lets nobody else in."""
    person.inside("mkdir /h/db; chown 999:998 /h/db; chmod 700 /h/db; stat -c %u:%g /h/db")
    script = "echo row >/h/db/rows; stat -c %u:%g /h/db /h/db/rows; cat /h/db/rows"
    told = person.inside(script, "-u", "999:998").split()
    assert told == ["999:998", "999:998", "row"]
    person.inside("! ls /h/db 2>/dev/null", "-u", f"{PERSON}:{PERSON}")
    there = (person.home / "db" / "rows").stat()
    # The namespace's 1 is the first of the subordinate IDs.
    assert (there.st_uid, there.st_gid) == (SUBORDINATE + 998, SUBORDINATE + 997)
    person.inside("rm -r /h/db")


def test_keys_and_desk_itself_are_not_there(person: Person) -> None:
    script = "ls -A /h/.ssh /h/.desk; ! cat /h/.ssh/id /h/.desk/machines/default/machine.json"
    told = person.inside(f"exec 2>&1; {script}", "--privileged")
    assert "a key" not in told
    assert "machines" not in told.replace("/h/.desk/machines", "")
    assert "id" not in person.in_machine(f"ls -A {person.home}/.desk {person.home}/.ssh").split()
    # Nor can anything be put there.
    refused = "exec 2>/dev/null; ! echo evil >/h/.ssh/authorized_keys; ! rmdir /h/.ssh"
    person.inside(refused, "--privileged")
    assert [path.name for path in (person.home / ".ssh").iterdir()] == ["id"]


def test_a_folder_for_reading_is_that_on_this_side(person: Person) -> None:
    writing = 'exec 2>/dev/null; ! echo no >/r/new; ! echo no >"/r/within it/new"'
    assert person.inside(f"cat /r/note; {writing}") == "read me\n"
    binds = ("-v", f"{person.reading}:/r")
    person.desk("run", "-d", "--name", "holder", *binds, "busybox", "sleep", "600")
    again = f"mount -o remount,rw {person.reading}; echo no >{person.reading}/new"
    assert "Read-only" in person.in_machine(again)
    person.desk("rm", "-f", "holder")
    assert person.in_machine(f"ls -A '{person.reading}/within it'") == ""
    assert {path.name for path in person.reading.iterdir()} == {"note", "within it"}


def test_a_part_for_reading_stays_so_within_the_whole(person: Person) -> None:
    (person.home / "notes" / "one").write_text("1\n")
    script = "cat /h/notes/one; ! echo no 2>/dev/null >/h/notes/two; echo yes >/h/beside"
    assert person.inside(script) == "1\n"
    assert [path.name for path in (person.home / "notes").iterdir()] == ["one"]
    assert (person.home / "beside").read_text() == "yes\n"


def test_no_device_files_are_made(person: Person) -> None:
    person.inside("! mknod /h/sda b 8 0 2>/dev/null", "--privileged")
    assert not (person.home / "sda").exists()


def test_memory_that_is_added_carries_files_too(person: Person) -> None:
    content = os.urandom(4 << 20)
    (person.home / "big").write_bytes(content)
    person.desk("machine", "set", "--memory", "1536m", "default")
    script = "for n in $(seq 200); do cp /h/big /t/$n; done; cmp /h/big /t/1; cp /t/200 /h/copy"
    person.inside(script, "--tmpfs", "/t:size=900m")
    assert (person.home / "copy").read_bytes() == content
    person.desk("machine", "set", "--memory", "768m", "default")


def test_a_parked_machine_goes_on_with_its_files(person: Person) -> None:
    """What was open stays so; what became another file while the machine was parked is an error for
    who had the old one, and the new file for everybody else."""
    for name in ("asked", "kept", "replaced"):
        (person.home / name).write_text("before\n")
    script = """
        exec 3>>/h/log 4</h/kept 5</h/replaced
        until [ "$(cat /h/asked)" = read ]; do echo waits >&3; sleep 0.1; done
        echo reads >&3
        cat <&4 >&3; cat <&5 >&3 2>&3 || echo stale >&3; cat /h/replaced >&3; sleep 600
    """
    binds = ("-v", f"{person.home}:/h")
    person.desk("run", "-d", "--name", "holder", *binds, "busybox", "sh", "-c", script)
    log = person.home / "log"
    _wait_for(lambda: log.exists() and log.read_text().count("waits") > 3)
    person.desk("machine", "park", "default")
    assert person.desk("machine", "ls", "--format", "{{.State}}") == "Saved\n"
    assert not any(_runs(pid) for pid in person.servers())
    lines = log.read_text().count("\n")
    (person.home / "new").write_text("after\n")
    (person.home / "new").rename(person.home / "replaced")
    person.desk("machine", "start", "default")
    _wait_for(lambda: log.read_text().count("\n") > lines)
    (person.home / "asked").write_text("read\n")
    _wait_for(lambda: log.read_text().endswith("after\n"))
    told = log.read_text().partition("reads\n")[2].split("\n")
    assert told[0] == "before"
    assert told[-3:] == ["stale", "after", ""]
    person.desk("rm", "-f", "holder")
    assert person.inside("cat /h/replaced") == "after\n"


def test_a_parked_machine_keeps_the_folders_that_it_has(person: Person) -> None:
    """What is set meanwhile is for the next start of its guest."""
    person.desk("machine", "park", "default")
    reading = f"{person.reading}:ro,{person.home}/notes:ro"
    person.desk("machine", "set", "default", f"share-folder={reading}")
    notes = person.home / "notes"
    away = notes.rename(notes.with_name("away"))
    try:
        told = person.desk("machine", "start", "default", code=1)
        assert f"did not start: mount: {notes}" in told
        assert "`desk machine kill default` gives the saved state up" in told
        assert person.desk("machine", "ls", "--format", "{{.State}}") == "Saved\n"
    finally:
        away.rename(notes)
    try:
        person.desk("machine", "start", "default")
        assert person.with_reading("cat /r/note") == "read me\n"
    finally:
        person.desk("machine", "set", "default", f"share-folder=~,{reading}")
    assert person.inside("cat /r/note; grep -c virtiofs /proc/mounts").split()[-1] == "2"


def test_a_server_that_ends_is_told_and_a_restart_mends_it(person: Person) -> None:
    binds = ("-v", f"{person.home}:/h")
    reading = "while :; do cat /h/state; sleep 0.2; done"
    (person.home / "state").write_text("first\n")
    person.desk("run", "-d", "--name", "reader", *binds, "busybox", "sh", "-c", reading)
    server = json.loads((person.machine / "virtiofs" / "0.pid").read_text())["pid"]
    os.kill(server, signal.SIGKILL)
    told = person.desk("run", "--rm", *binds, "busybox", "true", code=125)
    assert (
        "their virtiofs server on this computer has ended; `desk machine restart default`" in told
    )
    assert "their virtiofs server" in person.desk("machine", "status", "default")
    (person.home / "state").write_text("second\n")
    person.desk("machine", "restart", "default")
    _wait_for(lambda: "second" in person.desk("logs", "--tail", "2", "reader"))
    person.desk("rm", "-f", "reader")


def test_the_servers_end_with_the_machine(person: Person) -> None:
    pids = person.servers()
    assert pids
    person.desk("machine", "stop", "default")
    _wait_for(lambda: not any(_runs(pid) for pid in pids))
    sockets = [path for path in person.machine.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert sockets == []


def test_without_a_server_it_is_sftp_or_an_error(person: Person) -> None:
    person.desk("machine", "stop", "default")
    described = next(person.descriptions.glob("*.json"))
    away = described.rename(described.with_suffix(".away"))
    try:
        words = ("-o", "share_by=virtiofs", "-o", "accelerator=tcg")
        refused = (("create", *words, "another"), ("set", "default", "share-by=virtiofs"))
        for command in refused:
            assert "virtiofsd is not installed" in person.desk("machine", *command, code=1)
        assert person.desk("machine", "ls", "--format", "{{.Name}} {{.State}}") == (
            "default Stopped\n"
        )
        person.desk("machine", "start", "default")
        assert person.inside(WAY) == "fuse.sshfs\n"
    finally:
        away.rename(described)
        person.desk("machine", "stop", "default")


def test_a_server_that_does_not_start_is_told_and_it_is_sftp(person: Person) -> None:
    server = person.descriptions / "virtiofsd"
    good = server.read_text()
    server.write_text("#!/bin/sh\necho out of order >&2\nexit 1\n")
    try:
        told = person.desk("machine", "start", "default")
        assert "Sharing folders by SFTP: a virtiofs server of machine default" in told
        assert "out of order" in told
        assert person.inside(WAY) == "fuse.sshfs\n"
        person.desk("machine", "stop", "default")
        person.desk("machine", "set", "default", "share-by=virtiofs")
        assert "out of order" in person.desk("machine", "start", "default", code=1)
        assert person.desk("machine", "ls", "--format", "{{.State}}") == "Stopped\n"
    finally:
        server.write_text(good)
        person.desk("machine", "stop", "default")
        person.desk("machine", "set", "default", "share-by=")


def test_without_subordinate_ids_it_is_sftp_unless_virtiofs_is_asked_for(person: Person) -> None:
    person.give_subordinate_ids(0)
    person.desk("machine", "start", "default")
    assert person.inside(WAY) == "fuse.sshfs\n"
    person.desk("machine", "set", "default", "share-by=virtiofs")
    person.desk("machine", "restart", "default")
    assert person.inside(WAY) == "virtiofs\n"
    (person.home / "open").mkdir()
    (person.home / "open").chmod(0o777)
    os.chown(person.home / "open", PERSON, PERSON)
    ids = f"{PERSON}:{PERSON}"
    told = person.inside("echo root >/h/by-all; chown 999:999 /h/by-all; stat -c %u:%g /h/by-all")
    assert told.split() == [ids]
    # Who may write goes by the numbers in the machine; what is written is the person's.
    person.inside("echo 2 >/h/open/two; ! echo 3 >/h/three 2>/dev/null", "-u", "999:999")
    names = ("by-all", "open/two")
    assert {(person.home / name).stat().st_uid for name in names} == {PERSON}
    assert not (person.home / "three").exists()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
