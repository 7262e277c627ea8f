"""The engine's answers have all fields of the Engine API v1.47, with the types that it gives them.

One container has something to tell in nearly every field: what is null or empty proves nothing.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine_api import differences, operations
from tests.engine_process import IMAGE, Api, until

pytestmark = pytest.mark.root

LEFT_OUT: dict[str, set[str]] = {
    "dockerd leaves it out where it is empty or false": {
        "ContainerInspect.Config.ArgsEscaped",
        "ContainerInspect.Config.NetworkDisabled",
        "ContainerInspect.HostConfig.Mounts[].BindOptions",
        "ContainerInspect.HostConfig.Mounts[].Consistency",
        "ContainerInspect.HostConfig.Mounts[].ReadOnly",
        "ContainerInspect.HostConfig.Mounts[].Source",
        "ContainerInspect.HostConfig.Mounts[].TmpfsOptions.Options",
        "ContainerInspect.HostConfig.Mounts[].VolumeOptions",
        "ContainerInspect.HostConfig.StorageOpt",
        "SystemInfo.Runtimes.*.runtimeArgs",
        "SystemVersion.Experimental",
    },
    "only volumes have it": {
        "ContainerInspect.Mounts[].Driver",
        "ContainerInspect.Mounts[].Name",
        "ContainerList[].Mounts[].Driver",
        "ContainerList[].Mounts[].Name",
        "SystemDataUsage.Containers[].Mounts[].Driver",
        "SystemDataUsage.Containers[].Mounts[].Name",
    },
    "Linux has no such limit any more (5.16)": {
        "ContainerInspect.HostConfig.KernelMemoryTCP",
        "SystemInfo.KernelMemoryTCP",
    },
    "only managers of a swarm have it": {
        "SystemDataUsage.Volumes[].ClusterVolume",
        "SystemInfo.Swarm.Cluster",
        "SystemInfo.Swarm.Managers",
        "SystemInfo.Swarm.Nodes",
    },
    "only a volume plugin has it": {"SystemDataUsage.Volumes[].Status"},
    "only a list of images that was asked for it has it": {"SystemDataUsage.Images[].Manifests"},
    "there is no containerd, and no runtime with OCI's own description of itself": {
        "SystemInfo.Containerd",
        "SystemInfo.Runtimes.*.status",
    },
    "the container ended without an error": {"ContainerWait.Error"},
}
NULL = {"ContainerInspect.HostConfig.MemorySwappiness", "ExecInspect.ExitCode"}
"""What has no value yet, and is null in dockerd, too."""
TOLD = (
    ("ContainerInspect", "State", "Health", "Log"),
    ("ContainerInspect", "NetworkSettings", "Networks"),
    ("ContainerInspect", "NetworkSettings", "Ports"),
    ("ContainerInspect", "Mounts"),
    ("ContainerInspect", "HostConfig", "Mounts"),
    ("ContainerInspect", "ExecIDs"),
    ("ContainerInspect", "GraphDriver", "Data"),
    ("ContainerList", 0, "Mounts"),
    ("ContainerList", 0, "Ports"),
    ("ContainerList", 0, "NetworkSettings", "Networks"),
    ("ContainerChanges",),
    ("ContainerPrune", "ContainersDeleted"),
    ("ContainerTop", "Processes"),
    ("SystemDataUsage", "Containers"),
    ("SystemDataUsage", "Images"),
    ("SystemDataUsage", "Volumes"),
    ("SystemEvents", "Actor", "Attributes"),
    ("SystemInfo", "DriverStatus"),
    ("SystemInfo", "Runtimes"),
    ("SystemInfo", "RegistryConfig", "IndexConfigs"),
    ("SystemVersion", "Components"),
)
"""Lists and maps that an empty one would tell nothing of."""
FULL: dict[str, Any] = {
    "Cmd": ["sh", "-c", "touch /changed; exec sleep 600"],
    "Hostname": "full",
    "MacAddress": "02:42:ac:11:00:77",
    "ExposedPorts": {"80/tcp": {}},
    "Healthcheck": {
        "Test": ["CMD", "true"],
        "Interval": 1_000_000_000,
        "Timeout": 60_000_000_000,
        "Retries": 3,
        "StartPeriod": 1_000_000_000,
        "StartInterval": 1_000_000_000,
    },
    "Labels": {"kind": "full"},
    "StopSignal": "SIGTERM",
    "StopTimeout": 1,
    "Shell": ["/bin/sh", "-c"],
    "HostConfig": {
        "Annotations": {"kind": "full"},
        "Binds": ["full-volume:/volume", "/usr/share:/bound:ro"],
        "Mounts": [
            {
                "Type": "tmpfs",
                "Target": "/scratch",
                "TmpfsOptions": {"SizeBytes": 65536, "Mode": 511},
            },
        ],
        "Tmpfs": {"/run": ""},
        "Sysctls": {"net.core.somaxconn": "100"},
        "Init": True,
        "PidsLimit": 100,
        "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
    },
}


def answers(api: Api) -> dict[str, Any]:
    """Ask the engine for everything; return its answers by operation."""
    with api.events(filters={"type": ["container"]}) as events:
        created = api.post("/containers/create", {"Image": IMAGE, **FULL}, name="full")
        event = next(events)
    api.post("/containers/full/start")
    until(lambda: api.inspect("full")["State"]["Health"]["Log"])
    exec_made = api.post("/containers/full/exec", {"Cmd": ["true"], "User": "0"})
    found = {
        "ContainerCreate": created,
        "ContainerExec": exec_made,
        "ExecInspect": api.get(f"/exec/{exec_made['Id']}/json"),
        "ContainerInspect": api.get("/containers/full/json", size=True),
        "ContainerList": api.get("/containers/json", size=True),
        "ContainerTop": api.get("/containers/full/top"),
        "ContainerChanges": api.get("/containers/full/changes"),
        "ContainerStats": api.get("/containers/full/stats", stream=False, **{"one-shot": True}),
        "ContainerUpdate": api.post("/containers/full/update", {"PidsLimit": 50}),
        "SystemDataUsage": api.get("/system/df"),
        "SystemInfo": api.get("/info"),
        "SystemVersion": api.get("/version"),
        "SystemEvents": event,
    }
    api.post("/containers/full/kill")
    found["ContainerWait"] = api.post("/containers/full/wait")
    found["ContainerPrune"] = api.post("/containers/prune")
    return found


def test_answers_have_all_fields(api: Api) -> None:
    found = answers(api)
    with_json = {key for key, operation in operations().items() if not_text(operation.answer)}
    assert with_json - set(found) == {"SystemAuth"}  # it needs a registry: test_api_login.py
    problems = {
        problem
        for name, answer in found.items()
        for problem in differences(answer, operations()[name].answer, name)
    }
    expected = {f"{place} is missing" for places in LEFT_OUT.values() for place in places}
    assert problems == expected | {f"{place} is None" for place in NULL}
    for place, *path in TOLD:
        value = found[str(place)]
        for key in path:
            value = value[key]
        assert value, (place, *path)


def not_text(shape: Any) -> bool:
    return shape is not None and shape != "string"
