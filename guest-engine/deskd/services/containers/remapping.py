"""Which containers run with remapped IDs, and what those cannot have."""

from __future__ import annotations

from deskd.domain.container import HostConfig
from deskd.domain.id_mapping import NO_MAPPING, IdMapping
from deskd.errors import InvalidArgument
from deskd.record import Record


class Remapping(Record):
    """The engine's ``--userns-remap``, applied to single containers."""

    id_map: IdMapping = NO_MAPPING

    def of(self, host_config: HostConfig) -> IdMapping:
        """Return the mapping of a container: none with ``--userns=host``."""
        return NO_MAPPING if host_config.userns_mode == "host" else self.id_map

    def check(self, host_config: HostConfig) -> None:
        """Raise ``InvalidArgument`` for what needs the machine's own user namespace."""
        if not self.of(host_config):
            return
        if host_config.privileged:
            raise InvalidArgument(
                "privileged mode is incompatible with user namespaces.  You must run the container"
                " in the host namespace when running privileged mode: add --userns=host"
            )
        if host_config.network_mode == "host":
            raise InvalidArgument(
                "cannot share the host's network namespace when user namespaces are enabled:"
                " add --userns=host"
            )
        if host_config.pid_mode == "host":
            raise InvalidArgument(
                "cannot share the host PID namespace when user namespaces are enabled:"
                " add --userns=host"
            )
