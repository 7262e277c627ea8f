"""What this computer gets back of a machine's disk when something in the machine is deleted."""

from __future__ import annotations

from desk.cli import render
from desk.cli.session import Session
from desk.cli.units import human_size


class HostDisk:
    """Measures around a deletion: make it before, ``tell`` after. Nothing is told where there is
    no machine with a disk of Desk's, or where nothing came back."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._before = (
            None if session.engine_url else session.desk.disks.host_bytes(session.machine)
        )

    def tell(self, freed_bytes: int) -> None:
        """Print what came back of the ``freed_bytes`` that the engine told."""
        if self._before is None or not freed_bytes:
            return
        back = self._session.desk.disks.given_back(self._session.machine, self._before, freed_bytes)
        if back:
            render.out(f"This computer got back: {human_size(back)}")
