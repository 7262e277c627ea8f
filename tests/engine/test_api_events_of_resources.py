"""Events of networks and volumes around a container's run, in Docker's order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine_process import Api, EngineProcess, Hijacked

pytestmark = pytest.mark.root


def until_destroy(events: Iterator[Any]) -> list[Any]:
    """Read up to a container's removal."""
    found = []
    for event in events:
        found.append(event)
        if (event["Type"], event["Action"]) == ("container", "destroy"):
            return found
    raise AssertionError("the events ended")


def test_networks_and_volumes_are_told_around_a_run(api: Api) -> None:
    api.post("/volumes/create", {"Name": "vol"})
    network = api.post("/networks/create", {"Name": "net1"})["Id"]
    host = {"Binds": ["vol:/data:ro"], "NetworkMode": "net1"}
    with api.events() as events:
        container = api.run("sleep", "60", HostConfig=host)
        api.delete(f"/containers/{container}", force=1)
        found = until_destroy(events)
    actions = [f"{event['Type']} {event['Action']}" for event in found]
    assert actions == [
        "container create",
        "network connect",
        "volume mount",
        "container start",
        "container kill",
        "network disconnect",
        "volume unmount",
        "container die",
        "container destroy",
    ]
    actors = [event["Actor"] for event in found]
    place = {"container": container, "name": "net1", "type": "bridge"}
    assert actors[1] == actors[5] == {"ID": network, "Attributes": place}
    assert actors[2] == {
        "ID": "vol",
        "Attributes": {
            "container": container,
            "destination": "/data",
            "driver": "local",
            "propagation": "",
            "read/write": "false",
        },
    }
    assert actors[6] == {"ID": "vol", "Attributes": {"container": container, "driver": "local"}}


def test_a_container_without_network_is_in_the_network_none(api: Api) -> None:
    with api.events(filters={"type": ["network"], "event": ["connect", "disconnect"]}) as events:
        container = api.run("true", HostConfig={"NetworkMode": "none"})
        api.wait(container)
        found = [next(events), next(events)]
    attributes = {"container": container, "name": "none", "type": "null"}
    assert [event["Action"] for event in found] == ["connect", "disconnect"]
    assert all(event["Actor"]["Attributes"] == attributes for event in found)


def test_an_attached_container_keeps_its_networks_driver_over_a_stop(api: Api) -> None:
    network = api.post("/networks/create", {"Name": "net2"})["Id"]
    container = api.run("sleep", "60")
    api.post(f"/networks/{network}/connect", {"Container": container})
    with api.events(filters={"event": ["disconnect"]}) as events:
        api.post(f"/containers/{container}/kill")
        names = {next(events)["Actor"]["Attributes"]["name"] for _ in range(2)}
    assert names == {"bridge", "net2"}


def test_execs_are_told_also_where_the_program_is_missing(api: Api) -> None:
    container = api.run("sleep", "60")
    wanted = ["exec_create", "exec_start", "exec_die"]
    with api.events(filters={"event": wanted}) as events:
        missing = api.post(f"/containers/{container}/exec", {"Cmd": ["nosuch", "a"]})["Id"]
        api.error("POST", f"/exec/{missing}/start", {"Detach": True})
        present = api.post(f"/containers/{container}/exec", {"Cmd": ["sh", "-c", "exit 4"]})["Id"]
        api.post(f"/exec/{present}/start", {"Detach": True})
        found = [next(events) for _ in range(5)]
    assert [(event["Action"], event["Actor"]["Attributes"]["execID"]) for event in found] == [
        ("exec_create: nosuch a", missing),
        ("exec_start: nosuch a", missing),
        ("exec_create: sh -c exit 4", present),
        ("exec_start: sh -c exit 4", present),
        ("exec_die", present),
    ]
    with api.events(filters={"event": ["exec_create"]}) as events:
        api.post(f"/containers/{container}/exec", {"Cmd": ["true"]})
        assert next(events)["Action"] == "exec_create: true "  # programs that match it know this
    assert found[-1]["Actor"]["Attributes"]["exitCode"] == "4"


def test_a_stop_is_told_before_the_end_and_the_end_before_the_removal(api: Api) -> None:
    host = {"AutoRemove": True, "Binds": ["/anonymous"]}
    with api.events() as events:
        container = api.run("sleep", "60", HostConfig=host)
        api.post(f"/containers/{container}/stop", t=0)
        found = until_destroy(events)
    actions = [f"{event['Type']} {event['Action']}" for event in found]
    assert actions[actions.index("container start") + 1 :] == [
        "container kill",
        "container kill",
        "network disconnect",
        "volume unmount",
        "container stop",
        "container die",
        "volume destroy",
        "container destroy",
    ]


def test_a_restart_is_told_after_its_stop_and_start(api: Api) -> None:
    container = api.run("sleep", "60")
    wanted = ["kill", "stop", "die", "start", "restart"]
    with api.events(filters={"event": wanted, "container": [container]}) as events:
        api.post(f"/containers/{container}/restart", t=0)
        found = [next(events)["Action"] for _ in range(6)]
    assert found == ["kill", "kill", "stop", "die", "start", "restart"]


def test_a_failed_start_tells_what_it_took_and_gave_back(engine: EngineProcess, api: Api) -> None:
    container = api.create("nosuch", HostConfig={"Binds": ["vol:/data"]})
    with api.events() as events:
        attached = Hijacked(engine.socket, f"/containers/{container}/attach?stream=1&stdout=1")
        api.error("POST", f"/containers/{container}/start")
        api.delete(f"/containers/{container}")
        found = until_destroy(events)
        attached.close()
    assert [f"{event['Type']} {event['Action']}" for event in found] == [
        "container attach",
        "network connect",
        "volume mount",
        "network disconnect",
        "volume unmount",
        "container destroy",
    ]


def test_a_stopped_container_joins_a_network_at_its_start(api: Api) -> None:
    network = api.post("/networks/create", {"Name": "net3"})["Id"]
    container = api.create("true")
    with api.events(filters={"event": ["connect", "start"]}) as events:
        api.post(f"/networks/{network}/connect", {"Container": container})
        api.post(f"/containers/{container}/start")
        found = [next(events)["Action"] for _ in range(3)]
    assert found == ["connect", "connect", "start"]


def test_unknown_filters_of_events_match_everything(api: Api) -> None:
    with api.events(filters={"nonsense": ["x"]}) as events:
        container = api.create("true")
        assert next(events)["Actor"]["ID"] == container
    error = api.error("GET", "/events", since=20, until=10)
    assert (error.status, error.message) == (
        400,
        "`since` time (20) cannot be after `until` time (10)",
    )
