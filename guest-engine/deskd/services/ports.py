"""What the services need from the rest of the engine: small Protocols, given by ``compose``.

Each Protocol is a contract: order of calls, idempotency and who cleans up stand in its docstring.
"""

# ruff: noqa: PLC0414 (structures of the domain are part of these contracts: re-exported on purpose)

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from socket import socket
from typing import TYPE_CHECKING, Any, Protocol

from deskd.domain.container import EndpointSettings, HostConfig
from deskd.domain.mount import MountStep
from deskd.domain.network import Endpoint as Endpoint
from deskd.domain.network import EndpointRequest as EndpointRequest
from deskd.domain.network import Gateways as Gateways
from deskd.domain.network import LinkedPort as LinkedPort
from deskd.domain.network import NetlinkScript as NetlinkScript
from deskd.domain.network import PortRequest as PortRequest
from deskd.domain.process import Exit as Exit
from deskd.domain.process import FoundMonitor as FoundMonitor
from deskd.kernel.cgroup.memory import MemoryReading as MemoryReading
from deskd.storage.changes import Change

if TYPE_CHECKING:
    from deskd.network.name_forwarding import ClientSockets

# --- runtime ------------------------------------------------------------------------------------


class AttachStream(Protocol):
    """One client's place at a process's stdio.

    Output arrives ready for the wire: Docker's multiplexed frames, or raw bytes for a terminal.
    ``read`` returns ``b""`` at the end of the process's output; ``pour`` sends all of it to a
    non-blocking socket instead, which no other may use meanwhile, and raises ``ConnectionError``
    where that has lost its peer. Closing detaches; it never ends the process.
    """

    async def read(self) -> bytes: ...
    async def pour(self, sink: int) -> None: ...
    async def write(self, data: bytes) -> None: ...
    async def close_stdin(self) -> None: ...
    async def close(self) -> None: ...


class Process(Protocol):
    """A container's first process or an exec, beside its monitor; survives the engine.

    Born held: all is set up but the program has not been executed. ``attach`` before ``release``
    misses no byte. ``release`` executes the program and raises ``StartFailed`` where that fails
    (then everything the runtime made is gone again).
    """

    @property
    def pid(self) -> int: ...
    async def release(self) -> int:
        """Execute the program; return the start time in nanoseconds since the epoch."""

    async def attach(self, *, stdin: bool, stdout: bool, stderr: bool) -> AttachStream: ...
    async def resize(self, rows: int, columns: int) -> None: ...
    async def signal(self, number: int) -> None: ...
    async def wait(self) -> Exit: ...
    async def discard(self) -> None:
        """Give up a process that was never released; idempotent."""


class Runtime(Protocol):
    """Processes, born from the launcher. ``key`` is a container ID or an exec ID."""

    async def create(self, plan: Any) -> Process:
        """Fork a monitor and a held first process after ``plan`` (``deskd.runtime.plan.Plan``)."""

    async def start(
        self, plan: Any, *, stdin: bool, stdout: bool, stderr: bool
    ) -> tuple[Process, AttachStream]:
        """Fork a monitor and a process that executes at once, attached before its first byte.
        Raises what ``create`` and ``release`` raise. Given up while it waits, nothing is left."""

    async def reconcile(self) -> Sequence[FoundMonitor]:
        """Find the monitors of an earlier engine; their processes are available by ``get``."""

    def get(self, key: str) -> Process | None: ...
    async def forget(self, key: str) -> None:
        """Remove what the runtime keeps of an ended process (its exit record); idempotent. An
        exec's monitor is waited for."""

    async def name_sockets(self, key: str, *, make_in: int = 0) -> tuple[socket, socket] | None:
        """Return the UDP and the TCP socket of a running container's name server, ``None`` where
        it has none. With ``make_in``, its first process's PID, they are made then. Raises
        ``Conflict`` where the container has ended."""

    async def run_job(self, job: str, arguments: Mapping[str, Any], fds: Sequence[int]) -> Any:
        """Run a named job (``deskd.runtime.jobs``) in a short-lived child of the launcher, for
        work that must enter namespaces or a container's root: ``archive_get``, ``archive_put``,
        ``archive_stat``, ``netlink``, ``export`` … The child owns copies of ``fds``. Errors come
        back as the ``DeskdError`` that the job raised."""


class MemoryWatch(Protocol):
    """Tells when a container runs out of memory: ``fileno`` becomes readable, ``happened`` then
    says whether it did. ``close`` it."""

    def fileno(self) -> int: ...
    def happened(self) -> bool: ...
    def close(self) -> None: ...


class Resources(Protocol):
    """The cgroup of a running container; ``key`` is the container ID."""

    def pause(self, key: str) -> None: ...
    def resume(self, key: str) -> None: ...
    def update(self, key: str, host_config: HostConfig) -> None: ...
    def stats(self, key: str) -> dict[str, Any]:
        """Return ``cpu_stats``, ``memory_stats``, ``blkio_stats`` and ``pids_stats`` as the API
        names them."""

    def pids(self, key: str) -> list[int]: ...
    def watch_memory(self, key: str) -> MemoryWatch: ...
    @property
    def tells_of_machine_memory(self) -> bool: ...
    def came_to_memory_limit(self, key: str) -> bool: ...
    def memory_bytes(self, key: str) -> int: ...
    def memory_reading(self, key: str) -> MemoryReading:
        """Raises ``Conflict`` where the container does not run."""

    def remove(self, key: str) -> None: ...


class ContainersCpu(Protocol):
    """The CPU time of all containers together, in billionths of a CPU; 0 is no limit. Both raise
    ``DeskdError`` where the kernel has no such limit or refuses it."""

    def cap(self, nano_cpus: int) -> None: ...
    def capped(self) -> int: ...


# --- network ------------------------------------------------------------------------------------


class ContainerNetworks(Protocol):
    """Networks as containers use them.

    ``join`` reserves addresses and ports, and publishes; on an error nothing stays reserved.
    ``leave`` undoes it and is idempotent. ``restore`` tells, after an engine restart, which
    endpoints are in use, before anything else is joined.
    """

    async def ready(self) -> None: ...
    def check_wish(self, network: str, settings: EndpointSettings) -> None:
        """Raise ``InvalidArgument`` for what no ``join`` could grant; a network that is not there
        is left to ``join``."""

    async def join(self, request: EndpointRequest) -> Endpoint: ...
    async def leave(self, container_id: str, network_id: str) -> None: ...
    def removal_script(self, network_id: str, interface: str) -> NetlinkScript | None:
        """Return what must be sent inside a namespace that lives on, before ``leave``; ``None``
        where ``leave`` takes the interface away itself."""

    async def restore(
        self,
        endpoints: Sequence[tuple[str, Endpoint]],
        container_names: Mapping[str, str] | None = None,
    ) -> None: ...
    async def host_gateway(self) -> str:
        """Return the address by which containers reach the laptop."""

    def gateways(self, networks: Sequence[str]) -> Gateways:
        """Choose, among the networks of one container, those that have its default routes; one of
        them has its published ports."""

    def has_name_server(self, networks: Sequence[str]) -> bool:
        """Tell whether a container in these networks finds others by name. It needs the sockets
        of ``Runtime.name_sockets`` then."""

    def serve_names(
        self,
        container_id: str,
        udp: socket,
        tcp: socket,
        host_config: HostConfig,
        inner: ClientSockets,
    ) -> None:
        """Answer questions at these sockets, which are taken over with ``inner``, until
        ``stop_names``."""

    def serves_names(self, container_id: str) -> bool: ...
    def stop_names(self, container_id: str) -> None: ...
    def renamed(self, container_id: str, name: str) -> list[Endpoint]:
        """Take note of a container's new name; return its endpoints as they are now."""

    def open_linked(self, ports: Sequence[LinkedPort]) -> None:
        """Let exactly these connections pass where the default network's containers are apart
        from each other; without effect where they are not."""

    def resolv_conf(self, host_config: HostConfig, networks: Sequence[str]) -> str: ...


# --- images and storage -------------------------------------------------------------------------


class RootFilesystems(Protocol):
    """Writable roots of containers. ``create`` is cheap (a record only) and undone by
    ``remove``, which is idempotent. A ``volatile`` root need not survive a crash of the machine:
    right for containers that are removed when they end. The files of a ``remapped`` one belong to
    the containers' subordinate IDs."""

    def create(
        self,
        container_id: str,
        image_id: str,
        *,
        volatile: bool = False,
        remapped: bool = False,
    ) -> None: ...
    def mounts(self, container_id: str) -> tuple[MountStep, ...]:
        """Return the steps that build "/" of this container, and make the directories that they
        need; performs none of them. Undone by ``put_away``."""

    def put_away(self, container_id: str) -> None:
        """Free what a root needs only while it is mounted; idempotent, and never while it is."""

    def upper(self, container_id: str) -> str:
        """Return the directory that holds the container's own changes, if there are any."""

    def lower_directories(self, container_id: str) -> list[str]:
        """Return the directories of the layers below, the top one first."""

    def changes(self, container_id: str) -> list[Change]:
        """Return what the container changed, sorted by path. May take long."""

    def remove(self, container_id: str) -> None: ...


Progress = Callable[[dict[str, Any]], None]
"""Takes one of Docker's progress objects (``status``, ``progressDetail``, ``id``, ``stream``)."""

ByteSource = AsyncIterator[bytes]
