"""machine.json: round trips, damage, versions, and the lock between commands."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from desk.errors import Conflict, MachineError, NotFound
from desk.machine.model import MachineSpec
from desk.machine.store import FORMAT, MachineRecord, MachineStore, record_from
from desk.paths import Home

SPEC = MachineSpec("box", "qemu", 1024, 3, 10, "", {"ssh_port": "2222"})


@pytest.fixture
def store(tmp_path: Path) -> MachineStore:
    store = MachineStore(Home(tmp_path / "home"))
    store.make_home()
    return store


def put(store: MachineStore, spec: MachineSpec = SPEC) -> Path:
    paths = store.home.machine(spec.name)
    paths.directory.mkdir()
    store.file(spec.name).write(MachineRecord(spec, "2026-01-01T00:00:00Z", {"port": "1"}))
    return paths.config


def test_record_comes_back_as_it_was(store: MachineStore) -> None:
    config = put(store)
    assert store.file("box").read() == MachineRecord(SPEC, "2026-01-01T00:00:00Z", {"port": "1"})
    assert config.stat().st_mode & 0o777 == 0o600
    assert json.loads(config.read_text())["format"] == FORMAT
    assert [entry.name for entry in config.parent.iterdir()] == ["machine.json"]


def test_home_is_private(store: MachineStore) -> None:
    for directory in (store.home.directory, store.home.machines, store.home.images):
        assert directory.stat().st_mode & 0o777 == 0o700


def test_facts_survive_and_do_not_disturb_the_rest(store: MachineStore) -> None:
    put(store)
    store.file("box").update({"image": "0.1.0-amd64", "port": "2"})
    record = store.file("box").read()
    assert record.facts == {"port": "2", "image": "0.1.0-amd64"}
    assert record.spec == SPEC


def test_facts_set_before_the_machine_exists_are_written_with_it(store: MachineStore) -> None:
    file = store.file("box")
    file.update({"port": "7"})
    assert file.get("port") == "7"
    assert not file.exists()
    store.home.machine("box").directory.mkdir()
    file.write(MachineRecord(SPEC, "now"))
    assert store.file("box").get("port") == "7"


def test_unknown_machine_is_not_found(store: MachineStore) -> None:
    with pytest.raises(NotFound, match="machine nobody does not exist"):
        store.file("nobody").read()
    assert store.names() == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"format": "1"}',
        b"\xff\xfe",
        b'{"format": 1, "name": "box"}',
        b'{"format": 0}',
        b'{"format": 1, "name": "box", "driver": "qemu", "memory_mib": "lots", "cpus": 1,'
        b' "disk_gib": 1, "image": ""}',
        b'{"format": 1, "name": "box", "driver": "qemu", "memory_mib": 1, "cpus": true,'
        b' "disk_gib": 1, "image": ""}',
        b'{"format": 1, "name": "box", "driver": "qemu", "memory_mib": 1, "cpus": 1,'
        b' "disk_gib": 1, "image": "", "options": {"a": 1}}',
    ],
)
def test_damage_is_named_with_its_file_and_remedy(store: MachineStore, content: bytes) -> None:
    config = put(store)
    config.write_bytes(content)
    with pytest.raises(MachineError) as caught:
        store.file("box").read()
    assert str(config) in caught.value.text
    assert "desk machine rm" in caught.value.hint
    assert store.names() == ["box"]


def test_newer_format_asks_for_a_newer_desk(store: MachineStore) -> None:
    config = put(store)
    config.write_text(json.dumps({"format": FORMAT + 1}))
    with pytest.raises(MachineError) as caught:
        store.file("box").read()
    assert "update Desk" in caught.value.hint


def test_migrations_run_one_after_the_other(store: MachineStore) -> None:
    config = put(store)
    document = {**json.loads(config.read_text()), "format": 1, "ram": 512}
    del document["memory_mib"]
    migrations = {
        1: lambda d: {**d, "memory_mib": d["ram"]},
        2: lambda d: {**d, "memory_mib": d["memory_mib"] * 2},
    }
    record = record_from(document, config, "box", current=3, migrations=migrations)
    assert record.spec.memory_mib == 1024


def test_second_command_is_told_who_is_at_work(store: MachineStore) -> None:
    with store.locked("box", "starting", wait_s=0):
        assert store.busy_with("box") == "starting"
        store.now("box", "stopping")
        assert store.busy_with("box") == "stopping"
        with (
            pytest.raises(Conflict, match="another command is working on machine box"),
            store.locked("box", "creating", wait_s=0),
        ):
            pytest.fail("the lock was given twice")
    assert store.busy_with("box") == ""
    assert store.busy_with("other") == ""


def test_lock_is_waited_for(store: MachineStore) -> None:
    entered = threading.Event()

    def second() -> None:
        with store.locked("box", "stopping", wait_s=10):
            entered.set()

    thread = threading.Thread(target=second)
    with store.locked("box", "starting", wait_s=0):
        thread.start()
        assert not entered.wait(0.2)
    thread.join(60)
    assert entered.is_set()


def test_killed_command_leaves_no_lock(store: MachineStore) -> None:
    program = (
        "import sys, time; from pathlib import Path; from desk.paths import Home\n"
        "from desk.machine.store import MachineStore\n"
        "with MachineStore(Home(Path(sys.argv[1]))).locked('box', 'starting', wait_s=0):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(store.home.directory)], stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert store.busy_with("box") == "starting"
        child.kill()
        child.wait()
    with store.locked("box", "creating", wait_s=0):
        assert store.busy_with("box") == "creating"
