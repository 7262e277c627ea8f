"""Requests of older clients, which mean what they meant then."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine_process import IMAGE, Api

pytestmark = pytest.mark.root


def create(api: Api, version: str, **fields: Any) -> Any:
    """Create a container as a client of ``version``; return what ``inspect`` shows."""
    body = json.dumps({"Image": IMAGE, "Cmd": ["true"], **fields})
    headers = {"Content-Type": "application/json"}
    status, _, answer = api.raw("POST", f"/v{version}/containers/create", body, headers)
    assert status == 201, answer
    made = json.loads(answer)
    return {**api.inspect(made["Id"]), "Warnings": made["Warnings"]}


@pytest.mark.parametrize(
    ("version", "ipc", "auto_remove", "annotations"),
    [
        ("1.24", "shareable", False, None),
        ("1.39", "shareable", True, None),
        ("1.40", "private", True, None),
        ("1.42", "private", True, None),
        ("1.43", "private", True, {"a": "b"}),
        ("1.47", "private", True, {"a": "b"}),
    ],
)
def test_defaults_and_fields_of_their_time(
    api: Api, version: str, ipc: str, auto_remove: bool, annotations: Any
) -> None:
    host = {"AutoRemove": True, "Annotations": {"a": "b"}}
    found = create(api, version, HostConfig=host)["HostConfig"]
    assert found["IpcMode"] == ipc
    assert found["AutoRemove"] is auto_remove
    assert found.get("Annotations") == annotations


def test_options_of_mounts_that_came_later(api: Api, tmp_path: Path) -> None:
    volume = {"Type": "volume", "Source": "v1", "Target": "/v", "VolumeOptions": {"Subpath": "s"}}
    for version, shown in (("1.44", {}), ("1.45", {"Subpath": "s"})):
        found = create(api, version, HostConfig={"Mounts": [volume]})["HostConfig"]["Mounts"][0]
        assert found["VolumeOptions"] == shown
    options = {"CreateMountpoint": True}
    bind = {"Type": "bind", "Source": f"{tmp_path}/x", "Target": "/x", "BindOptions": options}
    create(api, "1.42", HostConfig={"Mounts": [bind]})
    body = json.dumps({"Image": IMAGE, "HostConfig": {"Mounts": [bind]}})
    headers = {"Content-Type": "application/json"}
    status, _, answer = api.raw("POST", "/v1.41/containers/create", body, headers)
    assert (status, b"bind source path does not exist" in answer) == (400, True)


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file system mounted below it."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "inner", str(inner)], check=True)
    yield inner.parent
    subprocess.run(["umount", str(inner)], check=True)


def test_read_only_binds_went_one_level_deep(api: Api, nested: Path) -> None:
    for version, code in (("1.43", 0), ("1.44", 1)):
        found = create(
            api,
            version,
            Cmd=["touch", "/s/inner/file"],
            HostConfig={"Binds": [f"{nested}:/s:ro"]},
        )
        api.post(f"/containers/{found['Id']}/start")
        assert api.wait(found["Id"]) == code


def test_health_checks_and_addresses(api: Api) -> None:
    check = {"Test": ["CMD", "true"], "StartInterval": 1_000_000_000}
    for version, interval in (("1.43", None), ("1.44", 1_000_000_000)):
        found = create(api, version, Healthcheck=check)
        assert found["Config"]["Healthcheck"].get("StartInterval") == interval
    address = "02:42:ac:11:00:77"
    assert create(api, "1.43", MacAddress=address)["Warnings"] == []
    (warning,) = create(api, "1.44", MacAddress=address)["Warnings"]
    assert "container-wide MacAddress field is now deprecated" in warning


def shown(api: Api, version: str, path: str) -> Any:
    status, _, answer = api.raw("GET", f"/v{version}{path}")
    assert status == 200, answer
    return json.loads(answer)


def test_names_in_networks_were_aliases(api: Api) -> None:
    api.post("/networks/create", {"Name": "lan"})
    endpoints = {"lan": {"Aliases": ["db"]}}
    container = api.create(
        "true",
        Hostname="store",
        HostConfig={"NetworkMode": "lan"},
        NetworkingConfig={"EndpointsConfig": endpoints},
    )
    for version, aliases in (("1.45", ["db"]), ("1.44", ["db", container[:12], "store"])):
        found = shown(api, version, f"/containers/{container}/json")
        assert found["NetworkSettings"]["Networks"]["lan"]["Aliases"] == aliases
    plain = shown(api, "1.44", f"/containers/{api.create('true')}/json")
    assert plain["NetworkSettings"]["Networks"]["bridge"]["Aliases"] is None


def test_what_the_engine_says_of_itself(api: Api) -> None:
    now, then = shown(api, "1.25", "/info"), shown(api, "1.24", "/info")
    assert "name=seccomp,profile=builtin" in now["SecurityOptions"]
    assert "ExecutionDriver" not in now
    assert "seccomp" in then["SecurityOptions"]
    assert then["ExecutionDriver"] == "<not supported>"
    assert shown(api, "1.41", "/system/df")["BuilderSize"] == 0
    assert "BuilderSize" not in shown(api, "1.42", "/system/df")


def test_lists_were_without_annotations(api: Api) -> None:
    api.create("true", HostConfig={"Annotations": {"a": "b"}})
    for version, wanted in (("1.45", None), ("1.46", {"a": "b"})):
        (found,) = shown(api, version, "/containers/json?all=1")
        assert found["HostConfig"].get("Annotations") == wanted
