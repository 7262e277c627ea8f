"""The laptop's folders in a real machine: what containers do in them, what survives which fault.

The laptop is this computer, its shared folder a directory of its own. All of it holds for every way
in which a folder is shared, unless a test says by which it goes: by SFTP or as a virtiofs device of
a machine of QEMU's, or as such a device of a machine of Vagrant's, whose server is libvirt's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.cli_process import DESK
from tests.guest_image import guest_image, libvirt_box
from tests.private_libvirt import PrivateLibvirt

from desk.machine.manager import Manager
from desk.machine.model import MachineSpec
from desk.paths import Home
from desk.ssh.session import Session

__all__ = ["guest_image", "libvirt_box"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

NAME = "sharing"


@dataclass
class Laptop:
    """A computer with a machine, and the folder that it shares with it."""

    manager: Manager
    folder: Path
    way: str

    def docker(self, *words: str, code: int = 0) -> str:
        """Run Docker's command line; return what it prints."""
        socket = self.manager.home.machine(NAME).engine_socket
        return self._run(["docker", "-H", f"unix://{socket}", *words], code)

    def desk(self, *words: str, code: int = 0) -> str:
        return self._run([DESK, *words], code)

    def _run(self, words: list[str], code: int) -> str:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DESK_", "DOCKER_"))}
        home = {"DESK_HOME": str(self.manager.home.directory), "DESK_MACHINE": NAME}
        done = subprocess.run(
            words,
            env={**kept, **home},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def inside(self, script: str, *flags: str) -> str:
        """Run a script in a container that has the folder at /s."""
        return self.docker(
            "run", "--rm", "-v", f"{self.folder}:/s", *flags, "busybox", "sh", "-ec", script
        )

    def in_machine(self, command: str) -> str:
        with Session.connect(self.manager.endpoint(NAME)) as session:
            return session.run(command).stdout.decode()


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


by_virtiofs = pytest.mark.parametrize("laptop", ["virtiofs"], indirect=True)
by_sftp = pytest.mark.parametrize("laptop", ["sftp"], indirect=True)
by_qemu = pytest.mark.parametrize("laptop", ["sftp", "virtiofs"], indirect=True)


@pytest.fixture(
    scope="module",
    params=["sftp", "virtiofs", pytest.param("vagrant", marks=pytest.mark.vagrant)],
)
def laptop(request: pytest.FixtureRequest) -> Iterator[Laptop]:
    vagrant = request.param == "vagrant"
    way = "virtiofs" if vagrant else request.param
    image = request.getfixturevalue("libvirt_box" if vagrant else "guest_image")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="desk-")))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="Ordner mit Größe ")))
        if vagrant:
            stack.enter_context(_vagrant_of_its_own(directory))
        manager = Manager(Home(directory))
        spec = MachineSpec(
            NAME,
            "vagrant" if vagrant else "qemu",
            memory_mib=768,
            disk_gib=8 if vagrant else 4,
            image=str(image),
            options={"accelerator": "tcg", "share_folder": str(folder), "share_by": way},
        )
        manager.create(spec)
        stack.callback(manager.remove, NAME, force=True)
        manager.start(NAME)
        yield Laptop(manager, folder, way)


@contextlib.contextmanager
def _vagrant_of_its_own(directory: Path) -> Iterator[None]:
    with (
        pytest.MonkeyPatch.context() as patch,
        PrivateLibvirt(directory) as libvirt,
        libvirt.entered(),
    ):
        patch.setenv("VAGRANT_HOME", str(directory / "vagrant-home"))
        yield


@pytest.fixture(autouse=True)
def _containers_and_files_go(laptop: Laptop) -> Iterator[None]:
    yield
    laptop.manager.start(NAME)
    laptop.desk("ps")  # an agent that a test killed is replaced
    if containers := laptop.docker("ps", "-aq").split():
        laptop.docker("rm", "-f", *containers)
    for left in laptop.folder.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink()


def test_both_sides_see_the_same_files(laptop: Laptop) -> None:
    (laptop.folder / "größe.txt").write_text("from the laptop\n")
    script = """
        cat /s/größe.txt
        echo 'from a container' >/s/made; mkdir -p /s/deep/er; echo 1 >/s/deep/er/one
        mv /s/deep/er/one /s/deep/two; rm /s/größe.txt; rmdir /s/deep/er
        printf '#!/bin/sh\\necho it runs\\n' >/s/tool; chmod 755 /s/tool; /s/tool
        ln -s made /s/link; cat /s/link; ln -s ../made /s/deep/up; ln -s /s/made /s/deep/whole
        (umask 0377; echo 'as git does' >/s/deep/read-only); cat /s/deep/read-only
        echo more >>/s/made; touch -d '2020-02-02 00:00:00' /s/deep/two; stat -c %Y /s/deep/two
    """
    # By SFTP all users of the machine are the laptop's one, by virtiofs numbers count.
    laptop.folder.chmod(0o777 if laptop.way == "virtiofs" else 0o700)
    writer = 1000 if laptop.way == "virtiofs" else os.geteuid()
    assert laptop.inside(script, "-u", "1000:1000").splitlines() == [
        "from the laptop", "it runs", "from a container", "as git does", "1580601600",
    ]  # fmt: skip
    assert sorted(path.name for path in laptop.folder.iterdir()) == ["deep", "link", "made", "tool"]
    assert (laptop.folder / "made").read_text() == "from a container\nmore\n"
    assert (laptop.folder / "deep" / "two").stat().st_mtime == 1580601600
    assert str((laptop.folder / "link").readlink()) == "made"
    (laptop.folder / "deep" / "here").symlink_to("../made")
    (laptop.folder / "made").write_text("linked\n")
    assert laptop.inside("cd /s/deep; cat up whole here") == "linked\n" * 3
    assert os.access(laptop.folder / "tool", os.X_OK)
    assert {p.lstat().st_uid for p in laptop.folder.iterdir()} == {writer}
    # The machine has the folder at the same path.
    (laptop.folder / "made").write_text("changed here\n")
    assert laptop.inside("chown 1000:1000 /s/made; cat /s/made") == "changed here\n"
    assert laptop.in_machine(f"cat '{laptop.folder}/made'") == "changed here\n"


@by_sftp
def test_the_machine_reaches_the_folders_past_ssh_and_containers_do_not(laptop: Laptop) -> None:
    (laptop.folder / "note").write_text("mine")
    laptop.docker("run", "-d", "-v", f"{laptop.folder}:/s", "busybox", "sleep", "600")
    commands = laptop.in_machine("for of in /proc/[0-9]*; do tr '\\0' ' ' <$of/cmdline; echo; done")
    (sshfs,) = [line for line in commands.splitlines() if line.startswith("sshfs ")]
    secret = re.search(r"10\.0\.2\.100:/([0-9a-f]{32})/", sshfs)
    assert secret
    assert secret[1] not in laptop.in_machine("cat /proc/mounts")
    assert laptop.inside("cat /s/note") == "mine"
    ask = "nc -w 3 10.0.2.100 115 </dev/null >/dev/null 2>&1; echo $?"
    assert laptop.in_machine(ask) == "1\n"
    allowed = "echo 0 >/sys/fs/cgroup/desk-folders/cgroup.procs"
    assert laptop.in_machine(f"{allowed}; {ask}") == "0\n"
    for network in ("bridge", "host"):
        words = ("run", "--rm", "--privileged", "--network", network, "busybox", "sh", "-c", ask)
        assert laptop.docker(*words) == "1\n", network


def test_big_files_and_many_small_ones_arrive_whole(laptop: Laptop) -> None:
    content = os.urandom(8 << 20)
    (laptop.folder / "big").write_bytes(content)
    many = laptop.folder / "many"
    many.mkdir()
    for number in range(60):
        (many / f"file {number}").write_text(f"{number}\n")
    script = """
        sha256sum </s/big; cp /s/big /s/copy
        cat /s/many/* | sort -n | tail -n 1; ls /s/many | wc -l
        mkdir /s/more; for n in $(seq 60); do echo $n >/s/more/$n; done; rm -r /s/many
    """
    digest = hashlib.sha256(content).hexdigest()
    assert laptop.inside(script).split() == [digest, "-", "59", "60"]
    assert hashlib.sha256((laptop.folder / "copy").read_bytes()).hexdigest() == digest
    assert not many.exists()
    made = {path.name: path.read_text() for path in (laptop.folder / "more").iterdir()}
    assert made == {str(n): f"{n}\n" for n in range(1, 61)}


def test_two_containers_and_the_laptop_write_at_once(laptop: Laptop) -> None:
    script = "for n in $(seq 40); do echo $0 $n >>/s/log-$0; echo $n >/s/last-$0; done"
    names = ("a", "b")
    for name in names:
        laptop.docker(
            *("run", "-d", "--name", f"writer-{name}", "-v", f"{laptop.folder}:/s", "busybox"),
            *("sh", "-ec", script, name),
        )
    for number in range(200):
        (laptop.folder / "mine").write_text(f"{number}\n")
    for name in names:
        assert laptop.docker("wait", f"writer-{name}").strip() == "0"
        lines = (laptop.folder / f"log-{name}").read_text().splitlines()
        assert lines == [f"{name} {n}" for n in range(1, 41)]
        assert (laptop.folder / f"last-{name}").read_text() == "40\n"
    assert laptop.inside("cat /s/mine") == "199\n"


def test_missing_folders_and_those_that_are_not_shared_are_errors(laptop: Laptop) -> None:
    missing = laptop.folder / "missing"
    for flags in (
        ["-v", f"{missing}:/s"],
        ["--mount", f"type=bind,source={missing},target=/s"],
    ):
        for client in (laptop.docker, laptop.desk):
            told = client("run", "--rm", *flags, "busybox", "true", code=125)
            assert f"bind source path does not exist: {missing}" in told, told
    assert not missing.exists()
    assert laptop.docker("ps", "-aq") == ""  # nothing half-made
    with tempfile.TemporaryDirectory(prefix="beside-") as beside:
        (Path(beside) / "secret").write_text("secret")
        told = laptop.docker("run", "--rm", "-v", f"{beside}:/s", "busybox", "ls", "/s", code=125)
        assert f"{beside} is not shared with the machine" in told
        # A link that leads out of the folder leads nowhere.
        (laptop.folder / "out").symlink_to(beside)
        assert laptop.inside("exec 2>/dev/null; cat /s/out/secret || echo no") == "no\n"
        # What the sentence says to do, for reading only; it is so at once.
        setting = f"share-folder={laptop.folder},{beside}:ro"
        assert laptop.desk("machine", "set", NAME, setting) == ""
        words = ("run", "--rm", "-v", f"{beside}:/s", "busybox", "sh", "-c")
        assert (
            laptop.desk(*words, "exec 2>/dev/null; cat /s/secret; echo >/s/secret || echo ,no")
            == "secret,no\n"
        )
        assert (Path(beside) / "secret").read_text() == "secret"
        laptop.desk("machine", "set", NAME, f"share-folder={laptop.folder}")


def test_paths_of_the_machine_itself_stay_its_own(laptop: Laptop) -> None:
    words = ("run", "--rm", "-v", "/var/run/docker.sock:/e.sock", "-v", "/etc:/e:ro", "busybox")
    told = laptop.docker(*words, "sh", "-ec", "test -S /e.sock; cat /e/hostname")
    assert told == laptop.in_machine("cat /etc/hostname") != Path("/etc/hostname").read_text()


def test_changes_made_on_the_laptop_reach_watchers_in_containers(laptop: Laptop) -> None:
    watched, tools = laptop.folder / "watched", laptop.folder / "tools"
    watched.mkdir()
    tools.mkdir()
    program = shutil.which("inotifywait")
    assert program is not None, "inotify-tools is not installed"
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for library in [program, *re.findall(r"(/\S+)", linked)]:
        shutil.copy(library, tools)
    loader = next(path.name for path in tools.iterdir() if path.name.startswith("ld-"))
    # inotifywait comes through the share, too.
    watch = f"/t/{loader} --library-path /t /t/inotifywait -m -r --format '%e %w%f' /s"
    # The watcher has time to say the last of it.
    script = (
        f"{watch} & until [ -e /s/stop ]; do sleep 0.2; echo own >/s/own; done; sleep 2; kill $!"
    )
    laptop.docker(
        *("run", "-d", "--name", "watcher", "-v", f"{watched}:/s", "-v", f"{tools}:/t"),
        *("busybox", "sh", "-c", script),
    )
    wait_for(lambda: "CLOSE_WRITE,CLOSE /s/own" in laptop.docker("logs", "watcher"), "a watcher")
    (watched / "new").write_text("1")
    wait_for(lambda: "MODIFY /s/new" in laptop.docker("logs", "watcher"), "an event of a new file")
    before = (watched / "new").stat()
    seen = laptop.docker("logs", "watcher").count(" /s/new")
    with (watched / "new").open("a") as file:
        file.write("2")
    wait_for(
        lambda: laptop.docker("logs", "watcher").count(" /s/new") > seen, "an event of a change"
    )
    assert (watched / "new").stat().st_ino == before.st_ino
    (watched / "new").unlink()
    wait_for(lambda: "MODIFY,ISDIR /s/" in laptop.docker("logs", "watcher"), "one of a removal")
    (watched / "stop").touch()
    assert laptop.docker("wait", "watcher").strip() == "0"
    # What the container wrote itself was told to it once, by its own kernel: a write is an opening,
    # a change of size (to nothing), one of content, and a closing.
    own = re.findall(r"^(\S+) /s/own$", laptop.docker("logs", "watcher"), re.MULTILINE)
    assert own.count("MODIFY") <= 2 * own.count("CLOSE_WRITE,CLOSE") + 1, own


def reader(laptop: Laptop, *flags: str) -> str:
    """Start a container that tells again and again what it reads in the folder."""
    (laptop.folder / "state").write_text("first\n")
    script = "while true; do cat /s/state 2>&1; sleep 0.2; done"
    return laptop.docker(
        "run", "-d", *flags, "-v", f"{laptop.folder}:/s", "busybox", "sh", "-c", script
    ).strip()


def reads(laptop: Laptop, container: str, text: str) -> Callable[[], bool]:
    return lambda: text in laptop.docker("logs", "--tail", "2", container)


def test_a_killed_engine_leaves_containers_their_folders(laptop: Laptop) -> None:
    container = reader(laptop)
    wait_for(reads(laptop, container, "first"), "the first reading")
    before = laptop.in_machine("cat /run/desk/engine.pid").split()
    laptop.in_machine("kill -9 $(cat /run/desk/engine.pid)")
    (laptop.folder / "state").write_text("second\n")

    def answers() -> bool:
        words = ["docker", "-H", f"unix://{laptop.manager.home.machine(NAME).engine_socket}", "ps"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        return done.returncode == 0 and container[:12] in done.stdout

    wait_for(answers, "the next engine")
    assert laptop.in_machine("cat /run/desk/engine.pid").split() != before
    wait_for(reads(laptop, container, "second"), "what changed meanwhile")
    assert laptop.inside("cat /s/state") == "second\n"


def test_a_killed_agent_gives_errors_until_the_next_one(laptop: Laptop) -> None:
    container = reader(laptop)
    wait_for(reads(laptop, container, "first"), "the first reading")
    held = laptop.docker(
        *("run", "-d", "-v", f"{laptop.folder}:/s", "busybox", "sh", "-c"),
        "exec 3</s/state; while cat <&3; do sleep 0.2; done; echo ended",
    ).strip()
    os.kill(int(laptop.manager.home.machine(NAME).agent_pid.read_text()), signal.SIGKILL)
    time.sleep(1)  # for readings without an agent; what they get is looked at below
    (laptop.folder / "state").write_text("second\n")
    laptop.desk("ps")  # whatever of Desk comes next replaces the agent
    wait_for(reads(laptop, container, "second"), "what changed meanwhile")
    told = laptop.docker("logs", container)
    # By virtiofs what was written may be read with the length of before for a second.
    end = "\n?" if laptop.way == "virtiofs" else "\n"
    assert re.fullmatch(f"((first|second){end}|cat: .*error\n)*", told), told
    assert laptop.docker("inspect", "-f", "{{.State.Running}}", container).strip() == "true"
    assert laptop.docker("inspect", "-f", "{{.State.Status}}", held).strip() in (
        "running",
        "exited",
    )


def test_a_restarted_machine_has_the_folders_again(laptop: Laptop) -> None:
    container = reader(laptop, "--restart=always")
    wait_for(reads(laptop, container, "first"), "the first reading")
    (laptop.folder / "state").write_text("second\n")
    laptop.manager.restart(NAME)
    wait_for(reads(laptop, container, "second"), "the container after the restart")
    laptop.docker("stop", "-t", "0", container)
    shutil.move(laptop.folder, f"{laptop.folder} moved")
    try:
        told = laptop.docker("start", container, code=1)
        assert "bind source path does not exist" in told
    finally:
        shutil.move(f"{laptop.folder} moved", laptop.folder)
    laptop.docker("start", container)
    wait_for(reads(laptop, container, "second"), "the folder that came back")


@by_qemu  # it takes a minute each time
def test_folders_that_nobody_uses_are_unmounted(laptop: Laptop) -> None:
    container = reader(laptop)
    listed = r"grep -c ' \(fuse.sshfs\|virtiofs\) ' /proc/mounts"
    assert laptop.in_machine(listed) == "1\n"
    laptop.docker("rm", "-f", container)
    wait_for(lambda: laptop.in_machine(listed) == "0\n", "the unmounting")
    assert laptop.folder.is_dir()


@by_virtiofs
def test_what_cannot_be_saved_is_not_parked_and_says_why(laptop: Laptop) -> None:
    """Debian 12's QEMU saves no virtiofs device."""
    told = laptop.desk("machine", "park", NAME, code=1)
    assert "cannot be parked: it has folders by virtiofs" in told
    assert "share-by=sftp" in told
    assert laptop.desk("machine", "ls", "--format", "{{.State}}") == "Running\n"
