"""The composition root: makes every part, gives each what it needs, and listens."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from deskd.api.routes import ROUTES
from deskd.api.routing import Router
from deskd.api.server import Server
from deskd.domain.id_mapping import NO_MAPPING
from deskd.errors import Conflict, DeskdError, InvalidArgument, SystemFailure, Unsupported
from deskd.images.catalog import Catalog
from deskd.images.layers import LayerStore
from deskd.kernel.cgroup.features import look as look_at_cgroups
from deskd.layout import BUNDLED_IMAGES, DataRoot, ExecRoot
from deskd.services.containers.attaching import Attaching
from deskd.services.containers.creation import ContainerCreation, Defaults
from deskd.services.containers.endpoints import Endpoints
from deskd.services.containers.files import Files
from deskd.services.containers.health import HealthChecks
from deskd.services.containers.inspection import Inspection
from deskd.services.containers.lifecycle import Lifecycle
from deskd.services.containers.links import Links
from deskd.services.containers.listing import Listing
from deskd.services.containers.logs import Logs
from deskd.services.containers.observing import Observing
from deskd.services.containers.recovery import Recovery
from deskd.services.containers.registry import ContainerRegistry
from deskd.services.containers.remapping import Remapping
from deskd.services.containers.updating import Updating
from deskd.services.distribution import Distribution
from deskd.services.engine import Engine
from deskd.services.events import Events
from deskd.services.exec import Execs
from deskd.services.images import Images
from deskd.services.networks import Networks
from deskd.services.publishers import Publishers
from deskd.services.system import System, look_at_machine
from deskd.services.volumes import VolumeRecord, Volumes
from deskd.settings import Settings
from deskd.store import records
from deskd.store.database import Database

if TYPE_CHECKING:
    from deskd.network.service import NetworkService
    from deskd.runtime.client import LauncherRuntime
    from deskd.services.ports import Runtime

log = logging.getLogger(__name__)

SOCKET_MODE = 0o660
BACKLOG = 1024
FIRST_PASSED_DESCRIPTOR = 3  # sd_listen_fds(3)


class Daemon:
    """One running engine. ``launcher`` is the control socket that ``fork_launcher`` returned."""

    def __init__(self, settings: Settings, launcher: Any) -> None:
        self._settings = settings
        self._launcher = launcher
        self._data = DataRoot(settings.data_root)
        self._exec = ExecRoot(settings.exec_root)
        self._id_map = NO_MAPPING
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Containers outlive this."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        from deskd.runtime.client import LauncherRuntime

        check_kernel()
        async with AsyncExitStack() as stack:
            runtime = LauncherRuntime(self._launcher, self._exec.path)
            stack.push_async_callback(runtime.close)
            if self._settings.userns_remap:
                await self._remap(runtime)
            self._make_roots()
            stack.callback(os.close, take_lock(self._data.lock))
            listeners = open_listeners(self._settings, self._exec, stack)
            self._write_pidfile(stack)
            if self._id_map:
                from deskd.services.remapped_start import check_machine

                await check_machine(self._data.temporary, self._id_map, runtime)
            engine, network = await self._compose(stack, runtime)
            server = Server(engine, Router(ROUTES))
            stack.push_async_callback(server.close)
            for listener in listeners:
                tls = None if listener.family == socket.AF_UNIX else _tls_context(self._settings)
                await server.listen(listener, tls)
            preparing = asyncio.create_task(_prepare_network(network))
            stack.callback(preparing.cancel)
            engine.images.start_bundled()
            log.info("API listen on %s", ", ".join(_address(item) for item in listeners))
            await self._stop.wait()
            log.info("the engine ends; containers keep running")

    async def _remap(self, runtime: Runtime) -> None:
        """Take the data root and the IDs that ``--userns-remap`` says."""
        from deskd.services.remapped_start import settle

        self._make_directory(self._data.path)
        self._settings, self._id_map = await settle(self._settings, runtime)
        self._data = DataRoot(self._settings.data_root)

    def _make_roots(self) -> None:
        for path in (self._data.path, self._data.containers, self._data.volumes,
                     self._data.temporary, self._exec.path, self._exec.processes):  # fmt: skip
            self._make_directory(path)

    def _make_directory(self, path: str) -> None:
        try:
            os.makedirs(path, mode=0o710, exist_ok=True)
        except OSError as error:
            raise SystemFailure(
                f"the directory {path} cannot be made: {error.strerror}; choose another "
                "--data-root or --exec-root, or run deskd as root"
            ) from error

    def _write_pidfile(self, stack: AsyncExitStack) -> None:
        path = self._settings.pidfile or self._exec.pidfile
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
        except OSError as error:
            raise SystemFailure(
                f"the pidfile {path} cannot be written: {error.strerror}"
            ) from error
        stack.callback(_unlink, path)

    async def _compose(
        self, stack: AsyncExitStack, runtime: LauncherRuntime
    ) -> tuple[Engine, NetworkService]:
        from deskd.domain.network import NetworkRecord
        from deskd.domain.state import ContainerRecord
        from deskd.network.service import NetworkService
        from deskd.runtime.resources import CgroupResources
        from deskd.storage.snapshots import Snapshots

        settings, machine = self._settings, look_at_machine()
        database = Database.open(self._data.database)
        stack.callback(database.close)
        events = Events()
        layers = LayerStore(self._data, database)
        catalog = Catalog(database, layers)
        roots = Snapshots(self._data, database, layers, self._id_map)
        remapping = Remapping(self._id_map)
        registry = ContainerRegistry(
            records.containers(
                database, ContainerRecord, key=lambda r: r.id, name=lambda r: r.name
            ),
            events,
        )
        registry.load()
        layers.sweep()
        roots.sweep({container.id for container in registry})
        images = Images(catalog, registry, events, roots, bundled=BUNDLED_IMAGES)
        stack.push_async_callback(images.close)
        distribution = Distribution(catalog, events, settings, self._data)
        stack.push_async_callback(distribution.close)
        volumes = Volumes(
            records.volumes(database, VolumeRecord, key=lambda r: r.name),
            self._data,
            events,
            lambda name: [container.id for container in registry.using_volume(name)],
            self._id_map.root,
        )

        def parent_of(container_id: str) -> str:
            own = registry.get(container_id).record.host_config.cgroup_parent
            return own or settings.cgroup_parent

        resources = CgroupResources(parent_of)
        network = NetworkService(
            settings,
            records.networks(database, NetworkRecord, key=lambda r: r.id, name=lambda r: r.name),
        )
        stack.push_async_callback(network.close)
        endpoints = Endpoints(network, self._data, Links(registry), runtime, remapping)
        stack.push_async_callback(endpoints.close)
        execs = Execs(registry, runtime, cgroup_parent=settings.cgroup_parent)
        stack.push_async_callback(execs.close)
        health = HealthChecks(registry, execs)
        stack.push_async_callback(health.close)
        publishers = Publishers()
        lifecycle = Lifecycle(
            registry, runtime, resources, roots, endpoints, volumes, self._data, health, publishers,
            remapping=remapping, cgroup_parent=settings.cgroup_parent,
        )  # fmt: skip
        stack.push_async_callback(lifecycle.close)
        files = Files(registry, runtime, roots, self._data, remapping)
        inspection = Inspection(registry, catalog, roots, self._data)
        listing = Listing(registry, inspection, catalog, lifecycle)
        logs = Logs(registry)
        features = look_at_cgroups()
        defaults = Defaults(features, settings.log_options)
        engine = Engine(
            registry=registry,
            creation=ContainerCreation(
                registry, images, roots, volumes, files, self._data, defaults, remapping
            ),
            lifecycle=lifecycle,
            updating=Updating(registry, resources, features),
            listing=listing,
            inspection=inspection,
            logs=logs,
            links=Links(registry),
            attaching=Attaching(registry, logs),
            observing=Observing(registry, resources),
            files=files,
            execs=execs,
            images=images,
            distribution=distribution,
            networks=Networks(network, registry, runtime, events, endpoints),
            volumes=volumes,
            system=System(
                settings, machine, database, registry, listing, images, volumes, events, features
            ),
            events=events,
            publishers=publishers,
        )
        await Recovery(registry, runtime, endpoints, lifecycle, health, self._data).restore()
        return engine, network


def check_kernel() -> None:
    """Refuse a kernel that can start no container; warn of what else it lacks.

    Raises ``Unsupported`` naming the option.
    """
    from deskd.kernel import probe

    for feature in probe.missing():
        if feature.essential:
            raise Unsupported(
                f"{feature.hint()}: run the engine on a kernel that has it, as Desk's own "
                "machines do (`desk up`)"
            )
        log.warning("%s", feature.hint())


async def _prepare_network(network: NetworkService) -> None:
    """Make bridges and firewall while nobody waits for them; who needs them sooner waits."""
    try:
        await network.ready()
    except DeskdError as error:
        log.warning("the default network cannot be made now: %s", error)


def take_lock(path: str) -> int:
    """Make sure that no other engine uses this data root; the descriptor holds the lock.

    Raises ``Conflict`` naming the other engine.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise Conflict(
            f"another engine (process {holder or 'unknown'}) uses the data root "
            f"{os.path.dirname(path)}; stop it or choose another --data-root"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def open_listeners(
    settings: Settings, exec_root: ExecRoot, stack: AsyncExitStack
) -> list[socket.socket]:
    """Bind everything that ``--host`` names; without one, the socket of the exec root.

    Raises ``InvalidArgument`` and ``Conflict`` that name the host.
    """
    listeners: list[socket.socket] = []
    for host in settings.hosts or (f"unix://{exec_root.socket}",):
        scheme, separator, rest = host.partition("://")
        if not separator:
            raise InvalidArgument(f"--host {host} must be unix://PATH, tcp://IP:PORT or fd://")
        if scheme == "unix":
            listeners.append(_unix_listener(rest or exec_root.socket, settings.group, stack))
        elif scheme == "tcp":
            listeners.append(_tcp_listener(host, rest))
        elif scheme == "fd":
            listeners += _passed_listeners()
        else:
            raise InvalidArgument(f"--host {host}: unknown kind {scheme}; use unix, tcp or fd")
    for listener in listeners:
        stack.callback(listener.close)
    return listeners


def _unix_listener(path: str, group: str, stack: AsyncExitStack) -> socket.socket:
    if len(os.fsencode(path)) > 107:
        raise InvalidArgument(f"the socket path {path} is longer than 107 bytes; choose a shorter")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(path):
            if _answers(path):
                raise Conflict(
                    f"another engine answers on {path}; stop it or choose another --host"
                )
            os.unlink(path)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        listener.bind(path)
        os.chmod(path, SOCKET_MODE)
        if group:
            os.chown(path, 0, _group_id(group))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SystemFailure(f"cannot listen on {path}: {error.strerror}") from error
    except DeskdError:
        listener.close()
        raise
    stack.callback(_unlink, path)
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def _group_id(group: str) -> int:
    import grp

    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise InvalidArgument(f"--group {group}: there is no such group; create it first") from None


def _tcp_listener(host: str, rest: str) -> socket.socket:
    address, colon, port = rest.rpartition(":")
    if not colon or not port.isdigit():
        raise InvalidArgument(f"--host {host} needs an address and a port, as tcp://127.0.0.1:2375")
    address = address.strip("[]") or "127.0.0.1"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, int(port)))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise SystemFailure(
            f"cannot listen on {host}: {getattr(error, 'strerror', None) or error}; "
            "choose another address or port"
        ) from error
    return listener


def _passed_listeners() -> list[socket.socket]:
    """Take the sockets that systemd passed (sd_listen_fds(3))."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") not in (None, str(os.getpid())) or not count.isdigit():
        raise InvalidArgument(
            "--host fd:// needs sockets passed by systemd (LISTEN_FDS); there are none"
        )
    return [socket.socket(fileno=FIRST_PASSED_DESCRIPTOR + index) for index in range(int(count))]


def _tls_context(settings: Settings) -> Any:
    tls = settings.tls
    if not tls.enabled:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate_file, tls.key_file)
        if tls.ca_file:
            context.load_verify_locations(tls.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(f"the TLS files cannot be used: {error}") from error
    if tls.verify:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return name if isinstance(name, str) else f"{name[0]}:{name[1]}"


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def run(settings: Settings, launcher: Any) -> None:
    """Run an engine in this process until it is told to end."""
    levels = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR",
              "fatal": "CRITICAL"}  # fmt: skip
    level = "DEBUG" if settings.debug else levels[settings.log_level]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(_run(settings, launcher))


async def _run(settings: Settings, launcher: Any) -> None:
    await Daemon(settings, launcher).run()
