"""Looking at machines: ``desk machine ls``, ``status``, ``inspect``, ``ip``, ``url``, ``port``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import click

from desk.cli import complete, options, render
from desk.cli.framework import DeskCommand
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.cli.units import ago
from desk.errors import MachineError, UsageError
from desk.machine.model import MachineStatus, State
from desk.paths import MachinePaths
from desk.sizes import binary_size

_HEADINGS = {
    "Name": "NAME",
    "Active": "ACTIVE",
    "DriverName": "DRIVER",
    "State": "STATE",
    "URL": "URL",
    "DockerVersion": "ENGINE",
    "Error": "ERRORS",
    "Memory": "MEMORY",
    "CPUs": "CPUS",
    "HostMemory": "HOST MEMORY",
    "ResponseTime": "RESPONSE",
}
_DEFAULT = ("Name", "Active", "DriverName", "State", "URL", "DockerVersion", "Error")


def machine_row(status: MachineStatus, *, in_use: bool) -> render.Row:
    """Return the columns of one machine."""
    host = status.host_memory_bytes
    return {
        "Active": "*" if in_use else "-",
        "ActiveHost": in_use,
        "CPUs": str(status.cpus or ""),
        "DockerVersion": status.engine_version or "Unknown",
        "DriverName": status.driver,
        "Error": status.error,
        "HostMemory": "" if host is None else binary_size(host),
        "Memory": binary_size(status.memory_mib * 1024**2) if status.memory_mib else "",
        "Name": status.name,
        "ResponseTime": f"{status.response_s * 1000:.0f}ms",
        "State": status.state.value,
        "URL": status.url,
    }


@click.command(cls=DeskCommand, example="desk machine ls\ndesk machine ls --filter state=Running")
@options.filters(
    "name=PATTERN, state=…, driver=… or label=NAME[=VALUE] of its engine; as with docker-machine,"
    " -f also takes a template."
)
@options.table_format
@options.quiet_names
@click.option(
    "-t",
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(0),
    default=10.0,
    help="How long one machine may take to answer (10).",
)
@pass_session
def ls(
    session: Session, filters: tuple[str, ...], form: str, quiet: bool, timeout_s: float
) -> None:
    """List machines."""
    table = Table(_HEADINGS, default=_DEFAULT, quiet="Name")
    form = form or next((text for text in filters if "{{" in text), "")
    filters = tuple(text for text in filters if "{{" not in text)
    if quiet and not filters:
        render.write("".join(f"{name}\n" for name in session.desk.manager.names()))
        return
    statuses = session.desk.manager.list(timeout_s=timeout_s)
    rows = [
        machine_row(status, in_use=status.name == session.machine)
        for status in matching(statuses, filters)
    ]
    table.print(rows, form=form, quiet=quiet)


def matching(statuses: list[MachineStatus], filters: tuple[str, ...]) -> list[MachineStatus]:
    """Return what all filters want; of several with one name, one is enough."""
    from desk.cli.filters import parse_filters

    wanted = parse_filters(filters)
    unknown = set(wanted) - set(_FILTERS)
    if unknown:
        raise UsageError(
            f"invalid filter {min(unknown)!r}", hint="It is name, state, driver or label."
        )
    try:
        return [
            status
            for status in statuses
            if all(
                any(_FILTERS[name](status, choice) for choice in choices)
                for name, choices in wanted.items()
            )
        ]
    except re.error as error:
        raise UsageError(
            f"invalid filter name: {error}", hint="It is a regular expression, as in name=^web."
        ) from error


def _has_label(status: MachineStatus, wanted: str) -> bool:
    if "=" in wanted:
        return wanted in status.labels
    return wanted in {label.partition("=")[0] for label in status.labels}


_FILTERS: dict[str, Callable[[MachineStatus, str], bool]] = {
    "driver": lambda status, wanted: status.driver.lower() == wanted.lower(),
    "label": _has_label,
    "name": lambda status, wanted: re.search(wanted, status.name) is not None,
    "state": lambda status, wanted: status.state.value.lower() == wanted.lower(),
}


@click.command(cls=DeskCommand, example="desk machine status")
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def status(session: Session, name: str | None) -> None:
    """Print the state of a machine.

    Of a running one, standard error tells what its agent finds when it looks at the connection, the
    clock, the engine, each published port (by connecting to it) and each shared folder; what it
    found and mended after this computer last slept or changed networks; and what containers do less
    while this computer is on its battery.
    """
    machine_name = name or session.machine
    session.desk.require_machine(machine_name)
    found = session.desk.manager.status(machine_name)
    render.out(found.state.value)
    if found.state is State.RUNNING and not found.error:
        _tell_checkups(session.desk.home.machine(machine_name))
    if found.error:
        raise MachineError(
            f"machine {machine_name}: {found.error}",
            hint=f"`desk machine restart {machine_name}` mends most faults; `desk doctor` looks"
            " closer.",
        )


def _tell_checkups(paths: MachinePaths) -> None:
    """Print what the agent finds; nothing where a driver needs none."""
    from desk.agent import spawn

    agent = spawn.status(paths)
    if not agent.running:
        return
    checkups = spawn.check(paths)
    render.note(checkups["last"]["summary"])
    earlier = checkups["last_unasked"]
    if earlier is not None:
        render.note(f"{ago(earlier['at'])}: {earlier['reason']}: {earlier['summary']}")
    power = agent.details.get("power") or {}
    if power.get("source") == "battery":
        render.note(str(power["problem"] or power["in_force"]))


@click.command(cls=DeskCommand, example="desk machine inspect -f '{{.memory_mib}}'")
@options.detail_format
@click.argument("names", metavar="[MACHINE]...", nargs=-1, shell_complete=complete.machines)
@pass_session
def inspect(session: Session, names: tuple[str, ...], form: str) -> None:
    """Show everything about machines."""
    wanted = names or (session.machine,)
    for name in wanted:
        session.desk.require_machine(name)
    render.print_formatted([session.desk.manager.inspect(name) for name in wanted], form)


@click.command(cls=DeskCommand, example="curl http://$(desk machine ip):8080")
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def ip(session: Session, name: str | None) -> None:
    """Print the address where a machine's ports are."""
    session.desk.require_machine(name or session.machine)
    render.out("127.0.0.1")  # the agent, or the engine itself, publishes there and only there


@click.command(cls=DeskCommand, example="desk machine url")
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def url(session: Session, name: str | None) -> None:
    """Print the address of a machine's engine."""
    machine_name = name or session.machine
    session.desk.require_machine(machine_name)
    render.out(session.desk.manager.url(machine_name))


_PORT_HEADINGS = {
    "Container": "CONTAINER",
    "Port": "PORT",
    "Address": "ADDRESS HERE",
}


@click.command(cls=DeskCommand, example="desk machine port\ndesk machine port --format json")
@options.table_format
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def port(session: Session, name: str | None, form: str) -> None:
    """List the ports of a machine on this computer."""
    machine_name = name or session.machine
    session.desk.require_machine(machine_name)
    table = Table(_PORT_HEADINGS, default=tuple(_PORT_HEADINGS), quiet="Address")
    table.print(list(_ports(session, machine_name)), form=form, quiet=False)


def _ports(session: Session, name: str) -> Iterator[render.Row]:
    driver = session.desk.manager.open(name).driver
    endpoint = driver.endpoint()
    if endpoint is not None:
        address = f"{endpoint.host}:{endpoint.port}"
        yield {"Address": address, "Container": "", "Port": "22/tcp (SSH)"}
    if driver.state() is not State.RUNNING:
        return
    client = session.desk.client(name, progress=session.progress)
    with client:
        containers = client.containers.list()
    for container in sorted(containers, key=lambda each: str(each["Names"])):
        for published in container.get("Ports") or ():
            if not published.get("PublicPort"):
                continue
            # What any address of the machine means is 127.0.0.1 of this computer, the agent's.
            here = "127.0.0.1" if endpoint is not None else published["IP"]
            yield {
                "Address": f"{here}:{published['PublicPort']}",
                "Container": container["Names"][0].lstrip("/"),
                "Port": f"{published['PrivatePort']}/{published['Type']}",
            }
