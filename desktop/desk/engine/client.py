"""The Engine API's client that command line, app and agent share: synchronous and thread-safe.

    client = EngineClient(UnixTransport(path))
    for container in client.containers.list():
        print(container["Names"])

Answers are the API's JSON as it is (``dict`` with Docker's names). Errors are ``EngineError``
with the HTTP status, or ``EngineUnreachable``. Streams are iterators whose ``close`` may be
called from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from desk.engine.connection import EngineConnection
from desk.engine.transport import Transport

if TYPE_CHECKING:
    from desk.engine.bin import Bin
    from desk.engine.containers import Containers, Execs
    from desk.engine.faults import Faults
    from desk.engine.images import Images
    from desk.engine.resources import Networks, Volumes
    from desk.engine.system import System


class EngineClient:
    """One engine; ``containers``, ``execs``, ``images``, ``networks``, ``volumes``, ``faults``,
    ``bin``, ``system``."""

    def __init__(
        self,
        transport: Transport,
        *,
        timeout_s: float = 60.0,
        unreachable_hint: str = "",
        revive: Callable[[], None] | None = None,
    ) -> None:
        self.connection = EngineConnection(
            transport, timeout_s=timeout_s, unreachable_hint=unreachable_hint, revive=revive
        )

    # Each group is loaded by its first use: a command needs one or two of them.

    @cached_property
    def containers(self) -> Containers:
        from desk.engine.containers import Containers

        return Containers(self.connection)

    @cached_property
    def execs(self) -> Execs:
        from desk.engine.containers import Execs

        return Execs(self.connection)

    @cached_property
    def images(self) -> Images:
        from desk.engine.images import Images

        return Images(self.connection)

    @cached_property
    def networks(self) -> Networks:
        from desk.engine.resources import Networks

        return Networks(self.connection)

    @cached_property
    def volumes(self) -> Volumes:
        from desk.engine.resources import Volumes

        return Volumes(self.connection)

    @cached_property
    def faults(self) -> Faults:
        from desk.engine.faults import Faults

        return Faults(self.connection)

    @cached_property
    def bin(self) -> Bin:
        from desk.engine.bin import Bin

        return Bin(self.connection)

    @cached_property
    def system(self) -> System:
        from desk.engine.system import System

        return System(self.connection)

    @property
    def url(self) -> str:
        """The engine's address, as ``DOCKER_HOST`` takes it."""
        return self.connection.transport.url

    def close(self) -> None:
        """Close idle connections; the client must not be used any more."""
        self.connection.close()

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
