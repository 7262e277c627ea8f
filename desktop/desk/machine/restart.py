"""What a restart of a machine does for the containers in it, through the engine."""

from __future__ import annotations

import time
from http import HTTPStatus

from desk.engine.client import EngineClient
from desk.engine.transport import UnixTransport
from desk.errors import EngineError
from desk.machine.coming_up import Machine, Returned, Stopwatch
from desk.machine.driver import Progress
from desk.machine.model import State

_LEAST_POWER_OFF_S = 3.0
_PING_S = 5.0
_ANSWER_S = 15.0
_LOOK_S = 0.05
_SETTLE_S = 60.0


class ContainersOver:
    """Brings containers over one restart: ``stop`` before it, ``wait`` after it."""

    def __init__(self, machine: Machine, progress: Progress) -> None:
        self._machine = machine
        self._progress = progress
        self._watch = Stopwatch()
        self._expected = 0

    @property
    def stages(self) -> tuple[tuple[str, float], ...]:
        return tuple(self._watch.stages)

    def stop(self, grace_s: float, *, policy_only: bool) -> float:
        """Have the engine stop its containers within ``grace_s`` seconds; return how many of them
        are left for switching the machine off.

        A machine whose engine does not answer, or is older than this, comes back by restart
        policies only: a restart is what mends it.
        """
        if self._machine.driver.state() is not State.RUNNING:
            return grace_s
        began = time.monotonic()
        with self._watch.stage("containers' end"):
            self._progress(f"Stopping the containers of machine {self._machine.name}")
            self._expected = self._ask(int(grace_s), policy_only=policy_only)
        return max(_LEAST_POWER_OFF_S, grace_s - (time.monotonic() - began))

    def _ask(self, grace_s: int, *, policy_only: bool) -> int:
        try:
            with self._client() as client:
                client.system.ping(timeout_s=_PING_S)  # a hanging machine needs no longer wait
                told = client.system.prepare_restart(policy_only=policy_only, grace_s=grace_s)
        except EngineError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                self._progress(f"Its engine cannot stop the containers: {error.text}")
            return 0
        return int(told["Pending"])

    def wait(self, deadline_s: float) -> tuple[Returned, ...]:
        """Wait until what ran is back, or cannot be; return what became of each container."""
        if not self._expected:
            return ()
        deadline = time.monotonic() + min(deadline_s, _SETTLE_S)
        with self._watch.stage("containers' return"), self._client() as client:
            self._progress(f"Starting {self._expected} containers again")
            try:
                while (told := client.system.restart_report())["Pending"]:
                    if time.monotonic() >= deadline:
                        break
                    time.sleep(_LOOK_S)
            except EngineError as error:  # the machine runs all the same, perhaps an older engine
                self._progress(f"Its engine does not tell what came back: {error.text}")
                return ()
        return tuple(
            Returned(str(c["Name"]), str(c["Before"]), str(c["After"]), str(c["Error"]))
            for c in told["Containers"]
        )

    def _client(self) -> EngineClient:
        return EngineClient(UnixTransport(self._machine.paths.engine_socket), timeout_s=_ANSWER_S)
