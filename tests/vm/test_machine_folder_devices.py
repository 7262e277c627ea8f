"""Folders by virtiofs for somebody who is not root, with a real machine and a real server.

The person has no rights here but their own (and may read this checkout, wherever it lies); the
server is the one in Rust, which Debian 12 does not have: it is unpacked, and found by a description
as a package would bring it.
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli_process import DESK
from tests.guest_image import REPOSITORY, guest_image

from desk.machine.manager import Manager
from desk.paths import Home
from desk.ssh.session import Session

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

PERSON = 4242
TRIXIE = REPOSITORY / "build" / "trixie" / "root"
# A mount namespace of its own gives each command the descriptions. To read everything is no right
# over any file; the server has none at all, since it enters a user namespace of its own.
AS_PERSON = f"""
mount --bind "$1" /usr/share/qemu/vhost-user
mount -t tmpfs -o nosuid,nodev,mode=777 within "$2"
shift 2
exec setpriv --reuid {PERSON} --regid {PERSON} --clear-groups \
  --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search "$@"
"""


@dataclass
class Person:
    """Somebody with a home folder, in which keys are and Desk is, and a folder to read only."""

    home: Path
    reading: Path
    descriptions: Path

    def desk(self, *words: str, code: int = 0) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DESK_", "DOCKER_"))}
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", AS_PERSON, "person",
             str(self.descriptions), str(self.reading / "within it"), DESK, *words],
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

    def in_machine(self, command: str) -> str:
        with Session.connect(Manager(Home(self.desk_home)).endpoint("default")) as session:
            done = session.run(f"exec 2>&1; {command}")
        return done.stdout.decode()

    def inside(self, script: str, *flags: str) -> str:
        """Run a script in a container that has the home folder at /h and the other at /r."""
        binds = ("-v", f"{self.home}:/h", "-v", f"{self.reading}:/r")
        return self.desk("run", "--rm", *binds, *flags, "busybox", "sh", "-ec", script)


def describe_server(descriptions: Path) -> None:
    """Describe trixie's server, which is started with the C library that it needs."""
    (libc,) = TRIXIE.glob("usr/lib/*/libc.so.6")
    (loader,) = libc.parent.glob("ld-linux-*.so.*")
    program = descriptions / "virtiofsd"
    libraries, server = libc.parent, TRIXIE / "usr" / "libexec" / "virtiofsd"
    program.write_text(f'#!/bin/sh\nexec {loader} --library-path {libraries} {server} "$@"\n')
    program.chmod(0o755)
    (described,) = (TRIXIE / "usr" / "share" / "qemu" / "vhost-user").glob("*.json")
    told = {**json.loads(described.read_text()), "binary": str(program)}
    (descriptions / described.name).write_text(json.dumps(told))


@pytest.fixture(scope="module")
def person(guest_image: Path) -> Iterator[Person]:
    top = Path(tempfile.mkdtemp(prefix="desk-"))
    top.chmod(0o755)
    person = Person(top / "h", top / "reading", top / "vhost-user")
    notes = person.home / "notes"
    for directory in (person.home, person.home / ".ssh", notes, person.reading):
        directory.mkdir(mode=0o755)
        os.chown(directory, PERSON, PERSON)
    (person.home / ".ssh" / "id").write_text("a key")
    (person.reading / "note").write_text("read me\n")
    (person.reading / "within it").mkdir()
    person.descriptions.mkdir()
    describe_server(person.descriptions)
    try:
        person.desk("machine", "image", "install", str(guest_image))
        options = {
            "accelerator": "tcg",
            "share_by": "virtiofs",
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
    servers = [json.loads(f.read_text())["pid"] for f in person.machine.glob("virtiofs/*.pid")]
    assert len(servers) == 3
    for server in servers:
        told = Path(f"/proc/{server}/status").read_text()
        assert f"\nUid:\t{PERSON}\t{PERSON}\t{PERSON}\t{PERSON}\n" in told
        namespaces = [Path(f"/proc/{of}/ns/user").readlink() for of in (server, "self")]
        assert namespaces[0] != namespaces[1]


def test_every_file_is_the_persons(person: Person) -> None:
    (person.home / "open").mkdir()
    (person.home / "open").chmod(0o777)
    os.chown(person.home / "open", PERSON, PERSON)
    script = """
        mkdir /h/made; echo root >/h/made/by-root; chown 999:999 /h/made/by-root
        stat -c %u:%g /h/made /h/made/by-root; ln -s by-root /h/made/link
        cat /h/made/link
        umask 0377; echo as-git-does >/h/made/read-only; cat /h/made/read-only
    """
    ids = f"{PERSON}:{PERSON}"
    told = person.inside(script).split()
    assert told == [ids, ids, "root", "as-git-does"]
    person.inside("echo own >/h/by-own; echo 1 >/h/open/one; stat -c %u /h/by-own", "-u", ids)
    # Who may write goes by the numbers in the machine; what is written is the person's.
    person.inside("echo 2 >/h/open/two; ! echo 3 >/h/three 2>/dev/null", "-u", "999:999")
    names = ("made", "made/by-root", "by-own", "open/one", "open/two")
    assert {(person.home / name).stat().st_uid for name in names} == {PERSON}
    assert not (person.home / "three").exists()
    assert (person.home / "open" / "two").read_text() == "2\n"


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


def test_a_machine_with_devices_is_not_parked_and_says_why(person: Person) -> None:
    told = person.desk("machine", "park", "default", code=1)
    assert "cannot be parked: it has folders by virtiofs" in told
    assert "share-by=sftp" in told
    assert person.desk("machine", "ls", "--format", "{{.State}}") == "Running\n"


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
    deadline = time.monotonic() + 120
    while "second" not in person.desk("logs", "--tail", "2", "reader"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    person.desk("rm", "-f", "reader")


def test_the_servers_end_with_the_machine(person: Person) -> None:
    pids = [json.loads(f.read_text())["pid"] for f in person.machine.glob("virtiofs/*.pid")]
    person.desk("machine", "stop", "default")
    deadline = time.monotonic() + 60
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    sockets = [path for path in person.machine.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert sockets == []


def test_without_a_server_it_is_an_error_and_nothing_runs(person: Person) -> None:
    person.desk("machine", "stop", "default")
    described = next(person.descriptions.glob("*.json"))
    away = described.rename(described.with_suffix(".away"))
    try:
        words = ("-o", "share_by=virtiofs", "-o", "accelerator=tcg")
        refused = (
            ("create", *words, "another"),
            ("set", "default", "share-folder=/srv"),
            ("start", "default"),
        )
        for command in refused:
            assert "virtiofsd is not installed" in person.desk("machine", *command, code=1)
        assert person.desk("machine", "ls", "--format", "{{.Name}} {{.State}}") == (
            "default Stopped\n"
        )
        person.desk("machine", "set", "default", "share-by=sftp")
        person.desk("machine", "start", "default")
        assert person.inside("cat /r/note") == "read me\n"
    finally:
        away.rename(described)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
