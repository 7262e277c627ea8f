"""``desk machine …``: docker-machine's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import click

from desk.cli import complete, options, render
from desk.cli.catalog import Entry
from desk.cli.framework import DeskCommand, LazyGroup
from desk.cli.session import Session, pass_session
from desk.errors import MachineError, NotFound
from desk.machine.model import State

_GROUP = {
    "active": Entry("machine:active", "Print the name of the machine in use."),
    "advise": Entry(
        "machine_advice:advise",
        "Print which memory a machine should have, by what its containers held at most.",
    ),
    "clone": Entry(
        "machine_copies:clone",
        "Make a machine with the same images, containers, volumes and settings.",
    ),
    "config": Entry(
        "machine_config:config",
        "Print the docker flags that select a machine; show, edit and apply its settings.",
    ),
    "create": Entry("machine_create:create", "Create a machine."),
    "disk": Entry("machine_disk:disk", "Show and enlarge the data disks of machines."),
    "env": Entry("env:env", "Print the shell code that points Docker's clients at a machine."),
    "export": Entry(
        "machine_copies:export", "Write a whole machine, without its keys, to one file."
    ),
    "image": Entry("guest_image:image", "Manage the guest images that machines boot."),
    "import": Entry("machine_copies:import_", "Make a machine of a file that `export` wrote."),
    "inspect": Entry("machine_looking:inspect", "Show everything about machines."),
    "ip": Entry("machine_looking:ip", "Print the address where a machine's ports are."),
    "kill": Entry("machine:kill", "End machines at once, as if unplugged."),
    "ls": Entry("machine_looking:ls", "List machines."),
    "mount": Entry(
        "machine_mount:mount", "Mount a directory of a machine on this computer, or end that."
    ),
    "park": Entry(
        "machine_park:park", "Write running machines to disk, to go on later where they were."
    ),
    "port": Entry("machine_looking:port", "List the ports of a machine on this computer."),
    "power": Entry(
        "machine_power:power",
        "Show and set what a machine does while this computer is on its battery.",
    ),
    "provision": Entry(
        "machine_create:provision", "Make keys, certificates and the engine's settings anew."
    ),
    "rename": Entry("machine_copies:rename", "Give a stopped machine another name."),
    "restart": Entry(
        "machine_restart:restart", "Restart machines and give back exactly what ran in them."
    ),
    "reset": Entry(
        "machine_reset:reset", "Give a machine an empty disk; its name, keys and settings stay."
    ),
    "restore": Entry("machine_copies:restore", "Put a stopped machine's disk back to a snapshot."),
    "rm": Entry("machine_removal:rm", "Remove machines and everything in them."),
    "scp": Entry(
        "machine_scp:scp", "Copy files between this computer and machines, or between machines."
    ),
    "set": Entry(
        "machine_config:set_",
        "Set memory, CPUs, disk, mirrors, proxies, shared folders and power of a machine.",
    ),
    "snapshot": Entry("machine_copies:snapshot", "Keep a machine's disk as it is now."),
    "snapshots": Entry("machine_copies:snapshots", "List or remove the snapshots of a machine."),
    "ssh": Entry("machine:ssh", "Open a shell in a machine, or run a command there."),
    "start": Entry("machine:start", "Start machines."),
    "stats": Entry(
        "machine_memory:stats",
        "Print what machines use of their memory, and what this computer pays for it.",
    ),
    "status": Entry("machine_looking:status", "Print the state of a machine."),
    "stop": Entry("machine:stop", "Stop machines."),
    "upgrade": Entry(
        "machine_upgrade:upgrade", "Give a machine a newer guest image; its data stays."
    ),
    "url": Entry("machine_looking:url", "Print the address of a machine's engine."),
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


# --- the one in use ---------------------------------------------------------------------------


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
    session.desk.save_settings(session.desk.settings.with_active_machine(name))
    render.note(f"desk uses machine {name} from now on.")


# --- changing -----------------------------------------------------------------------------------


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
