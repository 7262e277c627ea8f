"""What this computer runs on, told to the engine, which has containers do less on battery."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from desk.agent.spec import AUTO, PowerWishes
from desk.errors import DeskError, EngineError

_log = logging.getLogger(__name__)

_POLL_S = 5.0
_REPEAT_S = 20.0
"""The engine undoes everything 90 s after the last report: three may be lost."""


class Source(StrEnum):
    """What a computer runs on; the engine knows these words."""

    MAINS = "mains"
    BATTERY = "battery"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class HostPower:
    """One look at this computer's power; ``charge_percent`` is ``None`` without a battery."""

    source: Source
    charge_percent: float | None = None


def read_host_power() -> HostPower:
    """Look at this computer's power: a computer without a battery runs on mains."""
    import psutil

    ask: Callable[[], Any] | None = getattr(psutil, "sensors_battery", None)
    if ask is None:
        return HostPower(Source.UNKNOWN)
    try:
        battery = ask()
    except (OSError, RuntimeError):
        # psutil raises the one on Linux without /sys/class/power_supply, the other on macOS where
        # IOKit does not answer: what cannot be asked is not known.
        return HostPower(Source.UNKNOWN)
    if battery is None:
        return HostPower(Source.MAINS)
    charge = round(float(battery.percent), 1)
    if battery.power_plugged is None:
        return HostPower(Source.UNKNOWN, charge)
    return HostPower(Source.MAINS if battery.power_plugged else Source.BATTERY, charge)


class PowerWatch:
    """A thread that looks at the power every few seconds, and ``tell``s the engine of a change, of
    a new connection, and on battery again and again.

    ``tell`` sends the body of ``POST /desk/power`` and returns the answer, or raises ``DeskError``.
    """

    def __init__(
        self,
        wishes: PowerWishes,
        tell: Callable[[Mapping[str, object]], Mapping[str, Any]],
        read: Callable[[], HostPower] = read_host_power,
    ) -> None:
        self._tell = tell
        self._read = read
        self._lock = threading.Lock()
        self._wishes = wishes
        self._host = HostPower(Source.UNKNOWN)
        self._news = 0  # counts what is to be told anew
        self._told: dict[str, object] | None = None
        self._told_at = 0.0
        self._settled = False
        self._problem = ""
        self._in_force = ""
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; idempotent. What is in force stays so until the engine gives it up."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=3.0)

    def connected(self) -> None:
        """Tell an engine that is new, or may have forgotten; returns at once."""
        self._tell_anew()

    def wish(self, wishes: PowerWishes) -> None:
        """Follow other wishes from now on; returns at once."""
        self._tell_anew(wishes)

    def _tell_anew(self, wishes: PowerWishes | None = None) -> None:
        with self._lock:
            self._wishes = wishes or self._wishes
            self._news += 1
            self._told, self._settled, self._problem = None, False, ""
        self._wake.set()

    def describe(self) -> dict[str, object]:
        """Return what is known and wished; ``settled``: the engine has been told of the latter;
        ``in_force``: what it answered last, in words."""
        with self._lock:
            return {
                "source": self._source(),
                "charge_percent": self._host.charge_percent,
                "wishes": asdict(self._wishes),
                "settled": self._settled,
                "problem": self._problem,
                "in_force": self._in_force,
            }

    def _source(self) -> str:
        chosen = self._wishes.source
        return str(self._host.source) if chosen == AUTO else chosen

    def _run(self) -> None:
        while True:
            self._wake.wait(_POLL_S)
            self._wake.clear()
            if self._closing:
                return
            self.look()

    def look(self) -> None:
        """Look at the power once, and tell the engine where that is due."""
        host = self._read()
        with self._lock:
            self._host = host
            report = {"Source": self._source(), "NanoCpus": self._wishes.nano_cpus}
            told, news = self._told, self._news
            repeats = report["Source"] == Source.BATTERY
            if told == report and not (repeats and time.monotonic() - self._told_at >= _REPEAT_S):
                return
        problem, settled = "", True
        try:
            answer = self._tell(report)
        except EngineError as error:
            if error.status == 404:
                # It stays so until another engine answers.
                problem = "the engine is an older one, without a power policy"
            else:
                problem, settled = error.text, False
        except DeskError as error:
            problem, settled = error.text, False
        else:
            problem = str(answer.get("Problem") or "")
            self._note(host, report, answer)
        with self._lock:
            if problem and problem != self._problem:
                _log.info("the power policy: %s", problem)
            if news != self._news:
                return  # this thread was woken meanwhile, and tells again
            self._problem = problem
            self._told, self._told_at = (report if settled else None), time.monotonic()
            self._settled = settled

    def _note(
        self, host: HostPower, report: Mapping[str, object], answer: Mapping[str, Any]
    ) -> None:
        """Keep what is in force in words, and write a change of it into the log."""
        cpus = int(answer.get("NanoCpus") or 0) / 1e9
        what = f"at most {cpus:g} CPU{'' if cpus == 1 else 's'}" if cpus else "all CPUs"
        frozen = ", ".join(str(each["Name"]) for each in answer.get("Frozen") or ())
        text = (
            f"the computer runs on {report['Source']}: containers have {what} together;"
            f" frozen: {frozen or 'none'}"
        )
        charge = "" if host.charge_percent is None else f" (charge {host.charge_percent:g}%)"
        if text != self._in_force:
            _log.info("%s%s", text, charge)
        with self._lock:
            self._in_force = text
