"""Folders of this computer are refused where the machine would silently mount empty ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from desk.cli.folders import check
from desk.cli.session import Session
from desk.errors import UsageError
from desk.machine.model import MachineSpec
from desk.machine.store import MachineRecord, MachineStore
from desk.paths import Home


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session whose default machine is a virtual one, which is not running."""
    home = Home(tmp_path / "home")
    monkeypatch.setenv("DESK_HOME", str(home.directory))
    monkeypatch.delenv("DESK_MACHINE", raising=False)
    home.machine("default").directory.mkdir(parents=True)
    record = MachineRecord(MachineSpec("default"), "2026-01-01T00:00:00Z", {"ssh_port": "20200"})
    MachineStore(home).file("default").write(record)
    return Session()


def test_a_virtual_machine_does_not_have_them(session: Session) -> None:
    with pytest.raises(UsageError, match=r"does not share folders .* so /home/me/src would be"):
        check(session, ["/home/me/src"])


def test_paths_that_mean_the_machine_itself_are_let_through(session: Session) -> None:
    check(
        session,
        ["/proc", "/dev/null", "/lib/modules", "/run/desk/engine.sock", "/var/run/docker.sock"],
    )
    with pytest.raises(UsageError):
        check(session, ["/procession"])


def test_an_engine_by_address_gets_them_as_they_are(session: Session) -> None:
    session.choose(host="tcp://somewhere", machine="")
    check(session, ["/home/me/src"])
