"""The repository's Vagrantfile works alone: Vagrant's own commands, and no Desk on the laptop."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guest_image import IMAGE, REPOSITORY
from tests.private_libvirt import PrivateLibvirt

pytestmark = [
    pytest.mark.vagrant,
    pytest.mark.vm,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

_BUILD_S = 900
_COMMAND_S = 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a directory for Vagrant's state, beside a libvirt that this thread sees as its own."""
    box = tmp_path_factory.mktemp("box") / "desk.box"
    done = subprocess.run(
        [
            *(str(REPOSITORY / "vm-images" / "build"), "--output", str(IMAGE)),
            *("--box", "libvirt", "--box-output", str(box)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_BUILD_S,
    )
    assert done.returncode == 0, done.stderr
    with PrivateLibvirt(box.parent) as libvirt, libvirt.entered():
        yield box.parent


def vagrant(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Vagrant on the Vagrantfile; its progress goes to files, since it may keep pipes open."""
    environment = {name: value for name, value in os.environ.items() if name[:5] != "DESK_"} | {
        "VAGRANT_CWD": str(REPOSITORY),
        "VAGRANT_DOTFILE_PATH": str(place / "state"),
        "VAGRANT_HOME": str(place / "vagrant"),
        "DESK_BOX": str(place / "desk.box"),
        "DESK_ACCELERATOR": "tcg",
        "DESK_MEMORY_MIB": "768",
    }
    outputs = [place / "out", place / "err"]
    with outputs[0].open("wb") as out, outputs[1].open("wb") as err:
        code = subprocess.run(
            ["vagrant", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            timeout=_COMMAND_S,
        ).returncode
    return subprocess.CompletedProcess(words, code, *(file.read_text() for file in outputs))


def test_vagrant_brings_up_a_machine_and_docker_runs_in_it(place: Path) -> None:
    up = vagrant(place, "up")
    try:
        assert up.returncode == 0, up.stdout + up.stderr

        ps = vagrant(place, "ssh", "-c", "docker ps")
        assert ps.returncode == 0, ps.stderr
        assert ps.stdout.split() == [
            *("CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES")
        ]

        made = vagrant(place, "ssh", "-c", "docker volume create kept && docker volume ls -q")
        assert made.stdout.splitlines() == ["kept", "kept"], made.stderr

        refused = vagrant(place, "ssh", "-c", "docker inspect nobody")
        assert refused.returncode == 1
        assert "nobody" in refused.stderr

        reloaded = vagrant(place, "reload")
        assert reloaded.returncode == 0, reloaded.stdout + reloaded.stderr
        assert vagrant(place, "ssh", "-c", "docker volume ls -q").stdout.split() == ["kept"]
    finally:
        gone = vagrant(place, "destroy", "-f")
    assert gone.returncode == 0, gone.stdout + gone.stderr
