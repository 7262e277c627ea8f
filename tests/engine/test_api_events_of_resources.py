"""Events of networks and volumes around a container's run, in Docker's order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.engine_process import Api

pytestmark = pytest.mark.root


def until_destroy(events: Iterator[Any]) -> list[Any]:
    found = []
    for event in events:
        found.append(event)
        if event["Action"] == "destroy":
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
        "container die",
        "network disconnect",
        "volume unmount",
        "container destroy",
    ]
    actors = [event["Actor"] for event in found]
    place = {"container": container, "name": "net1", "type": "bridge"}
    assert actors[1] == actors[6] == {"ID": network, "Attributes": place}
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
    assert actors[7] == {"ID": "vol", "Attributes": {"container": container, "driver": "local"}}


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
    assert found[-1]["Actor"]["Attributes"]["exitCode"] == "4"
