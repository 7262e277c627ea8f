"""``desk machine …``: docker-machine's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from desk.cli import complete, options, render
from desk.cli.catalog import Entry
from desk.cli.framework import DeskCommand, LazyGroup
from desk.cli.machine_flags import machine_flags, new_spec
from desk.cli.render import Table
from desk.cli.session import Session, pass_session
from desk.errors import MachineError, NotFound, UsageError
from desk.machine.model import MachineStatus, State, check_name

_GROUP = {
    "active": Entry("machine:active", "Print the name of the machine in use."),
    "clone": Entry(
        "machine_copies:clone",
        "Make a machine with the same images, containers, volumes and settings.",
    ),
    "config": Entry(
        "machine_config:config",
        "Print the docker flags that select a machine; show, edit and apply its settings.",
    ),
    "create": Entry("machine:create", "Create a machine."),
    "disk": Entry("machine_disk:disk", "Show and enlarge the data disks of machines."),
    "env": Entry("env:env", "Print the shell code that points Docker's clients at a machine."),
    "export": Entry(
        "machine_copies:export", "Write a whole machine, without its keys, to one file."
    ),
    "image": Entry("guest_image:image", "Manage the guest images that machines boot."),
    "import": Entry("machine_copies:import_", "Make a machine of a file that `export` wrote."),
    "inspect": Entry("machine:inspect", "Show everything about machines."),
    "ip": Entry("machine:ip", "Print the address where a machine's ports are."),
    "kill": Entry("machine:kill", "End machines at once, as if unplugged."),
    "ls": Entry("machine:ls", "List machines."),
    "rename": Entry("machine_copies:rename", "Give a stopped machine another name."),
    "restart": Entry(
        "machine_restart:restart", "Restart machines and give back exactly what ran in them."
    ),
    "restore": Entry("machine_copies:restore", "Put a stopped machine's disk back to a snapshot."),
    "rm": Entry("machine:rm", "Remove machines and everything in them."),
    "scp": Entry(
        "machine_scp:scp", "Copy files between this computer and machines, or between machines."
    ),
    "set": Entry(
        "machine_config:set_",
        "Set memory, CPUs, disk, mirrors, proxies and shared folders of a machine.",
    ),
    "snapshot": Entry("machine_copies:snapshot", "Keep a machine's disk as it is now."),
    "snapshots": Entry("machine_copies:snapshots", "List or remove the snapshots of a machine."),
    "ssh": Entry("machine:ssh", "Open a shell in a machine, or run a command there."),
    "start": Entry("machine:start", "Start machines."),
    "stats": Entry(
        "machine_memory:stats",
        "Print what machines use of their memory, and what this computer pays for it.",
    ),
    "status": Entry("machine:status", "Print the state of a machine."),
    "stop": Entry("machine:stop", "Stop machines."),
    "upgrade": Entry(
        "machine_upgrade:upgrade", "Give a machine a newer guest image; its data stays."
    ),
    "url": Entry("machine:url", "Print the address of a machine's engine."),
    "use": Entry("machine:use", "Make a machine the one that desk uses."),
}


@click.group(cls=LazyGroup, sections={"Commands": _GROUP})
def machine() -> None:
    """Manage machines."""


_one = click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
_many = click.argument("names", metavar="[MACHINE]...", nargs=-1, shell_complete=complete.machines)


def _each(session: Session, names: tuple[str, ...], action: Callable[[str], None]) -> None:
    """Do something to each machine named, or to the one in use."""
    for name in names or (session.machine,):
        session.desk.require_machine(name)
        action(name)


# --- looking ------------------------------------------------------------------------------------

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
    from desk.sizes import binary_size

    host = status.host_memory_bytes
    return {
        "Active": "*" if in_use else "-",
        "CPUs": str(status.cpus or ""),
        "DockerVersion": status.engine_version or "Unknown",
        "DriverName": status.driver,
        "Error": status.error,
        "HostMemory": "" if host is None else binary_size(host),
        "Memory": binary_size(status.memory_mib * 1024**2) if status.memory_mib else "",
        "Name": status.name,
        "State": status.state.value,
        "URL": status.url,
    }


@click.command(cls=DeskCommand, example="desk machine ls\ndesk machine ls --filter state=Running")
@options.filters("driver=…, state=… or name=…")
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
    if quiet and not filters:
        render.write("".join(f"{name}\n" for name in session.desk.manager.names()))
        return
    statuses = session.desk.manager.list(timeout_s=timeout_s)
    rows = [
        machine_row(status, in_use=status.name == session.machine)
        for status in _matching(statuses, filters)
    ]
    table.print(rows, form=form, quiet=quiet)


def _matching(statuses: list[MachineStatus], filters: tuple[str, ...]) -> list[MachineStatus]:
    from desk.cli.filters import parse_filters

    wanted = parse_filters(filters)
    unknown = set(wanted) - {"driver", "state", "name"}
    if unknown:
        raise UsageError(f"invalid filter {min(unknown)!r}", hint="It is driver, state or name.")
    values: dict[str, Callable[[MachineStatus], str]] = {
        "driver": lambda status: status.driver,
        "state": lambda status: status.state.value,
        "name": lambda status: status.name,
    }
    return [
        status
        for status in statuses
        if all(
            values[key](status).lower() in {choice.lower() for choice in choices}
            for key, choices in wanted.items()
        )
    ]


@click.command(cls=DeskCommand, example="desk machine status")
@_one
@pass_session
def status(session: Session, name: str | None) -> None:
    """Print the state of a machine."""
    machine_name = name or session.machine
    session.desk.require_machine(machine_name)
    found = session.desk.manager.status(machine_name)
    render.out(found.state.value)
    if found.error:
        raise MachineError(
            f"machine {machine_name}: {found.error}",
            hint=f"`desk machine restart {machine_name}` mends most faults; `desk doctor` looks"
            " closer.",
        )


@click.command(cls=DeskCommand, example="desk machine inspect -f '{{.memory_mib}}'")
@options.detail_format
@_many
@pass_session
def inspect(session: Session, names: tuple[str, ...], form: str) -> None:
    """Show everything about machines."""
    found: list[Any] = []
    _each(session, names, lambda name: found.append(session.desk.manager.inspect(name)))
    render.print_formatted(found, form)


@click.command(cls=DeskCommand, example="curl http://$(desk machine ip):8080")
@_one
@pass_session
def ip(session: Session, name: str | None) -> None:
    """Print the address where a machine's ports are."""
    session.desk.require_machine(name or session.machine)
    render.out("127.0.0.1")  # the agent, or the engine itself, publishes there and only there


@click.command(cls=DeskCommand, example="desk machine url")
@_one
@pass_session
def url(session: Session, name: str | None) -> None:
    """Print the address of a machine's engine."""
    machine_name = name or session.machine
    session.desk.require_machine(machine_name)
    render.out(session.desk.manager.url(machine_name))


@click.command(cls=DeskCommand, example="desk machine active")
@pass_session
def active(session: Session) -> None:
    """Print the name of the machine in use."""
    if not session.desk.has_machine(session.machine):
        raise NotFound("there is no machine in use", hint="`desk up` makes and starts one.")
    render.out(session.machine)


@click.command(cls=DeskCommand, example="desk machine use big")
@click.argument("name", metavar="MACHINE", shell_complete=complete.machines)
@pass_session
def use(session: Session, name: str) -> None:
    """Make a machine the one that desk uses."""
    session.desk.require_machine(name)
    session.desk.save_settings(replace(session.desk.settings, active_machine=name))
    render.note(f"desk uses machine {name} from now on.")


# --- changing -----------------------------------------------------------------------------------


@click.command(cls=DeskCommand, example="desk machine create --memory 4g --cpus 4 big")
@machine_flags
@click.argument("name", metavar="[MACHINE]", required=False)
@pass_session
def create(session: Session, name: str | None, **flags: Any) -> None:
    """Create a machine."""
    machine_name = check_name(name or session.machine)
    spec = new_spec(machine_name, flags, session.desk.settings.defaults)
    session.desk.manager.create(spec, session.progress)
    session.progress.done(
        f"Created machine {machine_name}. `desk machine start {machine_name}` starts it."
    )


@click.command(cls=DeskCommand, example="desk machine start")
@_many
@pass_session
def start(session: Session, names: tuple[str, ...]) -> None:
    """Start machines."""

    def begin(name: str) -> None:
        report = session.desk.manager.start(name, session.progress)
        took = f" ({report.total_s:.1f} s)" if report.stages else " already"
        session.progress.done(f"Machine {name} is running{took}.")

    _each(session, names, begin)


@click.command(cls=DeskCommand, example="desk machine stop")
@options.grace_period
@_many
@pass_session
def stop(session: Session, names: tuple[str, ...], grace_s: float) -> None:
    """Stop machines."""

    def end(name: str) -> None:
        session.desk.manager.stop(name, session.progress, grace_s=grace_s)
        session.progress.done(f"Machine {name} is stopped.")

    _each(session, names, end)


@click.command(cls=DeskCommand, example="desk machine kill")
@_many
@pass_session
def kill(session: Session, names: tuple[str, ...]) -> None:
    """End machines at once, as if unplugged."""

    def end(name: str) -> None:
        session.desk.manager.kill(name)
        render.note(f"Machine {name} is off.")

    _each(session, names, end)


@click.command(cls=DeskCommand, example="desk machine rm old")
@click.option("-f", "--force", is_flag=True, help="Remove damaged ones too; do not ask.")
@click.option("-y", "yes", is_flag=True, help="Do not ask.")
@click.argument(
    "names", metavar="MACHINE...", nargs=-1, required=True, shell_complete=complete.machines
)
@pass_session
def rm(session: Session, names: tuple[str, ...], force: bool, yes: bool) -> None:
    """Remove machines and everything in them."""
    for name in names:
        session.desk.require_machine(name)
    if not (force or yes):
        which = ", ".join(names)
        if not render.confirm(f"Remove {which} with all images, containers and volumes?"):
            raise click.exceptions.Exit(1)
    for name in names:
        session.desk.manager.remove(name, session.progress, force=force)
        session.progress.done(f"Removed machine {name}.")


@click.command(cls=DeskCommand, interspersed=False, example="desk machine ssh default df -h")
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[COMMAND]...")
@pass_session
def ssh(session: Session, name: str | None, command: tuple[str, ...]) -> None:
    """Open a shell in a machine, or run a command there."""
    machine_name = name or session.machine
    session.desk.require_machine(machine_name)
    manager = session.desk.manager
    arguments = manager.ssh_arguments(machine_name, command)
    state = manager.status(machine_name).state
    if state is not State.RUNNING:
        raise MachineError(
            f"machine {machine_name} is {state.value.lower()}",
            hint=f"`desk machine start {machine_name}` starts it.",
        )
    if arguments is None:
        from desk.ssh.session import Session as SshSession
        from desk.ssh.shell import interact

        with SshSession.connect(manager.endpoint(machine_name)) as connection:
            code = interact(connection, " ".join(command))
        raise click.exceptions.Exit(code)
    sys.stdout.flush()
    if sys.platform == "win32":
        raise click.exceptions.Exit(subprocess.run(arguments, check=False).returncode)
    os.execv(arguments[0], list(arguments))
