"""Requests that Docker's engine takes or refuses in a way of its own."""

from __future__ import annotations

import pytest

from tests.engine_process import IMAGE, Api

pytestmark = pytest.mark.root


def test_a_container_from_keys_in_small_letters(api: Api) -> None:
    body = {
        "image": IMAGE,
        "cmd": ["echo", "hi"],
        "labels": {"Image": "kept"},
        "hostconfig": {"logconfig": {"type": "json-file"}, "networkmode": "none"},
    }
    container = api.post("/containers/create", body)["Id"]
    api.post(f"/containers/{container}/start")
    assert api.wait(container) == 0
    assert api.logs(container) == b"hi\n"
    inspected = api.inspect(container)
    assert inspected["Config"]["Labels"] == {"Image": "kept"}
    assert inspected["HostConfig"]["NetworkMode"] == "none"


def test_only_a_swarm_changes_volumes(api: Api) -> None:
    api.post("/volumes/create", {"Name": "vol"})
    error = api.error("PUT", "/volumes/vol", {"Spec": {}}, version=1)
    assert error.status == 503
    assert error.message.startswith("volume update only valid for cluster volumes")
