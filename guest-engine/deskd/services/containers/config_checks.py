"""Checks of ``ContainerConfig``: what no container can have, whatever the host."""

from __future__ import annotations

from deskd.domain.container import ContainerConfig, HealthConfig
from deskd.domain.signals import parse_signal
from deskd.errors import InvalidArgument
from deskd.services.containers.merging import parse_port, volume_target

MAX_LABEL_BYTES = 64 * 1024
MAX_HOST_NAME_BYTES = 64  # sethostname(2)


def check_config(config: ContainerConfig) -> None:
    """Raise ``InvalidArgument`` for what no container can have."""
    for item in config.env or []:
        if not item.partition("=")[0] or "\0" in item:
            raise InvalidArgument(f"invalid environment variable: {item[:200]}")
    if config.working_dir and not config.working_dir.startswith("/"):
        raise InvalidArgument(
            f"the working directory '{config.working_dir}' is invalid, it needs to be an "
            "absolute path"
        )
    for name, value in (("hostname", config.hostname), ("domainname", config.domainname)):
        if len(value.encode()) > MAX_HOST_NAME_BYTES or not _fits_a_line(value):
            raise InvalidArgument(
                f"invalid {name} format: {value[:200]!r}; it may have {MAX_HOST_NAME_BYTES} bytes "
                "and no blanks"
            )
    for port in config.exposed_ports or {}:
        parse_port(port)
    for path in config.volumes or {}:
        volume_target(path)
    for key, value in (config.labels or {}).items():
        if len(key) + len(value) > MAX_LABEL_BYTES:
            raise InvalidArgument(
                f"the label {key[:60]}… is {len(key) + len(value)} bytes long, at most "
                f"{MAX_LABEL_BYTES} are allowed"
            )
    if config.stop_signal:
        parse_signal(config.stop_signal)
    _check_health(config.healthcheck)


def _fits_a_line(name: str) -> bool:
    """Say whether a name is one word of /etc/hosts. The kernel takes any other sign."""
    return name.isprintable() and not any(sign.isspace() or sign == "#" for sign in name)


def _check_health(health: HealthConfig | None) -> None:
    if health is None:
        return
    for name, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value != 0 and value < 1_000_000:
            raise InvalidArgument(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidArgument("Retries in Healthcheck cannot be negative")
