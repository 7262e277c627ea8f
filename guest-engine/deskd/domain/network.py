"""Networks as the Engine API describes them, their durable record, and a container's endpoint.

Field names and zero values are those of ``Network``, ``IPAM``, ``NetworkContainer`` and the
bodies of ``/networks/*`` in the Docker Engine API v1.47.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import field

from deskd.domain.container import ApiStruct, EndpointSettings, PortBinding
from deskd.record import Record
from deskd.record import field as record_field

OPTION_BRIDGE_NAME = "com.docker.network.bridge.name"
OPTION_DEFAULT_BRIDGE = "com.docker.network.bridge.default_bridge"
OPTION_HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
OPTION_INHIBIT_IPV4 = "com.docker.network.bridge.inhibit_ipv4"
OPTION_INTER_CONTAINER = "com.docker.network.bridge.enable_icc"
OPTION_MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
OPTION_MTU = "com.docker.network.driver.mtu"
GATEWAY_MODES = (
    "com.docker.network.bridge.gateway_mode_ipv4",
    "com.docker.network.bridge.gateway_mode_ipv6",
)
OPTION_PARENT = "parent"
OPTION_MACVLAN_MODE = "macvlan_mode"
OPTION_IPVLAN_MODE = "ipvlan_mode"
OPTION_IPVLAN_FLAG = "ipvlan_flag"

LAPTOP_NAMES = ("host.docker.internal", "host.desk.internal")
"""What containers call the computer that the machine is on; what else ``host-gateway`` means."""

# --- what the API shows -------------------------------------------------------------------------


class IpamConfig(ApiStruct, frozen=True, omit_defaults=True):
    """``IPAMConfig``: one subnet of a network. ``ip_range`` limits automatic addresses only."""

    subnet: str = ""
    ip_range: str = field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] | None = None


class Ipam(ApiStruct, frozen=True):
    """``IPAM``: how a network's addresses are given."""

    driver: str = "default"
    options: dict[str, str] | None = None
    config: list[IpamConfig] | None = None


class ConfigReference(ApiStruct, frozen=True):
    """``ConfigReference``: the network of which another has its settings."""

    network: str = ""


class NetworkContainer(ApiStruct, frozen=True):
    """``NetworkContainer``: one endpoint, in a network's inspect output."""

    name: str = ""
    endpoint_id: str = field(default="", name="EndpointID")
    mac_address: str = ""
    ipv4_address: str = field(default="", name="IPv4Address")
    ipv6_address: str = field(default="", name="IPv6Address")


class Network(ApiStruct, frozen=True):
    """``Network``: what list and inspect return. ``containers`` is filled by inspect only."""

    name: str
    id: str
    created: str
    scope: str = "local"
    driver: str = "bridge"
    enable_ipv4: bool = field(default=True, name="EnableIPv4")
    enable_ipv6: bool = field(default=False, name="EnableIPv6")
    ipam: Ipam = field(default=Ipam(), name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_from: ConfigReference = ConfigReference()
    config_only: bool = False
    containers: dict[str, NetworkContainer] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)


class NetworkCreateRequest(ApiStruct, frozen=True):
    """Body of ``POST /networks/create``."""

    name: str = ""
    check_duplicate: bool = True
    driver: str = ""
    scope: str = ""
    enable_ipv4: bool | None = field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = field(default=None, name="EnableIPv6")
    ipam: Ipam | None = field(default=None, name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigReference | None = None
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class NetworkCreateResponse(ApiStruct, frozen=True):
    """Answer to ``POST /networks/create``."""

    id: str
    warning: str = ""


class NetworkConnectRequest(ApiStruct, frozen=True):
    """Body of ``POST /networks/{id}/connect``."""

    container: str = ""
    endpoint_config: EndpointSettings | None = None


class NetworkDisconnectRequest(ApiStruct, frozen=True):
    """Body of ``POST /networks/{id}/disconnect``."""

    container: str = ""
    force: bool = False


# --- what is kept -------------------------------------------------------------------------------


class NetworkRecord(ApiStruct, frozen=True):
    """A network in the database: everything but its endpoints, which containers' records hold.
    ``config_only``: settings for others, which name it in ``config_from``.
    ``chosen_subnet``: nobody gave one for IPv4, so nobody can count on an address in it."""

    id: str
    name: str
    created: str
    driver: str = "bridge"
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    ipam: Ipam = Ipam()
    internal: bool = False
    attachable: bool = False
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    config_only: bool = False
    config_from: str = ""
    chosen_subnet: bool = False
    chosen_subnet_ipv6: bool = False


class NetworkRecords(Protocol):
    """Where networks are kept; names are unique, ``put`` replaces by ID, ``delete`` is
    idempotent. Calls are short and may be made on the event loop and in threads."""

    def all(self) -> list[NetworkRecord]: ...
    def put(self, record: NetworkRecord) -> None: ...
    def delete(self, key: str) -> Any: ...


NO_SETTINGS = EndpointSettings()

# --- what a container gets ----------------------------------------------------------------------


class PortRequest(Record):
    """One wanted publication: container port and protocol with the bindings asked for."""

    container_port: int
    protocol: str  # "tcp", "udp" or "sctp"
    bindings: tuple[PortBinding, ...] = ()


class EndpointRequest(Record):
    """A container's wish to join a network. ``hostname`` is one of its names there."""

    container_id: str
    container_name: str
    network: str  # name or ID
    settings: EndpointSettings = NO_SETTINGS
    ports: tuple[PortRequest, ...] = ()
    interface: str = "eth0"
    default_route: bool = True
    default_route_ipv6: bool = True
    hostname: str = ""


class LinkedPort(Record):
    """A port of a linked container (``target``), as seen by the one that is linked to it."""

    source: str
    target: str
    port: int
    protocol: str


class NetlinkScript(Record):
    """Encoded rtnetlink requests that a namespace-less helper can send as they are.

    ``outside`` run in the engine's network namespace; where ``pid_offset`` is set, the 4 bytes at
    that offset receive the PID that names the container's namespace. ``sysctls`` of the form
    ``net.…`` are set and ``inside`` run in the container's namespace afterwards. Each request asks
    for an acknowledgement.
    """

    outside: tuple[bytes, ...] = ()
    outside_pid_offsets: tuple[int | None, ...] = ()
    inside: tuple[bytes, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()


class Gateways(Record):
    """The IDs of the networks by which a container sends what goes out, one for each family;
    empty where none leads out."""

    ipv4: str = ""
    ipv6: str = ""

    @property
    def ports(self) -> str:
        """The network by which ports are published."""
        return self.ipv4 or self.ipv6


class Endpoint(Record):
    """A place in a network, granted: what inspect shows and what the launcher must do."""

    network_id: str
    network_name: str
    endpoint_id: str
    settings: EndpointSettings
    script: NetlinkScript
    ports: Mapping[str, tuple[PortBinding, ...]] = record_field(
        default_factory=dict
    )  # "80/tcp" -> …
    driver: str = "bridge"
