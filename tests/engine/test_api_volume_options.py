"""Volumes with options of the driver ``local`` over the Engine API: what is mounted, when, by what
words, and what takes it away again."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engine_process import Api, EngineProcess, until

pytestmark = pytest.mark.root

TMPFS = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=7,mode=0700"}


def mounted(place: str) -> list[str]:
    """Return the file systems and options of what is mounted at a place, as the machine sees it."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.partition(" - ")[2] for line in lines if line.split()[4] == place]


def made(api: Api, name: str, options: dict[str, str]) -> str:
    """Make a volume; return where it is."""
    place: str = api.post("/volumes/create", {"Name": name, "DriverOpts": options})["Mountpoint"]
    return place


def remove_containers(api: Api) -> None:
    for container in api.get("/containers/json", all=True):
        api.delete(f"/containers/{container['Id']}", force=True)


def test_a_tmpfs_lives_as_long_as_a_container_uses_it(api: Api) -> None:
    place = made(api, "memory", TMPFS)
    assert mounted(place) == []
    one = api.run("sleep", "600", HostConfig={"Binds": ["memory:/m"]})
    (found,) = mounted(place)
    assert found.startswith("tmpfs tmpfs ")
    assert "size=1024k" in found
    script = "stat -c '%u %a' /m; echo kept > /m/file"
    two = api.run("sh", "-c", script, HostConfig={"Binds": ["memory:/m"]})
    assert api.wait(two) == 0
    assert api.logs(two) == b"7 700\n"
    assert len(mounted(place)) == 1, "the first one has it still"
    assert Path(place, "file").read_text() == "kept\n"
    assert api.error("DELETE", "/volumes/memory").status == 409
    api.post(f"/containers/{one}/kill")
    until(lambda: mounted(place) == [])
    assert list(Path(place).iterdir()) == [], "it was in memory"
    remove_containers(api)
    api.delete("/volumes/memory")
    assert not Path(place).exists()


def test_a_volume_that_stands_for_a_directory(api: Api, tmp_path: Path) -> None:
    directory = tmp_path / "place"
    directory.mkdir()
    options = {"type": "none", "o": "bind", "device": str(directory)}
    place = made(api, "placed", options)
    assert api.get("/volumes/placed")["Options"] == options
    assert "passwd" in api.output("ls", "/etc", HostConfig={"Binds": ["placed:/etc"]})
    assert (directory / "passwd").exists(), "it was empty: the image's content is in it"
    assert sorted(entry.name for entry in directory.iterdir()) == sorted(
        api.output("ls", "-A", "/a", HostConfig={"Binds": ["placed:/a"]}).split()
    )
    driver = {"DriverConfig": {"Name": "local", "Options": {**options, "o": "bind,ro"}}}
    mount = {"Type": "volume", "Source": "read", "Target": "/a", "VolumeOptions": driver}
    container = api.run("touch", "/a/other", HostConfig={"Mounts": [mount]})
    assert api.wait(container) == 1
    (shown,) = api.inspect(container)["Mounts"]
    assert (shown["Name"], shown["RW"], shown["Type"]) == ("read", True, "volume")
    until(lambda: mounted(place) == [])
    usage = [volume["Name"] for volume in api.get("/system/df")["Volumes"]]
    assert not {"placed", "read"} & set(usage), "their bytes are not the engine's"
    remove_containers(api)
    assert api.post("/volumes/prune", filters={"all": ["1"]})["VolumesDeleted"] is None
    api.delete("/volumes/placed")
    assert (directory / "passwd").exists(), "the directory is the machine's, not the volume's"


def test_files_of_a_stopped_container_are_in_its_mounted_volume(api: Api, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("through the mount")
    place = made(api, "placed", {"type": "none", "o": "bind", "device": str(tmp_path)})
    container = api.create("true", HostConfig={"Binds": ["placed:/m"]})
    status, _, data = api.raw("GET", f"/containers/{container}/archive?path=/m/file")
    assert (status, b"through the mount" in data) == (200, True)
    assert mounted(place) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": "1g"}, "quota size requested but no quota support"),
        ({"foo": "1"}, 'invalid option: "foo"'),
        ({"type": "none", "o": "bind"}, 'missing required option: "device"'),
        ({"o": "bind"}, 'missing required option: "device"'),
        ({"device": "/tmp"}, 'missing required option: "type"'),
    ],
)
def test_options_that_say_nothing_to_mount(api: Api, options: dict[str, str], text: str) -> None:
    error = api.error("POST", "/volumes/create", {"Name": "vol", "DriverOpts": options})
    assert error.status == 400
    assert error.message.startswith(f"create vol: {text}")
    assert api.get("/volumes")["Volumes"] == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"type": "none", "o": "bind", "device": "/no/such/place"},
            "mount /no/such/place:{place}, flags: 0x1000: no such file or directory",
        ),
        ({"type": "none", "device": "/tmp"}, "mount /tmp:{place}: no such device"),
        ({"type": "no-such-fs", "device": "x"}, "mount x:{place}: no such device"),
        (
            {"type": "no-such-fs", "device": "x", "o": "username=me,password=secret"},
            "data: username=me,password=********: no such device",
        ),
        (
            {"type": "nfs", "device": ":/x", "o": "addr=no-host.invalid"},
            "error resolving passed in network volume address: lookup no-host.invalid",
        ),
    ],
)
def test_what_cannot_be_mounted(api: Api, options: dict[str, str], text: str) -> None:
    place = made(api, "lost", options)
    container = api.create("true", HostConfig={"Binds": ["lost:/a"]})
    error = api.error("POST", f"/containers/{container}/start")
    assert error.status in (500, 501)
    assert error.message.startswith(f"error while mounting volume '{place}': ")
    assert text.format(place=place) in error.message
    assert "secret" not in error.message
    assert mounted(place) == []
    assert api.inspect(container)["State"]["Status"] == "created"


@pytest.mark.parametrize(("kind", "device"), [("nfs", ":/x"), ("cifs", "//127.0.0.1/x")])
def test_a_server_that_does_not_serve_is_an_error(api: Api, kind: str, device: str) -> None:
    """Either the kernel has no such file system, or nothing listens at the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options = {"type": kind, "device": device}
        port = free.getsockname()[1]
        options["o"] = f"addr=127.0.0.1,port={port},soft,retrans=1,timeo=1,vers=3"
        place = made(api, "far", options)
        container = api.create("true", HostConfig={"Binds": ["far:/a"]})
        error = api.error("POST", f"/containers/{container}/start", timeout_s=200)
    assert f"failed to mount local volume: mount {device}:{place}" in error.message
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    if kind not in known:
        assert error.status == 501
        assert "the kernel lacks CONFIG_" in error.message
    assert mounted(place) == []


def test_an_engine_that_is_killed_keeps_what_runs_and_unmounts_the_rest(
    own_engine: EngineProcess,
) -> None:
    api = own_engine.api
    kept, left = made(api, "kept", TMPFS), made(api, "left", TMPFS)
    stays = api.run("sleep", "600", HostConfig={"Binds": ["kept:/m"]})
    ends = api.run("sleep", "600", HostConfig={"Binds": ["left:/m"]})
    pid = api.inspect(ends)["State"]["Pid"]
    own_engine.kill()
    os.kill(pid, 9)
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert (len(mounted(kept)), len(mounted(left))) == (1, 1)
    own_engine.start()
    until(lambda: api.inspect(ends)["State"]["Status"] == "exited")
    until(lambda: mounted(left) == [])
    assert len(mounted(kept)) == 1
    api.post(f"/containers/{stays}/kill")
    until(lambda: mounted(kept) == [])


def test_what_is_mounted_below_a_volume_is_never_deleted(api: Api, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    place = made(api, "covered", {})
    inside = Path(place, "inside")
    inside.mkdir()
    subprocess.run(["mount", "--bind", str(tmp_path), str(inside)], check=True)
    try:
        error = api.error("DELETE", "/volumes/covered")
        assert error.status == 409
        assert f"something is mounted at {inside}; unmount it first" in error.message
        assert api.post("/volumes/prune", filters={"all": ["1"]})["VolumesDeleted"] is None
    finally:
        subprocess.run(["umount", str(inside)], check=True)
    assert (tmp_path / "precious").read_text() == "mine"
    api.delete("/volumes/covered")


def test_a_subpath_leads_nowhere_else(api: Api) -> None:
    """Links of the volume count from its own top, whoever made them and whenever."""
    place = Path(made(api, "linked", {}))
    (place / "etc").mkdir()
    (place / "etc" / "mine").touch()
    (place / "absolute").symlink_to("/etc")
    (place / "up").symlink_to("../../../../../../../../etc")
    for subpath in ("absolute", "up"):
        mount: dict[str, Any] = {"Type": "volume", "Source": "linked", "Target": "/m"}
        mount["VolumeOptions"] = {"Subpath": subpath, "NoCopy": True}
        assert api.output("ls", "-A", "/m", HostConfig={"Mounts": [mount]}) == "mine\n"


def test_a_create_that_fails_leaves_no_anonymous_volume(api: Api) -> None:
    binds = ["named:/n", "bad/name:/b"]
    document = {"Image": "busybox", "HostConfig": {"Binds": binds}, "Volumes": {"/own": {}}}
    assert api.error("POST", "/containers/create", document).status == 400
    assert [v["Name"] for v in api.get("/volumes")["Volumes"]] in ([], ["named"])


def test_a_cluster_volume_needs_a_cluster(api: Api) -> None:
    error = api.error("POST", "/volumes/create", {"Name": "cl", "ClusterVolumeSpec": {}})
    assert error.status == 503
    assert error.message.startswith("This node is not a swarm manager")
    assert api.get("/volumes")["Volumes"] == []
    error = api.error("POST", "/volumes/create", {"Name": "a"})
    assert error.message == (
        "create a: volume name is too short, names should be at least two alphanumeric characters"
    )
