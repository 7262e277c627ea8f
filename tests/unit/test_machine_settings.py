"""machine.toml: mistakes with their places, comments that stay, changes that are whole or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import pytest
from tests.fakes.machine_driver import MOST_MIB, fake_machines

from desk.cli.machine_flags import machine_flags, new_spec
from desk.errors import Conflict, DriverError, MachineError, UsageError
from desk.machine.coming_up import Machine
from desk.machine.disks import MachineDisks
from desk.machine.drivers.local import LocalDriver
from desk.machine.drivers.qemu import QemuDriver
from desk.machine.drivers.ssh_host import SshHostDriver
from desk.machine.manager import Manager
from desk.machine.memory import MemoryDial
from desk.machine.model import MachineSpec
from desk.machine.settings_change import MachineSettings, Wishes
from desk.machine.settings_file import (
    SETTINGS,
    SettingsMistake,
    changes,
    follow,
    parse,
    position,
    render,
)
from desk.settings import MachineDefaults

FILE = Path("m.toml")
FEATURES = QemuDriver.features
SPEC = MachineSpec(
    "box",
    memory_mib=1536,
    options={
        "ssh_port": "2222",
        "registry_mirror": "https://a,https://b",
        "no_proxy": ".lan,10.0.0.0/8",
        "engine_env": "A=1,2\nB=",
    },
)


def silent(_sentence: str) -> None:
    return None


@pytest.fixture
def manager() -> Iterator[Manager]:
    with fake_machines() as manager:
        manager.create(MachineSpec("box", "fake", memory_mib=512, cpus=2, disk_gib=1))
        yield manager


@pytest.fixture
def settings(manager: Manager) -> MachineSettings:
    return MachineSettings(manager, MemoryDial(manager), MachineDisks(manager))


def file_of(manager: Manager) -> Path:
    return manager.home.machine("box").settings


def edit(manager: Manager, old: str, new: str) -> str:
    text = file_of(manager).read_text()
    assert old in text
    file_of(manager).write_text(text.replace(old, new))
    return text


# --- the text -----------------------------------------------------------------------------------


def test_what_is_rendered_is_read_back() -> None:
    text = render(SPEC, FEATURES)
    assert parse(text, FILE, SPEC, FEATURES) == SPEC
    assert 'memory = "1536 MiB"' in text
    assert '# dns = ["1.1.1.1"]' in text
    own = render(MachineSpec("m", "local"), LocalDriver.features)
    assert "[machine]" not in own  # nothing of it is Desk's to set
    assert parse(own, FILE, MachineSpec("m", "local"), LocalDriver.features).options == {}


def test_every_example_in_the_comments_is_right(tmp_path: Path) -> None:
    text = render(MachineSpec("box"), FEATURES).replace("/srv/data", str(tmp_path))
    examples = "\n".join(
        line.removeprefix("# ") if " = " in line else line for line in text.splitlines()
    )
    found = parse(examples, FILE, MachineSpec("box"), FEATURES).options
    assert found.keys() == {each.target for each in SETTINGS if each.is_option}
    assert found["engine_opt"] == "icc=false\nlog-opt=max-size=10m"


@pytest.mark.parametrize(
    ("old", "new", "at", "words"),
    [
        ("cpus = 2", "cpus = '2'", "'2'", "cpus is not a whole number"),
        ("cpus = 2", "cpus = true", "true", "cpus is not a whole number"),
        ("cpus = 2", "  cpsu = 2", "cpsu", "there is no setting cpsu in [machine]"),
        ("cpus = 2", "cpus = 2\ncpus = 3", "cpus = 3", 'this is no TOML: key "cpus" already'),
        ("cpus = 2", "cpus = ]", "]\n# Size", "this is no TOML: unexpected character"),
        ("[machine]", "[machin]", "machin]", "there is no table [machin]"),
        ("[machine]", "machine = 3\n[other]", "3\n[other]", "machine is no table"),
        ('"1536 MiB"', '"2 Gog"', '"2 Gog"', "memory is not a size such as"),
        ('"1536 MiB"', "64", "64", "memory is too small"),
        ('"1536 MiB"', "[1]", "[1]", "memory is not a size such as"),
        ('"60 GiB"', '"59g"', '"59g"', "the disk has 60 GiB and cannot become smaller"),
        ('"https://b"', '"b"', '"b"', "mirrors cannot be 'b'"),
        ('"https://b"', "3]#", "3]#", "an item of mirrors is not a text"),
        ('"https://b"', '""', '""]', "an item of mirrors is not a text"),
        ('"https://b"', '"https://c,d"', '"https://c,d"', "an item of mirrors is not a text"),
        ('["https://a", "https://b"]', "{a = 1}", "{a = 1}", "mirrors is not a list"),
        ('"2222"', '"70000"', '"70000"', "'70000' is no port number"),
        ("ssh_port =", "ssh_prot =", "ssh_prot", "the driver qemu has no option ssh_prot"),
        ('# share = ["~", "/srv/data:ro"]', 'share = ["/no/such"]', '"/no', "share-folder cannot"),
        ('# storage-driver = "overlay2"', 'storage-driver = "a"', '"a"', "storage-driver cannot"),
        ('# options = ["icc=false"', 'options = ["ic=1"', '"ic=1"', "options cannot set 'ic'"),
    ],
)
def test_mistakes_are_told_with_their_places(old: str, new: str, at: str, words: str) -> None:
    text = render(SPEC, FEATURES)
    assert old in text
    wrong = text.replace(old, new)
    before = wrong[: wrong.index(at)]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    with pytest.raises(SettingsMistake) as caught:
        parse(wrong, FILE, SPEC, FEATURES)
    assert caught.value.text.startswith(f"m.toml:{line}:{column}: {words}")
    assert caught.value.hint.endswith("Nothing was changed.")


def test_places_in_texts_of_every_form() -> None:
    text = "# é\n[a] # x\n  b = 1\nlist = [\n  1,\n    2,\n]\n[t]\nx = {y = 1, z = 'q'}\nd.e = 3\n"
    assert position(text, ("a", "b")) == (3, 7)
    assert position(text, ("a", "b"), of_key=True) == (3, 3)
    assert position(text, ("a", "list", 1)) == (6, 5)
    assert position(text, ("t", "x", "z")) == (9, 17)
    assert position(text, ("t", "d", "e")) == (10, 7)
    assert position(text, ("t",)) == (8, 2)


def test_a_change_leaves_comments_and_all_else_as_they_are() -> None:
    text = render(SPEC, FEATURES).replace("cpus = 2", "cpus   =   2   # as many as there are")
    after = replace(
        SPEC, cpus=4, options={"ssh_port": "2300", "registry_mirror": "https://c", "dns": "9.9.9.9"}
    )
    changed = follow(text, FILE, SPEC, after)
    assert parse(changed, FILE, SPEC, FEATURES) == after
    before_lines, lines = text.splitlines(), changed.splitlines()
    assert [line for line in lines if line not in before_lines] == [
        "cpus   =   4   # as many as there are",
        'dns = ["9.9.9.9"]',
        'mirrors = ["https://c"]',
        'ssh_port = "2300"',
    ]
    assert lines[lines.index('dns = ["9.9.9.9"]') - 1] == '# dns = ["1.1.1.1"]'
    assert changes(SPEC, after) == [
        "machine.cpus = 4",
        'network.dns = ["9.9.9.9"]',
        "proxies.no not set",
        'registries.mirrors = ["https://c"]',
        "engine.environment not set",
        'driver.ssh_port = "2300"',
    ]
    bare = follow("", FILE, SPEC, after)
    assert parse(bare, FILE, SPEC, FEATURES).options["dns"] == "9.9.9.9"


def test_what_a_person_set_by_hand_outlives_another_change() -> None:
    text = render(SPEC, FEATURES).replace("cpus = 2", "cpus = 7")
    changed = follow(text, FILE, SPEC, replace(SPEC, memory_mib=2048))
    assert parse(changed, FILE, SPEC, FEATURES) == replace(SPEC, cpus=7, memory_mib=2048)


# --- the machine --------------------------------------------------------------------------------


def test_the_file_comes_with_the_machine_and_follows_commands(
    manager: Manager, settings: MachineSettings
) -> None:
    assert file_of(manager).stat().st_mode & 0o777 == 0o600
    edit(manager, "cpus = 2", "cpus = 2 # mine")
    settings.set("box", Wishes({}, cpus=3, memory_mib=1024), silent)
    assert "cpus = 3 # mine\n" in file_of(manager).read_text()
    assert 'memory = "1 GiB"\n' in file_of(manager).read_text()
    assert manager.inspect("box")["cpus"] == 3
    assert not list(file_of(manager).parent.glob("*.new"))


def test_a_start_takes_up_what_was_written_by_hand(manager: Manager) -> None:
    edit(manager, "cpus = 2", "cpus = 5")
    edit(manager, 'disk = "1 GiB"', "disk = 3")
    assert manager.inspect("box")["cpus"] == 2
    told: list[str] = []
    manager.start("box", told.append)
    assert told[0] == f'Taking up {file_of(manager)}: machine.cpus = 5, machine.disk = "3 GiB"'
    assert manager.inspect("box")["cpus"] == 5
    assert manager.home.machine("box").data_disk.stat().st_size == 3 << 30
    assert "disk = 3\n" in file_of(manager).read_text()  # as it was written


def test_nothing_starts_and_nothing_changes_with_a_mistake(
    manager: Manager, settings: MachineSettings
) -> None:
    edit(manager, "cpus = 2", "cpus = 5\nspeed = 9")
    with pytest.raises(SettingsMistake, match=r"machine\.toml:\d+:1: there is no setting speed"):
        manager.start("box")
    for wishes in (Wishes({}, cpus=4), Wishes({}, memory_mib=1024), Wishes({}, disk_gib=2)):
        with pytest.raises(SettingsMistake, match="speed"):
            settings.set("box", wishes, silent)
    found = manager.inspect("box")
    assert (found["cpus"], found["memory_mib"], found["disk_gib"]) == (2, 512, 1)
    assert found["state"] == "Stopped"
    file_of(manager).write_bytes(b"[machine]\ncpus = 2 # \xff\n")
    with pytest.raises(SettingsMistake, match=r"machine\.toml:2:12: this is no UTF-8"):
        manager.start("box")
    file_of(manager).unlink()  # then it is written again
    manager.start("box")
    assert "cpus = 2" in file_of(manager).read_text()


def test_a_file_is_applied_and_what_waits_is_told(
    manager: Manager, settings: MachineSettings
) -> None:
    manager.start("box")
    file = settings.file("box")
    text = file.read_text().replace("cpus = 2", "cpus = 6 # six")
    assert settings.check("box", text, file) == ["machine.cpus = 6"]
    assert manager.inspect("box")["cpus"] == 2
    applied = settings.apply("box", text, file, silent)
    assert (applied.changes, applied.waits) == (["machine.cpus = 6"], True)
    assert (manager.inspect("box")["cpus"], file.read_text()) == (6, text)
    only_comment = text.replace("# six", "# half a dozen")
    assert settings.apply("box", only_comment, file, silent).changes == []
    assert file.read_text() == only_comment
    grown = only_comment.replace('"1 GiB"', '"2 GiB"')
    assert settings.apply("box", grown, file, silent).waits is False
    assert manager.home.machine("box").data_disk.stat().st_size == 2 << 30


def test_what_fails_in_between_leaves_all_as_it_was(
    manager: Manager, settings: MachineSettings
) -> None:
    manager.start("box")
    before, text = manager.inspect("box"), file_of(manager).read_text()
    with pytest.raises(DriverError, match="has not so much memory"):
        settings.set("box", Wishes({}, cpus=7, memory_mib=MOST_MIB + 4), silent)
    assert manager.inspect("box") == before
    assert file_of(manager).read_text() == text


def test_an_option_that_the_driver_needs_cannot_be_dropped() -> None:
    spec = MachineSpec("box", "ssh", options={"ssh_host": "server.lan", "ssh_port": "2222"})
    features = SshHostDriver.features
    text = render(spec, features)
    assert parse(text, FILE, spec, features) == spec
    for bad in (text.replace("ssh_host =", "# ssh_host ="), text.partition("[driver]")[0]):
        with pytest.raises(SettingsMistake, match="the driver ssh needs the option ssh_host in"):
            parse(bad, FILE, spec, features)


def test_what_another_command_set_meanwhile_stays(
    manager: Manager, settings: MachineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MachineSettings(manager, MemoryDial(manager), MachineDisks(manager))
    check = manager.check_settings

    def check_and_be_slow(machine: Machine) -> None:
        check(machine)
        monkeypatch.setattr(manager, "check_settings", check)
        other.set("box", Wishes({}, disk_gib=3), silent)

    monkeypatch.setattr(manager, "check_settings", check_and_be_slow)
    assert settings.set("box", Wishes({}, cpus=4), silent).changes == ["machine.cpus = 4"]
    found = manager.inspect("box")
    assert (found["cpus"], found["disk_gib"]) == (4, 3)
    text = file_of(manager).read_text()
    assert "cpus = 4\n" in text
    assert 'disk = "3 GiB"\n' in text


def test_a_correction_is_applied_in_the_place_of_the_mistake(
    manager: Manager, settings: MachineSettings
) -> None:
    edit(manager, "cpus = 2", 'cpus = "2')
    text = file_of(manager).read_text().replace('cpus = "2', "cpus = 2").replace('"1 GiB"', "2")
    settings.apply("box", text, file_of(manager), silent)
    assert file_of(manager).read_text() == text
    assert manager.inspect("box")["disk_gib"] == 2


def test_a_crash_between_the_two_files_is_finished_by_the_next_start(
    manager: Manager, settings: MachineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_path = Path.replace

    def crash(source: Path, target: Path) -> Path:
        if target == manager.home.machine("box").config:
            raise KeyboardInterrupt
        return replace_path(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        patched.setattr(settings, "_put_back", lambda *_: None)  # who was killed undoes nothing
        with pytest.raises(KeyboardInterrupt):
            settings.set("box", Wishes({}, cpus=7), silent)
    assert manager.inspect("box")["cpus"] == 2
    manager.start("box")
    assert manager.inspect("box")["cpus"] == 7


def test_no_room_for_the_file_changes_nothing(
    manager: Manager, settings: MachineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, text = manager.inspect("box"), file_of(manager).read_text()

    def full(*_arguments: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(MachineError, match=r"cannot write .*: No space left on device"):
            settings.set("box", Wishes({}, cpus=7), silent)
    assert manager.inspect("box") == before
    assert file_of(manager).read_text() == text


def test_wishes_that_cannot_be(manager: Manager, settings: MachineSettings) -> None:
    with pytest.raises(UsageError, match="there is no setting 'speed'"):
        settings.set("box", Wishes({"speed": "9"}), silent)
    with pytest.raises(UsageError, match="is not set up by Desk"):
        settings.set("box", Wishes({"dns": "1.1.1.1"}), silent)
    with pytest.raises(UsageError, match="has all its folders"):
        settings.set("box", Wishes({"share_folder": "none"}), silent)
    with pytest.raises(UsageError, match="cannot have folders by virtiofs"):
        settings.set("box", Wishes({"share_by": "virtiofs"}), silent)
    with pytest.raises(Conflict, match="has 1 GiB and cannot become smaller") as caught:
        settings.set("box", Wishes({}, disk_gib=-1), silent)
    assert "takes the room of what is in it" in caught.value.hint


def test_flags_of_creation_set_up_the_engine() -> None:
    specs: list[MachineSpec] = []

    @click.command()
    @machine_flags
    def create(**flags: object) -> None:
        specs.append(new_spec("box", flags, MachineDefaults()))

    words = "--engine-label zone=a --engine-label rack=1,2 --engine-env A=1 --engine-opt icc=false"
    more = "--engine-registry-mirror https://m --engine-insecure-registry r:5000"
    create(
        [*words.split(), *more.split(), "--engine-storage-driver", "overlay2", "-o", "ssh_port=1"],
        standalone_mode=False,
    )
    assert specs[0].options == {
        "engine_label": "zone=a\nrack=1,2",
        "engine_env": "A=1",
        "engine_opt": "icc=false",
        "registry_mirror": "https://m",
        "insecure_registry": "r:5000",
        "storage_driver": "overlay2",
        "ssh_port": "1",
    }
    with pytest.raises(UsageError, match="storage_driver cannot be 'aufs'"):
        create(["--engine-storage-driver", "aufs"], standalone_mode=False)
