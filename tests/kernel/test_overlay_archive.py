"""``docker cp`` and ``docker export`` in real container roots, stopped and running.

Each job runs in a process of its own, as the launcher runs it.
"""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deskd.domain.mount import MountStep
from deskd.record import as_dict
from tests.kernel.image_store import Stores, directory, entry, stores, symlink, tar
from tests.kernel.test_overlay_snapshots import make_image

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).parents[2]
CONTAINER = "c" * 64
JOB = """
import json, sys
from deskd.errors import DeskdError
from deskd.runtime.jobs import JOBS
from importlib import import_module
job, arguments, fds = json.loads(sys.argv[1])
module, _, function = JOBS[job].partition(":")
try:
    print(json.dumps({"result": getattr(import_module(module), function)(arguments, fds)}))
except DeskdError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error)}))
"""


class JobFailed(Exception):
    """A job's error: class and text."""


class Box:
    """One container's root; with ``pid`` it runs."""

    def __init__(self, opened: Stores, secret: Path) -> None:
        self.opened = opened
        self.secret = secret
        self.pid = 0
        self.more_steps: list[MountStep] = []
        self.read_only = False
        self.refuse_kind_change = False

    def run(self, job: str, path: str, data: bytes | None = None, **more: Any) -> tuple[Any, bytes]:
        arguments: dict[str, Any] = {"container": "box", "path": path, **more}
        arguments["read_only"] = self.read_only
        arguments["refuse_kind_change"] = self.refuse_kind_change
        if self.pid:
            arguments["pid"] = self.pid
        else:
            steps = [*self.opened.snapshots.mounts(CONTAINER), *self.more_steps]
            arguments["root"] = [as_dict(step) for step in steps]
            arguments["staging"] = self.opened.root.temporary
        reading, writing = os.pipe()
        theirs, ours = (writing, reading) if data is None else (reading, writing)
        with subprocess.Popen(
            [sys.executable, "-c", JOB, json.dumps([job, arguments, [theirs]])],
            pass_fds=[theirs],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "guest-engine")},
        ) as process:
            os.close(theirs)
            received = b""
            if data is None:
                with os.fdopen(ours, "rb") as stream:
                    received = stream.read()
            else:
                with os.fdopen(ours, "wb", buffering=0) as stream:
                    try:
                        stream.write(data)
                    except BrokenPipeError:
                        received = b""  # the job's answer says why
            assert process.stdout is not None
            answer = json.loads(process.stdout.read())
        if "error" in answer:
            raise JobFailed(f"{answer['error']}: {answer['text']}")
        return answer["result"], received

    def stat(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.run("archive_stat", path)[0]
        return found

    def get(self, path: str) -> dict[str, bytes | None]:
        return contents(self.run("archive_get", path)[1])

    def put(self, path: str, data: bytes, **more: Any) -> None:
        self.run("archive_put", path, data, **more)

    def export(self) -> dict[str, bytes | None]:
        return contents(self.run("export", "/")[1])


def contents(archive: bytes) -> dict[str, bytes | None]:
    """Return each entry's content, None for what is no file."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        return {
            member.name: opened.extractfile(member).read() if member.isreg() else None  # type: ignore[union-attr]
            for member in opened
        }


def start(opened: Stores) -> subprocess.Popen[bytes]:
    """Start a process in the container's root, in a mount namespace of its own."""
    (step,) = opened.snapshots.mounts(CONTAINER)
    target = Path(opened.root.path, "mnt")
    target.mkdir()
    script = (
        f"busybox mount -t overlay -o '{step.data}' overlay {target} && "
        f"busybox mount -t tmpfs tmpfs {target}/data && echo volume > {target}/data/in-volume && "
        f"exec busybox chroot {target} /bin/busybox sleep 60"
    )
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], cwd=step.source
    )
    deadline = time.monotonic() + 60
    while Path(f"/proc/{process.pid}/cmdline").read_bytes() != b"/bin/busybox\0sleep\00060\0":
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.fixture(params=["stopped", "running"])
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    secret = tmp_path / "secret"
    secret.mkdir()
    secret.joinpath("key").write_text("secret")
    layer = tar(
        directory("etc"),
        entry("etc/passwd", b"root:x:0:0::/:\nweb:x:33:44::/:\n", mode=0o600),
        entry("etc/group", b"web:x:44:\n"),
        directory("data"),
        directory("dir"),
        entry("dir/file", b"content", owner=(7, 8)),
        symlink("dir/link", "file"),
        symlink("to-dir", "dir"),
        symlink("to-host", str(secret)),
        symlink("to-key", f"{secret}/key"),
        symlink("dangling", "/nowhere"),
        directory("bin"),
        entry("bin/busybox", Path("/bin/busybox").read_bytes(), mode=0o755),
    )
    with stores(tmp_path / "data") as opened:
        box = Box(opened, secret)
        opened.snapshots.create(CONTAINER, make_image(opened, layer).id)
        if request.param == "stopped":
            yield box
            return
        process = start(opened)
        box.pid = process.pid
        try:
            yield box
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_stat_says_what_docker_says(box: Box) -> None:
    found = box.stat("/dir/file")
    assert (found["name"], found["size"], found["mode"]) == ("file", 7, 0o644)
    assert found["mtime"] == "2023-11-14T22:13:20Z"
    assert found["linkTarget"] == ""
    link = box.stat("to-dir")
    assert (link["name"], link["linkTarget"]) == ("to-dir", "/dir")
    assert link["mode"] & 0x08000000
    assert box.stat("to-dir/")["mode"] & 0x80000000
    assert box.stat("/dir/.")["name"] == "."
    assert box.stat("/")["name"] == "/"
    assert box.stat("/dangling")["linkTarget"] == "/nowhere"


def test_get_names_entries_by_the_last_component(box: Box) -> None:
    assert box.get("/dir/file") == {"file": b"content"}
    assert box.get("dir") == {"dir": None, "dir/file": b"content", "dir/link": None}
    assert box.get("dir/.") == {".": None, "./file": b"content", "./link": None}
    assert box.get("to-dir/") == {"to-dir": None, "to-dir/file": b"content", "to-dir/link": None}
    assert box.get("to-dir") == {"to-dir": None}
    with tarfile.open(fileobj=io.BytesIO(box.run("archive_get", "/dir")[1])) as archive:
        member = archive.getmember("dir/file")
        assert (member.uid, member.gid, member.mode, member.uname) == (7, 8, 0o644, "")


@pytest.mark.parametrize("path", ["/missing", "/dir/file/", "/dangling/", "/dir/file/below"])
def test_what_is_not_there_is_named_with_its_container(box: Box, path: str) -> None:
    said = f"NotFound: Could not find the file {path} in container box"
    for work in (box.stat, box.get, lambda path: box.put(path, tar(entry("x")))):
        with pytest.raises(JobFailed) as caught:
            work(path)
        assert str(caught.value) == said


def test_links_in_the_container_never_lead_out_of_it(box: Box) -> None:
    for path in ("to-host/key", "to-host/", "to-key/.", "to-host/../secret/key"):
        with pytest.raises(JobFailed, match="NotFound"):
            box.get(path)
    assert box.get("to-key") == {"to-key": None}
    with pytest.raises(JobFailed, match="NotFound"):
        box.put("to-host", tar(entry("key", b"bad")))
    with pytest.raises(JobFailed, match="InvalidArgument"):
        box.put("/", tar(entry("to-host/key", b"bad")))
    with pytest.raises(JobFailed, match="outside"):
        box.put("/dir", tar(entry("../../../key", b"bad")))
    assert box.secret.joinpath("key").read_text() == "secret"
    assert [p.name for p in box.secret.iterdir()] == ["key"]


def test_put_unpacks_into_a_directory(box: Box) -> None:
    data = tar(
        directory("./", 0o700),
        entry("file", b"new", owner=(1000, 1001), mode=0o4750),
        directory("sub"),
        entry("sub/.wh.kept", b"an ordinary file here"),
        symlink("sub/up", "../file"),
    )
    box.put("to-dir", data)
    found = box.get("/dir")
    assert found["dir/file"] == b"new"
    assert found["dir/sub/.wh.kept"] == b"an ordinary file here"
    assert "dir/link" in found
    with tarfile.open(fileobj=io.BytesIO(box.run("archive_get", "/dir")[1])) as archive:
        member = archive.getmember("dir/file")
        assert (member.uid, member.gid, member.mode) == (1000, 1001, 0o4750)
        assert archive.getmember("dir").mode == 0o755  # the directory itself stays as it is
    box.put("/dir", tar(entry("owned", b"")), user="web")
    upper = Path(box.opened.snapshots.upper(CONTAINER), "dir/owned").stat()
    assert (upper.st_uid, upper.st_gid) == (33, 44)


def test_put_refuses_what_docker_refuses(box: Box) -> None:
    with pytest.raises(JobFailed, match="extraction point is not a directory"):
        box.put("/dir/file", tar(entry("x")))
    box.refuse_kind_change = True
    with pytest.raises(JobFailed, match='cannot overwrite non-directory "/file" with directory'):
        box.put("/dir", tar(directory("file")))
    with pytest.raises(JobFailed, match='cannot overwrite directory "/dir" with non-directory'):
        box.put("/", tar(entry("dir", b"x")))
    box.refuse_kind_change = False
    box.put("/dir", tar(directory("file"), entry("file/x", b"x")))
    assert box.get("/dir")["dir/file/x"] == b"x"
    with pytest.raises(JobFailed, match=r"InvalidArgument: .*damaged"):
        box.put("/dir", b"no tar at all" * 100)
    with pytest.raises(JobFailed, match="no matching entries in passwd"):
        box.put("/dir", tar(entry("x")), user="nobody-here")


def test_export_has_the_whole_root_and_nothing_mounted_on_it(box: Box) -> None:
    box.put("/etc", tar(entry("new", b"n")))
    found = box.export()
    assert found["etc/new"] == b"n"
    assert found["dir/file"] == b"content"
    assert found["data"] is None
    assert "data/in-volume" not in found
    assert "dir/link" in found
    assert found["etc/hosts"] == b"", "the places that the engine mounts on, as with Docker"
    assert not any(name.startswith(("/", "./", "../")) for name in found)


def test_a_running_containers_mounts_are_seen_by_cp(box: Box) -> None:
    if not box.pid:
        volume = box.secret.parent / "volume"
        volume.mkdir()
        volume.joinpath("in-volume").write_text("volume\n")
        box.more_steps = [MountStep(kind="bind", target="/data", source=str(volume))]
    assert box.get("/data/in-volume") == {"in-volume": b"volume\n"}


def test_a_read_only_root_is_refused_and_its_volumes_are_not(box: Box) -> None:
    volume = box.secret.parent / "volume"
    volume.mkdir()
    if box.pid:
        root = Path(box.opened.root.path, "mnt")
        enter = ["nsenter", "-t", str(box.pid), "-m"]
        subprocess.run([*enter, "mount", "-o", "remount,ro,bind", root], check=True)
    else:
        box.read_only = True
        box.more_steps = [MountStep(kind="bind", target="/data", source=str(volume))]
    with pytest.raises(JobFailed) as caught:
        box.put("/etc", tar(entry("x")))
    assert str(caught.value) == "InvalidArgument: container rootfs is marked read-only"
    box.put("/data", tar(entry("x", b"x")))
    assert box.get("/data/x") == {"x": b"x"}
    if not box.pid:
        box.more_steps = [
            MountStep(kind="bind", target="/data", source=str(volume), read_only=True)
        ]
        with pytest.raises(JobFailed, match="mounted volume is marked read-only"):
            box.put("/data", tar(entry("y")))


def test_special_files_survive_the_way_out_and_in(box: Box) -> None:
    box.put(
        "/dir",
        tar(
            entry("null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            entry("pipe", kind=tarfile.FIFOTYPE),
        ),
    )
    upper = Path(box.opened.snapshots.upper(CONTAINER), "dir")
    assert stat.S_ISCHR((upper / "null").stat().st_mode)
    with tarfile.open(fileobj=io.BytesIO(box.run("archive_get", "/dir")[1])) as archive:
        null = archive.getmember("dir/null")
        assert (null.devmajor, null.devminor) == (1, 3)
        assert archive.getmember("dir/pipe").isfifo()
