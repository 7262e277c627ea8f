"""``desk network …``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from desk.cli import complete, render
from desk.cli.catalog import Entry
from desk.cli.filters import parse_filters
from desk.cli.framework import DeskCommand, LazyGroup
from desk.cli.render import Table
from desk.cli.session import Session, for_each, pass_session
from desk.cli.specs import parse_pairs
from desk.cli.units import format_created_at, parse_timestamp

_GROUP = {
    "connect": Entry("networks:connect", "Connect a container to a network."),
    "create": Entry("networks:create", "Create a network."),
    "disconnect": Entry("networks:disconnect", "Disconnect a container from a network."),
    "inspect": Entry("details:inspect_network", "Show everything about networks."),
    "ls": Entry("networks:ls", "List networks."),
    "prune": Entry("prune:networks", "Remove unused networks."),
    "rm": Entry("networks:rm", "Remove networks."),
}

_HEADINGS = {
    "CreatedAt": "CREATED AT",
    "Driver": "DRIVER",
    "ID": "NETWORK ID",
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
        "CreatedAt": format_created_at(parse_timestamp(item.get("Created") or "")),
        "Driver": item["Driver"],
        "ID": item["Id"][:12] if truncate else item["Id"],
        "IPv6": str(bool(item.get("EnableIPv6"))).lower(),
        "Internal": str(bool(item.get("Internal"))).lower(),
        "Label": lambda name: labels.get(name, ""),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        "Name": item["Name"],
        "Scope": item.get("Scope") or "",
    }


@click.command(cls=DeskCommand, example="desk network ls")
@click.option(
    "-f",
    "--filter",
    "filters",
    metavar="NAME=VALUE",
    multiple=True,
    help="Show those that match, such as driver=bridge.",
)
@click.option(
    "--format", "form", metavar="FORMAT", default="", help="table, json, or a Go template."
)
@click.option("--no-trunc", is_flag=True, help="Do not shorten.")
@click.option("-q", "--quiet", is_flag=True, help="Print IDs only.")
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
@click.option("-d", "--driver", metavar="DRIVER", default="bridge", help="Driver (bridge).")
@click.option("--gateway", metavar="ADDRESS", multiple=True, help="Gateway of the subnet.")
@click.option("--internal", is_flag=True, help="No way to the outside.")
@click.option("--ip-range", metavar="RANGE", multiple=True, help="Give addresses from this part.")
@click.option("--ipv6", is_flag=True, help="Use IPv6.")
@click.option("--label", metavar="KEY=VALUE", multiple=True, help="Set a label.")
@click.option("-o", "--opt", metavar="KEY=VALUE", multiple=True, help="Option of the driver.")
@click.option("--subnet", metavar="SUBNET", multiple=True, help="Subnet, such as 10.5.0.0/24.")
@click.argument("name")
@pass_session
def create(
    session: Session,
    name: str,
    attachable: bool,
    driver: str,
    gateway: tuple[str, ...],
    internal: bool,
    ip_range: tuple[str, ...],
    ipv6: bool,
    label: tuple[str, ...],
    opt: tuple[str, ...],
    subnet: tuple[str, ...],
) -> None:
    """Create a network."""
    body = {
        "Name": name,
        "Driver": driver,
        "Attachable": attachable,
        "Internal": internal,
        "EnableIPv6": ipv6,
        "IPAM": {"Driver": "default", "Config": subnets(subnet, ip_range, gateway)},
        "Options": parse_pairs(opt, flag="--opt"),
        "Labels": parse_pairs(label, flag="--label"),
    }
    answer = session.starting_client.networks.create(body)
    if answer.get("Warning"):
        render.warn(answer["Warning"])
    render.out(answer["Id"])


def subnets(
    networks: tuple[str, ...], ranges: tuple[str, ...], gateways: tuple[str, ...]
) -> list[dict[str, str]]:
    """Return the API's ``IPAM.Config``: each range and gateway goes with the subnet it is in."""
    import ipaddress

    from desk.errors import UsageError

    def parsed(text: str, flag: str) -> Any:
        try:
            return ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise UsageError(f"invalid {flag} {text!r}", hint="Write 10.5.0.0/24.") from error

    config = [(parsed(text, "--subnet"), {"Subnet": text}) for text in networks]
    for flag, key, texts in (
        ("--ip-range", "IPRange", ranges),
        ("--gateway", "Gateway", gateways),
    ):
        for text in texts:
            inner = parsed(text, flag)
            owner = next(
                (
                    entry
                    for net, entry in config
                    if net.version == inner.version and inner.subnet_of(net)
                ),
                None,
            )
            if owner is None:
                raise UsageError(
                    f"{flag} {text} is in no --subnet", hint="Name the subnet it belongs to."
                )
            owner[key] = text
    return [entry for _, entry in config]


@click.command(cls=DeskCommand, example="desk network connect --alias db back web")
@click.option("--alias", metavar="NAME", multiple=True, help="Further name in the network.")
@click.option("--ip", metavar="ADDRESS", help="IPv4 address.")
@click.option("--ip6", metavar="ADDRESS", help="IPv6 address.")
@click.argument("name", metavar="NETWORK", shell_complete=complete.networks)
@click.argument("container", shell_complete=complete.containers)
@pass_session
def connect(
    session: Session,
    name: str,
    container: str,
    alias: tuple[str, ...],
    ip: str | None,
    ip6: str | None,
) -> None:
    """Connect a container to a network."""
    endpoint: dict[str, Any] = {}
    if alias:
        endpoint["Aliases"] = list(alias)
    addresses = {key: text for key, text in (("IPv4Address", ip), ("IPv6Address", ip6)) if text}
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
@click.argument(
    "names", metavar="NETWORK...", nargs=-1, required=True, shell_complete=complete.networks
)
@pass_session
def rm(session: Session, names: tuple[str, ...]) -> None:
    """Remove networks."""
    for_each(names, session.client.networks.remove)
