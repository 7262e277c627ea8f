"""Known problems in logs, what a bug report holds, and that no secret is in it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.machine_driver import fake_machines

from desk.errors import MachineError, UsageError
from desk.machine import bug_report, diagnostics, known_problems, logs
from desk.machine.diagnostics import Check, Verdict
from desk.machine.manager import Manager
from desk.machine.model import MachineSpec
from desk.machine.secrets import without_secrets

# A line as the program writes it, for every entry of the catalogue.
EXAMPLES = {
    "no-root-file-system": "[ 1.1] VFS: Unable to mount root fs on unknown-block(0,0)",
    "kernel-panic": "[ 1.2] Kernel panic - not syncing: Attempted to kill init!",
    "processor-fault": "[ 0.3] invalid opcode: 0000 [#1] PREEMPT SMP NOPTI",
    "data-disk-full": "cp: error writing '/var/lib/desk/x': No space left on device",
    "guest-out-of-memory": "[ 9.1] Out of memory: Killed process 77 (java) total-vm:1kB",
    "disk-unreadable": "[ 2.0] I/O error, dev vdb, sector 0 op 0x0:(READ) flags 0x80700",
    "data-disk-damaged": "[ 2.1] EXT4-fs error (device vdb): ext4_lookup:1855: inode #2",
    "image-damaged": "[ 0.9] SQUASHFS error: zstd decompression failed, data probably corrupt",
    "task-hung": "[ 243.1] INFO: task jbd2/vdb-8:120 blocked for more than 120 seconds.",
    "process-limit": "[ 77.0] cgroup: fork rejected by pids controller in /desk/0f3a",
    "connection-table-full": "[ 99.0] nf_conntrack: nf_conntrack: table full, dropping packet",
    "kvm-forbidden": "Could not access KVM kernel module: Permission denied",
    "kvm-missing": "Could not access KVM kernel module: No such file or directory",
    "hypervisor-denied": "qemu-system-x86_64: Error: HV_DENIED",
    "whpx-missing": "qemu-system-x86_64.exe: WHPX: No accelerator found, hr=00000000",
    "disk-in-use": 'qemu: -drive file=data.img: Failed to get "write" lock',
    "port-taken": "qemu: -netdev user: Could not set up host forwarding rule 'tcp::22-:22'",
    "host-out-of-memory": "qemu: cannot set up guest memory 'pc.ram': Cannot allocate memory",
    "disk-unusable": "qemu: -drive file=d: Could not open '/d/data.img': Permission denied",
    "host-key-changed": "cannot connect: 127.0.0.1 shows the host key SHA256:abc, but /k expects",
    "host-port-taken": "port 127.0.0.1:80/tcp of web cannot be opened on this computer: another",
    "too-many-connections": "more than 512 connections at once; one was refused",
    "engine-disk-full": "sqlite3.OperationalError: database or disk is full",
    "engine-database-damaged": "sqlite3.DatabaseError: database disk image is malformed",
    "vagrant-locked": "Vagrant can't use the requested machine because it is locked! This",
    "libvirt-unreachable": "Error while connecting to Libvirt: Error making a connection",
    "vagrant-provider-missing": "The provider 'libvirt' could not be found, but was requested",
}


@pytest.fixture
def manager() -> Iterator[Manager]:
    with fake_machines() as manager:
        manager.create(MachineSpec("box", "fake"))
        yield manager


def test_every_known_problem_is_found_by_a_line_of_its_own() -> None:
    assert {problem.id for problem in known_problems.catalogue()} == set(EXAMPLES)
    for problem in known_problems.catalogue():
        found = list(known_problems.search(problem.log, ["", EXAMPLES[problem.id]]))
        assert [match.problem.id for match in found] == [problem.id], EXAMPLES[problem.id]
        assert "{" not in found[0].text
        assert problem.remedy.endswith((".", ")"))
        assert not problem.text.endswith(".")


def test_the_newest_line_tells_and_other_logs_do_not() -> None:
    lines = [
        "[ 1.0] Out of memory: Killed process 7 (java) total-vm",
        "[ 2.0] Out of memory: Killed process 9 (redis) total-vm",
    ]
    assert [match.text for match in known_problems.search("console", lines)] == [
        "the guest ran out of memory and killed redis"
    ]
    assert list(known_problems.search("qemu", lines)) == []


def test_only_the_last_run_of_an_agent_counts(manager: Manager) -> None:
    paths = manager.home.machine("box")
    busy = "W port 127.0.0.1:80/tcp of web cannot be opened on this computer: taken\n"
    begun = "I agent of machine box started (process 7, Desk 0.1.0)\n"
    paths.agent_log.write_text(begun + busy + begun)
    assert list(logs.known(paths, running=True)) == []
    paths.agent_log.write_text(begun + busy)
    assert [match.problem.id for _file, match in logs.known(paths, running=True)] == [
        "host-port-taken"
    ]


def test_a_running_machine_is_not_blamed_for_an_earlier_start(manager: Manager) -> None:
    paths = manager.home.machine("box")
    paths.qemu_log.write_text(EXAMPLES["kvm-forbidden"] + "\n")
    paths.console_log.write_text(EXAMPLES["guest-out-of-memory"] + "\n")
    ids = [match.problem.id for _file, match in logs.known(paths, running=True)]
    assert ids == ["guest-out-of-memory"]
    ids = [match.problem.id for _file, match in logs.known(paths, running=False)]
    assert ids == ["guest-out-of-memory", "kvm-forbidden"]


def test_doctor_tells_what_the_logs_of_a_stopped_machine_show(manager: Manager) -> None:
    paths = manager.home.machine("box")
    paths.qemu_log.write_text(EXAMPLES["disk-in-use"] + "\n")
    checks = [c for c in diagnostics.examine(manager) if c.subject == "machine box: log"]
    assert len(checks) == 1
    assert checks[0].verdict is Verdict.WARNING
    assert "another program has the machine's disk open (qemu.log: " in checks[0].text
    assert checks[0].remedy.startswith("End the other QEMU")


@pytest.mark.parametrize(
    ("text", "hidden", "kept"),
    [
        ("proxy http://me:hunter2@proxy:3128 used", "hunter2", "proxy:3128 used"),
        ("proxy http://me:pass/word@proxy:3128", "me:", "proxy:3128"),
        (
            "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n-----END OPENSSH PRIVATE KEY-----",
            "hunter2",
            "BEGIN",
        ),
        ("-----BEGIN PRIVATE KEY-----\nhunter2 and no end", "hunter2", "BEGIN"),
        ("Authorization: Bearer hunter2", "hunter2", "Authorization"),
        ('{"X-Registry-Auth": "hunter2"}', "hunter2", "X-Registry-Auth"),
        ('{"password": "hunter \\" 2", "port": 5}', "hunter", '"port": 5'),
        ("POSTGRES_PASSWORD=hunter2 LANG=C", "hunter2", "LANG=C"),
        ("run --registry-token hunter2 image", "hunter2", "image"),
        ("identitytoken='hunter2'", "hunter2", "identitytoken"),
        ("no secret at all: port 8080 of web", "***", "port 8080 of web"),
    ],
)
def test_secrets_are_taken_out(text: str, hidden: str, kept: str) -> None:
    shown = without_secrets(text)
    assert hidden not in shown
    assert kept in shown


def test_home_directory_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/maria")
    assert without_secrets("in /home/maria/x") == "in ~/x"


def test_bundle_has_logs_and_findings_but_no_key(manager: Manager, tmp_path: Path) -> None:
    paths = manager.home.machine("box")
    paths.private_key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n")
    paths.console_log.write_text("booting\nhttp_proxy=http://me:hunter2@proxy\n")
    file = tmp_path / "report.zip"
    checks = [Check("disk", Verdict.WARNING, "little room, token=hunter2", "Make room.")]
    names = bug_report.write_bundle(file, manager, checks, lambda _sentence: None)
    with zipfile.ZipFile(file) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    assert list(texts) == names
    assert {"versions.json", "doctor.txt", "machines/box/machine.json"} <= set(names)
    assert texts["machines/box/console.log"].startswith("booting\n")
    assert texts["doctor.txt"] == "warning  disk: little room, token=*** -> Make room.\n"
    assert not any("hunter2" in text for text in texts.values())
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists already"):
        bug_report.write_bundle(file, manager, [], lambda _sentence: None)


def test_bundle_that_cannot_be_written_leaves_nothing(manager: Manager, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"cannot write .*No such file"):
        bug_report.write_bundle(
            tmp_path / "missing" / "report.zip", manager, [], lambda _sentence: None
        )

    def fails() -> Iterator[Check]:
        yield Check("one", Verdict.OK, "well")
        raise MachineError("the disk is gone")

    with pytest.raises(MachineError, match="the disk is gone"):
        bug_report.write_bundle(tmp_path / "r.zip", manager, fails(), lambda _sentence: None)
    assert list(tmp_path.iterdir()) == []
