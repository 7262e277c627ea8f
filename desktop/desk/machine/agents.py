"""The background process of a machine, as the manager needs it."""

from __future__ import annotations

from typing import Protocol

from desk.agent.spec import EngineAccess, FolderSharing, PowerWishes
from desk.errors import HostKeyMismatch, SshError
from desk.paths import MachinePaths
from desk.ssh.endpoint import Endpoint

_HOPELESS: dict[str, type[SshError]] = {"HostKeyMismatch": HostKeyMismatch, "KeyRefused": SshError}
"""Failures that no waiting mends, by the name under which the agent reports them."""


class Agents(Protocol):
    """Starts and ends agents. Both are idempotent; an agent outlives the command."""

    def start(
        self,
        paths: MachinePaths,
        name: str,
        endpoint: Endpoint,
        access: EngineAccess,
        *,
        keeps_clock: bool,
        leads_back: bool,
        sharing: FolderSharing,
        power: PowerWishes | None,
    ) -> None:
        """Return when the agent serves the engine's socket; it connects in the background."""

    def set_power(self, paths: MachinePaths, wishes: PowerWishes) -> None:
        """Have a running agent follow other wishes, while everything else goes on."""

    def stop(self, paths: MachinePaths) -> None: ...
    def running(self, paths: MachinePaths) -> bool:
        """Whether there is an agent; asks it nothing."""

    def obstacle(self, paths: MachinePaths) -> str:
        """Return an empty text when the agent is connected, else what it waits for.

        Raises ``SshError`` for what waiting does not mend, such as a wrong host key.
        """


class AgentProcesses:
    """``Agents`` as processes, through ``desk.agent.spawn``."""

    def start(
        self,
        paths: MachinePaths,
        name: str,
        endpoint: Endpoint,
        access: EngineAccess,
        *,
        keeps_clock: bool,
        leads_back: bool,
        sharing: FolderSharing,
        power: PowerWishes | None,
    ) -> None:
        from desk.agent import spawn
        from desk.agent.spec import AgentSpec

        spec = AgentSpec(
            name,
            endpoint,
            access,
            keeps_clock=keeps_clock,
            leads_back=leads_back,
            sharing=sharing,
            power=power,
        )
        spawn.start(paths, spec)

    def set_power(self, paths: MachinePaths, wishes: PowerWishes) -> None:
        from desk.agent import spawn

        spawn.set_power(paths, wishes)

    def stop(self, paths: MachinePaths) -> None:
        from desk.agent import spawn

        spawn.stop(paths)

    def running(self, paths: MachinePaths) -> bool:
        from desk.agent.pidfile import PidFile

        return PidFile(paths.agent_pid).is_held()

    def obstacle(self, paths: MachinePaths) -> str:
        from desk.agent import spawn

        status = spawn.status(paths)
        if not status.running:
            return f"its agent is not running (log: {paths.agent_log})"
        if status.connected:
            return ""
        text = str(status.details.get("last_error") or "its agent has no SSH connection yet")
        hint = str(status.details.get("last_error_hint") or "")
        kind = _HOPELESS.get(str(status.details.get("last_error_kind")))
        if kind is not None:
            raise kind(text, hint=hint)
        return text
