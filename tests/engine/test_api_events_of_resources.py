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
