"""Health checks: a container's own command, run as an exec again and again while it runs.

A container is ``starting`` until a probe succeeds or ``retries`` probes in a row have failed;
failures within the start period do not count. Without a running probe nobody knows the health:
as in Docker it is then ``unhealthy``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from signal import SIGKILL

from deskd.domain.container import ContainerConfig, HealthConfig
from deskd.domain.frames import Unframer
from deskd.domain.state import Health, HealthStatus, ProbeResult
from deskd.errors import DeskdError
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.exec import ExecConfig, Execs
from deskd.services.ports import AttachStream

log = logging.getLogger(__name__)

DEFAULT_INTERVAL_NS = 30 * 10**9
DEFAULT_TIMEOUT_NS = 30 * 10**9
DEFAULT_START_INTERVAL_NS = 5 * 10**9
DEFAULT_RETRIES = 3
KEPT_RESULTS = 5
MAX_OUTPUT_BYTES = 4096
_DEFAULT_SHELL = ["/bin/sh", "-c"]


class HealthChecks:
    """Probes running containers; the state is part of their records."""

    def __init__(self, registry: ContainerRegistry, execs: Execs) -> None:
        self._registry = registry
        self._execs = execs
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._giving_up: set[asyncio.Task[None]] = set()

    def begin(self, container: Container, *, fresh: bool = False) -> None:
        """Probe from now on, where there is a check; ``fresh`` begins as ``starting``.

        The caller saves the record. Idempotent.
        """
        command = probe_command(container.record.config)
        if command is None or container.id in self._tasks:
            return
        state = container.record.state
        if fresh or state.health is None:
            kept = state.health.log if state.health else []
            state.health = Health(log=kept)
        task = asyncio.create_task(self._run(container, command))
        self._tasks[container.id] = task
        task.add_done_callback(lambda done: self._forget(container.id, done))

    def _forget(self, container_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(container_id) is task:
            del self._tasks[container_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the health check of %s ended", container_id[:12], exc_info=error)

    def end(self, container: Container) -> None:
        """Probe no more; idempotent. The caller saves the record."""
        self.pause(container)
        health = container.record.state.health
        if health is not None:
            health.status = HealthStatus.UNHEALTHY

    def pause(self, container: Container) -> None:
        """Probe no more and leave the state as it is; idempotent."""
        task = self._tasks.pop(container.id, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Probe nothing any more; what is known of healths stays in the records."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._giving_up, return_exceptions=True)

    async def _run(self, container: Container, command: list[str]) -> None:
        check = container.record.config.healthcheck or HealthConfig()
        while True:
            await asyncio.sleep(_delay_s(container, check))
            result = await self._probe(container, command, check)
            if container.process is None:
                return  # it ended under the probe, which says nothing then
            self._note(container, check, result)

    def _note(self, container: Container, check: HealthConfig, result: ProbeResult) -> None:
        state = container.record.state
        health = state.health
        if health is None:
            return
        old = health.status
        health.log = [*health.log, result][-KEPT_RESULTS:]
        young = result.start_ns - state.started_at_ns < check.start_period
        if result.exit_code == 0:
            health.failing_streak, health.status = 0, HealthStatus.HEALTHY
        elif not (old is HealthStatus.STARTING and young):
            health.failing_streak += 1
            if health.failing_streak >= (check.retries or DEFAULT_RETRIES):
                health.status = HealthStatus.UNHEALTHY
        self._registry.save(container)
        if health.status is not old:
            self._registry.tell(container, f"health_status: {health.status}")

    async def _probe(
        self, container: Container, command: list[str], check: HealthConfig
    ) -> ProbeResult:
        timeout_ns = check.timeout or DEFAULT_TIMEOUT_NS
        output = _Output()
        start_ns = time.time_ns()
        config = ExecConfig(cmd=command, attach_stdout=True, attach_stderr=True)
        exec_id = ""
        starting: asyncio.Task[AttachStream | None] | None = None
        try:
            exec_id = self._execs.create(container.id, config).id
            starting = asyncio.create_task(
                self._execs.start(exec_id, attach=True, console_size=None)
            )
            async with asyncio.timeout(timeout_ns / 1e9):
                # A start that is broken off would leave a process that nobody knows of.
                stream = await asyncio.shield(starting)
                if stream is not None:
                    await output.take(stream)
                await self._execs.finished(exec_id)
            ended = self._execs.get(exec_id).exit
            code, text = ended.code if ended else -1, output.text()
        except TimeoutError:
            await self._execs.signal(exec_id, SIGKILL)
            code, text = -1, f"Health check exceeded timeout ({_go_duration(timeout_ns)})"
            if said := output.text():
                text = f"{text}: {said}"
        except DeskdError as error:
            code, text = -1, str(error)
        finally:
            if starting is None or starting.done():
                self._execs.drop(exec_id)
            else:
                giving_up = asyncio.create_task(self._give_up(exec_id, starting))
                self._giving_up.add(giving_up)
                giving_up.add_done_callback(self._giving_up.discard)
        return ProbeResult(start_ns=start_ns, end_ns=time.time_ns(), exit_code=code, output=text)

    async def _give_up(self, exec_id: str, starting: asyncio.Task[AttachStream | None]) -> None:
        """End a probe whose start has outlasted the wish for it."""
        with suppress(DeskdError):
            stream = await starting
            await self._execs.signal(exec_id, SIGKILL)
            if stream is not None:
                await stream.close()
        self._execs.drop(exec_id)


class _Output:
    """What a probe writes, up to a limit; the rest is read and dropped."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._cut = False

    async def take(self, stream: AttachStream) -> None:
        """Read to the end."""
        unframer = Unframer()
        try:
            while data := await stream.read():
                for part in unframer.feed(data):
                    self._keep(part)
        finally:
            with suppress(OSError):
                await stream.close()

    def _keep(self, data: bytes) -> None:
        room = MAX_OUTPUT_BYTES - len(self._kept)
        self._kept += data[:room]
        self._cut = self._cut or len(data) > room

    def text(self) -> str:
        return self._kept.decode(errors="replace") + ("..." if self._cut else "")


def probe_command(config: ContainerConfig) -> list[str] | None:
    """Return what a probe executes, or None where nothing is checked."""
    test = config.healthcheck.test if config.healthcheck else None
    if not test or len(test) < 2:
        return None
    if test[0] == "CMD":
        return test[1:]
    if test[0] == "CMD-SHELL":
        return [*(config.shell or _DEFAULT_SHELL), *test[1:]]
    return None


def _delay_s(container: Container, check: HealthConfig) -> float:
    state = container.record.state
    starting = state.health is not None and state.health.status is HealthStatus.STARTING
    if starting and time.time_ns() - state.started_at_ns < check.start_period:
        return (check.start_interval or DEFAULT_START_INTERVAL_NS) / 1e9
    return (check.interval or DEFAULT_INTERVAL_NS) / 1e9


def _go_duration(nanoseconds: int) -> str:
    """Write a duration as Go does: ``1.5s``, ``2m0s``, ``300ms``."""
    if nanoseconds < 10**9:
        return f"{nanoseconds / 10**6:g}ms"
    minutes, rest_ns = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest_ns / 10**9:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
