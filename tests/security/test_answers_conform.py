"""Answers have the fields of the Engine API v1.47 with the types that its definitions give them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine_process import Api

pytestmark = pytest.mark.root

Shape = dict[str, Any]
LIST, MAP, NULL = list, dict, type(None)

STATE: Shape = {
    "Status": str, "Running": bool, "Paused": bool, "Restarting": bool, "OOMKilled": bool,
    "Dead": bool, "Pid": int, "ExitCode": int, "Error": str, "StartedAt": str, "FinishedAt": str,
}  # fmt: skip
CONFIG: Shape = {
    "Hostname": str, "Domainname": str, "User": str, "AttachStdin": bool, "AttachStdout": bool,
    "AttachStderr": bool, "Tty": bool, "OpenStdin": bool, "StdinOnce": bool,
    "Env": (LIST, NULL), "Cmd": (LIST, NULL), "Image": str, "Volumes": (MAP, NULL),
    "WorkingDir": str, "Entrypoint": (LIST, NULL), "Labels": (MAP, NULL),
}  # fmt: skip
HOST_CONFIG: Shape = {
    "Binds": (LIST, NULL), "NetworkMode": str, "PortBindings": (MAP, NULL),
    "RestartPolicy": {"Name": str, "MaximumRetryCount": int}, "AutoRemove": bool,
    "LogConfig": {"Type": str, "Config": (MAP, NULL)}, "CapAdd": (LIST, NULL),
    "CapDrop": (LIST, NULL), "Dns": (LIST, NULL), "IpcMode": str, "PidMode": str,
    "Privileged": bool, "ReadonlyRootfs": bool, "ShmSize": int, "Memory": int, "MemorySwap": int,
    "NanoCpus": int, "PidsLimit": (int, NULL), "Ulimits": (LIST, NULL), "MaskedPaths": (LIST, NULL),
    "ReadonlyPaths": (LIST, NULL), "ConsoleSize": LIST,
}  # fmt: skip
NETWORKS: Shape = {
    "bridge": {
        "NetworkID": str, "EndpointID": str, "Gateway": str, "IPAddress": str, "IPPrefixLen": int,
        "MacAddress": str, "Aliases": (LIST, NULL), "DriverOpts": (MAP, NULL),
    }
}  # fmt: skip
INSPECT: Shape = {
    "Id": str, "Created": str, "Path": str, "Args": LIST, "State": STATE, "Image": str,
    "ResolvConfPath": str, "HostnamePath": str, "HostsPath": str, "LogPath": str, "Name": str,
    "RestartCount": int, "Driver": str, "Platform": str, "MountLabel": str, "ProcessLabel": str,
    "AppArmorProfile": str, "ExecIDs": (LIST, NULL), "HostConfig": HOST_CONFIG, "Mounts": LIST,
    "Config": CONFIG, "NetworkSettings": {"SandboxID": str, "Ports": MAP, "Networks": NETWORKS},
}  # fmt: skip
SUMMARY: Shape = {
    "Id": str, "Names": LIST, "Image": str, "ImageID": str, "Command": str, "Created": int,
    "Ports": LIST, "Labels": MAP, "State": str, "Status": str, "HostConfig": {"NetworkMode": str},
    "NetworkSettings": {"Networks": NETWORKS}, "Mounts": LIST,
}  # fmt: skip
STATS: Shape = {
    "read": str, "preread": str, "name": str, "id": str, "num_procs": int, "pids_stats": MAP,
    "blkio_stats": MAP, "storage_stats": MAP, "memory_stats": {"usage": int, "limit": int},
    "cpu_stats": {"cpu_usage": {"total_usage": int}, "online_cpus": int, "throttling_data": MAP},
    "networks": {"eth0": {"rx_bytes": int, "tx_bytes": int}},
}  # fmt: skip
EXEC: Shape = {
    "ID": str, "Running": bool, "ExitCode": (int, NULL), "OpenStdin": bool, "OpenStderr": bool,
    "OpenStdout": bool, "ContainerID": str, "Pid": int,
    "ProcessConfig": {"tty": bool, "entrypoint": str, "arguments": LIST, "privileged": bool},
}  # fmt: skip
VERSION: Shape = {
    "Version": str, "ApiVersion": str, "MinAPIVersion": str, "Os": str, "Arch": str,
    "KernelVersion": str, "Components": LIST, "Platform": {"Name": str},
}  # fmt: skip
INFO: Shape = {
    "ID": str, "Containers": int, "ContainersRunning": int, "ContainersPaused": int,
    "ContainersStopped": int, "Images": int, "Driver": str, "DockerRootDir": str, "NCPU": int,
    "MemTotal": int, "Name": str, "ServerVersion": str, "SecurityOptions": LIST, "Warnings":
    (LIST, NULL), "Plugins": MAP, "RegistryConfig": (MAP, NULL), "Swarm": MAP,
    "CgroupVersion": str, "OSType": str, "Architecture": str,
}  # fmt: skip
NETWORK: Shape = {
    "Name": str, "Id": str, "Created": str, "Scope": str, "Driver": str, "EnableIPv6": bool,
    "IPAM": {"Driver": str, "Config": LIST}, "Internal": bool, "Attachable": bool,
    "Ingress": bool, "Containers": MAP, "Options": (MAP, NULL), "Labels": (MAP, NULL),
}  # fmt: skip


def problems(answer: Any, shape: Any, where: str = "") -> list[str]:
    """Name what an answer lacks or has with another type."""
    if isinstance(shape, dict):
        if not isinstance(answer, dict):
            return [f"{where} is no object: {answer!r}"]
        found = [f"{where}.{name} is missing" for name in shape if name not in answer]
        for name, inner in shape.items():
            if name in answer:
                found += problems(answer[name], inner, f"{where}.{name}")
        return found
    kinds = shape if isinstance(shape, tuple) else (shape,)
    # In Python True is an int, in JSON it is none.
    fits = isinstance(answer, kinds) and (bool in kinds or not isinstance(answer, bool))
    return [] if fits else [f"{where} is {answer!r}"]


def test_answers_have_the_fields_of_the_api(api: Api) -> None:
    container = api.run("sleep", "60", name="conforming")
    made = api.post(f"/containers/{container}/exec", {"Cmd": ["true"]})["Id"]
    (listed,) = api.get("/containers/json")
    pairs = [
        (api.inspect(container), INSPECT),
        (listed, SUMMARY),
        (api.get(f"/containers/{container}/stats", stream=False, **{"one-shot": True}), STATS),
        (api.get(f"/containers/{container}/top"), {"Titles": LIST, "Processes": LIST}),
        (api.get(f"/exec/{made}/json"), EXEC),
        (api.get("/version"), VERSION),
        (api.get("/info"), INFO),
        (api.get("/networks/bridge"), NETWORK),
        (api.post("/containers/prune"), {"ContainersDeleted": (LIST, NULL), "SpaceReclaimed": int}),
        (api.get("/system/df"), {"Images": LIST, "Containers": LIST, "Volumes": LIST}),
        (api.get("/volumes"), {"Volumes": LIST, "Warnings": (LIST, NULL)}),
    ]
    found = [problem for answer, shape in pairs for problem in problems(answer, shape)]
    assert found == []
