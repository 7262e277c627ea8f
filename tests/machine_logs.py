"""What machines and their engines wrote, for the report of a test that failed with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from desk.compose import Desk
from desk.paths import Home
from desk.ssh.session import Session

_LINES = 40
_GUEST = f"tail -n {_LINES} /var/lib/desk/engine.log; dmesg | tail -n {_LINES}"


def homes_of(fixtures: Iterable[object]) -> set[Path]:
    """Return the homes of the machines that a test had, by what its fixtures gave it."""
    found = [getattr(getattr(each, "manager", each), "home", None) for each in fixtures]
    places = [getattr(home, "directory", home) for home in found]
    return {place for place in places if isinstance(place, Path)}


def logs_of(home: Path) -> list[tuple[str, str]]:
    """Return the ends of the logs of each machine, with their titles."""
    found = []
    for directory in sorted(home.glob("machines/*")):
        for name in ("console.log", "qemu.log", "agent.log"):
            with contextlib.suppress(OSError):
                lines = (directory / name).read_text("utf-8", "replace").splitlines()
                found.append((f"{directory.name}: {name}", "\n".join(lines[-_LINES:])))
        with contextlib.suppress(Exception):  # what the test met is to be told, not this
            with Session.connect(Desk(Home(home)).manager.endpoint(directory.name)) as session:
                told = session.run(_GUEST, timeout_s=20).stdout.decode("utf-8", "replace")
            found.append((f"{directory.name}: engine and kernel", told))
    return found
