"""A disk that is full to its last byte: the engine starts, lists, stops and deletes all the same,
makes nothing new, and has its reserve back when there is room again."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deskd.errors import ResourceExhausted
from deskd.store.database import Database
from deskd.store.reserve import Reserve, sizes_for
from tests.cli_process import Cli
from tests.engine_process import API, Api, EngineProcess, busybox_tar, run_docker, until

pytestmark = pytest.mark.root

DISK_BYTES = 64 << 20
WAITING = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
FULL = "no space left on the disk of the data root"


@contextlib.contextmanager
def mounted(kind: str, place: Path, image: Path) -> Iterator[None]:
    """Have a file system of ``DISK_BYTES`` at ``place``."""
    place.mkdir(exist_ok=True)
    if kind == "tmpfs":
        argv = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    else:
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        # As the guest makes and mounts its data disk.
        subprocess.run(["mke2fs", "-q", "-t", kind, "-m", "1", image], check=True)
        argv = ["mount", "-t", "ext4", "-o", "loop,noatime,discard", str(image), str(place)]
    subprocess.run(argv, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        image.unlink(missing_ok=True)


@contextlib.contextmanager
def engine_on(kind: str, image: Path) -> Iterator[EngineProcess]:
    engine = EngineProcess()
    try:
        with mounted(kind, engine.data_root, image):
            engine.start()
            engine.load_image()
            try:
                yield engine
                assert engine.api.check_store() == []
                engine.remove_everything()
                engine.stop()
            finally:
                if engine.process is not None:
                    engine.kill()
        left = engine.leftovers()
    finally:
        engine.close()
    assert not left, f"left behind by the engine: {left}"


@pytest.fixture(params=["ext4", "tmpfs"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine whose data root is a small disk."""
    with engine_on(request.param, tmp_path / "disk") as engine:
        yield engine


def fill(place: Path) -> Path:
    """Write until there is no byte left, as root."""
    file = place / "filler"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for _ in range(2):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while os.write(fd, bytes(size)):
                        pass
            with contextlib.suppress(OSError):
                os.fsync(fd)
        with pytest.raises(OSError, match="No space left"):
            os.write(fd, b"1")
    finally:
        os.close(fd)
    return file


def reserve(api: Api) -> tuple[int, bool]:
    told = api.get("/desk/disk")
    assert told["Used"] + told["Available"] + told["Reserve"] == told["Total"]
    return told["Reserve"], told["Full"]


def names(api: Api) -> list[str]:
    return sorted(c["Names"][0][1:] for c in api.get("/containers/json", all=True))


def second_image(api: Api) -> None:
    status, _, data = api.raw(
        "POST", f"{API}/images/create?fromSrc=-&repo=other", busybox_tar() + bytes(1024)
    )
    assert status == 200, data


@pytest.mark.parametrize("ending", ["runs", "stopped", "killed"])
def test_everything_that_makes_room_works(
    small: EngineProcess, tmp_path: Path, ending: str
) -> None:
    api, desk = small.api, Cli(small.socket, tmp_path / "home")
    second_image(api)
    for name in ("one", "two", "three"):
        api.run(*WAITING, name=name)
    for name in ("done", "gone", "left"):
        api.wait(api.run("touch", "/file", name=name))
    for name in ("v1", "v2", "v3", "v4"):
        api.post("/volumes/create", {"Name": name})
    assert reserve(api)[1] is False
    filler = fill(small.data_root)
    if ending != "runs":
        small.stop() if ending == "stopped" else small.kill()
        fill(small.data_root)  # what the end of the engine gave free
        small.start()
    assert api.raw("GET", "/_ping")[0] == 200
    assert desk.ok("ps", "-q").count("\n") == 3
    assert run_docker(small, "images", "-q").stdout.count("\n") == 2
    api.post("/containers/one/stop")
    assert desk.ok("stop", "two") == "two\n"
    for command in (("rm", "one"), ("rm", "-f", "three"), ("volume", "rm", "v1"),
                    ("rmi", "other")):  # fmt: skip
        done = run_docker(small, *command)
        assert done.returncode == 0, done
    assert desk.ok("rm", "done") == "done\n"
    assert desk.ok("volume", "rm", "v2") == "v2\n"
    assert "Deleted Containers" in run_docker(small, "container", "prune", "-f").stdout
    assert "v3" in desk.ok("volume", "prune", "-a", "-f")
    assert "Total reclaimed space" in run_docker(small, "system", "prune", "-f").stdout
    assert "Deleted Images" in desk("system", "prune", "-a", "-f").out
    assert "Total reclaimed space" in desk.ok("undo", "--empty", "--force")
    assert names(api) == []
    assert api.get("/volumes")["Volumes"] == []
    assert api.get("/images/json") == []
    assert small.log().count("the engine works on its reserve") <= 1
    filler.unlink()
    api.post("/volumes/create", {"Name": "new"})
    assert reserve(api)[1] is False


def test_nothing_new_is_made_and_the_reserve_is_not_eaten(small: EngineProcess) -> None:
    api = small.api
    api.create("true", name="made")
    api.create("true", name="gone")
    fill(small.data_root)
    api.delete("/containers/gone")
    before = reserve(api)[0]
    for _ in range(5):
        for method, path, document in (
            ("POST", "/containers/create", {"Image": "busybox", "Cmd": ["true"]}),
            ("POST", "/containers/made/start", None),
            ("POST", "/volumes/create", {"Name": "new"}),
        ):
            assert FULL in api.error(method, path, document).message
        status, _, data = api.raw("POST", f"{API}/images/create?fromSrc=-&repo=new", busybox_tar())
        assert FULL in data.decode(), status
        fill(small.data_root)
    assert names(api) == ["made"]
    assert before - reserve(api)[0] <= sizes_for(DISK_BYTES).piece


def test_the_reserve_is_told_of_and_comes_back_each_time(small: EngineProcess) -> None:
    api = small.api
    for number in range(3):
        api.post("/volumes/create", {"Name": f"v{number}"})
    for number in range(3):
        filler = fill(small.data_root)
        api.delete(f"/volumes/v{number}")
        assert reserve(api)[1] is True
        warnings = api.get("/info")["Warnings"] or []
        assert [text for text in warnings if "desk machine disk --resize" in text]
        filler.unlink()
        api.delete(f"/containers/{api.create('true')}")  # at once: nothing waits for a look
        assert reserve(api)[1] is False
        warnings = api.get("/info")["Warnings"] or []
        assert not [text for text in warnings if "desk machine disk --resize" in text]
    log = small.log_path.read_text()
    assert log.count("the engine works on its reserve") == 3
    assert log.count("the engine has its reserve back") == 3


def test_whoever_writes_on_and_on_does_not_get_it(small: EngineProcess) -> None:
    """Containers that fill the disk, and go on, while others are removed and the engine ends."""
    api = small.api
    script = "while :; do dd if=/dev/zero bs=64k >>/big 2>/dev/null; echo full; sleep 0.01; done"
    for number in range(8):
        api.wait(api.run("touch", "/file", name=f"c{number}"))
    greedy = api.run("sh", "-c", script, name="greedy")
    until(lambda: _is_full(small.data_root))
    for number in range(4):
        api.delete(f"/containers/c{number}")
    small.kill()
    small.start()
    for number in range(4, 7):
        api.delete(f"/containers/c{number}")
    small.stop()
    small.start()
    assert names(api) == ["c7", "greedy"]
    api.delete("/containers/c7")
    api.post("/containers/greedy/stop", t=0)
    assert api.inspect(greedy)["State"]["Status"] == "exited"
    api.delete("/containers/greedy")
    until(lambda: not reserve(api)[1])


def _is_full(place: Path) -> bool:
    try:
        (place / "probe").write_bytes(b"1" * 4096)
    except OSError:
        return True
    finally:
        (place / "probe").unlink(missing_ok=True)
    return False


def test_a_log_that_outgrows_its_blocks_takes_from_the_reserve(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    with mounted("ext4", place, tmp_path / "image"):
        kept = Reserve(str(place / "reserve"))
        kept.open()
        database = Database.open(str(place / "engine.db"), reserve=kept)
        try:
            fill(place)
            held = kept.held_bytes
            text = "x" * 20_000
            for number in range(20):  # a checkpoint cannot make the database larger
                database.set_meta(f"key{number}", text)
            assert kept.held_bytes < held
            assert database.get_meta("key19") == text
        finally:
            database.close()
            kept.close()


def test_a_file_system_without_fallocate(tmp_path: Path, caplog: Any) -> None:
    place = tmp_path / "disk"
    with mounted("ext2", place, tmp_path / "image"):
        kept = Reserve(str(place / "reserve"))
        with caplog.at_level(logging.ERROR, "deskd.store.reserve"):
            kept.open()
            kept.restore()
        assert kept.held_bytes == 0
        assert kept.in_use is False
        kept.check()
        fill(place)
        with pytest.raises(ResourceExhausted, match=FULL):
            kept.check()
        with pytest.raises(OSError, match="No space left"):
            kept.with_room(lambda: (place / "new").write_bytes(bytes(8192)))
        kept.close()
