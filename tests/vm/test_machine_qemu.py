"""A real machine under QEMU: power, memory, keys, faults, and what ``desk doctor`` says of it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.guest_image import guest_image

from desk.engine.client import EngineClient
from desk.engine.transport import UnixTransport
from desk.errors import Conflict, DriverError, EngineError, HostKeyMismatch, SshError
from desk.machine import bug_report, console, diagnostics, process
from desk.machine.accelerator import Accelerators, qemu_version
from desk.machine.diagnostics import Verdict
from desk.machine.drivers.qemu import find_qemu
from desk.machine.engine_probe import engine_obstacle
from desk.machine.images import ImageStore, host_architecture
from desk.machine.manager import Manager
from desk.machine.memory import MemoryDial
from desk.machine.model import MachineSpec, State
from desk.machine.qemu_command import HostFacts
from desk.paths import Home, MachinePaths
from desk.ssh.keys import generate_key_pair, write_key_pair, write_known_hosts
from desk.ssh.session import Session

__all__ = ["guest_image"]

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(600)]

NAME = "real"


@pytest.fixture(scope="module")
def manager(guest_image: Path) -> Iterator[Manager]:
    """One machine for all tests of this module; each leaves it usable, running or not."""
    directory = Path(tempfile.mkdtemp(prefix="desk-"))
    manager = Manager(Home(directory))
    spec = MachineSpec(
        NAME, memory_mib=768, disk_gib=4, image=str(guest_image), options={"accelerator": "tcg"}
    )
    manager.create(spec)
    yield manager
    manager.remove(NAME, force=True)
    shutil.rmtree(directory)


@pytest.fixture
def paths(manager: Manager) -> MachinePaths:
    manager.start(NAME)
    return manager.home.machine(NAME)


def qemu(paths: MachinePaths) -> process.Process:
    running = process.recall(paths.qemu_pid)
    assert running is not None
    return running


def run(manager: Manager, command: str) -> str:
    with Session.connect(manager.endpoint(NAME)) as session:
        done = session.run(command)
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode().strip()


def test_guest_is_the_one_that_was_asked_for(manager: Manager, paths: MachinePaths) -> None:
    assert run(manager, "hostname") == NAME
    assert run(manager, "nproc") == "2"
    # The boot does without under emulation; what runs afterwards has random addresses.
    assert run(manager, "cat /proc/sys/kernel/randomize_va_space") == "2"
    assert 600 < int(run(manager, "grep MemTotal /proc/meminfo").split()[1]) / 1024 < 768
    assert [name for name, _s in console.stages(paths.console_log)][:3] == [
        "initramfs",
        "userspace",
        "sshd",
    ]
    argv = manager.ssh_arguments(NAME, ("cat", "/etc/hostname"))
    assert argv is not None
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout.strip()) == (0, NAME), done.stderr


def test_nothing_listens_beyond_loopback(paths: MachinePaths) -> None:
    owners = {f"pid={qemu(paths).pid},"}
    listing = subprocess.run(["ss", "-Hltnup"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in listing.splitlines() if any(owner in line for owner in owners)]
    assert len(lines) == 1
    assert "127.0.0.1:" in lines[0].split()[4]


def test_memory_on_the_host_is_told(manager: Manager, paths: MachinePaths) -> None:
    status = manager.status(NAME)
    assert status.state is State.RUNNING
    assert status.host_memory_bytes is not None
    assert status.host_memory_bytes == pytest.approx(qemu(paths).resident_bytes(), rel=0.2)


def test_a_container_that_uses_the_machine_up_is_named(
    manager: Manager, paths: MachinePaths
) -> None:
    with EngineClient(UnixTransport(paths.engine_socket), timeout_s=120) as client:

        def begin(name: str, command: str, **host: object) -> None:
            config = {"Image": "busybox", "Cmd": ["sh", "-c", command], "HostConfig": host}
            client.containers.create(config, name=name)
            client.containers.start(name)

        begin("bystander", "head -c 60m /dev/zero | tail | sleep 600")
        # One child is killed, without a limit of its own, and the container runs on.
        begin("hungry", "tail /dev/zero; exec sleep 600")
        deadline = time.monotonic() + 120
        while not (kills := client.system.out_of_memory()):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        (kill,) = kills
        assert (kill["Name"], kill["Limit"], kill["Running"]) == ("hungry", "machine", True)
        assert kill["Reason"].startswith("the machine's memory of ")
        assert "was used up when hungry needed more; bystander held " in kill["Reason"]
        assert client.containers.inspect("hungry")["State"]["OOMKilled"] is True
        begin("own", "exec tail /dev/zero", Memory=16 << 20)
        client.containers.wait("own")
        newest = client.system.out_of_memory()[0]
        assert (newest["Name"], newest["Limit"], newest["LimitBytes"]) == (
            "own",
            "container",
            16 << 20,
        )
        # Nor does it matter which process is the largest: the engine is spared, no container is.
        score = "cat /proc/{}/oom_score_adj"
        assert run(manager, score.format("$(cat /run/desk/engine.pid)")) == "-500"
        assert run(manager, "docker exec hungry " + score.format("self")) == "0"
        assert run(manager, "docker exec hungry " + score.format("1")) == "0"
        for name in ("bystander", "hungry", "own"):
            client.containers.remove(name, force=True)


def test_data_outlives_an_orderly_stop_and_a_new_boot(
    manager: Manager, paths: MachinePaths
) -> None:
    run(manager, "echo kept >/var/lib/desk/local/note")  # not synced: the stop must do it
    report = manager.restart(NAME)
    assert "power off" in dict(report.stages)
    assert "engine" in dict(report.boot)
    assert run(manager, "cat /var/lib/desk/local/note") == "kept"


def test_a_parked_machine_goes_on_where_it_was(manager: Manager, paths: MachinePaths) -> None:
    def client() -> EngineClient:
        return EngineClient(UnixTransport(paths.engine_socket), timeout_s=120)

    def page() -> bytes:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                    return bytes(answer.read())
            except OSError:
                assert time.monotonic() < deadline, "the published port does not answer"
                time.sleep(0.2)

    counting = (
        "mkdir /www; echo page >/www/index.html; httpd -p 80 -h /www;"
        " i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.2; done"
    )
    config = {
        "Image": "busybox",
        "Cmd": ["sh", "-c", counting],
        "ExposedPorts": {"80/tcp": {}},
        "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "0"}]}},
    }
    with client() as engine:
        with contextlib.suppress(EngineError):  # it is there where a first run of this failed
            engine.containers.remove("counts", force=True)
        identifier = engine.containers.create(config, name="counts")["Id"]
        engine.containers.start(identifier)
        details = engine.containers.inspect(identifier)
    before = details["State"]
    port = details["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]
    assert page() == b"page\n"
    boot_id = run(manager, "cat /proc/sys/kernel/random/boot_id")
    run(manager, "echo in memory only >/run/note")
    program = qemu(paths)

    manager.park(NAME)
    assert not program.alive
    status = manager.status(NAME)
    assert (status.state, status.host_memory_bytes, status.url) == (State.SAVED, None, "")
    with pytest.raises(Conflict, match="is Saved and cannot become Stopping"):
        manager.park(NAME)
    with pytest.raises(Conflict):
        MemoryDial(manager).move(NAME, 700, lambda _sentence: None)
    parked_at = time.time()

    report = manager.start(NAME)
    assert report.boot == ()
    assert manager.status(NAME).state is State.RUNNING
    assert run(manager, "cat /proc/sys/kernel/random/boot_id") == boot_id
    assert run(manager, "cat /run/note") == "in memory only"
    assert page() == b"page\n"
    deadline = time.monotonic() + 120
    while True:
        earliest = time.time() - 2
        told = int(run(manager, "date +%s"))
        if earliest <= told <= time.time() + 2:
            break
        assert time.monotonic() < deadline, "the guest's clock stays behind"
    with client() as engine:
        after = engine.containers.inspect(identifier)["State"]
        assert (after["StartedAt"], after["Pid"]) == (before["StartedAt"], before["Pid"])
        assert after["Running"]
    # It is alive: it counts on, and its files have times after the park.
    root = f"/proc/{after['Pid']}/root"
    deadline = time.monotonic() + 120
    while int(run(manager, f"stat -c %Y {root}/count")) < parked_at:
        assert time.monotonic() < deadline, "the container stands still"
    with client() as engine:
        engine.containers.remove(identifier, force=True)
    # An orderly stop of a parked machine wakes it first: what only its memory had is written.
    run(manager, "echo kept >/var/lib/desk/local/parked")
    manager.park(NAME)
    manager.stop(NAME)
    assert manager.status(NAME).state is State.STOPPED
    assert not paths.parked_state.exists()


def test_a_damaged_saved_state_is_told_and_can_be_given_up(
    manager: Manager, paths: MachinePaths
) -> None:
    manager.park(NAME)
    with paths.parked_state.open("r+b") as stream:
        stream.truncate(100_000)
    with pytest.raises(DriverError, match="cannot be taken up") as caught:
        manager.start(NAME)
    assert f"desk machine kill {NAME}" in caught.value.hint
    assert manager.status(NAME).state is State.SAVED
    manager.kill(NAME)
    assert manager.status(NAME).state is State.STOPPED
    assert not paths.parked_state.exists()
    manager.start(NAME)
    assert run(manager, "cat /var/lib/desk/local/parked") == "kept"


def test_everything_goes_on_after_this_computer_slept(
    manager: Manager, paths: MachinePaths
) -> None:
    """Sleep stops the VM and the agent, and the guest's clock is far off afterwards."""
    environment = os.environ | {"DESK_HOME": str(manager.home.directory), "DESK_MACHINE": NAME}
    program = str(Path(sys.executable).with_name("desk"))

    def desk(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *words], env=environment, capture_output=True, text=True, timeout=240
        )

    def until(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.2)

    desk("rm", "-f", "counts")  # of a first run that failed
    count = "httpd -p 80; i=0; while :; do echo $i; i=$((i+1)); sleep 0.2; done"
    ran = desk("run", "-d", "--name", "counts", "-p", "127.0.0.1::80", "busybox", "sh", "-c", count)
    assert ran.returncode == 0, ran.stderr
    log = manager.home.directory / "followed"
    with log.open("wb") as target:
        follower = subprocess.Popen(
            [program, "logs", "-f", "counts"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=subprocess.DEVNULL,
        )
    try:
        until(lambda: log.read_text().count("\n") > 3, "the log is not followed")
        frozen = [qemu(paths).pid, int(paths.agent_pid.read_text())]
        run(
            manager,
            "date -s @$(($(date +%s) - 600))",
        )
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(10)
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)
        until(lambda: "slept for about" in desk("machine", "status").stderr, "no word of the sleep")
        told = desk("machine", "status")
        assert told.stdout == "Running\n"
        now, before = told.stderr.splitlines()
        assert re.fullmatch(
            r"checked VM, SSH, clock, engine, port in \d+\.\d s: all is well", now
        ), told.stderr
        assert "set the clock, which was" in before
        assert abs(int(run(manager, "date +%s")) - time.time()) < 2
        seen = log.read_text().count("\n")
        until(lambda: log.read_text().count("\n") > seen + 5, "the log stands still")
        assert desk("rm", "-f", "counts").returncode == 0
        assert follower.wait(60) == 0
        assert log.read_text().splitlines() == [str(n) for n in range(log.read_text().count("\n"))]
    finally:
        follower.kill()
        follower.wait()


def test_suspended_qemu_is_paused_and_resumes(manager: Manager, paths: MachinePaths) -> None:
    os.kill(qemu(paths).pid, signal.SIGSTOP)
    while manager.status(NAME, timeout_s=1).state is not State.PAUSED:
        time.sleep(0.05)
    manager.start(NAME)
    assert manager.status(NAME).state is State.RUNNING


def test_killed_qemu_is_seen_at_once_and_starts_again(
    manager: Manager, paths: MachinePaths
) -> None:
    port = manager.endpoint(NAME).port
    qemu(paths).kill()
    assert manager.status(NAME, timeout_s=1).state is State.STOPPED
    manager.start(NAME)
    assert manager.endpoint(NAME).port == port
    assert engine_obstacle(paths.engine_socket, timeout_s=10) == ""


def test_killed_agent_is_replaced_by_a_start(manager: Manager, paths: MachinePaths) -> None:
    os.kill(int(paths.agent_pid.read_text()), signal.SIGKILL)
    # The kernel may take a moment to release what the agent held.
    while "its agent is not running" not in (status := manager.status(NAME, timeout_s=2)).error:
        time.sleep(0.05)
    assert status.state is State.RUNNING
    before = qemu(paths)
    manager.start(NAME)
    assert qemu(paths) == before
    assert manager.status(NAME).error == ""


def test_changed_host_key_is_refused(manager: Manager, paths: MachinePaths) -> None:
    manager.stop(NAME)
    known = paths.known_hosts.read_text()
    other = generate_key_pair("other")
    write_known_hosts(paths.known_hosts, "127.0.0.1", manager.endpoint(NAME).port, other.public)
    try:
        with pytest.raises(HostKeyMismatch, match="shows the host key"):
            manager.start(NAME)
        assert manager.status(NAME).state is State.STOPPED
    finally:
        paths.known_hosts.write_text(known)


def test_key_that_the_guest_does_not_know_is_refused(manager: Manager, paths: MachinePaths) -> None:
    manager.stop(NAME)
    private, public = paths.private_key.read_bytes(), paths.public_key.read_bytes()
    write_key_pair(generate_key_pair("wrong"), paths.private_key, paths.public_key)
    paths.public_key.write_bytes(public)  # the guest is told of this one at its start
    try:
        with pytest.raises(SshError, match="does not accept Desk's key"):
            manager.start(NAME)
        assert manager.status(NAME).state is State.STOPPED
    finally:
        paths.private_key.write_bytes(private)
        paths.public_key.write_bytes(public)


def test_damaged_data_disk_is_explained_and_kept(manager: Manager, paths: MachinePaths) -> None:
    manager.stop(NAME)
    with paths.data_disk.open("r+b") as disk:
        whole = disk.read(8192)
        disk.seek(0)
        disk.write(b"\xa5" * 8192)
    try:
        with pytest.raises(Exception, match=r"machine real is not ready: .*the guest says: .*disk"):
            manager.start(NAME)
        assert manager.status(NAME).state is State.STOPPED
    finally:
        with paths.data_disk.open("r+b") as disk:
            disk.write(whole)


def test_accelerators_are_tried_with_the_real_guest(manager: Manager) -> None:
    arch = host_architecture()
    binary = find_qemu(arch)
    host = HostFacts("linux", arch, binary, qemu_version(binary))
    image = ImageStore(manager.home).newest()
    verdicts = Accelerators(manager.home).probe_all(host, image, lambda _sentence: None)
    assert [verdict.accelerator for verdict in verdicts] == ["kvm", "tcg"]
    assert verdicts[-1].works, verdicts[-1].reason
    assert all(verdict.reason for verdict in verdicts)


def test_doctor_finds_this_computer_and_the_machine_well(
    manager: Manager, paths: MachinePaths, tmp_path: Path
) -> None:
    checks = {check.subject: check for check in diagnostics.examine(manager)}
    for subject in ("python", "home", "qemu", "guest image", "machine real"):
        assert checks[subject].verdict is Verdict.OK, checks[subject]
    assert "machine real: engine" in checks, checks
    assert checks["machine real: engine"].verdict is not Verdict.FAILURE
    report = tmp_path / "report.zip"
    bug_report.write_bundle(report, manager, checks.values(), lambda _sentence: None)
    with zipfile.ZipFile(report) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    inside = {name.rpartition("/")[2]: text for name, text in texts.items() if "/inside/" in name}
    assert "Linux version 6." in inside["kernel.log"]
    assert "/var/lib/desk" in inside["disks.txt"]
    assert "MemTotal" in inside["memory.txt"]
    assert "python" in inside["processes.txt"]
    assert "nameserver" in inside["network.txt"]
    assert "engine.log" in inside["engine.log"]
    assert '"ServerVersion"' in texts["machines/real/engine/info.json"]
    assert paths.private_key.read_text() not in "".join(texts.values())
    manager.stop(NAME)
    checks = {check.subject: check for check in diagnostics.examine(manager)}
    assert checks["machine real"].text == "stopped"
