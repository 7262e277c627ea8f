"""Processes, ports, seeds, consoles and readiness: the small parts below the manager."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from desk.errors import DriverError, MachineError, SshError, UsageError
from desk.machine import console, ports, process
from desk.machine.engine_settings import check_engine_options, engine_environment, engine_settings
from desk.machine.model import MachineSpec, State, check_name, check_transition
from desk.machine.readiness import Requirement, wait_ready
from desk.machine.seed import certificate_members, seed_members, write_seed

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def test_detached_process_is_remembered_and_ends(tmp_path: Path) -> None:
    log, file = tmp_path / "log", tmp_path / "pid"
    started = process.spawn_detached(SLEEPER, log=log)
    try:
        process.remember(started, file)
        assert process.recall(file) == started
        assert os.getsid(started.pid) != os.getsid(0)
        while (started.resident_bytes() or 0) <= 1 << 20:  # it is still being executed
            assert started.alive
            time.sleep(0.01)
        assert not started.suspended
        started.signal(signal.SIGSTOP)
        while not started.suspended:
            time.sleep(0.01)
        started.signal(signal.SIGCONT)
    finally:
        started.end(grace_s=5)
    assert not started.alive
    assert process.recall(file) is None


def test_stubborn_process_is_killed(tmp_path: Path) -> None:
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('up', flush=True); time.sleep(60)"
    )
    started = process.spawn_detached([sys.executable, "-c", program], log=tmp_path / "log")
    while process.last_lines(tmp_path / "log") != ["up"]:
        time.sleep(0.01)
    started.end(grace_s=0.1)
    assert not started.alive


def test_another_process_with_the_same_number_is_not_ours(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    file.write_text(json.dumps({"pid": os.getpid(), "started": "1"}))
    assert process.recall(file) is None
    process.remember(process.identify(os.getpid()), file)
    assert process.recall(file) is not None
    for noise in ("", "{", "[]", '{"pid": "x"}', '{"pid": -1, "started": ""}', "0"):
        file.write_text(noise)
        assert process.recall(file) is None
    file.write_text(f"{os.getpid()}\n")
    assert process.recall(file) is not None


def test_program_that_is_missing_dies_with_words_in_its_log(tmp_path: Path) -> None:
    started = process.spawn_detached(["/nowhere/program"], log=tmp_path / "log")
    assert started.wait_gone(5)
    assert "/nowhere/program" in process.last_lines(tmp_path / "log")[0]
    with pytest.raises(DriverError, match="cannot start"):
        process.spawn_detached(SLEEPER, log=tmp_path / "log", directory=tmp_path / "nowhere")


def test_whole_writes_replace_and_keep_private(tmp_path: Path) -> None:
    file = tmp_path / "file"
    process.write_whole(file, "one")
    process.write_whole(file, "two")
    assert file.read_text() == "two"
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 1


def test_port_is_the_machines_own_while_it_is_free() -> None:
    first = ports.choose("box", set())
    assert ports.choose("box", set()) == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first))
        other.listen()
        assert not ports.is_free(first)
        assert ports.choose("box", set()) != first
    assert ports.choose("box", {first}) != first


def test_no_port_left_is_an_error() -> None:
    with pytest.raises(DriverError, match="no port between"):
        ports.choose("box", range(ports.FIRST, ports.LAST + 1))


def test_seed_holds_what_the_guest_reads(tmp_path: Path) -> None:
    spec = MachineSpec("My.Box_1", options={"registry_mirror": "http://a:5000,http://b:5000"})
    members = seed_members(
        spec,
        host_key=b"PRIVATE",
        host_key_public="ssh-ed25519 AAAA guest",
        authorized="ssh-ed25519 BBBB desk",
        network="qemu-user",
    )
    file = tmp_path / "seed.img"
    write_seed(file, members)
    assert file.stat().st_size % 512 == 0
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(fileobj=io.BytesIO(file.read_bytes())) as archive:
        content = {e.name: archive.extractfile(e).read() for e in archive}  # type: ignore[union-attr]
    assert json.loads(content["machine.json"]) == {
        "name": "My.Box_1",
        "hostname": "my-box-1",
        "network": "qemu-user",
    }
    assert content["ssh_host_ed25519_key"] == b"PRIVATE"
    assert content["authorized_keys"] == b"ssh-ed25519 BBBB desk\n"
    assert json.loads(content["daemon.json"]) == {
        "registry-mirrors": ["http://a:5000", "http://b:5000"]
    }


def test_seed_carries_certificates_of_registries(tmp_path: Path) -> None:
    own, dockers = tmp_path / "own", tmp_path / "dockers"
    for root, host, name in (
        (own, "a:5000", "ca.crt"),
        (dockers, "a:5000", "ca.crt"),
        (dockers, "a:5000", "client.key"),
        (dockers, "b", "ca.crt"),
        (dockers, "b", "README"),
    ):
        place = root / host / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{root.name} {name}")
    assert certificate_members([own, dockers, tmp_path / "none"]) == {
        "certs.d/a:5000/ca.crt": b"own ca.crt",
        "certs.d/a:5000/client.key": b"dockers client.key",
        "certs.d/b/ca.crt": b"dockers ca.crt",
    }


def test_proxies_of_a_machine() -> None:
    options = {"https_proxy": "http://proxy:3128", "no_proxy": ".lan,10.0.0.0/8"}
    check_engine_options(options)
    assert engine_settings(MachineSpec("m", options=options)) == {
        "proxies": {"https-proxy": "http://proxy:3128", "no-proxy": ".lan,10.0.0.0/8"}
    }


def test_flags_labels_and_variables_of_an_engine() -> None:
    options = {
        "engine_opt": "icc=false\nbip=172.30.0.1/16\n"
        "default-address-pool=base=10.9.0.0/16,size=24\nlog-opt=max-size=10m\nlog-opt=max-file=3\n--debug\nmtu=1400\ndns=9.9.9.9",
        "engine_label": "rack=1,2\nzone=b",
        "engine_env": "A=1 2\nGODEBUG=",
        "dns": "1.1.1.1,fd00::1",
        "storage_driver": "overlay2",
    }
    check_engine_options(options)
    assert engine_settings(MachineSpec("m", options=options)) == {
        "dns": ["1.1.1.1", "fd00::1", "9.9.9.9"],
        "labels": ["rack=1,2", "zone=b"],
        "icc": False,
        "bip": "172.30.0.1/16",
        "default-address-pools": [{"base": "10.9.0.0/16", "size": 24}],
        "log-opts": {"max-size": "10m", "max-file": "3"},
        "debug": True,
        "mtu": 1400,
    }
    assert engine_environment(MachineSpec("m", options=options)) == "A=1 2\nGODEBUG=\n"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("storage_driver", "btrfs", "storage_driver cannot be 'btrfs'"),
        ("dns", "1.1.1.1,example", "dns cannot be 'example'"),
        ("engine_opt", "speed=9", "cannot set 'speed'"),
        ("engine_opt", "bip", "bip has no value"),
        ("engine_opt", "bip=172.30.0.1", "bip cannot be"),
        ("engine_opt", "icc=maybe", "icc cannot be"),
        ("engine_opt", "mtu=big", "mtu cannot be"),
        ("engine_opt", "default-address-pool=10.0.0.0/8", "pool cannot be"),
        ("engine_opt", "log-level=loud", "log-level cannot be"),
        ("engine_opt", "bin-age=soon", "bin-age cannot be"),
        ("engine_opt", "bin-clients=none", "bin-clients cannot be"),
        ("engine_env", "1A=2", "engine_env cannot be"),
        ("engine_env", "A", "A has no value"),
    ],
)
def test_flags_that_no_engine_takes(name: str, value: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_engine_options({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("registry_mirror", "mirror.example"),
        ("registry_mirror", "https://a,b"),
        ("registry_mirror", "https://"),
        ("insecure_registry", "http://a:5000"),
        ("insecure_registry", "a b"),
        ("http_proxy", "proxy:3128"),
        ("https_proxy", "socks5://proxy"),
    ],
)
def test_settings_that_no_engine_takes(name: str, value: str) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        check_engine_options({name: value})


@pytest.mark.parametrize(
    ("log", "words", "fatal"),
    [
        (
            "[    1.2] Kernel panic - not syncing: Attempted to kill init!",
            "panicked: Attempted",
            False,
        ),
        ("VFS: Unable to mount root fs on unknown-block(0,0)", "do not belong together", False),
        ("mkfs: No space left on device", "data disk is full", False),
        ("[ 9.1] Out of memory: Killed process 77 (deskd) total-vm", "killed deskd", False),
        ("[ 2.0] I/O error, dev vdb, sector 0 op 0x0:(READ)", "disk vdb", False),
        ("DESK-FATAL no data disk", "the guest says: no data disk", True),
        ("DESK-STAGE userspace 1.25", "as far as its stage userspace after 1.25 s", False),
        ("something else", "ended with: something else", False),
        ("", "the guest printed nothing", False),
    ],
)
def test_console_log_in_words(tmp_path: Path, log: str, words: str, fatal: bool) -> None:
    file = tmp_path / "console.log"
    file.write_text(f"DESK-STAGE initramfs 0.5\n{log}\n" if "STAGE" in log else f"{log}\n")
    assert words in console.explain(file)
    assert str(file) in console.explain(file)
    found = console.finding(file)
    assert (found is not None and found.fatal) == fatal


def test_panic_that_comes_back_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "console.log"
    panic = "[ 1.0] Kernel panic - not syncing: Fatal exception in interrupt\n"
    for count, fatal in ((1, False), (2, False), (3, True)):
        file.write_text(panic * count)
        found = console.finding(file)
        assert found is not None
        assert found.fatal == fatal


def test_stages_of_a_boot(tmp_path: Path) -> None:
    file = tmp_path / "console.log"
    file.write_text("noise\r\nDESK-STAGE initramfs 0.41\r\nDESK-STAGE engine 2.5\r\n")
    assert console.stages(file) == [("initramfs", 0.41), ("engine", 2.5)]
    assert console.stages(tmp_path / "missing") == []


def requirement(*answers: str, fatal: bool = False, name: str = "thing") -> Requirement:
    left = list(answers)

    def probe(_left_s: float) -> str:
        return left.pop(0) if len(left) > 1 else left[0]

    return Requirement(name, probe, "Do something.", fatal=fatal)


def test_requirements_are_met_in_order() -> None:
    said: list[str] = []
    ready = wait_ready(
        "box",
        [requirement("no", "", name="one"), requirement("", name="two")],
        deadline_s=5,
        progress=said.append,
    )
    assert [name for name, _seconds in ready.met_s] == ["one", "two"]
    assert said == ["Waiting for one", "Waiting for two"]


def test_deadline_names_what_is_missing_with_hint_and_diagnosis() -> None:
    with pytest.raises(MachineError) as caught:
        wait_ready(
            "box",
            [requirement(""), requirement("no answer")],
            deadline_s=0.1,
            diagnose=lambda: "its console is empty",
        )
    assert caught.value.text == (
        "machine box is not ready: no answer after 0.1 s; its console is empty"
    )
    assert caught.value.hint == "Do something."


def test_fatal_requirement_is_watched_while_waiting_for_others() -> None:
    started = time.monotonic()
    with pytest.raises(MachineError, match="it is stopped again"):
        wait_ready(
            "box",
            [requirement("", "", "", "it is stopped again", fatal=True), requirement("not yet")],
            deadline_s=60,
        )
    assert time.monotonic() - started < 30


def test_error_of_a_probe_ends_the_wait() -> None:
    def probe(_left_s: float) -> str:
        raise SshError("the host key is wrong")

    with pytest.raises(SshError, match="wrong"):
        wait_ready("box", [Requirement("ssh", probe, "")], deadline_s=60)


def test_wait_can_be_cancelled() -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(MachineError, match="cancelled"):
        wait_ready("box", [requirement("not yet")], deadline_s=60, cancelled=cancelled)


def test_names_and_transitions() -> None:
    assert check_name("a-1.B_c") == "a-1.B_c"
    for name in ("", "-a", "../x", "a/b", "a b", "x" * 64, "a\n"):
        with pytest.raises(UsageError, match="cannot name a machine"):
            check_name(name)
    check_transition("box", State.STOPPED, State.STARTING)
    with pytest.raises(Exception, match="is Stopped and cannot become Running"):
        check_transition("box", State.STOPPED, State.RUNNING)
