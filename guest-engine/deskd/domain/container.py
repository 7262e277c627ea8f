"""Containers as the Engine API describes them: configuration, host configuration, state, record.

One definition serves the API (JSON by Docker's names), the database and the services. Field
names, types and zero values are those of ``ContainerConfig``, ``HostConfig`` and their parts in
the Docker Engine API v1.47. Go clients send ``null`` for empty lists and maps, hence the
optionals; readers write ``config.env or []``.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from msgspec import field

_NESTING = (dict, list)


def docker_name(name: str) -> str:
    """Render a field name as the API spells it (``cap_add`` becomes ``CapAdd``)."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


class ApiStruct(msgspec.Struct, rename=docker_name, kw_only=True, frozen=True):
    """Base of every structure that crosses the API: Docker's field names, unknown ones ignored."""


class StoredStruct(ApiStruct, frozen=True, omit_defaults=True):
    """One that is kept with containers: the database gets what differs from the defaults, a third
    of it all, and ``whole`` is what the API shows."""


def whole(structure: ApiStruct) -> dict[str, Any]:
    """Return a structure as the API shows it, with every field."""
    # A list of containers shows hundreds: what has its default is copied, not looked at.
    defaults, names = _shape(type(structure))
    shown = msgspec.to_builtins(structure)
    for key, value in shown.items():
        if isinstance(value, _NESTING):  # there may be structures within
            shown[key] = _plain(getattr(structure, names[key]))
    return {**defaults, **shown}


@functools.cache
def _shape(kind: type[ApiStruct]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the defaults of a structure, and its fields' own names, both by Docker's names."""
    fields = msgspec.structs.fields(kind)
    defaults = {
        field.encode_name: _plain(_default(field)) for field in fields if not field.required
    }
    return defaults, {field.encode_name: field.name for field in fields}


def _default(field: msgspec.structs.FieldInfo) -> Any:
    made = field.default_factory
    return field.default if made is msgspec.NODEFAULT else made()


def _plain(value: Any) -> Any:
    if isinstance(value, ApiStruct):
        return whole(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


class HealthConfig(StoredStruct, frozen=True):
    """``HealthConfig``: durations are nanoseconds; 0 means inherit."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    retries: int = 0
    start_period: int = 0
    start_interval: int = 0


class ContainerConfig(StoredStruct, frozen=True):
    """``ContainerConfig``: what does not depend on the host. ``cmd`` and ``entrypoint`` may come
    as one string (a shell word) or as a list."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, Any] | None] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | str | None = None
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, Any] | None] | None = None
    working_dir: str = ""
    entrypoint: list[str] | str | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: list[str] | None = None


class DeviceMapping(StoredStruct, frozen=True):
    """``DeviceMapping``: a host device node and the name and rights it has inside."""

    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = "rwm"


class DeviceRequest(StoredStruct, frozen=True):
    """``DeviceRequest``: what ``--gpus`` sends."""

    driver: str = ""
    count: int = 0
    device_ids: list[str] | None = field(default=None, name="DeviceIDs")
    capabilities: list[list[str]] | None = None
    options: dict[str, str] | None = None


class ThrottleDevice(StoredStruct, frozen=True):
    """``ThrottleDevice``: a block device path and a rate (bytes or operations a second)."""

    path: str = ""
    rate: int = 0


class WeightDevice(StoredStruct, frozen=True):
    """An element of ``BlkioWeightDevice``."""

    path: str = ""
    weight: int = 0


class Ulimit(StoredStruct, frozen=True):
    """An element of ``Ulimits``; -1 means unlimited."""

    name: str = ""
    soft: int = 0
    hard: int = 0


class RestartPolicy(StoredStruct, frozen=True):
    """``RestartPolicy``: ``no``, ``always``, ``unless-stopped``, ``on-failure`` or empty."""

    name: str = ""
    maximum_retry_count: int = 0


class LogConfig(StoredStruct, frozen=True):
    """``LogConfig``: driver name and its options."""

    type: str = ""
    config: dict[str, str] | None = None


class PortBinding(StoredStruct, frozen=True):
    """``PortBinding``: an empty ``host_port`` asks for a random one; ranges are ``"8000-8010"``."""

    host_ip: str = ""
    host_port: str = ""


class BindOptions(StoredStruct, frozen=True):
    """``Mount.BindOptions``."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class DriverConfig(StoredStruct, frozen=True):
    """``Mount.VolumeOptions.DriverConfig``."""

    name: str = ""
    options: dict[str, str] | None = None


class VolumeOptions(StoredStruct, frozen=True):
    """``Mount.VolumeOptions``."""

    no_copy: bool = False
    labels: dict[str, str] | None = None
    driver_config: DriverConfig | None = None
    subpath: str = ""


class TmpfsOptions(StoredStruct, frozen=True):
    """``Mount.TmpfsOptions``: size in bytes, mode as a decimal number."""

    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class Mount(StoredStruct, frozen=True):
    """``Mount``: one entry of ``--mount``."""

    target: str = ""
    source: str = ""
    type: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None


class HostConfig(StoredStruct, frozen=True):
    """``HostConfig`` with its ``Resources``: what depends on the host. Memory is bytes, CPU
    periods and quotas microseconds, ``nano_cpus`` billionths of a CPU."""

    cpu_shares: int = 0
    memory: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = field(
        default=None, name="BlkioDeviceReadIOps"
    )
    blkio_device_write_iops: list[ThrottleDevice] | None = field(
        default=None, name="BlkioDeviceWriteIOps"
    )
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[DeviceRequest] | None = None
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    nano_cpus: int = 0
    oom_kill_disable: bool | None = None
    init: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = field(default=0, name="IOMaximumIOps")
    io_maximum_bandwidth: int = field(default=0, name="IOMaximumBandwidth")
    binds: list[str] | None = None
    container_id_file: str = field(default="", name="ContainerIDFile")
    log_config: LogConfig = LogConfig()
    network_mode: str = ""
    port_bindings: dict[str, list[PortBinding] | None] | None = None
    restart_policy: RestartPolicy = RestartPolicy()
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    mounts: list[Mount] | None = None
    console_size: tuple[int, int] = (0, 0)
    annotations: dict[str, str] | None = None
    cap_add: list[str] | str | None = None
    cap_drop: list[str] | str | None = None
    cgroupns_mode: str = ""
    dns: list[str] | None = None
    dns_options: list[str] | None = None
    dns_search: list[str] | None = None
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = field(default="", name="UTSMode")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None


class EndpointIpamConfig(StoredStruct, frozen=True):
    """``EndpointIPAMConfig``: addresses asked for."""

    ipv4_address: str = field(default="", name="IPv4Address")
    ipv6_address: str = field(default="", name="IPv6Address")
    link_local_ips: list[str] | None = field(default=None, name="LinkLocalIPs")


class EndpointSettings(StoredStruct, frozen=True):
    """``EndpointSettings``: a container's place in one network, asked for and given."""

    ipam_config: EndpointIpamConfig | None = field(default=None, name="IPAMConfig")
    links: list[str] | None = None
    mac_address: str = ""
    aliases: list[str] | None = None
    driver_opts: dict[str, str] | None = None
    network_id: str = field(default="", name="NetworkID")
    endpoint_id: str = field(default="", name="EndpointID")
    gateway: str = ""
    ip_address: str = field(default="", name="IPAddress")
    ip_prefix_len: int = field(default=0, name="IPPrefixLen")
    ipv6_gateway: str = field(default="", name="IPv6Gateway")
    global_ipv6_address: str = field(default="", name="GlobalIPv6Address")
    global_ipv6_prefix_len: int = field(default=0, name="GlobalIPv6PrefixLen")
    dns_names: list[str] | None = field(default=None, name="DNSNames")


class NetworkingConfig(StoredStruct, frozen=True):
    """``NetworkingConfig`` of a create request: network name or ID to wanted endpoint."""

    endpoints_config: dict[str, EndpointSettings | None] | None = None
