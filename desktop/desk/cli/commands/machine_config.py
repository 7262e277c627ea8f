"""``desk machine config`` and ``set``: the settings of a machine, one file with comments."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from desk.cli import complete, render
from desk.cli.framework import DeskCommand
from desk.cli.machine_flags import disk_gib, memory_mib
from desk.cli.session import Session, pass_session
from desk.errors import DeskError, UsageError

_EXAMPLE = """docker $(desk machine config) ps
desk machine config --edit
desk machine config --show > machine.toml
desk machine config --apply --file machine.toml"""


@click.command(cls=DeskCommand, example=_EXAMPLE)
@click.option("--show", "task", flag_value="show", help="Print the settings file.")
@click.option("--path", "task", flag_value="path", help="Print where the settings file is.")
@click.option(
    "--edit", "task", flag_value="edit", help="Open it in $VISUAL or $EDITOR, and apply it."
)
@click.option("--check", "task", flag_value="check", help="Say what applying it would change.")
@click.option(
    "--apply", "task", flag_value="apply", help="Make what it says the machine's settings now."
)
@click.option(
    "--file",
    "source",
    metavar="PATH|-",
    help="Check or apply another file, or standard input, instead of the machine's own.",
)
@click.argument("name", metavar="[MACHINE]", required=False, shell_complete=complete.machines)
@pass_session
def config(session: Session, name: str | None, task: str | None, source: str | None) -> None:
    """Print the docker flags that select a machine; show, edit and apply its settings."""
    machine_name = name or session.machine
    session.desk.require_machine(machine_name)
    if source is not None and task not in ("check", "apply"):
        raise UsageError("--file names what to take", hint="Add --check or --apply.")
    if task is None:
        render.out(f"-H={session.desk.manager.url(machine_name)}")
        return
    file = session.desk.machine_settings.file(machine_name)
    if task == "path":
        render.out(str(file))
        return
    if task == "edit":
        _edit(session, machine_name, file)
        return
    text, place = _text(source, file)
    if task == "show":
        render.write(text)
    elif task == "check":
        found = session.desk.machine_settings.check(machine_name, text, place)
        render.write("".join(f"{change}\n" for change in found))
        render.note(f"{place} is right{'' if found else ', and changes nothing'}.")
    else:
        _apply(session, machine_name, text, place)


def _text(source: str | None, file: Path) -> tuple[str, Path]:
    """Return the settings that are meant, and the place that mistakes in them are told with."""
    from desk.machine.settings_file import read_text

    if source == "-":
        return sys.stdin.read(), Path("<standard input>")
    place = file if source is None else Path(source)
    return read_text(place), place


def _apply(session: Session, name: str, text: str, place: Path) -> None:
    applied = session.desk.machine_settings.apply(name, text, place, session.progress)
    session.progress.done()
    for change in applied.changes:
        render.out(change)
    if not applied.changes:
        render.note(f"Machine {name} has these settings already.")
    elif applied.waits:
        render.note(f"`desk machine restart {name}` makes the rest of it take effect.")


def _edit(session: Session, name: str, file: Path) -> None:
    """Let a person edit a copy until it is right; the machine's own file is never half-written."""
    from desk.machine.settings_file import read_text

    with tempfile.NamedTemporaryFile(
        "w", prefix=f"{name}-", suffix=".toml", delete=False, encoding="utf-8"
    ) as draft:
        draft.write(read_text(file))
    copy = Path(draft.name)
    while True:
        before = copy.read_bytes()
        try:
            click.edit(filename=str(copy))
        except click.ClickException as error:
            copy.unlink()
            raise UsageError(
                error.format_message(), hint="Set VISUAL or EDITOR to an editor that is installed."
            ) from error
        if copy.read_bytes() == before:
            break
        try:
            _apply(session, name, read_text(copy), copy)
        except DeskError as mistake:
            if not sys.stdin.isatty():
                hint = (
                    f"{mistake.hint} What was written is kept: correct {copy}, then `desk machine"
                )
                raise UsageError(
                    mistake.text, hint=f"{hint} config --apply --file {copy} {name}`."
                ) from mistake
            render.error(mistake)
            if render.confirm("Edit it again?"):
                continue
            render.note(f"What was written is kept in {copy}.")
            raise click.exceptions.Exit(1) from mistake
        break
    copy.unlink()


@click.command(
    name="set",
    cls=DeskCommand,
    example="desk machine set --memory 4g\n"
    "desk machine set registry-mirror=https://mirror.example\n"
    "desk machine set https-proxy=http://proxy:3128 no-proxy=.example,10.0.0.0/8\n"
    "desk machine set insecure-registry=10.0.2.2:5000,registry.lan\n"
    "desk machine set share-folder=~,/srv/data:ro share-by=virtiofs\n"
    "desk machine set battery-cpus=1.5 power-source=auto\n"
    "desk machine set dns=1.1.1.1 dns-search=corp.example engine-opt=icc=false",
)
@click.option("--memory", metavar="SIZE", help="Memory ceiling, such as 4g: at once if possible.")
@click.option("--cpus", metavar="COUNT", type=click.IntRange(1), help="CPUs from the next start.")
@click.option("--disk", metavar="SIZE", help="A larger data disk, such as 80g: at once.")
@click.argument("arguments", metavar="[MACHINE] [NAME=VALUE]...", nargs=-1)
@pass_session
def set_(
    session: Session,
    arguments: tuple[str, ...],
    memory: str | None,
    cpus: int | None,
    disk: str | None,
) -> None:
    """Set memory, CPUs, disk, mirrors, proxies, shared folders and power of a machine."""
    from desk.cli.specs import parse_pairs
    from desk.machine.settings_change import Wishes

    named = bool(arguments) and "=" not in arguments[0]
    name = arguments[0] if named else session.machine
    pairs = arguments[1:] if named else arguments
    if any("=" not in pair for pair in pairs) or not (pairs or memory or cpus or disk):
        raise UsageError(
            "nothing to set",
            hint="Write --memory SIZE, --cpus COUNT, --disk SIZE or NAME=VALUE; an empty value"
            " unsets it.",
        )
    session.desk.require_machine(name)
    given = parse_pairs(pairs, flag="machine set")
    wishes = Wishes(
        options={key.replace("-", "_"): value for key, value in given.items()},
        cpus=cpus,
        memory_mib=None if memory is None else memory_mib(memory),
        disk_gib=None if disk is None else disk_gib(disk),
    )
    applied = session.desk.machine_settings.set(name, wishes, session.progress)
    if wishes.memory_mib is not None:
        session.progress.done(f"Machine {name} has {wishes.memory_mib} MiB of memory.")
    if wishes.disk_gib is not None:
        session.progress.done(f"Machine {name} has a disk of {wishes.disk_gib} GiB.")
    if applied.waits:
        render.note(f"`desk machine restart {name}` makes it take effect.")
