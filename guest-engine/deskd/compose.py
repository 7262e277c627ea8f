"""The composition root: makes every part, gives each what it needs, and serves."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from deskd.api.routes import ROUTES
from deskd.api.routing import Router
from deskd.api.server import Server
from deskd.domain.binned import Kind
from deskd.domain.id_mapping import NO_MAPPING
from deskd.domain.volume import VolumeRecord
from deskd.errors import DeskdError, InvalidArgument
from deskd.images.catalog import Catalog
from deskd.images.layers import LayerStore
from deskd.kernel.cgroup.features import look as look_at_cgroups
from deskd.layout import AGENTS_DIRECTORY, BUNDLED_IMAGES, GUEST_RECLAIM, DataRoot, ExecRoot
from deskd.services.bin import Bin, bin_limits
from deskd.services.containers.attaching import Attaching
from deskd.services.containers.creation import ContainerCreation, Defaults
from deskd.services.containers.endpoints import Endpoints
from deskd.services.containers.files import Files
from deskd.services.containers.first_content import FirstContent
from deskd.services.containers.health import HealthChecks
from deskd.services.containers.inspection import Inspection
from deskd.services.containers.lifecycle import Lifecycle
from deskd.services.containers.links import Links
from deskd.services.containers.listing import Listing
from deskd.services.containers.logs import Logs
from deskd.services.containers.machine_restart import MachineRestart
from deskd.services.containers.memory_fit import MemoryFit
from deskd.services.containers.memory_peaks import MemoryPeaks
from deskd.services.containers.observing import Observing
from deskd.services.containers.out_of_memory import MemoryWatching
from deskd.services.containers.power import PowerPolicy
from deskd.services.containers.recovery import Recovery
from deskd.services.containers.registry import ContainerRegistry
from deskd.services.containers.remapping import Remapping
from deskd.services.containers.removal import Removal
from deskd.services.containers.updating import Updating
from deskd.services.disk_use import DiskUse
from deskd.services.distribution import Distribution
from deskd.services.durability import Durability
from deskd.services.engine import Engine
from deskd.services.events import Events
from deskd.services.exec import Execs
from deskd.services.faults import Faults
from deskd.services.folders import Folders
from deskd.services.images import Images
from deskd.services.memory_use import MemoryUse
from deskd.services.networks import Networks
from deskd.services.publishers import Publishers
from deskd.services.store_checks import StoreChecks
from deskd.services.system import System, look_at_machine
from deskd.services.volume_mounts import VolumeMounts
from deskd.services.volumes import Volumes
from deskd.settings import Settings
from deskd.store import records
from deskd.store.database import Database

if TYPE_CHECKING:
    from deskd.network.service import NetworkService
    from deskd.opening import Opening
    from deskd.runtime.client import LauncherRuntime
    from deskd.services.ports import Runtime

log = logging.getLogger(__name__)


def _has_agents() -> bool:
    return os.path.isdir(AGENTS_DIRECTORY)


def _is_desks_guest() -> bool:
    return os.path.exists(GUEST_RECLAIM)


class Daemon:
    """One running engine. ``launcher`` is the control socket that ``fork_launcher`` returned."""

    def __init__(self, settings: Settings, launcher: Any, opening: Opening) -> None:
        self._settings = settings
        self._launcher = launcher
        self._opening = opening
        self._data = DataRoot(settings.data_root)
        self._exec = ExecRoot(settings.exec_root)
        self._id_map = NO_MAPPING
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Containers outlive this."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        if self._opening.stop_asked:
            return
        for sentence in self._opening.lacks:
            log.warning("%s", sentence)
        from deskd.runtime.client import LauncherRuntime

        async with AsyncExitStack() as stack:
            runtime = LauncherRuntime(self._launcher, self._exec.path)
            stack.push_async_callback(runtime.close)
            if self._settings.userns_remap:
                await self._remap(runtime)
            if self._id_map:
                from deskd.services.remapped_start import check_machine

                await check_machine(self._data.temporary, self._id_map, runtime)
            engine, network = await self._compose(stack, runtime)
            server = Server(engine, Router(ROUTES))
            stack.push_async_callback(server.close)
            listeners = self._opening.listeners
            remote = [listener for listener in listeners if listener.family != socket.AF_UNIX]
            tls = _tls_context(self._settings) if remote else None
            for connection in self._opening.front.hand_over():
                await server.adopt(connection)
            for listener in listeners:
                await server.listen(listener, tls if listener in remote else None)
            preparing = asyncio.create_task(_prepare_network(network, engine.networks))
            stack.callback(preparing.cancel)
            engine.images.start_bundled()
            log.info("API listen on %s", ", ".join(_address(item) for item in listeners))
            await self._stop.wait()
            log.info("the engine ends; containers keep running")

    async def _remap(self, runtime: Runtime) -> None:
        """Take the IDs and claim the data root that ``--userns-remap`` says."""
        from deskd.opening import make_directory
        from deskd.services.remapped_start import settle

        make_directory(self._data.path)
        self._settings, self._id_map = await settle(self._settings, runtime)
        self._data = DataRoot(self._settings.data_root)
        self._opening.claim(self._settings)

    async def _compose(
        self, stack: AsyncExitStack, runtime: LauncherRuntime
    ) -> tuple[Engine, NetworkService]:
        from deskd.domain.fault import FaultRecord
        from deskd.domain.network import NetworkRecord
        from deskd.domain.state import ContainerRecord
        from deskd.network.service import NetworkService
        from deskd.runtime.resources import CgroupResources, ContainersCgroup
        from deskd.storage.snapshots import Snapshots

        settings, machine = self._settings, look_at_machine()
        database = Database.open(self._data.database, reserve=self._opening.reserve)
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
        binned = records.binned(database)
        for entry in binned.find("kind", Kind.CONTAINER):
            registry.unsettled(entry.id)
        roots.sweep(registry.known())
        layers.forget_unused()  # an engine that was killed between an image and its layers
        layers.sweep()
        images = Images(catalog, registry, events, roots, bundled=BUNDLED_IMAGES)
        stack.push_async_callback(images.close)
        distribution = Distribution(catalog, events, settings, self._data)
        stack.push_async_callback(distribution.close)
        volumes = Volumes(
            records.volumes(database, VolumeRecord, key=lambda r: r.name),
            self._data,
            events,
            lambda name: [container.id for container in registry.using_volume(name)],
            VolumeMounts(runtime, self._data),
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
        faults = Faults(
            records.faults(database, FaultRecord, key=lambda r: r.name),
            network.faults,
            network,
            registry,
            events,
        )
        faults.load()
        stack.push_async_callback(faults.close)
        endpoints = Endpoints(network, self._data, Links(registry), runtime, remapping, registry)
        stack.push_async_callback(endpoints.close)
        execs = Execs(registry, runtime, cgroup_parent=settings.cgroup_parent)
        stack.push_async_callback(execs.close)
        health = HealthChecks(registry, execs)
        stack.push_async_callback(health.close)
        publishers = Publishers(network.laptop)
        peaks = MemoryPeaks(registry, records.peaks(database))
        stack.callback(peaks.close)
        memory = MemoryWatching(registry, resources, machine.memory_bytes)
        stack.callback(memory.close)
        folders = Folders(expected=_has_agents())
        removal = Removal(registry, runtime, roots, endpoints, volumes, self._data, binned)
        stack.push_async_callback(removal.close)
        lifecycle = Lifecycle(
            registry, runtime, resources, roots, endpoints, volumes, removal, health, publishers,
            memory, peaks, folders, remapping=remapping, cgroup_parent=settings.cgroup_parent,
        )  # fmt: skip
        stack.push_async_callback(lifecycle.close)
        restart = MachineRestart(registry, lifecycle, folders, database)
        stack.push_async_callback(restart.close)
        power = PowerPolicy(
            registry, lifecycle, ContainersCgroup(settings.cgroup_parent), events, database
        )
        stack.push_async_callback(power.close)
        files = Files(registry, runtime, roots, self._data, remapping, volumes)
        content = FirstContent(runtime, roots, self._data, remapping, volumes)
        inspection = Inspection(registry, catalog, roots, self._data)
        listing = Listing(registry, inspection, catalog, lifecycle)
        logs = Logs(registry)
        features = look_at_cgroups()
        memory_fit = MemoryFit(registry, peaks, dial=_is_desks_guest())
        memory_use = MemoryUse(registry, resources, peaks)
        stack.callback(memory_use.close)
        bin_ = Bin(catalog, registry, removal, volumes, events, self._data, bin_limits(settings))
        stack.push_async_callback(bin_.close)
        disk_use = DiskUse(self._data.path, self._opening.reserve)
        stack.push_async_callback(disk_use.close)
        defaults = Defaults(features, settings.log_options)
        engine = Engine(
            registry=registry,
            creation=ContainerCreation(
                registry,
                images,
                roots,
                volumes,
                content,
                self._data,
                defaults,
                remapping,
                folders,
                network,
                memory_fit,
            ),
            lifecycle=lifecycle,
            updating=Updating(registry, resources, features),
            listing=listing,
            inspection=inspection,
            logs=logs,
            endpoints=endpoints,
            attaching=Attaching(registry, logs),
            observing=Observing(registry, resources),
            files=files,
            execs=execs,
            images=images,
            distribution=distribution,
            networks=Networks(
                network, registry, runtime, events, endpoints, faults.network_removed
            ),
            faults=faults,
            volumes=volumes,
            system=System(
                settings, machine, database, registry, listing, images, volumes, events, features
            ),
            events=events,
            publishers=publishers,
            memory=memory,
            folders=folders,
            store_checks=StoreChecks(self._data, database, layers, registry, roots, volumes),
            memory_use=memory_use,
            memory_fit=memory_fit,
            disk_use=disk_use,
            durability=Durability(database),
            restart=restart,
            power=power,
            bin=bin_,
        )
        recovery = Recovery(
            registry, runtime, endpoints, lifecycle, removal, health, self._data, volumes, restart
        )
        await recovery.restore()
        memory_use.start()
        await power.start()
        bin_.start()
        disk_use.start()
        return engine, network


async def _prepare_network(network: NetworkService, networks: Networks) -> None:
    """Make bridges and firewall while nobody waits for them; who needs them sooner waits."""
    try:
        await network.ready()
        await networks.reconcile()
    except DeskdError as error:
        log.warning("the default network cannot be made now: %s", error)


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


def run(settings: Settings, launcher: Any, opening: Opening) -> None:
    """Run an engine in this process until it is told to end; ``opening`` stays the caller's."""
    levels = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR",
              "fatal": "CRITICAL"}  # fmt: skip
    level = "DEBUG" if settings.debug else levels[settings.log_level]
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # The settings go before the environment, and the library reads the lower case first.
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        if value := getattr(settings, name):
            os.environ[name] = os.environ[name.upper()] = value
    asyncio.run(_run(settings, launcher, opening))


async def _run(settings: Settings, launcher: Any, opening: Opening) -> None:
    await Daemon(settings, launcher, opening).run()
