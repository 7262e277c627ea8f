"""What a command works with: which engine it talks to, and how it fails."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from desk.cli import render
from desk.errors import DeskError, EngineError

if TYPE_CHECKING:
    from desk.compose import Desk
    from desk.engine.client import EngineClient

T = TypeVar("T")


class Session:
    """One invocation of ``desk``; click's ``ctx.obj``.

    The engine is that of ``--host``, else of ``--machine``, ``$DESK_MACHINE``, the machine that
    ``desk env`` pointed the shell at, the settings' ``engine_host``, or the active machine.
    ``failure_code`` replaces an engine error's exit code.
    """

    def __init__(self) -> None:
        self._host = ""
        self._machine = ""
        self.failure_code: int | None = None
        self._clients: list[EngineClient] = []

    def choose(self, *, host: str, machine: str) -> None:
        """Take the engine or machine that the command line names."""
        self._host = host
        self._machine = machine

    @cached_property
    def desk(self) -> Desk:
        from desk.compose import Desk

        return Desk()

    @property
    def engine_url(self) -> str:
        """The address given instead of a machine; empty when a machine's engine is used."""
        if self._host:
            return self._host
        if self._machine or os.environ.get("DESK_MACHINE") or self._machine_of_shell():
            return ""
        return self.desk.settings.engine_host

    @property
    def machine(self) -> str:
        """The name of the machine in use: the one named, else the one that ``desk env`` pointed
        this shell at, else the settings'."""
        return (
            self._machine
            or os.environ.get("DESK_MACHINE")
            or self._machine_of_shell()
            or self.desk.settings.active_machine
        )

    @property
    def names_machine(self) -> bool:
        """Whether the command line chose the machine, as the next one would not by itself."""
        return bool(self._machine)

    def _machine_of_shell(self) -> str:
        name = os.environ.get("DOCKER_MACHINE_NAME", "")
        host = os.environ.get("DOCKER_HOST", "")
        if not name or not host or not self.desk.has_machine(name):
            return ""
        return name if self.desk.machine_url(name) == host else ""

    @cached_property
    def client(self) -> EngineClient:
        """The engine; its machine must be running."""
        return self._connect(start=False)

    @cached_property
    def removing_client(self) -> EngineClient:
        """The engine, for a command that removes things: they go into the bin together."""
        self.client.connection.bin_group = os.urandom(8).hex()
        return self.client

    @cached_property
    def starting_client(self) -> EngineClient:
        """The engine; its machine is started if it is stopped."""
        return self._connect(start=True)

    def _connect(self, *, start: bool) -> EngineClient:
        url = self.engine_url
        if url:
            client = self.desk.client_for_url(url)
        else:
            client = self.desk.client(self.machine, start=start, progress=self.progress)
        self._clients.append(client)
        return client

    @cached_property
    def progress(self) -> render.Progress:
        """Tells on standard error what takes long, such as starting the machine."""
        return render.Progress()

    def check_host_ports(self, body: dict[str, Any]) -> None:
        """Refuse ports that another program on this computer has: the engine cannot know."""
        from desk.cli.host_ports import check

        check(self, body)

    def close(self) -> None:
        if "progress" in self.__dict__:
            self.progress.done()
        for client in self._clients:
            client.close()


def pass_session(function: Callable[..., T]) -> Callable[..., T]:
    """Give a command its ``Session`` as the first argument."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> T:
        return function(click.get_current_context().obj, *arguments, **options)

    return wrapper


def for_each(
    names: Iterable[str],
    action: Callable[[str], Any],
    *,
    silent: bool = False,
    missing_ok: bool = False,
) -> None:
    """Do something to each name and print it; one that fails does not stop the others, but the
    command ends with exit code 1. With ``missing_ok`` one that does not exist is told, and no
    failure."""
    failed = False
    for name in names:
        try:
            action(name)
        except EngineError as failure:
            render.error(failure)
            failed = failed or not (missing_ok and failure.status == 404)
        else:
            if not silent:
                render.out(name)
    if failed:
        raise click.exceptions.Exit(1)


def exit_code(failure: DeskError, session: Session) -> int:
    """Return the exit code for an error: 125 for ``run``, 1 for what other commands are told by
    the engine, as Docker has it, else the error's own."""
    if session.failure_code is not None:
        return session.failure_code
    return 1 if isinstance(failure, EngineError) else failure.exit_code
