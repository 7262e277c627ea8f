"""A restart of the machine gives back exactly what ran, whatever restart policies say."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine_process import Api, EngineProcess, until

pytestmark = pytest.mark.root

ALWAYS = {"RestartPolicy": {"Name": "always"}}
UNLESS_STOPPED = {"RestartPolicy": {"Name": "unless-stopped"}}


def settled(api: Api) -> Any:
    return until(lambda: (told := api.get("/desk/restart"))["Pending"] == 0 and told)


def states(api: Api) -> dict[str, str]:
    found = api.get("/containers/json", all=True)
    return {container["Names"][0].removeprefix("/"): container["State"] for container in found}


def test_what_ran_comes_back_in_its_order_and_nothing_else(own_engine: EngineProcess) -> None:
    api = own_engine.api
    # On SIGTERM it says so and ends: its end is orderly.
    polite = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    api.run("sh", "-c", polite, name="plain")
    until(lambda: b"up" in api.logs("plain"))
    api.run("sleep", "600", name="passing", StopTimeout=0, HostConfig={"AutoRemove": True})
    api.run("sleep", "600", name="frozen", StopTimeout=0)
    api.post("/containers/frozen/pause")
    api.run("sleep", "600", name="policy", StopTimeout=0, HostConfig=ALWAYS)
    api.run("sleep", "600", name="ended", HostConfig=ALWAYS)
    api.post("/containers/ended/stop", t=0)
    api.create("sleep", "600", name="new")
    before = states(api)

    told = api.post("/desk/restart", {"TimeoutSeconds": 20})
    assert [(each["Name"], each["Before"]) for each in told["Containers"]] == [
        ("plain", "running"),
        ("passing", "running"),
        ("frozen", "paused"),
        ("policy", "running"),
    ]
    assert told["Pending"] == 4
    assert {each["After"] for each in told["Containers"]} == {"exited"}
    assert api.logs("plain").endswith(b"bye\n")
    assert api.inspect("plain")["State"]["ExitCode"] == 0

    # Neither of these engines may end the work half done.
    own_engine.kill()
    own_engine.start()
    own_engine.kill()
    own_engine.start()
    told = settled(api)
    assert [each["After"] == each["Before"] for each in told["Containers"]] == [True] * 4
    assert not any(each["Error"] for each in told["Containers"])
    assert states(api) == before
    starts = [api.inspect(each["Id"])["State"]["StartedAt"] for each in told["Containers"]]
    assert starts == sorted(starts)

    # That was for one restart: policies hold again, and so does --rm.
    api.post("/containers/passing/kill")
    until(lambda: "passing" not in states(api))
    own_engine.stop()
    own_engine.start()
    until(lambda: states(api)["ended"] == "running")


def test_docker_s_way_follows_the_policies(own_engine: EngineProcess) -> None:
    api = own_engine.api
    for name, host in (("plain", {}), ("policy", ALWAYS), ("unless", UNLESS_STOPPED)):
        api.run("sleep", "600", name=name, StopTimeout=0, HostConfig=host)
    api.run("sleep", "600", name="passing", StopTimeout=0, HostConfig={"AutoRemove": True})
    told = api.post("/desk/restart", {"PolicyOnly": True, "TimeoutSeconds": 20})
    assert (told["Pending"], told["Containers"]) == (0, [])
    own_engine.stop()
    own_engine.start()
    until(lambda: states(api) == {"plain": "exited", "policy": "running", "unless": "running"})


def test_what_cannot_come_back_is_told_with_the_reason(own_engine: EngineProcess) -> None:
    api = own_engine.api
    ports = {"PortBindings": {"80/tcp": [{"HostPort": "8091"}]}}
    api.run("sleep", "600", name="first", StopTimeout=0, HostConfig=ports)
    api.run("sleep", "600", name="gone", StopTimeout=0)
    api.post("/desk/restart", {"TimeoutSeconds": 20})
    # Somebody takes the port, and removes a container, before the machine goes down.
    api.run("sleep", "600", name="second", HostConfig=ports)
    api.delete("/containers/gone")
    own_engine.kill()
    own_engine.start()
    first, gone = settled(api)["Containers"]
    assert (first["After"], gone["After"], gone["Error"]) == ("exited", "removed", "")
    assert "8091" in first["Error"]
    assert api.inspect("second")["State"]["Running"]

    assert api.error("POST", "/desk/restart", {"TimeoutSeconds": -1}).status == 400
    api.delete("/containers/second", force=True)
    # What is still owed is not forgotten by a second restart.
    api.post("/containers/first/start")
    api.post("/desk/restart", {"TimeoutSeconds": 20})
    assert api.post("/desk/restart", {"TimeoutSeconds": 20})["Pending"] == 1
    own_engine.kill()
    own_engine.start()
    assert [each["After"] for each in settled(api)["Containers"]] == ["running"]
