"""Mounts of containers over the Engine API: propagation, read-only trees, options of each kind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_process import Api, frames

pytestmark = pytest.mark.root


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


@pytest.fixture
def shared_tree(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs whose mounts are told to its copies, with one more tmpfs in it."""
    outer = tmp_path / "shared"
    outer.mkdir()
    mount("-t", "tmpfs", "outer", str(outer))
    mount("--make-shared", str(outer))
    (outer / "inner").mkdir()
    mount("-t", "tmpfs", "inner", str(outer / "inner"))
    (outer / "inner" / "file").write_text("here")
    yield outer
    subprocess.run(["umount", "-R", "-l", str(outer)], check=True)


def test_a_bind_with_propagation_takes_nothing_from_the_machine(
    api: Api, shared_tree: Path
) -> None:
    before = Path("/proc/self/mountinfo").read_text().splitlines()
    for mode in ("rshared", "rslave", "shared", "slave"):
        text = api.output(
            "cat", "/s/inner/file", HostConfig={"Binds": [f"{shared_tree}:/s:{mode}"]}
        )
        assert text == ("here" if mode.startswith("r") else text)
    after = Path("/proc/self/mountinfo").read_text().splitlines()
    assert [line for line in before if line not in after] == []
    assert (shared_tree / "inner" / "file").read_text() == "here"


def test_propagation_from_the_machine_and_to_it(api: Api, shared_tree: Path) -> None:
    script = "while [ ! -e /s/late/seen ]; do sleep 0.05; done; echo saw it"
    follower = api.run("sh", "-c", script, HostConfig={"Binds": [f"{shared_tree}:/s:rslave"]})
    private = api.run("sleep", "600", HostConfig={"Binds": [f"{shared_tree}:/s"]})
    (shared_tree / "late").mkdir()
    mount("-t", "tmpfs", "late", str(shared_tree / "late"))
    (shared_tree / "late" / "seen").touch()
    assert api.wait(follower) == 0
    listed = api.post(
        f"/containers/{private}/exec", {"Cmd": ["ls", "/s/late"], "AttachStdout": True}
    )
    assert frames(api.post(f"/exec/{listed['Id']}/start", {})) == []
    giver = api.run(
        *("sh", "-c", "mkdir /s/given && mount -t tmpfs given /s/given && touch /s/given/file"),
        HostConfig={"Binds": [f"{shared_tree}:/s:rshared"], "Privileged": True},
    )
    assert api.wait(giver) == 0
    assert (shared_tree / "given" / "file").exists()
    error = api.error(
        "POST",
        f"/containers/{api.create('true', HostConfig={'Binds': ['/proc/self:/s:shared']})}/start",
    )
    assert error.status == 400
    assert "but it is not a shared mount" in error.message
