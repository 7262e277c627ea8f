"""Looks at everything that may have suffered while the host slept or changed networks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from desk.errors import DeskError, SshError
from desk.ssh.session import Session

_log = logging.getLogger(__name__)

_CONNECTION_S = 30.0
_ENGINE_S = 15.0
_ANSWER_S = 5.0
_PAUSE_S = 0.2
ASKED = "asked by a command"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: ``mended`` tells what had to be done, ``fault`` what is wrong
    still; both are empty where all was well."""

    kind: str
    mended: str = ""
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What one look found. ``at`` is in seconds since 1970, ``took_s`` in seconds."""

    number: int
    at: float
    reason: str
    took_s: float
    findings: Sequence[Finding]

    @property
    def faults(self) -> list[str]:
        """What is wrong still, a clause each."""
        return [finding.fault for finding in self.findings if finding.fault]

    @property
    def summary(self) -> str:
        """What was looked at, how long it took, and what came of it, in one clause."""
        counts: dict[str, int] = {}
        for finding in self.findings:
            counts[finding.kind] = counts.get(finding.kind, 0) + 1
        things = ", ".join(
            kind if count == 1 else f"{count} {kind}s" for kind, count in counts.items()
        )
        mended = [finding.mended for finding in self.findings if finding.mended]
        outcome = "; ".join([*mended, *self.faults]) or "all is well"
        return f"checked {things} in {self.took_s:.1f} s: {outcome}"

    def describe(self) -> dict[str, object]:
        """Return it as the agent's status has it."""
        return {
            "number": self.number,
            "at": self.at,
            "reason": self.reason,
            "took_s": self.took_s,
            "summary": self.summary,
            "faults": self.faults,
        }


class Connections(Protocol):
    """The part of ``Link`` that is needed here."""

    @property
    def reconnects(self) -> int: ...
    def session(self, timeout_s: float, *, urgent: bool = True) -> Session: ...


class Checkup:
    """Does one look at a time, in a thread of its own.

    ``look_at_clock(session)`` sets the guest's clock where it is wrong and returns by how many
    seconds it was, ``reach_engine(timeout_s)`` waits for an answer of the engine; both raise
    ``DeskError``. ``probe_ports(timeout_s)`` and ``probe_folders(session, timeout_s)`` return a
    finding for each.
    """

    def __init__(
        self,
        link: Connections,
        *,
        look_at_clock: Callable[[Session], float] | None,
        reach_engine: Callable[[float], None],
        probe_ports: Callable[[float], list[Finding]],
        probe_folders: Callable[[Session, float], list[Finding]],
    ) -> None:
        self._link = link
        self._look_at_clock = look_at_clock
        self._reach_engine = reach_engine
        self._probe_ports = probe_ports
        self._probe_folders = probe_folders
        self._changed = threading.Condition()
        self._reason = ""
        self._reconnects = 0
        self._wanted = 0
        self._is_connecting = False
        self._session: Session | None = None
        self._last: Report | None = None
        self._last_unasked: Report | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="checkup", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Begin nothing more; what is under way ends with the connection."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def request(self, reason: str) -> int:
        """Have everything looked at soon; return the number that the report will have at least."""
        with self._changed:
            if not self._reason or self._reason == ASKED:
                self._reason = reason
                self._reconnects = self._link.reconnects
            self._wanted += 1
            self._changed.notify_all()
            return self._wanted

    def connected(self, session: Session) -> None:
        """Note a further connection: a look that waits for one goes on, else one begins."""
        with self._changed:
            if self._is_connecting or session is self._session:
                return
        self.request("the SSH connection was made anew")

    def describe(self) -> dict[str, object]:
        """Return the last look and the last one that no command asked for, each ``None`` where
        there was none."""
        with self._changed:
            last, unasked = self._last, self._last_unasked
        return {
            "last": last.describe() if last is not None else None,
            "last_unasked": unasked.describe() if unasked is not None else None,
        }

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._reason)
                if self._closing:
                    return
                reason, reconnects, number = self._reason, self._reconnects, self._wanted
                self._reason, self._is_connecting = "", True
            begun = time.monotonic()
            try:
                findings = self._look(reconnects)
            except (DeskError, OSError) as error:
                findings = [Finding("SSH", fault=str(error))]
            report = Report(number, time.time(), reason, time.monotonic() - begun, findings)
            with self._changed:
                self._is_connecting = False
                self._last = report
                if reason != ASKED:
                    self._last_unasked = report
            if reason != ASKED:
                (_log.warning if report.faults else _log.info)("%s: %s", reason, report.summary)

    def _look(self, reconnects: int) -> list[Finding]:
        session = self._connect()
        anew = self._link.reconnects > reconnects
        findings = [Finding("VM"), Finding("SSH", mended="connected anew" if anew else "")]
        if self._look_at_clock is not None:
            findings.append(_clock_finding(self._look_at_clock, session))
        try:
            self._reach_engine(_ENGINE_S)
        except DeskError as error:
            return [*findings, Finding("engine", fault=error.text)]
        findings.append(Finding("engine"))
        findings += self._probe_ports(_ANSWER_S)
        findings += self._probe_folders(session, _ANSWER_S)
        return findings

    def _connect(self) -> Session:
        """Return a connection over which a command ran."""
        deadline = time.monotonic() + _CONNECTION_S
        while True:
            session = self._link.session(max(0.0, deadline - time.monotonic()))
            try:
                session.run("true", timeout_s=_ANSWER_S)
            except SshError:
                if time.monotonic() > deadline or self._closing:
                    raise
                # It is the one from before: its end is near, and the next one's beginning.
                time.sleep(_PAUSE_S)
                continue
            with self._changed:
                self._session, self._is_connecting = session, False
            return session


def _clock_finding(look: Callable[[Session], float], session: Session) -> Finding:
    try:
        error_s = look(session)
    except SshError as error:
        return Finding("clock", fault=error.text)
    if not error_s:
        return Finding("clock")
    way = "ahead" if error_s > 0 else "behind"
    return Finding("clock", mended=f"set the clock, which was {abs(error_s):.1f} s {way}")
