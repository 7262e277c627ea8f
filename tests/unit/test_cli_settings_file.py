"""``settings.json``: what is read, what is refused, and that it is written whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from desk import settings
from desk.settings import MachineDefaults, Settings, SettingsError


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    assert settings.load(tmp_path / "settings.json") == Settings()


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "settings.json"
    wanted = Settings(
        active_machine="big",
        engine_host="tcp://h:1",
        defaults=MachineDefaults(memory_mib=8192, cpus=4, image="/x"),
    )
    settings.save(file, wanted)
    assert settings.load(file) == wanted
    assert json.loads(file.read_text())["format"] == settings.FORMAT
    assert [path.name for path in file.parent.iterdir()] == ["settings.json"]


def test_a_part_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"format": 1, "defaults": {"cpus": 3}}')
    assert settings.load(file) == Settings(defaults=MachineDefaults(cpus=3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no format number"),
        ('{"format": "1"}', "no format number"),
        ('{"format": 0}', "unknown format 0"),
        ('{"format": 99}', "has format 99, this Desk knows up to 1"),
        ('{"format": 1, "active_machin": "x"}', "unknown setting active_machin"),
        ('{"format": 1, "active_machine": 3}', "active_machine is 3, not a text"),
        ('{"format": 1, "defaults": 3}', "defaults is not a JSON object"),
        ('{"format": 1, "defaults": {"cpus": "2"}}', 'defaults.cpus is "2", not a whole number'),
        ('{"format": 1, "defaults": {"cpus": true}}', "defaults.cpus is true"),
        ('{"format": 1, "defaults": {"memory_mib": 0}}', "must be 1 or more"),
        ('{"format": 1, "defaults": {"ram": 2}}', "unknown setting defaults.ram"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        settings.load(file)
    assert str(file) in caught.value.text
    assert caught.value.hint


def test_a_mistyped_key_is_told_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.parse({"format": 1, "active_machin": "x"}, tmp_path)
    assert caught.value.hint == "Did you mean active_machine?"


def test_older_formats_are_migrated(tmp_path: Path) -> None:
    def rename(document: dict[str, object]) -> dict[str, object]:
        return {"active_machine": document["machine"]}

    parsed = settings.parse(
        {"format": 1, "machine": "old"}, tmp_path, current=2, migrations={1: rename}
    )
    assert parsed.active_machine == "old"


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot write"):
        settings.save(tmp_path / "file" / "settings.json", Settings())
