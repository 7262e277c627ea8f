"""Checks of a container's wishes about names, addresses and its terminal."""

from __future__ import annotations

from deskd.domain.container import HostConfig
from deskd.errors import InvalidArgument

HOST_GATEWAY = "host-gateway"
MAX_CONSOLE_SIZE = 65535


def check_wishes(host_config: HostConfig) -> None:
    """Raise ``InvalidArgument`` for what the API's texts may hold and no container can have."""
    for text in host_config.extra_hosts or ():
        name, separator, address = text.replace("=", ":", 1).partition(":")
        if not name or not separator or not (address == HOST_GATEWAY or _is_address(address)):
            raise InvalidArgument(
                f"bad format for add-host: {text[:200]!r}; write it as in 'name:192.0.2.1'"
            )
    for text in host_config.dns or ():
        if not _is_address(text):
            raise InvalidArgument(f"invalid DNS server {text[:200]!r}: give its address")
    if any(not 0 <= value <= MAX_CONSOLE_SIZE for value in host_config.console_size):
        rows, columns = host_config.console_size
        raise InvalidArgument(
            f"invalid ConsoleSize [{rows}, {columns}]: give rows and columns of 0 to "
            f"{MAX_CONSOLE_SIZE}"
        )


def _is_address(text: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True
