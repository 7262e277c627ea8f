"""Containers that run out of memory, wholly or in part."""

from __future__ import annotations

import pytest

from tests.engine_process import Api, EngineProcess, until

pytestmark = pytest.mark.root

LIMIT = {"Memory": 16 * 1024 * 1024, "MemorySwap": 16 * 1024 * 1024}
SCRIPT = "tail -c 100m /dev/zero | tail -n 1 > /dev/null; echo survived; exec sleep 600"


def test_a_killed_child_is_told_while_the_container_runs_on(api: Api) -> None:
    container = api.create("sh", "-c", SCRIPT, HostConfig=LIMIT)
    with api.events(filters={"container": [container], "event": ["oom", "die"]}) as events:
        api.post(f"/containers/{container}/start")
        assert next(events)["Action"] == "oom"
        until(lambda: b"survived" in api.logs(container))
        state = api.inspect(container)["State"]
        assert (state["OOMKilled"], state["Running"]) == (True, True)
        api.post(f"/containers/{container}/kill")
        told = next(events)["Action"]
        while told == "oom":
            told = next(events)["Action"]
        assert told == "die"
    assert api.inspect(container)["State"]["OOMKilled"] is True
    api.post(f"/containers/{container}/start")
    until(lambda: api.inspect(container)["State"]["OOMKilled"])


def test_a_container_within_its_limit_is_not_told_of(api: Api) -> None:
    container = api.run("sh", "-c", "exit 0", HostConfig=LIMIT)
    api.wait(container)
    assert api.inspect(container)["State"]["OOMKilled"] is False


def test_an_engine_that_comes_back_is_told_too(own_engine: EngineProcess) -> None:
    api = own_engine.api
    script = f"while [ ! -e /go ]; do sleep 0.05; done; {SCRIPT}"
    container = api.run("sh", "-c", script, HostConfig=LIMIT)
    own_engine.kill()
    own_engine.start()
    made = api.post(f"/containers/{container}/exec", {"Cmd": ["touch", "/go"]})["Id"]
    api.post(f"/exec/{made}/start", {"Detach": True})
    until(lambda: api.inspect(container)["State"]["OOMKilled"])
    assert api.inspect(container)["State"]["Running"]
