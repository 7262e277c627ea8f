"""Containers that run out of memory, wholly or in part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli_process import Cli
from tests.engine_process import Api, EngineProcess, until

pytestmark = pytest.mark.root

LIMIT = {"Memory": 16 * 1024 * 1024, "MemorySwap": 16 * 1024 * 1024}
HUNGRY = "echo 1000 >/proc/self/oom_score_adj; exec dd if=/dev/zero of=/dev/null bs=64M count=1"
SCRIPT = f"({HUNGRY}); echo survived; exec sleep 600"
"""Its child wants 64 MiB, and ends where there is room for them. It alone wants memory: the
kernel kills others, too, that want some before the memory of the killed one is free."""


def kills(api: Api) -> list[dict[str, Any]]:
    status, _, body = api.raw("GET", "/desk/out-of-memory")
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)
    _, headers, _ = api.raw("GET", "/containers/json")
    assert headers["desk-out-of-memory"] == str(len(found))
    return found


def await_survival(api: Api, container: str, times: int = 1) -> None:
    """Wait until the container's program has lived through so many kills of its child."""
    try:
        until(lambda: api.logs(container).count(b"survived") == times)
    except AssertionError as error:
        state, logs = api.inspect(container)["State"], api.logs(container)
        top = api.get(f"/containers/{container}/top") if state["Running"] else None
        raise AssertionError(f"{logs!r} of a container in state {state}: {top}") from error


def test_a_killed_child_is_told_while_the_container_runs_on(api: Api) -> None:
    container = api.create("sh", "-c", SCRIPT, HostConfig=LIMIT)
    with api.events(filters={"container": [container], "event": ["oom", "die"]}) as events:
        api.post(f"/containers/{container}/start")
        assert next(events)["Action"] == "oom"
        await_survival(api, container)
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


def test_reason_and_remedy_are_told_until_the_next_start(api: Api) -> None:
    api.run("sh", "-c", "exec sleep 600", name="bystander")
    container = api.create("sh", "-c", SCRIPT, name="hungry", HostConfig=LIMIT)
    with api.events(filters={"container": [container], "event": ["oom"]}) as events:
        api.post(f"/containers/{container}/start")
        told = next(events)["Actor"]["Attributes"]
    assert told["limit"] == "container"
    assert told["limitBytes"] == str(16 << 20)
    assert told["reason"] == "hungry came to its own memory limit of 16MiB"
    assert "`desk update --memory 32m --memory-swap 32m hungry`" in told["remedy"]
    (kill,) = kills(api)
    assert (kill["Id"], kill["Name"], kill["Running"]) == (container, "hungry", True)
    assert (kill["Reason"], kill["Remedy"]) == (told["reason"], told["remedy"])
    assert [use["Name"] for use in kill["Others"]] == ["bystander"]
    assert kill["Others"][0]["Bytes"] > 0
    await_survival(api, container)
    # The remedy does what it says; after a start nothing is told any more.
    update = {"Memory": 256 << 20, "MemorySwap": 256 << 20}
    api.post(f"/containers/{container}/update", update)
    api.post(f"/containers/{container}/restart?t=0")
    await_survival(api, container, 2)
    assert kills(api) == []


def test_desk_ps_names_the_container_and_the_remedy(engine: EngineProcess, tmp_path: Path) -> None:
    desk = Cli(str(engine.socket), tmp_path)
    container = engine.api.run("sh", "-c", "tail -c 100m /dev/zero", name="hog", HostConfig=LIMIT)
    engine.api.wait(container)
    done = desk("ps", "-a")
    assert done.code == 0
    assert done.err.startswith("Out of memory: hog came to its own memory limit of 16MiB (")
    assert "desk update --memory 32m --memory-swap 32m hog" in done.err
    assert desk("ps", "-aq").err == ""
    assert desk("ps").err == ""  # it does not run, and is not listed
    own = desk("events", "--since", "1m", "--until", "0s", "--filter", "event=oom")
    assert "limit=container" in own.out


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
