"""What a real machine held before a reset, an upgrade and changed settings comes back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guest_image import guest_image
from tests.laptop import Laptop, laptop_with_machine

__all__ = ["guest_image"]

NAME = "default"

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def box(guest_image: Path) -> Iterator[Laptop]:
    with laptop_with_machine(guest_image, disk="1g") as made:
        made.desk("volume", "create", "kept")
        made.desk("run", "--name", "first", "-v", "kept:/data", "busybox", "sh", "-c",
                  "echo mine >/data/note")  # fmt: skip
        yield made


def note(box: Laptop) -> str:
    return box.desk("run", "--rm", "-v", "kept:/data", "busybox", "cat", "/data/note").strip()


def newer_image(image: Path, place: Path) -> Path:
    """Return the guest image under a later version."""
    place.mkdir()
    for file in image.iterdir():
        if file.name != "manifest.json":
            os.link(file, place / file.name)
    manifest = json.loads((image / "manifest.json").read_text()) | {"version": "99.0.0"}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def test_a_reset_and_what_was_there_before(box: Laptop) -> None:
    url = box.desk("machine", "url")
    told = box("machine", "reset", "-f")
    assert told.code == 0
    assert "`desk undo default` brings it back" in told.err
    assert box.desk("ps", "-aq") == box.desk("volume", "ls", "-q") == ""
    assert box.desk("machine", "url") == url
    box.desk("run", "--name", "second", "busybox", "true")

    box.desk("undo")
    assert box.desk("ps", "-a", "--format", "{{.Names}}") == "first\n"
    assert note(box) == "mine"
    box.desk("undo")  # the undoing
    assert box.desk("ps", "-a", "--format", "{{.Names}}") == "second\n"
    box.desk("undo")
    assert note(box) == "mine"


def test_an_upgrade_and_the_disk_that_was_there_before(
    box: Laptop, guest_image: Path, tmp_path: Path
) -> None:
    newer = newer_image(guest_image, tmp_path / "newer")
    before = json.loads(box.desk("machine", "inspect"))[0]["facts"]["image"]
    box.desk("machine", "upgrade", "--image", str(newer))
    box.desk("run", "--rm", "-v", "kept:/data", "busybox", "sh", "-c", "echo later >/data/note")
    assert "before upgrade" in box.desk("undo", "--list")
    box.desk("undo", f"before upgrade {NAME}")
    assert json.loads(box.desk("machine", "inspect"))[0]["facts"]["image"] == before
    assert note(box) == "mine"
    shutil.rmtree(newer)


def test_settings_come_back_while_the_machine_runs(box: Laptop) -> None:
    def settings() -> tuple[int, int, dict[str, str]]:
        found = json.loads(box.desk("machine", "inspect"))[0]
        return found["memory_mib"], found["cpus"], found["options"]

    before = settings()
    pid = (box.home / "machines" / NAME / "qemu.pid").read_text()
    box.desk("machine", "set", "--memory", "1g", "battery-cpus=0.5")
    assert settings() != before
    box.desk("undo")
    assert settings() == before
    assert (box.home / "machines" / NAME / "qemu.pid").read_text() == pid


def test_a_reset_asks_first(box: Laptop) -> None:
    assert "Add --force" in box.desk("machine", "reset", code=125)
    assert note(box) == "mine"
