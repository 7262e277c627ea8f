"""Pure rules of a container's creation: the image's configuration merged in, defaults, checks.

The texts of the refusals are those that Docker's users know.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from deskd.domain.container import (
    ContainerConfig,
    HealthConfig,
    HostConfig,
    LogConfig,
    PortBinding,
    RestartPolicy,
)
from deskd.domain.manifest import ARCHITECTURE_WORDS, SYSTEM_WORDS
from deskd.errors import InvalidArgument, NotFound, Unsupported
from deskd.kernel.cgroup.features import Features
from deskd.runtime import confinement
from deskd.runtime.log_options import check_log_options
from deskd.services.containers.resource_checks import check_ranges, check_resources

DEFAULT_SHM_BYTES = 64 * 1024 * 1024
RUNTIMES = ("", "desk", "runc", "io.containerd.runc.v2")
RESTART_POLICIES = ("", "no", "always", "unless-stopped", "on-failure")
PROTOCOLS = ("tcp", "udp", "sctp")


def as_list(value: list[str] | str | None) -> list[str]:
    """Return a command or entrypoint as a list; one string is one word."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def merge_config(given: ContainerConfig, image: ContainerConfig) -> ContainerConfig:
    """Return what the client gave, completed with what the image says."""
    entrypoint, cmd = as_list(given.entrypoint), as_list(given.cmd)
    if not entrypoint:
        if not cmd:
            cmd = as_list(image.cmd)
        if given.entrypoint is None:
            entrypoint = as_list(image.entrypoint)
    own_keys = {item.partition("=")[0] for item in given.env or []}
    inherited = [item for item in image.env or [] if item.partition("=")[0] not in own_keys]
    if entrypoint == [""]:
        given = msgspec.structs.replace(given, entrypoint=None)
        entrypoint = []  # `--entrypoint ""` takes the image's away
    return msgspec.structs.replace(
        given,
        user=given.user or image.user,
        # An empty list, which takes the image's away, too, stays what it is.
        entrypoint=entrypoint or (None if given.entrypoint is None else []),
        cmd=cmd or None,
        env=[*(given.env or []), *inherited] or None,
        exposed_ports=_joined(image.exposed_ports, given.exposed_ports),
        volumes=_joined(image.volumes, given.volumes),
        labels={**(image.labels or {}), **(given.labels or {})},
        working_dir=_clean(given.working_dir or image.working_dir),
        stop_signal=given.stop_signal or image.stop_signal,
        stop_timeout=given.stop_timeout if given.stop_timeout is not None else image.stop_timeout,
        shell=given.shell or image.shell,
        healthcheck=_merged_health(given.healthcheck, image.healthcheck),
    )


def _clean(path: str) -> str:
    """Return a directory without ``.`` and ``..``, as Docker shows it; ``""`` stays."""
    return os.path.normpath(path).replace("//", "/") if path else ""


def _joined(
    first: dict[str, dict[str, object] | None] | None,
    second: dict[str, dict[str, object] | None] | None,
) -> dict[str, dict[str, object] | None] | None:
    joined = {key: value or {} for key, value in {**(first or {}), **(second or {})}.items()}
    return joined or None  # type: ignore[return-value]  # dict is invariant in its values


def _merged_health(given: HealthConfig | None, image: HealthConfig | None) -> HealthConfig | None:
    if given is None or image is None:
        return given or image
    return HealthConfig(
        test=given.test or image.test,
        interval=given.interval or image.interval,
        timeout=given.timeout or image.timeout,
        retries=given.retries or image.retries,
        start_period=given.start_period or image.start_period,
        start_interval=given.start_interval or image.start_interval,
    )


def command_line(config: ContainerConfig) -> list[str]:
    """Return program and arguments. Raises ``InvalidArgument`` where there are none."""
    words = as_list(config.entrypoint) + as_list(config.cmd)
    if not words or (len(words) == 1 and not words[0]):
        raise InvalidArgument("no command specified")
    return words


def complete_host_config(
    host_config: HostConfig, *, cgroup_v2: bool, log_options: dict[str, str]
) -> HostConfig:
    """Return the host configuration with the defaults that ``inspect`` shows."""
    log = host_config.log_config
    changes = {
        "network_mode": (
            "bridge" if host_config.network_mode in ("", "default") else host_config.network_mode
        ),
        "shm_size": host_config.shm_size or DEFAULT_SHM_BYTES,
        "ipc_mode": host_config.ipc_mode or "private",
        "cgroupns_mode": host_config.cgroupns_mode or ("private" if cgroup_v2 else "host"),
        "runtime": host_config.runtime or "desk",
        "security_opt": _security_options(host_config),
        "restart_policy": (
            host_config.restart_policy
            if host_config.restart_policy.name
            else RestartPolicy(name="no")
        ),
        "log_config": LogConfig(
            type=log.type or "json-file",
            config=log.config or (dict(log_options) if log.type in ("", "json-file") else {}),
        ),
    }
    for name in ("cap_add", "cap_drop"):
        if isinstance(getattr(host_config, name), str):
            changes[name] = as_list(getattr(host_config, name))  # one word is a list of one
    if not host_config.privileged:
        if host_config.masked_paths is None:
            changes["masked_paths"] = list(confinement.MASKED_PATHS)
        if host_config.readonly_paths is None:
            changes["readonly_paths"] = list(confinement.READ_ONLY_PATHS)
    return msgspec.structs.replace(host_config, **changes)


def _security_options(host_config: HostConfig) -> list[str] | None:
    # As Docker: no SELinux label can be right where another's namespaces are entered.
    shares = host_config.pid_mode == "host" or host_config.ipc_mode == "host"
    given = host_config.security_opt
    if not (host_config.privileged or shares):
        return given
    if any(option.startswith("label=") for option in given or ()):
        return given
    return [*(given or ()), "label=disable"]


def check_host_config(host_config: HostConfig, features: Features) -> None:
    """Raise a named error for contradictions and impossible values."""
    if host_config.runtime not in RUNTIMES:
        raise InvalidArgument(f"unknown or invalid runtime name: {host_config.runtime}")
    if host_config.isolation.lower() not in ("", "default"):
        raise InvalidArgument(
            f"Invalid isolation: \"{host_config.isolation}\" - linux only supports 'default'"
        )
    check_ranges(host_config)
    check_resources(host_config, features)
    check_restart_policy(host_config.restart_policy)
    if host_config.auto_remove and host_config.restart_policy.name not in ("", "no"):
        raise InvalidArgument("can't create 'AutoRemove' container with restart policy")
    if host_config.shm_size < 0:
        raise InvalidArgument("SHM size can not be less than 0")
    if not -1000 <= host_config.oom_score_adj <= 1000:
        raise InvalidArgument(
            f"Invalid value {host_config.oom_score_adj}, range for oom score adj is [-1000, 1000]"
        )
    log = host_config.log_config
    check_log_options(log.type or "json-file", log.config or {})
    for name in host_config.storage_opt or {}:
        if name.lower() != "size":
            raise InvalidArgument(f"Unknown option {name}")
        raise Unsupported(
            "--storage-opt is supported only for overlay over xfs with 'pquota' mount option, "
            "which this engine does not use: leave it out"
        )
    for given, bindings in (host_config.port_bindings or {}).items():
        parse_port(given)
        for binding in bindings or []:
            _check_binding(given, binding)
    for name in host_config.tmpfs or {}:
        check_mount_target(name)
    _check_modes(host_config)


def _check_modes(host_config: HostConfig) -> None:
    network = host_config.network_mode
    if network.startswith("container:") or network == "host":
        if network.startswith("container:") and not network.partition(":")[2]:
            raise InvalidArgument("invalid container format container:<name|id>")
        if host_config.links:
            kind = "host" if network == "host" else "container"
            raise InvalidArgument(
                f"conflicting options: {kind} type networking can't be used with links. This "
                "would result in undefined behavior"
            )
    for value, name, words in (
        (host_config.pid_mode, "PID", ("", "host")),
        (host_config.ipc_mode, "IPC", ("", "none", "host", "private", "shareable")),
        (host_config.uts_mode, "UTS", ("", "host")),
        (host_config.userns_mode, "user namespace", ("", "host")),
        (host_config.cgroupns_mode, "cgroup namespace", ("", "host", "private")),
    ):
        shared = name in ("PID", "IPC") and value.startswith("container:") and value[10:]
        if value not in words and not shared:
            raise InvalidArgument(f"invalid {name} mode: {value}")


def check_restart_policy(policy: RestartPolicy) -> None:
    """Raise ``InvalidArgument`` for an unknown policy or a count where none belongs."""
    if policy.name not in RESTART_POLICIES:
        raise InvalidArgument(
            f"invalid restart policy: unknown policy '{policy.name}'; use one of 'no', 'always', "
            "'on-failure', or 'unless-stopped'"
        )
    if policy.name not in ("", "on-failure") and policy.maximum_retry_count:
        raise InvalidArgument(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
        )
    if policy.maximum_retry_count < 0:
        raise InvalidArgument("invalid restart policy: maximum retry count cannot be negative")


def parse_port(text: str) -> tuple[int, str]:
    """Read ``80/tcp`` or ``80``. Raises ``InvalidArgument``."""
    number, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if not number.isascii() or not number.isdigit() or not 0 < int(number[:6]) < 65536:
        raise InvalidArgument(f"invalid port specification: {text!r}")
    if protocol not in PROTOCOLS:
        raise InvalidArgument(f"invalid proto: {protocol}; use one of {', '.join(PROTOCOLS)}")
    return int(number), protocol


def _check_binding(given: str, binding: PortBinding) -> None:
    parts = binding.host_port.split("-")
    if binding.host_port and not (
        len(parts) <= 2 and all(p.isascii() and p.isdigit() and int(p[:6]) < 65536 for p in parts)
    ):
        raise InvalidArgument(f"invalid port specification: {binding.host_port!r} for {given}")
    if binding.host_ip:
        import ipaddress

        try:
            ipaddress.ip_address(binding.host_ip)
        except ValueError:
            raise InvalidArgument(
                f"invalid host address {binding.host_ip!r} for the port {given}"
            ) from None


def check_mount_target(path: str) -> str:
    """Return a clean absolute path inside a container. Raises ``InvalidArgument``."""
    if not path.startswith("/"):
        raise InvalidArgument(f"invalid mount path: '{path}' mount path must be absolute")
    clean = os.path.normpath(path)
    if clean.startswith("//"):
        clean = clean[1:]
    if clean == "/":
        raise InvalidArgument("invalid specification: destination can't be '/'")
    if "\0" in path:
        raise InvalidArgument("invalid mount path: it holds a zero byte")
    return clean


def volume_target(path: str) -> str:
    """Return where a VOLUME or ``-v PATH`` lies; a relative one counts from "/", as with Docker."""
    return check_mount_target(path if path.startswith("/") or not path else f"/{path}")


def check_platform(wanted: str, found: str, reference: str) -> None:
    """Raise ``NotFound`` where an image is for another platform than asked for."""
    if not wanted:
        return
    parts = wanted.lower().split("/")
    if len(parts) > 3 or not all(parts):
        raise InvalidArgument(f'"{wanted}" is an invalid platform; write os/architecture')
    if len(parts) == 1 and parts[0] not in {*SYSTEM_WORDS, *ARCHITECTURE_WORDS}:
        raise InvalidArgument(f'"{wanted}": unknown operating system or architecture')
    have = found.split("/")
    matches = parts[0] in have if len(parts) == 1 else parts[:2] == have[:2]
    if not matches:
        raise NotFound(
            f"image with reference {reference} was found but does not match the specified "
            f"platform: wanted {wanted}, actual: {found}"
        )


def duplicates(items: Sequence[str]) -> str | None:
    """Return the first item that is there twice, or None."""
    seen: set[str] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None
