"""``desk doctor``: what is wrong, and what to do about it."""

from __future__ import annotations

import click

from desk.cli import render
from desk.cli.framework import DeskCommand
from desk.cli.session import Session, pass_session

_MARKS = {"ok": "ok", "warning": "warning", "failure": "FAILED", "skipped": "skipped"}
_MARK_WIDTH = max(map(len, _MARKS.values()))


@click.command(cls=DeskCommand, example="desk doctor --probe")
@click.option("--probe", is_flag=True, help="Try every accelerator anew and verify the image.")
@pass_session
def doctor(session: Session, probe: bool) -> None:
    """Check this computer and the machine, and name remedies."""
    from desk.machine.diagnostics import Verdict, examine

    failures = 0
    for check in examine(session.desk.manager, probe=probe, progress=session.progress):
        session.progress.done()
        mark = _MARKS[check.verdict.value]
        render.write(f"{mark:<{_MARK_WIDTH}}  {check.subject}: {check.text}\n")
        if check.remedy:
            render.write(f"{'':<{_MARK_WIDTH}}  -> {check.remedy}\n")
        failures += check.verdict is Verdict.FAILURE
    if failures:
        raise click.exceptions.Exit(1)
