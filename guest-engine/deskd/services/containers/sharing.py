"""Namespaces that containers share: which wishes contradict each other, and whose they are."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from deskd.domain.container import ContainerConfig, HostConfig
from deskd.domain.id_mapping import IdMapping
from deskd.domain.state import ContainerRecord
from deskd.errors import Conflict, InvalidArgument
from deskd.kernel import namespaces
from deskd.runtime import spec
from deskd.runtime.plan import NamespaceSpec
from deskd.services.containers.remapping import Remapping

_PREFIX = "container:"


def check(config: ContainerConfig, host_config: HostConfig) -> None:
    """Raise ``InvalidArgument``, in Docker's words, for what a container asks for although it is
    in namespaces that another one or the machine set up. ``config`` is without the image's part."""
    if host_config.uts_mode == "host" and config.hostname:
        raise InvalidArgument("conflicting options: hostname and the UTS mode")
    network = host_config.network_mode
    if config.mac_address and (network == "host" or network.startswith(_PREFIX)):
        raise InvalidArgument("conflicting options: mac-address and the network mode")
    if not network.startswith(_PREFIX):
        return
    for wished, what in (
        (config.hostname, "hostname and the network mode"),
        (host_config.dns, "dns and the network mode"),
        (host_config.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (
            host_config.port_bindings or host_config.publish_all_ports,
            "port publishing and the container type network mode",
        ),
        (config.exposed_ports, "port exposing and the container type network mode"),
    ):
        if wished:
            raise InvalidArgument(f"conflicting options: {what}")


def named_by_id(host_config: HostConfig, find: Callable[[str], ContainerRecord]) -> HostConfig:
    """Return modes that name other containers by their IDs, which outlive a rename."""
    changes = {}
    for field in ("network_mode", "ipc_mode", "pid_mode"):
        mode = getattr(host_config, field)
        if mode.startswith(_PREFIX):
            changes[field] = _PREFIX + find(mode.removeprefix(_PREFIX)).id
    return msgspec.structs.replace(host_config, **changes) if changes else host_config


def settle(
    host_config: HostConfig, find: Callable[[str], ContainerRecord], remapping: Remapping
) -> NamespaceSpec:
    """Return the namespaces of a start; ``find`` returns the container of a name.

    Raises ``Conflict`` for one that does not run, ``InvalidArgument`` for one that does not share.
    """
    id_map = remapping.of(host_config)
    donors = [
        _donor(kind, find(mode.removeprefix(_PREFIX)))
        for kind, mode in (
            ("network", host_config.network_mode),
            ("IPC", host_config.ipc_mode),
            ("PID", host_config.pid_mode),
        )
        if mode.startswith(_PREFIX)
    ]
    if id_map and donors:
        _check_user_namespaces(donors, remapping)
    return spec.resolve_namespaces(
        host_config,
        lambda reference: find(reference).state.pid,
        uid_map=id_map.uids,
        gid_map=id_map.gids,
    )


def _donor(kind: str, donor: ContainerRecord) -> ContainerRecord:
    if not donor.state.running:
        if kind == "network":
            raise Conflict(
                f"cannot join network of a non running container: {donor.id}; start it first"
            )
        raise Conflict(
            f"failed to join {kind} namespace: container {donor.id} is not running; start it first"
        )
    if kind == "IPC" and donor.host_config.ipc_mode in ("", "private", "none"):
        raise InvalidArgument(
            f"failed to join IPC namespace: container {donor.id}: non-shareable IPC (hint: use "
            "IpcMode:shareable for the donor container)"
        )
    return donor


def _check_user_namespaces(donors: list[ContainerRecord], remapping: Remapping) -> None:
    """A namespace belongs to a user namespace, and only who is in that one may join it."""
    for donor in donors:
        id_map: IdMapping = remapping.of(donor.host_config)
        if not id_map:
            raise InvalidArgument(
                f"cannot share namespaces with container {donor.id}: it is in the host's user"
                " namespace; start both with --userns=host, or neither"
            )
    owners = {namespaces.identity(donor.state.pid, "user") for donor in donors}
    if len(owners) > 1:
        raise InvalidArgument(
            "cannot share namespaces with containers of different user namespaces: "
            f"{', '.join(donor.id[:12] for donor in donors)}; start them with namespaces of one"
            " of them, or all with --userns=host"
        )
