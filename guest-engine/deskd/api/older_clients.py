"""What requests meant in older versions of the API, and what answers had.

A client says by its version which fields it knows. What came later is left out of its requests, as
older engines did, and defaults are those of the client's time; what went later is in its answers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from deskd.domain.container import ContainerConfig, HostConfig, Mount

Version = tuple[int, int]
_PREDEFINED = ("bridge", "host", "none", "default")


def create_config(version: Version, config: ContainerConfig) -> ContainerConfig:
    """Return the configuration as a client of ``version`` means it."""
    health = config.healthcheck
    if version < (1, 44) and health is not None and health.start_interval:
        health = msgspec.structs.replace(health, start_interval=0)
        return msgspec.structs.replace(config, healthcheck=health)
    return config


def create_host_config(version: Version, host: HostConfig) -> HostConfig:
    """Return the host configuration as a client of ``version`` means it."""
    changes: dict[str, object] = {}
    if version < (1, 25):
        changes["auto_remove"] = False  # the client removed by itself
    if version < (1, 40):
        changes["ipc_mode"] = host.ipc_mode or "shareable"
    if version < (1, 41):
        changes["cgroupns_mode"] = host.cgroupns_mode or "host"
    if version < (1, 43):
        changes["annotations"] = None
    if version < (1, 45) and host.mounts:
        changes["mounts"] = [_mount(version, mount) for mount in host.mounts]
    return msgspec.structs.replace(host, **changes) if changes else host


def knows_recursive_read_only(version: Version) -> bool:
    """Tell whether ``-v …:ro`` covers what is mounted below too for a client of ``version``."""
    return version >= (1, 44)


def create_warnings(version: Version, config: ContainerConfig) -> list[str]:
    """Return what a client of ``version`` is told of fields that it should no longer use."""
    if version >= (1, 44) and config.mac_address:
        return [
            "The container-wide MacAddress field is now deprecated. It should be specified in "
            "EndpointsConfig instead."
        ]
    return []


def shown_summaries(version: Version, shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the list of containers shows: it did without annotations."""
    if version < (1, 46):
        for summary in shown:
            summary["HostConfig"].pop("Annotations", None)
    return shown


def shown_container(version: Version, shown: dict[str, Any]) -> dict[str, Any]:
    """Return what ``inspect`` shows of a container: the names that ``DNSNames`` has since 1.45 were
    among the aliases."""
    if version >= (1, 45):
        return shown
    own = (shown["Id"][:12], shown["Config"]["Hostname"])
    for name, endpoint in shown["NetworkSettings"]["Networks"].items():
        if name not in _PREDEFINED:
            names = (*(endpoint["Aliases"] or ()), *own)
            endpoint["Aliases"] = list(dict.fromkeys(filter(None, names)))
    return shown


def shown_information(version: Version, shown: dict[str, Any]) -> dict[str, Any]:
    """Return what ``info`` shows: security options had no values, and there were drivers of
    execution."""
    if version >= (1, 25):
        return shown
    words = (option.partition(",")[0] for option in shown["SecurityOptions"])
    names = [word.removeprefix("name=") for word in words]
    return {**shown, "SecurityOptions": names, "ExecutionDriver": "<not supported>"}


def shown_disk_usage(version: Version, shown: dict[str, Any]) -> dict[str, Any]:
    """Return what ``system df`` shows: the sum of the build cache was a field of its own."""
    if version >= (1, 42):
        return shown
    return {**shown, "BuilderSize": sum(item["Size"] for item in shown["BuildCache"] or ())}


def _mount(version: Version, mount: Mount) -> Mount:
    volume, bind = mount.volume_options, mount.bind_options
    if volume is not None:
        volume = msgspec.structs.replace(volume, subpath="")
    if version < (1, 42) and bind is not None:
        bind = msgspec.structs.replace(bind, create_mountpoint=False)
    if version < (1, 40) and bind is not None:
        bind = msgspec.structs.replace(bind, non_recursive=False)
    return msgspec.structs.replace(mount, volume_options=volume, bind_options=bind)
