"""An engine that is killed at random moments while networks change: after the next start what is in
the kernel is what the engine says, nothing is stray, and the same request completes.

``DESK_TEST_KILLS`` is how often each operation is killed (twice unless said), ``DESK_TEST_SEED``
the seed of the moments; both are in the text of a failure.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

import pytest
from tests.engine_process import Api, ApiError, EngineProcess, running_engine, until

KILLS = int(os.environ.get("DESK_TEST_KILLS", "2"))
SEED = int(os.environ.get("DESK_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
GRACE = 1.3  # moments up to somewhat after the end of the operation
PORT = 18080
SUBNETS = {"lan": "10.81.0.0/24", "next": "10.82.0.0/24", "aaa": "10.83.0.0/24"}

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(120 + 30 * KILLS)]


class Stage:
    """The engine that is killed, and the operations on its networks; each can be undone."""

    def __init__(self, engine: EngineProcess) -> None:
        self.engine = engine

    @property
    def api(self) -> Api:
        return self.engine.api

    def create(self) -> None:
        config = {"Subnet": SUBNETS["next"]}
        self.api.post("/networks/create", {"Name": "next", "IPAM": {"Config": [config]}})

    def remove(self) -> None:
        self.api.delete("/networks/next")

    def create_macvlan(self) -> None:
        config = {"Subnet": SUBNETS["next"]}
        body = {"Driver": "macvlan", "Options": {"parent": "up0"}, "IPAM": {"Config": [config]}}
        self.api.post("/networks/create", {"Name": "next", **body})

    def connect(self) -> None:
        """To the network that then has the container's default route and published port."""
        self.api.post("/networks/aaa/connect", {"Container": "box"})

    def disconnect(self) -> None:
        self.api.post("/networks/aaa/disconnect", {"Container": "box"})

    def connect_macvlan(self) -> None:
        self.api.post("/networks/up/connect", {"Container": "box"})

    def disconnect_macvlan(self) -> None:
        self.api.post("/networks/up/disconnect", {"Container": "box"})

    # --- what there is --------------------------------------------------------------------------

    def run(self, *command: str) -> Any:
        shown = subprocess.run(
            self.engine.inside_network(*command), check=True, capture_output=True, text=True
        )
        return json.loads(shown.stdout or "[]")

    def in_kernel(self) -> dict[str, Any]:
        """Return what is in the kernel, without the names that chance gives."""
        links = self.run("ip", "-json", "-details", "link")
        kinds = [link.get("linkinfo", {}).get("info_kind", "") for link in links]
        bridges = {
            link["ifname"] for link, kind in zip(links, kinds, strict=True) if kind == "bridge"
        }
        pid = self.api.inspect("box")["State"]["Pid"]
        enter = ("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-json")
        inner = self.run(*enter, "address")
        rules = self.run("nft", "-j", "list", "ruleset")["nftables"]
        sets = {
            item["name"]: len(item.get("elem", []))
            for rule in rules
            for item in rule.values()
            if isinstance(item, dict) and "elem" in item and item.get("family") == "inet"
        }
        return {
            "bridges": bridges,
            "veths": kinds.count("veth"),
            "others": sorted(set(kinds) - {"veth", "bridge", ""}),
            "addresses": {
                address["local"]
                for link in inner
                for address in link["addr_info"]
                if address["scope"] == "global"
            },
            "interfaces": len(inner),
            "gateways": [
                route.get("gateway")
                for route in self.run(*enter, "route")
                if route["dst"] == "default"
            ],
            "sets": sets,
            "tables": sum("table" in rule for rule in rules),
        }

    def as_told(self) -> dict[str, Any]:
        """Return what the engine says there should be."""
        shown = [self.api.get(f"/networks/{n['Id']}") for n in self.api.get("/networks")]
        bridged = [network for network in shown if network["Driver"] == "bridge"]
        box = self.api.inspect("box")["NetworkSettings"]
        gateways = {
            name: place["Gateway"] for name, place in box["Networks"].items() if place["Gateway"]
        }
        return {
            "bridges": {
                network["Options"].get("com.docker.network.bridge.name", f"br-{network['Id'][:12]}")
                for network in bridged
            },
            # One more for each end of the pair that the macvlan network has as its parent.
            "veths": sum(len(network["Containers"]) for network in bridged) + 2,
            "others": [],
            "addresses": {place["IPAddress"] for place in box["Networks"].values()},
            "interfaces": 1 + len(box["Networks"]),
            "gateways": [gateways[min(gateways)]],
            "published": PORT if box["Ports"].get("80/tcp") else 0,
            "sets": {
                "bridges": len(bridged),
                "open": len(bridged),
                "local": len(bridged),
                "masqueraded": len(bridged),
                "published": 1,
                "published6": 1,
            },
            "tables": 1,
        }

    def check(self) -> None:
        self.api.get("/networks")  # answered when the networks are set up
        told = self.as_told()
        published = told.pop("published")
        assert published == PORT
        until(lambda: self._agrees(told) or None, 30)

    def _agrees(self, told: dict[str, Any]) -> bool:
        found = self.in_kernel()
        found["sets"] = {name: found["sets"].get(name, 0) for name in told["sets"]}
        told["sets"]["published6"] = found["sets"]["published6"]
        self.difference = (found, told)
        return found == told


OPERATIONS = {
    "create": ("create", "remove"),
    "create-macvlan": ("create_macvlan", "remove"),
    "remove": ("remove", "create"),
    "connect": ("connect", "disconnect"),
    "disconnect": ("disconnect", "connect"),
    "connect-macvlan": ("connect_macvlan", "disconnect_macvlan"),
    "disconnect-macvlan": ("disconnect_macvlan", "connect_macvlan"),
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with running_engine() as engine:
        make = "ip link add up0 type veth peer name up1 && ip link set up0 up && ip link set up1 up"
        subprocess.run(engine.inside_network("sh", "-c", make), check=True)
        stage = Stage(engine)
        for name in ("lan", "aaa"):
            config = {"Subnet": SUBNETS[name]}
            stage.api.post("/networks/create", {"Name": name, "IPAM": {"Config": [config]}})
        config = {"Subnet": "10.84.0.0/24", "Gateway": "10.84.0.254"}
        body = {"Driver": "macvlan", "Options": {"parent": "up0"}, "IPAM": {"Config": [config]}}
        stage.api.post("/networks/create", {"Name": "up", **body})
        stage.api.run(
            *("sleep", "3600"),
            name="box",
            HostConfig={
                "NetworkMode": "lan",
                "PortBindings": {"80/tcp": [{"HostPort": str(PORT)}]},
            },
        )
        yield stage
        subprocess.run(engine.inside_network("ip", "link", "delete", "up0"), check=True)


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_random_moments(stage: Stage, name: str) -> None:
    do, undo = (getattr(stage, method) for method in OPERATIONS[name])
    if name.startswith(("remove", "disconnect")):
        undo()
    stage.check()
    begun = time.monotonic()
    do()
    took_s = time.monotonic() - begun
    undo()
    moments = random.Random(SEED ^ crc32(name.encode()))
    for number in range(KILLS):
        at_s = moments.uniform(0, took_s * GRACE)
        said = f"{name} number {number}, killed after {at_s:.4f} s (seed {SEED})"
        killed_during(stage, do, at_s)
        stage.engine.start()
        try:
            stage.check()
            answer = status_of(do)
            assert answer in (0, 403, 404, 409), answer  # the first try may have completed
            stage.check()
            undo()
            stage.check()
        except AssertionError as error:
            raise AssertionError(f"{said}: {getattr(stage, 'difference', '')}") from error
    if name.startswith(("remove", "disconnect")):
        do()


def status_of(do: Callable[[], None]) -> int:
    try:
        do()
    except ApiError as error:
        return error.status
    return 0


def killed_during(stage: Stage, do: Any, at_s: float) -> None:
    def ask() -> None:
        with contextlib.suppress(OSError, ApiError, http.client.HTTPException):
            do()

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(at_s)
    stage.engine.kill()
    asking.join(60)
