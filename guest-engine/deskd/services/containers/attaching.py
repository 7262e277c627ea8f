"""``docker attach``: a client's place at a container's stdio, also before its start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from deskd.domain.state import Status
from deskd.errors import Conflict, InvalidArgument
from deskd.record import Record
from deskd.services.containers.logs import LogOptions, Logs
from deskd.services.containers.registry import Container, ContainerRegistry, PendingAttach
from deskd.services.ports import AttachStream


class AttachOptions(Record):
    """``logs`` replays what was written; ``stream`` joins the living process."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    logs: bool = False
    stream: bool = False


class Attaching:
    """Joins clients to containers' stdio."""

    def __init__(self, registry: ContainerRegistry, logs: Logs) -> None:
        self._registry = registry
        self._logs = logs

    def check(self, reference: str) -> Container:
        """Return the container, or raise ``Conflict`` where nobody can attach now."""
        container = self._registry.get(reference)
        status = container.record.state.status
        if status is Status.PAUSED:
            raise Conflict(f"container {reference} is paused, unpause the container before attach")
        if status is Status.RESTARTING:
            raise Conflict(
                f"container {reference} is restarting, wait until the container is running"
            )
        return container

    def replay(self, container: Container, options: AttachOptions) -> AsyncIterator[bytes]:
        """Return what was written so far. Raises ``InvalidArgument`` where no stream is asked."""
        return self._logs.read(
            container.id, LogOptions(stdout=options.stdout, stderr=options.stderr)
        )

    async def stream(self, container: Container, options: AttachOptions) -> AttachStream:
        """Join the process; before a start, wait for it (the start itself then waits for this).

        Raises ``Conflict`` where the container is removed before it starts.
        """
        if not (options.stdin or options.stdout or options.stderr):
            raise InvalidArgument("attach needs one of stdin, stdout and stderr")
        self._registry.tell(container, "attach")
        use_stdin = options.stdin and container.record.config.open_stdin
        if container.process is not None:
            stream = await container.process.attach(
                stdin=use_stdin, stdout=options.stdout, stderr=options.stderr
            )
        else:
            future: asyncio.Future[AttachStream] = asyncio.get_running_loop().create_future()
            pending = PendingAttach(use_stdin, options.stdout, options.stderr, future)
            container.pending_attaches.append(pending)
            try:
                stream = await future
            finally:
                if pending in container.pending_attaches:
                    container.pending_attaches.remove(pending)
        return stream

    def detached(self, container: Container) -> None:
        """Tell that a client left by its detach keys."""
        self._registry.tell(container, "detach")
