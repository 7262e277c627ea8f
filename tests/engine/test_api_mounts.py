"""Mounts of containers over the Engine API: propagation, read-only trees, options of each kind."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_process import IMAGE, Api, frames

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


def mounts_at(place: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4].startswith(str(place))]


def test_a_bind_with_propagation_takes_nothing_from_the_machine(
    api: Api, shared_tree: Path
) -> None:
    before = mounts_at(shared_tree)
    for mode in ("rshared", "rslave", "shared", "slave"):
        text = api.output(
            "cat", "/s/inner/file", HostConfig={"Binds": [f"{shared_tree}:/s:{mode}"]}
        )
        assert text == ("here" if mode.startswith("r") else text)
    assert mounts_at(shared_tree) == before
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


# --- each kind with its options -------------------------------------------------------------------


def refusal(api: Api, **host: Any) -> str:
    wish = {"Image": IMAGE, "Cmd": ["true"], "HostConfig": host}
    error = api.error("POST", "/containers/create", wish)
    return f"{error.status} {error.message}"


def test_read_only_binds_cover_what_is_mounted_below(api: Api, shared_tree: Path) -> None:
    script = "for d in /s /s/inner; do touch $d/new 2>/dev/null && echo $d; done"

    def writable(host: dict[str, Any]) -> list[str]:
        return api.output("sh", "-c", script, HostConfig=host).split()

    bind: dict[str, Any] = {"Type": "bind", "Source": str(shared_tree), "Target": "/s"}
    assert writable({"Binds": [f"{shared_tree}:/s:ro"]}) == []
    assert writable({"Mounts": [{**bind, "ReadOnly": True}]}) == []
    only = {**bind, "ReadOnly": True, "BindOptions": {"ReadOnlyNonRecursive": True}}
    assert writable({"Mounts": [only]}) == ["/s/inner"]
    forced = {
        "ReadOnlyForceRecursive": True,
        "Propagation": "rprivate",
    }
    assert writable({"Mounts": [{**bind, "ReadOnly": True, "BindOptions": forced}]}) == []
    alone = {**bind, "BindOptions": {"NonRecursive": True}}
    assert api.output("ls", "/s/inner", HostConfig={"Mounts": [alone]}) == ""
    text = refusal(api, Mounts=[{**bind, "BindOptions": forced}])
    assert text.endswith("BindOptions.ReadOnlyForceRecursive requires ReadOnly")


def test_sources_of_binds(api: Api, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    bind: dict[str, Any] = {"Type": "bind", "Source": str(missing), "Target": "/a"}
    text = refusal(api, Mounts=[bind])
    assert text == (
        f'400 invalid mount config for type "bind": bind source path does not exist: {missing}'
    )
    made = {**bind, "BindOptions": {"CreateMountpoint": True}}
    api.output("touch", "/a/file", HostConfig={"Mounts": [made]})
    assert (missing / "file").exists()
    api.output("touch", "/a/file", HostConfig={"Binds": [f"{tmp_path}/second:/a"]})
    assert (tmp_path / "second" / "file").exists()
    file = tmp_path / "single"
    file.write_text("text")
    assert api.output("cat", "/etc/single", HostConfig={"Binds": [f"{file}:/etc/single"]}) == "text"


@pytest.mark.parametrize(
    ("options", "shown", "status"),
    [
        ("", "rw,nosuid,nodev,noexec,relatime", "1777 0 0"),
        ("size=64k,mode=700", "rw,nosuid,nodev,noexec,relatime size=64k,mode=700", "700 0 0"),
        ("uid=5,gid=6", "rw,nosuid,nodev,noexec,relatime uid=5,gid=6", "1777 5 6"),
        ("exec,suid", "rw,nodev,relatime", "1777 0 0"),
        ("ro", "ro,nosuid,nodev,noexec,relatime", "1777 0 0"),
        ("defaults,noatime", "rw,nosuid,nodev,noexec,noatime", "1777 0 0"),
        ("sync,dirsync", "rw,nosuid,nodev,noexec,relatime", "1777 0 0"),
    ],
)
def test_tmpfs_options(api: Api, options: str, shown: str, status: str) -> None:
    script = "grep ' /a ' /proc/self/mountinfo; stat -c '%a %u %g' /a"
    text = api.output("sh", "-c", script, HostConfig={"Tmpfs": {"/a": options}}).splitlines()
    flags, _, data = shown.partition(" ")
    assert text[0].split()[5] == flags
    assert set(filter(None, data.split(","))) <= set(text[0].split()[-1].split(","))
    assert text[1] == status


def test_tmpfs_mounts(api: Api) -> None:
    options = {"SizeBytes": 65536, "Mode": 0o700, "Options": [["exec"], ["uid", "5"]]}
    mount = {"Type": "tmpfs", "Target": "/a", "TmpfsOptions": options}
    script = "grep ' /a ' /proc/self/mountinfo; stat -c '%a %u' /a"
    container = api.run("sh", "-c", script, HostConfig={"Mounts": [mount]})
    assert api.wait(container) == 0
    text = api.logs(container).decode().splitlines()
    assert text[0].split()[5] == "rw,nosuid,nodev,relatime"
    assert "size=64k" in text[0]
    assert text[1] == "700 5"
    assert api.inspect(container)["HostConfig"]["Mounts"] == [mount]
    for word in ("shared", "rprivate", "colour=red", "size"):
        wish = {"Image": IMAGE, "HostConfig": {"Tmpfs": {"/a": f"exec,{word}"}}}
        error = api.error("POST", "/containers/create", wish)
        assert (error.status, error.message) == (400, f'invalid tmpfs option ["{word}"]')
    created = api.create("true", HostConfig={"Tmpfs": {"/a": "size=lots"}})
    error = api.error("POST", f"/containers/{created}/start")
    assert (error.status, "size=lots" in error.message) == (400, True)


def test_volumes_with_options(api: Api) -> None:
    copied = {"Type": "volume", "Source": "copied", "Target": "/etc"}
    assert "passwd" in api.output("ls", "/etc", HostConfig={"Mounts": [copied]})
    empty = {**copied, "Source": "empty", "VolumeOptions": {"NoCopy": True, "Labels": {"a": "b"}}}
    text = api.output("ls", "/etc", HostConfig={"Mounts": [empty]})
    assert "passwd" not in text
    assert api.get("/volumes/empty")["Labels"] == {"a": "b"}
    part = {"Type": "volume", "Source": "copied", "Target": "/part"}
    api.output("mkdir", "/part/sub", HostConfig={"Mounts": [part]})
    inside = {**part, "VolumeOptions": {"Subpath": "sub"}}
    assert api.output("ls", "-A", "/part", HostConfig={"Mounts": [inside]}) == ""
    lost = api.create(
        "true", HostConfig={"Mounts": [{**part, "VolumeOptions": {"Subpath": "none"}}]}
    )
    error = api.error("POST", f"/containers/{lost}/start")
    assert error.status == 404
    assert "no such file or directory; make it in the volume first" in error.message
    for subpath in ("/etc", "../x"):
        text = refusal(api, Mounts=[{**part, "VolumeOptions": {"Subpath": subpath}}])
        assert "subpath must be a relative path within the volume" in text


def test_volumes_from_others(api: Api, tmp_path: Path) -> None:
    binds = [f"{tmp_path}:/bound", "shared-volume:/named:ro"]
    api.create("true", name="giver", HostConfig={"Binds": binds}, Volumes={"/own": {}})
    script = "for d in /bound /named /own; do touch $d/x 2>/dev/null && echo $d; done"
    for word, writable in (
        ("giver", ["/bound", "/own"]),
        ("giver:rw", ["/bound", "/own"]),
        ("giver:ro", []),
    ):
        text = api.output("sh", "-c", script, HostConfig={"VolumesFrom": [word]})
        assert text.split() == writable
    assert "invalid mode for volumes-from: x" in refusal(api, VolumesFrom=["giver:x"])
    assert "cannot be an empty string" in refusal(api, VolumesFrom=[""])


def test_a_relative_place_of_an_anonymous_volume_counts_from_the_root(api: Api) -> None:
    container = api.run("ls", "-d", "/foo", "/bar/x", Volumes={"foo": {}, "../bar/x": {}})
    assert api.wait(container) == 0
    places = [point["Destination"] for point in api.inspect(container)["Mounts"]]
    assert sorted(places) == ["/bar/x", "/foo"]


MOUNT: dict[str, Any] = {"Source": "/tmp", "Target": "/a", "Type": "bind"}


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ({"Binds": ["/tmp:/a:ro,rw"]}, "invalid mode: ro,rw"),
        ({"Binds": ["/tmp:/a:nocopy"]}, "invalid mode: nocopy"),
        ({"Binds": ["named:/a:rslave"]}, "invalid mode: rslave"),
        ({"Binds": ["/tmp:/a:noexec"]}, "invalid mode: noexec"),
        ({"Binds": ["/tmp:"]}, "invalid volume specification: '/tmp:'"),
        ({"Binds": ["/tmp:/a:ro:x"]}, "invalid volume specification"),
        ({"Binds": ["/tmp:a"]}, "invalid mount path: 'a' mount path must be absolute"),
        ({"Binds": ["/tmp:/"]}, "destination can't be '/'"),
        ({"Binds": ["a/b:/a"]}, "includes invalid characters for a local volume name"),
        ({"Binds": ["/tmp:/a", "/etc:/a/"]}, "Duplicate mount point: /a"),
        ({"Binds": ["/tmp:/a"], "Tmpfs": {"/a": ""}}, "Duplicate mount point: /a"),
        ({"Binds": ["/tmp:/a"], "Mounts": [MOUNT]}, "Duplicate mount point: /a"),
        ({"Mounts": [{**MOUNT, "Type": "nfs"}]}, 'config for type "nfs": mount type unknown'),
        ({"Mounts": [{**MOUNT, "Target": ""}]}, "field Target must not be empty"),
        ({"Mounts": [{**MOUNT, "Source": ""}]}, "field Source must not be empty"),
        ({"Mounts": [{**MOUNT, "Source": "tmp"}]}, "invalid mount path: 'tmp'"),
        ({"Mounts": [{**MOUNT, "VolumeOptions": {}}]}, "field VolumeOptions must not be"),
        ({"Mounts": [{**MOUNT, "TmpfsOptions": {}}]}, "field TmpfsOptions must not be"),
        ({"Mounts": [{**MOUNT, "BindOptions": {"Propagation": "x"}}]}, "propagation mode: x"),
        ({"Mounts": [{**MOUNT, "Type": "tmpfs"}]}, "field Source must not be specified"),
        (
            {"Mounts": [{"Type": "tmpfs", "Target": "/a", "TmpfsOptions": {"SizeBytes": -1}}]},
            "invalid tmpfs size: -1",
        ),
    ],
)
def test_mounts_that_cannot_be(api: Api, host: dict[str, Any], text: str) -> None:
    found = refusal(api, **host)
    assert found.startswith("400 ")
    assert text in found
    assert api.get("/volumes")["Volumes"] == []


def test_a_volume_driver_that_is_not_there(api: Api) -> None:
    driver = {"VolumeOptions": {"DriverConfig": {"Name": "ghost"}}}
    mount = {"Type": "volume", "Source": "named", "Target": "/a", **driver}
    assert 'plugin "ghost" not found' in refusal(api, Mounts=[mount])
    assert 'plugin "ghost" not found' in refusal(api, VolumeDriver="ghost", Binds=["named:/a"])
    api.create("true", HostConfig={"VolumeDriver": "local", "Binds": ["named:/a"]})
