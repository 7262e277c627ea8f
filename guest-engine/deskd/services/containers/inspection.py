"""What ``inspect`` shows of a container: every field of the API's ``ContainerInspectResponse``."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from deskd.domain.container import EndpointSettings, HostConfig, whole
from deskd.domain.state import ContainerRecord, Health, MountPoint, State, Status
from deskd.domain.times import NEVER, rfc3339
from deskd.images.catalog import Catalog
from deskd.kernel import apparmor
from deskd.layout import DataRoot
from deskd.runtime.confinement import security_options
from deskd.services.containers.links import Links
from deskd.services.containers.merging import as_list
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.ports import RootFilesystems
from deskd.storage.sizes import size_bytes

DRIVER = "overlay2"


class Inspection:
    """Renders containers in full."""

    def __init__(
        self,
        registry: ContainerRegistry,
        catalog: Catalog,
        roots: RootFilesystems,
        layout: DataRoot,
    ) -> None:
        self._registry = registry
        self._links = Links(registry)
        self._catalog = catalog
        self._roots = roots
        self._layout = layout

    async def inspect(self, reference: str, *, size: bool = False) -> dict[str, Any]:
        """Return the container. ``size`` adds ``SizeRw`` and ``SizeRootFs`` (bytes)."""
        container = self._registry.get(reference)
        record = container.record
        rendered = {
            "Id": record.id,
            "Created": rfc3339(record.created_ns),
            "Path": record.path,
            "Args": record.args,
            "State": render_state(record.state),
            "Image": record.image_id,
            "ResolvConfPath": self._file_path(record, "resolv.conf"),
            "HostnamePath": self._file_path(record, "hostname"),
            "HostsPath": self._file_path(record, "hosts"),
            "LogPath": (
                record.log_path if record.host_config.log_config.type == "json-file" else ""
            ),
            "Name": f"/{record.name}",
            "RestartCount": record.restart_count,
            "Driver": DRIVER,
            "Platform": record.platform,
            "MountLabel": "",
            "ProcessLabel": "",
            "AppArmorProfile": _apparmor_profile(record),
            "ExecIDs": list(container.exec_ids) or None,
            "HostConfig": {
                **render_host_config(record.host_config),
                "Links": self._links.shown(record),
            },
            "GraphDriver": self._graph_driver(record),
            "Mounts": [render_mount(point) for point in record.mounts],
            "Config": render_config(record),
            "NetworkSettings": self._network_settings(container),
        }
        if size:
            rendered.update(await self.sizes(container))
        return rendered

    async def sizes(self, container: Container) -> dict[str, int]:
        """Measure the writable part and the whole root, in bytes."""
        own = await asyncio.to_thread(size_bytes, self._roots.upper(container.id))
        image = self._catalog.by_id(container.record.image_id)
        return {"SizeRw": own, "SizeRootFs": own + (image.size_bytes if image else 0)}

    def _file_path(self, record: ContainerRecord, name: str) -> str:
        if not record.state.running:
            return ""  # they are written for each start and gone after its end
        return self._layout.container_file(record.id, name)

    def _graph_driver(self, record: ContainerRecord) -> dict[str, Any]:
        if record.state.status in (Status.REMOVING, Status.DEAD):
            return {"Name": DRIVER, "Data": None}
        container_id = record.id
        data = {
            "LowerDir": ":".join(self._roots.lower_directories(container_id)),
            "UpperDir": self._roots.upper(container_id),
            "WorkDir": self._layout.container_file(container_id, "work"),
        }
        return {"Name": DRIVER, "Data": data}

    def _network_settings(self, container: Container) -> dict[str, Any]:
        record = container.record
        networks = render_networks(record)
        # The flat fields are those of the default bridge, as they were before networks had names.
        bridge = networks.get("bridge", {})
        pid = record.state.pid
        return {
            "Bridge": "",
            "SandboxID": record.id if pid else "",
            "SandboxKey": f"/proc/{pid}/ns/net" if pid else "",
            "Ports": render_ports(record),
            "HairpinMode": False,
            "LinkLocalIPv6Address": "",
            "LinkLocalIPv6PrefixLen": 0,
            "SecondaryIPAddresses": None,
            "SecondaryIPv6Addresses": None,
            "EndpointID": bridge.get("EndpointID", ""),
            "Gateway": bridge.get("Gateway", ""),
            "GlobalIPv6Address": bridge.get("GlobalIPv6Address", ""),
            "GlobalIPv6PrefixLen": bridge.get("GlobalIPv6PrefixLen", 0),
            "IPAddress": bridge.get("IPAddress", ""),
            "IPPrefixLen": bridge.get("IPPrefixLen", 0),
            "IPv6Gateway": bridge.get("IPv6Gateway", ""),
            "MacAddress": bridge.get("MacAddress", ""),
            "Networks": networks,
        }


def _apparmor_profile(record: ContainerRecord) -> str:
    """Return the profile of a container that has been started, where the kernel has profiles."""
    if not record.state.started_at_ns or not apparmor.is_enabled():
        return ""
    host = record.host_config
    asked = security_options(host.security_opt or (), privileged=host.privileged).apparmor
    return apparmor.default_profile() if asked == apparmor.DEFAULT_PROFILE else asked


def render_state(state: State) -> dict[str, Any]:
    """Return ``ContainerState``."""
    restarting = state.status is Status.RESTARTING
    finished = rfc3339(state.finished_at_ns) if state.finished_at_ns else NEVER
    rendered: dict[str, Any] = {
        "Status": str(state.status),
        "Running": state.running or restarting,
        "Paused": state.status is Status.PAUSED,
        "Restarting": restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.status is Status.DEAD,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_at_ns),
        "FinishedAt": finished,
    }
    if state.health is not None:
        rendered["Health"] = _render_health(state.health)
    return rendered


def _render_health(health: Health) -> dict[str, Any]:
    return {
        "Status": str(health.status),
        "FailingStreak": health.failing_streak,
        "Log": [
            {
                "Start": rfc3339(result.start_ns),
                "End": rfc3339(result.end_ns),
                "ExitCode": result.exit_code,
                "Output": result.output,
            }
            for result in health.log
        ],
    }


def render_config(record: ContainerRecord) -> dict[str, Any]:
    """Return ``ContainerConfig`` as it took effect."""
    config = record.config
    rendered: dict[str, Any] = whole(config)
    rendered["Cmd"] = as_list(config.cmd) or None
    rendered["Entrypoint"] = None if config.entrypoint is None else as_list(config.entrypoint)
    rendered["Image"] = record.image_name
    rendered["Labels"] = config.labels or {}
    main = record.networks.get(record.host_config.network_mode)
    rendered["MacAddress"] = main.mac_address if main is not None else config.mac_address
    if config.healthcheck is not None:
        rendered["Healthcheck"] = _without_zeros(rendered["Healthcheck"])
    for name in ("Healthcheck", "StopTimeout", "Shell", "ExposedPorts", "StopSignal", "MacAddress"):
        if not rendered.get(name):
            rendered.pop(name, None)
    for name in ("ArgsEscaped", "NetworkDisabled"):
        if not rendered.get(name):
            rendered.pop(name, None)
    return rendered


def render_host_config(host_config: HostConfig) -> dict[str, Any]:
    """Return ``HostConfig``; Go clients expect maps and lists that may be null."""
    rendered: dict[str, Any] = whole(host_config)
    if host_config.mounts is not None:
        rendered["Mounts"] = [_without_zeros(mount) for mount in rendered["Mounts"]]
    for name in ("Mounts", "StorageOpt", "Tmpfs", "Sysctls", "Annotations", "Init"):
        if rendered.get(name) is None:
            rendered.pop(name, None)
    for name in ("CpuCount", "CpuPercent", "IOMaximumIOps", "IOMaximumBandwidth"):
        rendered.setdefault(name, 0)
    return rendered


def _render_endpoint(settings: EndpointSettings) -> dict[str, Any]:
    rendered = whole(settings)
    if rendered["IPAMConfig"]:
        rendered["IPAMConfig"] = _without_zeros(rendered["IPAMConfig"])
    return rendered


def _without_zeros(value: dict[str, Any]) -> dict[str, Any]:
    """Leave out the fields that Docker omits when they are empty."""
    return {
        name: _without_zeros(item) if isinstance(item, dict) else item
        for name, item in value.items()
        if item not in (None, "", 0, False)
    }


def render_mount(point: MountPoint) -> dict[str, Any]:
    """Return ``MountPoint``."""
    rendered: dict[str, Any] = {"Type": point.type}
    if point.name:
        rendered["Name"] = point.name
    rendered["Source"] = point.source
    rendered["Destination"] = point.destination
    if point.driver:
        rendered["Driver"] = point.driver
    rendered["Mode"] = point.mode
    rendered["RW"] = point.read_write
    rendered["Propagation"] = point.propagation
    return rendered


def render_networks(record: ContainerRecord) -> dict[str, dict[str, Any]]:
    """Return ``NetworkSettings.Networks``: what is held, or what was asked for."""
    rendered: dict[str, dict[str, Any]] = {}
    for name, wanted in record.networks.items():
        rendered[name] = _render_endpoint(wanted)
    for name, endpoint in record.endpoints.items():
        # A network may have been asked for by its ID; it is shown by its name.
        rendered.pop(endpoint.network_id, None)
        rendered[name] = _render_endpoint(granted(endpoint.settings, endpoint))
    return rendered


def granted(settings: EndpointSettings, endpoint: Any) -> EndpointSettings:
    """Return the settings with the IDs of the place that was given."""
    return msgspec.structs.replace(
        settings, network_id=endpoint.network_id, endpoint_id=endpoint.endpoint_id
    )


def render_ports(record: ContainerRecord) -> dict[str, list[dict[str, str]] | None]:
    """Return ``NetworkSettings.Ports``: published and merely exposed ones of a running
    container."""
    ports: dict[str, list[dict[str, str]] | None] = {}
    if not record.state.running:
        return ports
    for name in record.config.exposed_ports or {}:
        ports[name if "/" in name else f"{name}/tcp"] = None
    for endpoint in record.endpoints.values():
        for name, bindings in endpoint.ports.items():
            ports[name] = [
                {"HostIp": binding.host_ip, "HostPort": binding.host_port} for binding in bindings
            ] or None
    return ports
