"""A machine as the network service sees it: an engine, requests, and looks from outside."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from deskd.domain.container import PortBinding
from deskd.domain.network import (
    EndpointRequest,
    PortRequest,
)
from deskd.network.service import NetworkService
from deskd.settings import Settings
from tests.network_namespaces import Container
from tests.network_records import MemoryRecords

ROOT = "/nonexistent/desk-test"


@contextlib.asynccontextmanager
async def engine(
    records: MemoryRecords | None = None, *, data_root: str = ROOT, **settings: Any
) -> AsyncIterator[NetworkService]:
    """An engine's networks, set up; closed at the end."""
    service = NetworkService(
        Settings(data_root=data_root, **settings),
        records if records is not None else MemoryRecords(),
    )
    try:
        await service.ready()
        yield service
    finally:
        await service.close()


def request(
    number: int, network: str = "bridge", *ports: PortRequest, **more: Any
) -> EndpointRequest:
    return EndpointRequest(f"{number:064x}", f"c{number}", network, ports=ports, **more)


def publish(
    host_port: str, container_port: int = 80, protocol: str = "tcp", host_ip: str = ""
) -> PortRequest:
    return PortRequest(
        container_port, protocol, (PortBinding(host_ip=host_ip, host_port=host_port),)
    )


def fetch(host: str, port: int, kind: int = socket.SOCK_STREAM) -> str:
    """Ask a server as the machine itself."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind) as client:
        client.settimeout(60)
        client.connect((host, port))
        if kind == socket.SOCK_DGRAM:
            client.send(b"?")
        return client.recv(2048).decode()


def shell(command: str) -> str:
    """Run a command on the machine."""
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


def inside(container: Container, command: str) -> str:
    """Run a command in a container's network namespace."""
    return shell(f"nsenter --net=/proc/{container.pid}/ns/net sh -c '{command}'")


def tables() -> list[str]:
    return shell("nft list tables").split("\n")[:-1]


def set_br_netfilter(*, enabled: bool) -> None:
    path = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if path.exists():
        path.write_text(str(int(enabled)))
    elif enabled:
        pytest.fail("this test needs a kernel with br_netfilter")


def connect_outside(outside: Container) -> None:
    """Put a neighbour beside the machine: 203.0.113.2 and 2001:db8::2, the machine being .1."""
    shell(f"ip link add up0 type veth peer name out0 netns {outside.pid}")
    shell("ip address add 203.0.113.1/24 dev up0 && ip link set up0 up")
    inside(outside, "ip address add 203.0.113.2/24 dev out0 && ip link set out0 up")
    shell("ip route add default via 203.0.113.2")
    shell("ip address add 2001:db8::1/64 dev up0 nodad")
    inside(outside, "ip address add 2001:db8::2/64 dev out0 nodad")
    shell("ip route add default via 2001:db8::2")
