"""The command ``desk`` itself, and how its errors become lines and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

import desk
from desk.cli import interrupts, render
from desk.cli.catalog import SECTIONS
from desk.cli.framework import LazyGroup
from desk.cli.session import Session, exit_code
from desk.errors import DeskError

EXIT_USAGE = 125
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a program that the signal ends


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        render.out(f"Desk version {desk.__version__}")
        ctx.exit()


def _complete_machine(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from desk.cli.complete import machine_names

    return machine_names(incomplete)


@click.group(cls=LazyGroup, sections=SECTIONS, invoke_without_command=True)
@click.option("-H", "--host", metavar="URL", help="Engine to use: unix:///path or tcp://HOST:PORT.")
@click.option(
    "-m",
    "--machine",
    metavar="NAME",
    shell_complete=_complete_machine,
    help="Machine to use ($DESK_MACHINE, else the active one).",
)
@click.option(
    "-v",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show Desk's version and exit.",
)
@click.pass_context
def cli(ctx: click.Context, host: str | None, machine: str | None) -> None:
    """Containers on your laptop: a small Linux machine, its engine, Docker's commands.

    Begin with `desk up`, then `desk run -it busybox`.
    """
    if machine:
        from desk.machine.model import check_name

        check_name(machine)
    ctx.obj.choose(host=host or "", machine=machine or "")
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run_command(command: click.Command, arguments: Sequence[str], program: str) -> int:
    """Run a command line and return its exit code; every error becomes a line on stderr."""
    session = Session()
    try:
        try:
            with command.make_context(program, list(arguments), obj=session) as ctx:
                command.invoke(ctx)
                sys.stdout.flush()
        finally:
            session.close()
    except click.exceptions.Exit as leave:
        return int(leave.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except click.UsageError as failure:
        return _usage_failure(failure)
    except DeskError as failure:
        render.error(failure)
        return exit_code(failure, session)
    except BrokenPipeError:
        # Whatever is left to write has no reader; a flush at exit would complain once more.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        return EXIT_BROKEN_PIPE
    except OSError as failure:
        name = f"{failure.filename}: " if failure.filename else ""
        render.error(DeskError(f"{name}{failure.strerror or failure}"))
        return 1
    except Exception as failure:
        if os.environ.get("DESK_DEBUG"):
            raise
        render.error(
            DeskError(
                f"internal error: {type(failure).__name__}: {failure}",
                hint="This is a fault in Desk. Run it again with DESK_DEBUG=1 for a report.",
            )
        )
        return 1
    return 0


def _usage_failure(failure: click.UsageError) -> int:
    path = failure.ctx.command_path if failure.ctx is not None else "desk"
    text = failure.format_message()
    text = text[:1].lower() + text[1:].rstrip(".")
    render.error(DeskError(text, hint=f"See `{path} --help`."))
    missing = isinstance(failure, click.MissingParameter) or type(failure) is click.UsageError
    return 1 if missing else EXIT_USAGE


def run_program(command: click.Command, program: str) -> int:
    """Run the command line that this process was given, or answer its shell's completion."""
    arguments = sys.argv[1:]
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started this, as by `desk ps >&-`
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115
    if os.environ.get("_DESK_COMPLETE"):
        command.main(arguments, prog_name=program, complete_var="_DESK_COMPLETE")
    interrupts.start()
    return run_command(command, arguments, program)
