"""The agent's look at everything: faults of one part are told as that part's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from desk.agent import checkup
from desk.agent.checkup import ASKED, Checkup, Finding
from desk.errors import EngineUnreachable, SshError


class Way:
    """A connection over which the first ``broken`` commands fail."""

    reconnects = 0

    def __init__(self, broken: int = 0) -> None:
        self.broken = broken
        self.commands = 0

    def session(self, timeout_s: float, *, urgent: bool = True) -> Way:
        return self

    def run(self, command: str, *, timeout_s: float) -> None:
        self.commands += 1
        if self.commands <= self.broken:
            raise SshError("the SSH connection was lost")


def looked(way: Way, **parts: Callable[..., Any]) -> dict[str, Any]:
    link: Any = way
    made: dict[str, Any] = {
        "look_at_clock": lambda _session: 0.0,
        "reach_engine": lambda _timeout_s: None,
        "probe_ports": lambda _timeout_s: [Finding("port"), Finding("port")],
        "probe_folders": lambda _session, _timeout_s: [],
    }
    one = Checkup(link, **{**made, **parts})
    one.start()
    number = one.request(ASKED)
    deadline = time.monotonic() + 60
    while (last := one.describe()["last"]) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    one.close()
    assert isinstance(last, dict)
    assert last["number"] == number
    assert one.describe()["last_unasked"] is None
    return last


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise error

    return fail


def test_a_clock_that_cannot_be_read_is_the_clocks_fault() -> None:
    last = looked(Way(), look_at_clock=failing(SshError("the machine does not tell its time")))
    assert last["faults"] == ["the machine does not tell its time"]
    assert last["summary"].startswith("checked VM, SSH, clock, engine, 2 ports in ")


def test_an_engine_that_does_not_answer_ends_the_look() -> None:
    last = looked(Way(), reach_engine=failing(EngineUnreachable("nobody")))
    assert last["summary"].startswith("checked VM, SSH, clock, engine in ")
    assert last["faults"] == ["nobody"]


def test_what_was_mended_is_told_and_is_no_fault() -> None:
    last = looked(Way(), look_at_clock=lambda _session: -312.4)
    assert last["faults"] == []
    assert last["summary"].endswith(": set the clock, which was 312.4 s behind")


def test_a_connection_that_breaks_is_tried_again_with_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkup, "_PAUSE_S", 0.05)
    way = Way(broken=3)
    last = looked(way)
    assert last["faults"] == []
    assert way.commands == 4
    assert last["took_s"] >= 3 * 0.05
