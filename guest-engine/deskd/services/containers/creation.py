"""Making containers: checks, the image's part, the name, the record, the writable root."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack

import msgspec

from deskd.domain.container import ContainerConfig, EndpointSettings, HostConfig, NetworkingConfig
from deskd.domain.image import ImageRecord
from deskd.domain.state import ContainerRecord
from deskd.errors import Conflict, InvalidArgument
from deskd.kernel.cgroup.features import Features
from deskd.layout import DataRoot
from deskd.record import Record, field
from deskd.runtime import confinement, resource_rules, spec
from deskd.runtime.log_options import log_spec
from deskd.services.containers import laptop_folders, merging, mounting, sharing
from deskd.services.containers.config_checks import check_config
from deskd.services.containers.first_content import FirstContent
from deskd.services.containers.links import Links
from deskd.services.containers.memory_fit import MemoryFit
from deskd.services.containers.names import check_name, random_name
from deskd.services.containers.outcomes import log_extra
from deskd.services.containers.registry import Container, ContainerRegistry
from deskd.services.containers.remapping import Remapping
from deskd.services.containers.resource_checks import settle_resources
from deskd.services.containers.wishes import check_wishes
from deskd.services.folders import Folders
from deskd.services.images import Images
from deskd.services.ports import ContainerNetworks, RootFilesystems
from deskd.services.volumes import Volumes


class Defaults(Record):
    """What the engine's settings and the machine say about every new container."""

    features: Features
    log_options: Mapping[str, str] = field(default_factory=dict)


class CreateRequest(Record):
    """A client's wish. ``platform`` is ``os/architecture`` or empty; ``recursive_read_only``:
    binds that are read-only are so with all that is mounted below them."""

    config: ContainerConfig
    host_config: HostConfig
    networking: NetworkingConfig
    name: str = ""
    platform: str = ""
    recursive_read_only: bool = True


class ContainerCreation:
    """Creates containers. A failure leaves nothing behind."""

    def __init__(
        self,
        registry: ContainerRegistry,
        images: Images,
        roots: RootFilesystems,
        volumes: Volumes,
        content: FirstContent,
        layout: DataRoot,
        defaults: Defaults,
        remapping: Remapping,
        folders: Folders,
        networks: ContainerNetworks,
        fit: MemoryFit,
    ) -> None:
        self._fit = fit
        self._folders = folders
        self._networks = networks
        self._registry = registry
        self._images = images
        self._roots = roots
        self._volumes = volumes
        self._content = content
        self._layout = layout
        self._defaults = defaults
        self._remapping = remapping

    async def create(self, request: CreateRequest) -> tuple[Container, list[str]]:
        """Return the new container and warnings.

        Raises ``InvalidArgument``, ``NotFound`` (no such image or volume driver) and ``Conflict``
        (the name).
        """
        name = check_name(request.name) if request.name else ""
        if name:
            self._registry.check_free(name)
        check_config(request.config)
        merging.check_host_config(request.host_config, self._defaults.features)
        check_wishes(request.host_config)
        sharing.check(request.config, request.host_config)
        self._remapping.check(request.host_config)
        if not request.config.image:
            raise InvalidArgument("no image given: name one in Image")
        image = await self._images.resolve(request.config.image)
        parsed = image.config
        found = "/".join(filter(None, (parsed.os, parsed.architecture, parsed.variant)))
        merging.check_platform(request.platform, found, request.config.image)
        host_config, warnings = settle_resources(request.host_config, self._defaults.features)
        record = self._record(request, host_config, image, name or self._free_name())
        self._check_plan(record)
        for network, wish in record.networks.items():
            if wish != EndpointSettings():
                self._networks.check_wish(network, wish)
        self._registry.unsettled(record.id, record.image_id)
        async with AsyncExitStack() as done, AsyncExitStack() as undo:
            done.callback(self._registry.settled, record.id)
            done.callback(self._volumes.settle_claims, record.id)
            undo.push_async_callback(self._volumes.abandon, record.id)
            await self._settle_mounts(record)
            if not request.recursive_read_only:
                record.mounts = [
                    msgspec.structs.replace(point, recursive_read_only=False)
                    for point in record.mounts
                ]
            undo.callback(self._remove_files, record.id)
            self._roots.create(
                record.id,
                record.image_id,
                volatile=record.host_config.auto_remove,
                remapped=bool(self._remapping.of(record.host_config)),
            )
            await self._content.copy_up(record)
            container = self._registry.add(record)
            undo.pop_all()
        self._registry.tell(container, "create")
        misfit = self._fit.warning(container.id)
        return container, warnings + _warnings(record.host_config) + ([misfit] if misfit else [])

    def _record(
        self, request: CreateRequest, host_config: HostConfig, image: ImageRecord, name: str
    ) -> ContainerRecord:
        container_id = secrets.token_hex(32)
        config = merging.merge_config(request.config, image.container_config)
        words = merging.command_line(config)
        links = Links(self._registry).settle(host_config)
        host_config = merging.complete_host_config(
            host_config,
            cgroup_v2=self._defaults.features.version == 2,
            log_options=dict(self._defaults.log_options),
        )
        host_config = sharing.named_by_id(
            host_config, lambda reference: self._other_container(reference).record
        )
        shares_network = host_config.network_mode.startswith("container:")
        if host_config.network_mode == "host" and not config.hostname:
            config = msgspec.structs.replace(config, hostname=os.uname().nodename)
        elif not config.hostname and not shares_network:
            config = msgspec.structs.replace(config, hostname=container_id[:12])
        return ContainerRecord(
            id=container_id,
            name=name,
            created_ns=time.time_ns(),
            image_id=image.id,
            image_name=request.config.image,
            config=config,
            host_config=host_config,
            links=links,
            path=words[0],
            args=words[1:],
            networks=_wanted_networks(config, host_config, request.networking),
            log_path=(
                ""
                if host_config.log_config.type == "none"
                else self._layout.container_log(container_id, host_config.log_config.type)
            ),
        )

    def _check_plan(self, record: ContainerRecord) -> None:
        """Let the rules of the plan refuse now what would fail at every start."""
        host = record.host_config
        spec.check_sysctls(host)
        spec.tmpfs_steps(host)
        resource_rules.limits(host)
        resource_rules.rlimits(host)
        options = confinement.security_options(host.security_opt or (), privileged=host.privileged)
        capabilities, _ = confinement.capability_set(
            host.cap_add or (), host.cap_drop or (), privileged=host.privileged
        )
        if options.seccomp not in ("", "default"):
            from deskd.kernel.seccomp_profile import read_profile

            read_profile(options.seccomp, capabilities)
        log_options = host.log_config.config or {}
        extra = log_extra(record, log_options)
        log_spec(host.log_config.type, record.log_path, log_options, extra)

    def _other_container(self, reference: str) -> Container:
        """Return a container that the request names. One that is missing makes the request
        wrong: Docker's clients take a 404 here for a missing image and begin to pull it."""
        found = self._registry.find(reference)
        if found is None:
            raise InvalidArgument(f"No such container: {reference}")
        return found

    async def _settle_mounts(self, record: ContainerRecord) -> None:
        folders = laptop_folders.sources(record.host_config)
        record.mounts = await mounting.settle(
            record,
            self._volumes,
            lambda reference: self._other_container(reference).record,
            await self._folders.find(record.name, folders),
        )

    def _free_name(self) -> str:
        for attempt in range(10):
            name = random_name(attempt)
            if not self._registry.has_name(name):
                return name
        raise Conflict("no free random name was found; give the container a name")

    def _remove_files(self, container_id: str) -> None:
        self._roots.remove(container_id)
        remove_directory(self._layout.container(container_id))


def _warnings(host_config: HostConfig) -> list[str]:
    published = host_config.port_bindings or host_config.publish_all_ports
    if published and host_config.network_mode == "host":
        return ["Published ports are discarded when using host network mode"]
    return []


def remove_directory(path: str) -> None:
    """Delete a container's directory with its small files; idempotent."""
    import shutil

    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return


def _wanted_networks(
    config: ContainerConfig, host_config: HostConfig, networking: NetworkingConfig
) -> dict[str, EndpointSettings]:
    """Return the networks that the container will join, by name as it was given."""
    mode = host_config.network_mode
    if config.network_disabled:
        return {}
    given = {
        name: settings or EndpointSettings()
        for name, settings in (networking.endpoints_config or {}).items()
    }
    if mode.startswith("container:"):
        given.pop(mode, None)  # clients put --mac-address there, which Docker takes no notice of
        if given:
            raise InvalidArgument(
                "conflicting options: a container that shares another's network joins no network"
            )
        return {}
    if "default" in given:
        given["bridge"] = given.pop("default")
    if mode == "host" and set(given) - {mode}:
        raise InvalidArgument(f"conflicting options: the network mode {mode} and other networks")
    if given and mode not in given:
        return given  # as in Docker: who names networks gets those and no other
    main = given.pop(mode, EndpointSettings())
    if config.mac_address and not main.mac_address:
        main = msgspec.structs.replace(main, mac_address=config.mac_address)
    return {mode: main, **given}
