"""The guest's clock, judged over a real SSH connection; this computer's own is never set."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.ssh_server import SshServer, ssh_server  # noqa: F401 - a fixture

from desk.agent import clock
from desk.agent.clock import clock_error_s, set_clock
from desk.errors import SshError
from desk.ssh.session import Session


@pytest.mark.parametrize(
    ("guest_s", "before_s", "after_s", "error_s"),
    [
        (100, 100.2, 100.4, 0.0),
        (99, 99.9, 100.4, 0.0),
        (97, 100.5, 100.7, -2.5),
        (104, 100.5, 101.5, 2.5),
        (100, 99.0, 103.0, 0.0),
    ],
)
def test_only_a_clock_that_is_wrong_for_certain_is_wrong(
    guest_s: int, before_s: float, after_s: float, error_s: float
) -> None:
    assert clock_error_s(guest_s, before_s, after_s) == pytest.approx(error_s)


def fake_date(directory: Path, offset_s: int) -> None:
    """Put a ``date`` into the login's PATH whose clock is off; it notes what it is set to."""
    program = directory / "date"
    program.write_text(
        "#!/bin/sh\n"
        f'if [ "$2" = -s ]; then echo "$3" >{directory}/set; /bin/date +%s.%N >{directory}/when\n'
        f"else echo $(($(/bin/date +%s) + {offset_s})); fi\n"
    )
    program.chmod(0o755)


@pytest.fixture
def session(ssh_server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:  # noqa: F811
    made = Session.connect(ssh_server.endpoint)
    run = made.run

    def run_with_our_date(command: str, *, timeout_s: float | None = 60.0) -> object:
        return run(f"PATH={tmp_path}:$PATH; {command}", timeout_s=timeout_s)

    monkeypatch.setattr(made, "run", run_with_our_date)
    return made


def test_a_clock_that_is_behind_is_set(session: Session, tmp_path: Path) -> None:
    fake_date(tmp_path, -90)
    with session:
        assert -91.5 < set_clock(session) < -88
    target_s = int((tmp_path / "set").read_text().strip().removeprefix("@"))
    assert abs(target_s - float((tmp_path / "when").read_text())) < 5


def test_a_clock_that_is_right_is_left_alone(session: Session, tmp_path: Path) -> None:
    fake_date(tmp_path, 0)
    with session:
        assert set_clock(session) == 0.0
    assert not (tmp_path / "set").exists()


def test_a_machine_without_a_clock_says_so(session: Session, tmp_path: Path) -> None:
    (tmp_path / "date").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "date").chmod(0o755)
    with session, pytest.raises(SshError, match="does not tell its time"):
        set_clock(session)


def test_the_check_waits_for_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[float] = []

    def note(_: Session) -> float:
        checks.append(time.monotonic())
        return 0.0

    monkeypatch.setattr(clock, "set_clock", note)
    guest_clock = clock.GuestClock(lambda: None)  # type: ignore[arg-type,return-value]
    guest_clock.start()
    guest_clock.check_now()
    deadline = time.monotonic() + 60
    while not checks and time.monotonic() < deadline:
        time.sleep(0.01)
    guest_clock.close()
    assert len(checks) == 1
