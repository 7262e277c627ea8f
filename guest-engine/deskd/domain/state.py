"""A container's life: its states, the one table of allowed moves, and the stored record."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from deskd.domain.container import ContainerConfig, EndpointSettings, HostConfig, PortBinding
from deskd.domain.memory_peak import MemoryPeak
from deskd.errors import Conflict


class Status(StrEnum):
    """``ContainerState.Status`` of the API."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    EXITED = "exited"
    REMOVING = "removing"
    DEAD = "dead"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    # A start that fails leaves a created container as it is and an exited one exited.
    Status.CREATED: frozenset({Status.RUNNING, Status.CREATED, Status.REMOVING, Status.EXITED}),
    Status.RUNNING: frozenset({Status.PAUSED, Status.EXITED, Status.RESTARTING}),
    Status.PAUSED: frozenset({Status.RUNNING, Status.EXITED, Status.RESTARTING}),
    Status.RESTARTING: frozenset({Status.RUNNING, Status.EXITED, Status.RESTARTING}),
    Status.EXITED: frozenset({Status.RUNNING, Status.RESTARTING, Status.EXITED, Status.REMOVING}),
    Status.REMOVING: frozenset({Status.DEAD}),
    Status.DEAD: frozenset({Status.REMOVING}),
}


class IllegalTransition(Conflict):
    """A move that the table does not have."""

    def __init__(self, container_id: str, origin: Status, target: Status) -> None:
        super().__init__(f"container {container_id} is {origin} and cannot become {target}")
        self.origin = origin
        self.target = target


class HealthStatus(StrEnum):
    """``Health.Status`` of the API; a container without a check is ``none`` in filters."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class ProbeResult(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """``HealthcheckResult``: -1 is a probe that could not start or took too long."""

    start_ns: int
    end_ns: int
    exit_code: int
    output: str


class Health(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``Health``: what the last probes said, the newest last."""

    status: HealthStatus = HealthStatus.STARTING
    failing_streak: int = 0
    log: list[ProbeResult] = []


class MemoryUse(msgspec.Struct, frozen=True):
    """What a container held when another ran out of memory."""

    name: str
    bytes: int


class OutOfMemory(msgspec.Struct, kw_only=True, frozen=True):
    """Why the kernel killed a process of a container for lack of memory, and when.

    ``limit_bytes`` is the container's own limit where it came to that, else the machine's memory;
    ``others`` are the containers that held most then, the largest first.
    """

    time_ns: int
    own_limit: bool
    limit_bytes: int
    others: tuple[MemoryUse, ...] = ()


class State(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the engine knows of a container's process. Times are nanoseconds, 0 is never.

    ``memory_peak`` is of all its runs so far; ``None`` until one was looked at.
    ``frozen_for_power``: the power policy paused it, nobody else. ``runs_on_battery``: somebody
    started or unpaused it since the laptop was last switched to its battery.
    """

    status: Status = Status.CREATED
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    out_of_memory: OutOfMemory | None = None
    started_at_ns: int = 0
    finished_at_ns: int = 0
    manually_stopped: bool = False
    health: Health | None = None
    memory_peak: MemoryPeak | None = None
    frozen_for_power: bool = False
    runs_on_battery: bool = False

    @property
    def held_by_power(self) -> bool:
        """Paused by the power policy, which ends that, too."""
        return self.status is Status.PAUSED and self.frozen_for_power

    @property
    def running(self) -> bool:
        """A paused container counts as running, as in Docker."""
        return self.status in (Status.RUNNING, Status.PAUSED)


class MountPoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """``MountPoint`` of the API: a volume, bind or tmpfs as it was settled at creation.

    ``copy_up`` asks for the image's content in a new volume, ``subpath`` is a part of one.
    ``folder`` is the client's path of a bind whose source a laptop shares with this machine.
    """

    type: str
    source: str
    destination: str
    name: str = ""
    driver: str = ""
    mode: str = ""
    read_write: bool = True
    propagation: str = ""
    copy_up: bool = False
    subpath: str = ""
    non_recursive: bool = False
    recursive_read_only: bool = False
    create_source: bool = False
    folder: str = ""
    anonymous: bool = False


class StoredEndpoint(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A place in a network that a running container holds."""

    network_id: str
    network_name: str
    endpoint_id: str
    settings: EndpointSettings
    ports: dict[str, list[PortBinding]]
    driver: str = "bridge"


class ContainerRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything about a container that the database keeps.

    ``config`` is merged with the image's; ``networks`` is what was asked for, by network name,
    ``links`` are container IDs by alias, ``endpoints`` what is held while the container runs,
    ``endpoint_interfaces`` the names of its interfaces there. ``changing_interface`` is the
    one that comes or goes while a change of its networks is under way: an engine that finds it at
    its start ends what another had begun.
    """

    id: str
    name: str
    created_ns: int
    image_id: str
    image_name: str
    config: ContainerConfig
    host_config: HostConfig
    path: str
    args: list[str]
    platform: str = "linux"
    networks: dict[str, EndpointSettings]
    endpoints: dict[str, StoredEndpoint] = {}
    endpoint_interfaces: dict[str, str] = {}
    changing_interface: str = ""
    mounts: list[MountPoint] = []
    links: dict[str, str] = {}
    state: State = msgspec.field(default_factory=State)
    restart_count: int = 0
    log_path: str = ""

    def move(self, target: Status) -> None:
        """Change the status. Raises ``IllegalTransition``."""
        if target not in TRANSITIONS[self.state.status]:
            raise IllegalTransition(self.id, self.state.status, target)
        self.state.status = target

    @property
    def short_id(self) -> str:
        return self.id[:12]

    @property
    def labels(self) -> dict[str, str]:
        return self.config.labels or {}
