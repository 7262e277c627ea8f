"""``desk undo``: what ``desk`` removed comes back; what Docker's clients removed does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli_process import Cli
from tests.engine_process import EngineProcess, run_docker

pytestmark = pytest.mark.root


@pytest.fixture
def desk(own_engine: EngineProcess, tmp_path: Path) -> Cli:
    return Cli(own_engine.socket, tmp_path / "home")


def test_the_last_removal_is_undone_as_a_whole(desk: Cli, own_engine: EngineProcess) -> None:
    nothing = desk("undo")
    assert (nothing.code, nothing.out) == (1, "")
    assert nothing.err.startswith("desk: there is nothing to bring back\n")
    for name in ("one", "two", "three"):
        desk.ok("run", "--name", name, "-v", f"{name}-data:/data", "busybox", "touch", "/data/file")
    run_docker(own_engine, "rm", "three")
    assert desk.ok("rm", "one", "two") == "one\ntwo\n"
    assert desk.ok("volume", "rm", "one-data") == "one-data\n"
    desk.ok("tag", "busybox", "extra")
    assert desk.ok("rmi", "extra") == "Untagged: extra:latest\n"

    listed = desk.ok("undo", "--list", "--format", "{{.Kind}} {{.Name}}").splitlines()
    assert listed[:2] == ["image extra:latest", "volume one-data"]
    assert sorted(listed[2:]) == ["container one", "container two"]
    row = desk.ok("system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}")
    assert row.splitlines()[-1] == "Bin 4 0"

    assert desk.ok("undo") == "image extra:latest\n"
    assert desk.ok("undo", "one-data") == "volume one-data\n"
    assert sorted(desk.ok("undo").splitlines()) == ["container one", "container two"]
    assert desk.ok("ps", "-a", "--format", "{{.Names}}").split() == ["two", "one"]
    assert desk.ok("run", "--rm", "-v", "one-data:/data", "busybox", "ls", "/data") == "file\n"
    assert desk.ok("images", "-q", "extra") == desk.ok("images", "-q", "busybox")
    assert desk.ok("undo", "--list", "--format", "{{.Name}}") == ""
    desk.ok("rmi", "extra")


def test_a_taken_name_and_other_mistakes_are_told(desk: Cli) -> None:
    desk.ok("create", "--name", "web", "busybox")
    desk.ok("rm", "web")
    desk.ok("create", "--name", "web", "busybox")
    done = desk("undo", "web")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("desk: container web: there is a container web now: rename ")
    done = desk("undo", "other")
    assert done.err.startswith("desk: nothing removed is called other\n`desk undo --list`")
    done = desk("undo", "--list", "web")
    assert done.err.startswith("desk: --list, --empty and names exclude each other\n")


def test_a_prune_is_undone_or_made_final(desk: Cli) -> None:
    fill = "head -c 2000000 /dev/zero >/file"
    desk.ok("run", "--name", "filled", "busybox", "sh", "-c", fill)
    done = desk("system", "prune", "-f")
    assert "Total reclaimed space: 0B\n" in done.out
    assert done.err.startswith("2")
    assert "MB more when the bin is emptied; `desk undo` brings it back" in done.err
    assert desk.ok("undo") == "container filled\n"
    desk.ok("rm", "filled")
    refused = desk("undo", "--empty")
    assert refused.code == 125
    assert "Add --force" in refused.err
    assert desk.ok("undo", "--empty", "--force").startswith("Total reclaimed space: 2")
    assert desk("undo", "filled").code == 1
