"""``desk network …``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import click

from desk.cli import complete, options, render
from desk.cli.catalog import Entry
from desk.cli.filters import parse_filters
from desk.cli.framework import DeskCommand, LazyGroup
from desk.cli.render import Table
from desk.cli.session import Session, for_each, pass_session
from desk.cli.specs import parse_pairs
from desk.cli.units import format_created_at, parse_timestamp
from desk.errors import InvalidRequest

_GROUP = {
    "connect": Entry("networks:connect", "Connect a container to a network."),
    "create": Entry("networks:create", "Create a network."),
    "disconnect": Entry("networks:disconnect", "Disconnect a container from a network."),
    "fault": Entry("faults:fault", "Make networks go wrong on purpose, and heal them."),
    "inspect": Entry("details:inspect_network", "Show everything about networks."),
    "ls": Entry("networks:ls", "List networks."),
    "prune": Entry("prune:networks", "Remove unused networks."),
    "rm": Entry("networks:rm", "Remove networks."),
}

_HEADINGS = {
    "CreatedAt": "CREATED AT",
    "Driver": "DRIVER",
    "ID": "NETWORK ID",
    "IPv4": "IPV4",
    "IPv6": "IPV6",
    "Internal": "INTERNAL",
    "Labels": "LABELS",
    "Name": "NAME",
    "Scope": "SCOPE",
}


@click.group(cls=LazyGroup, sections={"Commands": _GROUP})
def network() -> None:
    """Manage networks."""


def network_row(item: Mapping[str, Any], *, truncate: bool) -> render.Row:
    """Return the columns of one network."""
    labels = item.get("Labels") or {}
    return {
        "CreatedAt": _created_at(item.get("Created") or ""),
        "Driver": item["Driver"],
        "ID": item["Id"][:12] if truncate else item["Id"],
        "IPv4": str(bool(item.get("EnableIPv4", True))).lower(),
        "IPv6": str(bool(item.get("EnableIPv6"))).lower(),
        "Internal": str(bool(item.get("Internal"))).lower(),
        "Label": lambda name: labels.get(name, ""),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        "Name": item["Name"],
        "Scope": item.get("Scope") or "",
    }


def _created_at(created: str) -> str:
    """Render the engine's time as Go prints one: with the fraction that is there."""
    text = format_created_at(parse_timestamp(created))
    fraction = re.search(r"\.\d*[1-9]", created)
    return f"{text[:19]}{fraction[0]}{text[19:]}" if fraction else text


@click.command(cls=DeskCommand, example="desk network ls")
@options.filters("Show those that match, such as driver=bridge.")
@options.table_format
@options.no_trunc
@options.quiet_ids
@pass_session
def ls(session: Session, filters: tuple[str, ...], form: str, no_trunc: bool, quiet: bool) -> None:
    """List networks."""
    found = sorted(
        session.client.networks.list(filters=parse_filters(filters)), key=lambda n: n["Name"]
    )
    table = Table(_HEADINGS, default=("ID", "Name", "Driver", "Scope"), quiet="ID")
    table.print(
        (network_row(item, truncate=not no_trunc) for item in found), form=form, quiet=quiet
    )


@click.command(cls=DeskCommand, example="desk network create --subnet 10.5.0.0/24 back")
@click.option("--attachable", is_flag=True, help="Let single containers join.")
@click.option(
    "--aux-address", metavar="NAME=ADDRESS", multiple=True, help="Address that is taken already."
)
@click.option("--config-from", metavar="NETWORK", default="", help="Take its settings from there.")
@click.option("--config-only", is_flag=True, help="Hold settings for other networks only.")
@click.option("-d", "--driver", metavar="DRIVER", default="bridge", help="Driver (bridge).")
@click.option("--gateway", metavar="ADDRESS", multiple=True, help="Gateway of the subnet.")
@click.option("--ingress", is_flag=True, help="Routing mesh of a swarm.")
@click.option("--internal", is_flag=True, help="No way to the outside.")
@click.option("--ip-range", metavar="RANGE", multiple=True, help="Give addresses from this part.")
@click.option("--ipam-driver", metavar="DRIVER", default="default", help="Gives the addresses.")
@click.option("--ipam-opt", metavar="KEY=VALUE", multiple=True, help="Option of that driver.")
@click.option("--ipv6", is_flag=True, help="Use IPv6.")
@click.option("--label", metavar="KEY=VALUE", multiple=True, help="Set a label.")
@click.option("-o", "--opt", metavar="KEY=VALUE", multiple=True, help="Option of the driver.")
@click.option("--scope", metavar="SCOPE", default="", help="Scope: local.")
@click.option("--subnet", metavar="SUBNET", multiple=True, help="Subnet, such as 10.5.0.0/24.")
@click.argument("name")
@pass_session
def create(
    session: Session,
    name: str,
    attachable: bool,
    aux_address: tuple[str, ...],
    config_from: str,
    config_only: bool,
    driver: str,
    gateway: tuple[str, ...],
    ingress: bool,
    internal: bool,
    ip_range: tuple[str, ...],
    ipam_driver: str,
    ipam_opt: tuple[str, ...],
    ipv6: bool,
    label: tuple[str, ...],
    opt: tuple[str, ...],
    scope: str,
    subnet: tuple[str, ...],
) -> None:
    """Create a network."""
    body = {
        "Name": name,
        "Driver": driver,
        "Attachable": attachable,
        "Internal": internal,
        "EnableIPv6": ipv6,
        "IPAM": {
            "Driver": ipam_driver,
            "Config": subnets(
                split(subnet),
                split(ip_range),
                split(gateway),
                parse_pairs(aux_address, flag="--aux-address"),
            ),
            "Options": parse_pairs(ipam_opt, flag="--ipam-opt"),
        },
        "Options": parse_pairs(opt, flag="--opt"),
        "Labels": parse_pairs(label, flag="--label"),
    }
    for key, value in (
        ("Scope", scope),
        ("Ingress", ingress),
        ("ConfigOnly", config_only),
        ("ConfigFrom", {"Network": config_from} if config_from else None),
    ):
        if value:  # what an engine without swarms need not know is sent only where it is asked
            body[key] = value
    answer = session.starting_client.networks.create(body)
    if answer.get("Warning"):
        render.warn(answer["Warning"])
    render.out(answer["Id"])


def split(values: Iterable[str]) -> list[str]:
    """Return all values of a flag that takes several at once, with commas between them."""
    return [part for value in values for part in value.split(",")]


def subnets(
    networks: Iterable[str],
    ranges: Iterable[str],
    gateways: Iterable[str],
    taken: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return the API's ``IPAM.Config``: each range, gateway and address that is ``taken`` (by
    name) goes with the subnet it is in."""
    import ipaddress

    def parsed(text: str, flag: str) -> Any:
        try:
            return ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise InvalidRequest(f"invalid {flag} {text!r}", hint="Write 10.5.0.0/24.") from error

    def owner(text: str, flag: str) -> dict[str, Any]:
        inner = parsed(text, flag)
        for net, entry in config:
            if net.version == inner.version and inner.subnet_of(net):
                return entry
        raise InvalidRequest(
            f"{flag} {text} is in no --subnet", hint="Name the subnet it belongs to."
        )

    config: list[tuple[Any, dict[str, Any]]] = [
        (parsed(text, "--subnet"), {"Subnet": text}) for text in networks
    ]
    for text in ranges:
        owner(text, "--ip-range")["IPRange"] = text
    for text in gateways:
        owner(text, "--gateway")["Gateway"] = text
    for name, text in taken.items():
        owner(text, "--aux-address").setdefault("AuxiliaryAddresses", {})[name] = text
    return [entry for _, entry in config]


@click.command(cls=DeskCommand, example="desk network connect --alias db back web")
@click.option("--alias", metavar="NAME", multiple=True, help="Further name in the network.")
@click.option("--driver-opt", metavar="KEY=VALUE", multiple=True, help="Option of the driver.")
@click.option("--ip", metavar="ADDRESS", help="IPv4 address.")
@click.option("--ip6", metavar="ADDRESS", help="IPv6 address.")
@click.option("--link", metavar="CONTAINER[:ALIAS]", multiple=True, help="Name for a container.")
@click.option("--link-local-ip", metavar="ADDRESS", multiple=True, help="Link-local address.")
@click.argument("name", metavar="NETWORK", shell_complete=complete.networks)
@click.argument("container", shell_complete=complete.containers)
@pass_session
def connect(
    session: Session,
    name: str,
    container: str,
    alias: tuple[str, ...],
    driver_opt: tuple[str, ...],
    ip: str | None,
    ip6: str | None,
    link: tuple[str, ...],
    link_local_ip: tuple[str, ...],
) -> None:
    """Connect a container to a network."""
    endpoint: dict[str, Any] = {}
    if alias:
        endpoint["Aliases"] = split(alias)
    if link:
        endpoint["Links"] = list(link)
    if driver_opt:
        endpoint["DriverOpts"] = parse_pairs(split(driver_opt), flag="--driver-opt")
    addresses = {
        key: value
        for key, value in (
            ("IPv4Address", ip),
            ("IPv6Address", ip6),
            ("LinkLocalIPs", split(link_local_ip)),
        )
        if value
    }
    if addresses:
        endpoint["IPAMConfig"] = addresses
    session.client.networks.connect(name, container, endpoint=endpoint)


@click.command(cls=DeskCommand, example="desk network disconnect back web")
@click.option("-f", "--force", is_flag=True, help="Do it though the container does not run.")
@click.argument("name", metavar="NETWORK", shell_complete=complete.networks)
@click.argument("container", shell_complete=complete.containers)
@pass_session
def disconnect(session: Session, name: str, container: str, force: bool) -> None:
    """Disconnect a container from a network."""
    session.client.networks.disconnect(name, container, force=force)


@click.command(cls=DeskCommand, example="desk network rm back")
@click.option("-f", "--force", is_flag=True, help="No failure where there is none.")
@click.argument(
    "names", metavar="NETWORK...", nargs=-1, required=True, shell_complete=complete.networks
)
@pass_session
def rm(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Remove networks."""
    for_each(names, session.client.networks.remove, missing_ok=force)
