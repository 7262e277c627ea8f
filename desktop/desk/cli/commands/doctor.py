"""``desk doctor``: what is wrong, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from desk.cli import render
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session

_MARKS = {"ok": "ok", "warning": "warning", "failure": "FAILED", "skipped": "skipped"}
_MARK_WIDTH = max(map(len, _MARKS.values()))


@click.command(cls=DeskCommand, example="desk doctor --probe\ndesk doctor --bundle")
@click.option("--probe", is_flag=True, help="Try every accelerator anew and verify the image.")
@click.option(
    "--bundle",
    metavar="[FILE]",
    is_flag=False,
    flag_value="",
    default=None,
    help="Write findings and logs, without secrets, to a zip file for a bug report.",
)
@pass_session
def doctor(session: Session, probe: bool, bundle: str | None) -> None:
    """Check this computer and the machine, and name remedies."""
    from desk.machine.diagnostics import Check, Verdict, examine

    failures = 0

    def told() -> Iterator[Check]:
        nonlocal failures
        for check in examine(session.desk.manager, probe=probe, progress=session.progress):
            session.progress.done()
            mark = _MARKS[check.verdict.value]
            render.write(f"{mark:<{_MARK_WIDTH}}  {check.subject}: {check.text}\n")
            if check.remedy:
                render.write(f"{'':<{_MARK_WIDTH}}  -> {check.remedy}\n")
            failures += check.verdict is Verdict.FAILURE
            yield check

    if bundle is None:
        for _check in told():
            pass
    else:
        from desk.machine.bug_report import default_name, write_bundle

        file = Path(bundle or default_name())
        names = write_bundle(file, session.desk.manager, told(), session.progress)
        session.progress.done()
        render.write(
            f"Wrote {file} with {len(names)} texts; read them before you send them to anybody.\n"
        )
    if failures:
        raise click.exceptions.Exit(1)
