"""What an agent is told at its start: which machine, where its sshd and its engine are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from desk.errors import MachineError
from desk.ssh.endpoint import Endpoint

AUTO = "auto"

_SUDO = "sudo -n "


@dataclass(frozen=True, slots=True)
class EngineAccess:
    """Two ways to the engine in the machine.

    ``socket`` is tried first: sshd connects to it by itself, and no process is started. It needs a
    login that may open the socket and a sshd that forwards Unix sockets. ``command`` is started
    where that fails; its standard streams are the connection. An empty text means "not this way".
    ``folders_address`` (an IPv4 address and a port) is where the machine reaches this computer's
    folders without SSH; empty where it cannot. ``folder_tags`` has the tags of those folders that
    the machine has as virtiofs devices, by the folders' paths there.
    """

    socket: str = "/run/desk/engine.sock"
    command: str = "deskd dial-stdio"
    folders_address: str = ""
    folder_tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def by_sudo(self) -> bool:
        """Whether the login is not root's."""
        return self.command.startswith(_SUDO)

    @property
    def program(self) -> str:
        """The words of ``command`` that start ``deskd``."""
        return self.command.removeprefix(_SUDO).partition(" dial-stdio")[0]

    @property
    def datagrams_command(self) -> str:
        """The command of the same program that relays UDP ports; it needs no sudo."""
        return f"{self.program} relay-datagrams"


@dataclass(frozen=True, slots=True)
class FolderSharing:
    """What of this computer the machine may have: absolute paths, with ``:ro`` at the end of those
    that it may only read. ``hidden`` are folders in them that it may not enter."""

    folders: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PowerWishes:
    """``source``: what this computer counts as running on, ``auto`` for what it tells itself.
    ``nano_cpus``: what containers may use together on battery, in billionths of a CPU; 0: all."""

    source: str = AUTO
    nano_cpus: int = 0


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """Everything one agent needs; it reads nothing else about its machine. ``keeps_clock``: the
    guest is Desk's own and the agent sets its clock after the host's. ``leads_back``: containers
    reach this computer's loopback through the agent. Without ``power`` the machine is told nothing
    of this computer's battery."""

    machine: str
    endpoint: Endpoint
    engine: EngineAccess = EngineAccess()
    keeps_clock: bool = False
    leads_back: bool = False
    sharing: FolderSharing = FolderSharing()
    power: PowerWishes | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> AgentSpec:
        """Read what ``to_json`` wrote; ``MachineError`` for anything else."""
        try:
            data: dict[str, Any] = json.loads(text)
            endpoint = dict(data["endpoint"])
            for name in ("private_key", "known_hosts"):
                endpoint[name] = Path(endpoint[name])
            return cls(
                data["machine"],
                Endpoint(**endpoint),
                EngineAccess(**data["engine"]),
                keeps_clock=bool(data["keeps_clock"]),
                leads_back=bool(data["leads_back"]),
                sharing=FolderSharing(
                    tuple(data["sharing"]["folders"]), tuple(data["sharing"]["hidden"])
                ),
                power=PowerWishes(**data["power"]) if data["power"] else None,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise MachineError(
                f"the agent cannot read its instructions: {error!r}",
                hint="Start the agent with `desk machine start`, not by hand.",
            ) from error
