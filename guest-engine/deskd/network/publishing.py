"""Published ports of endpoints: held on the machine, led to the container, and given back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from deskd.domain.network import OPTION_HOST_BINDING, Endpoint, EndpointRequest, NetworkRecord
from deskd.errors import DeskdError, ResourceExhausted
from deskd.kernel.conntrack import forget_udp
from deskd.network.firewall import ANY, Firewall, Publication
from deskd.network.ipam import Address
from deskd.network.ports import HostPorts, Target, parse_host_address
from deskd.network.relays import Relays

log = logging.getLogger(__name__)


class Publishing:
    """The published ports of one engine. Use from one event loop."""

    def __init__(self, firewall: Callable[[], Firewall]) -> None:
        """``firewall`` returns the table; it is asked for when there is something to publish."""
        self._firewall = firewall
        self._ports = HostPorts()
        self._relays = Relays()

    def publish(
        self,
        record: NetworkRecord,
        request: EndpointRequest,
        addresses: Iterable[Address],
        undo: contextlib.ExitStack,
    ) -> list[Publication]:
        """Publish the ports of a request, all or none; ``undo`` gets what withdraws them."""
        if not request.ports or record.internal:
            return []
        by_version = {address.version: address for address in addresses}
        default = record.options.get(OPTION_HOST_BINDING, "")
        target = Target(
            by_version.get(4), by_version.get(6), parse_host_address(default) if default else ANY
        )
        try:
            publications = self._ports.hold_all(request.ports, target)
        except ResourceExhausted as error:
            raise ResourceExhausted(
                "driver failed programming external connectivity on endpoint "
                f"{request.container_name} ({request.container_id[:12]}): {error}"
            ) from error
        undo.callback(self._release, publications)
        self._firewall().publish(publications)
        undo.callback(self._firewall().withdraw, publications)
        self._start_relays(publications)
        return publications

    def withdraw(self, publications: Sequence[Publication], *, is_ready: bool) -> None:
        """Publish no more; ``is_ready`` tells whether there is a table."""
        try:
            if publications and is_ready:
                self._firewall().withdraw(publications)
        finally:
            self._release(publications)

    def restore(self, endpoint: Endpoint, addresses: Iterable[Address]) -> list[Publication]:
        """Hold again what an earlier engine published; the table is not touched."""
        by_version = {address.version: address for address in addresses}
        publications: list[Publication] = []
        for key, bindings in endpoint.ports.items():
            port, _, protocol = key.partition("/")
            for binding in bindings:
                address = parse_host_address(binding.host_ip or str(ANY))
                own = by_version.get(address.version) or next(iter(by_version.values()))
                publication = Publication(protocol, address, int(binding.host_port), own, int(port))
                try:
                    if not self._ports.hold(publication):
                        raise ResourceExhausted("another program has taken it")
                except DeskdError as error:
                    where = f"{address}:{binding.host_port}"
                    log.warning("port %s cannot be published again: %s", where, error)
                else:
                    publications.append(publication)
        self._start_relays(publications)
        return publications

    def _start_relays(self, publications: Iterable[Publication]) -> None:
        for publication in publications:
            listener = self._ports.listener(publication)
            if listener is not None:
                self._relays.start(publication, listener)

    def _release(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            self._relays.stop(publication)
        self._ports.release(publications)

    async def close(self) -> None:
        """Let go of every port; the table stays as it is."""
        await self._relays.close()
        self._ports.close()


def forgetting_flows(publications: Iterable[Publication]) -> Callable[[], object] | None:
    """Return what lets UDP clients that keep their port meet published ports as they are now;
    it blocks. ``None`` where no UDP port is among them."""
    udp = [item for item in publications if item.protocol == "udp"]
    if not udp:
        return None
    return partial(
        forget_udp,
        containers={item.container_address for item in udp},
        host_ports={item.host_port for item in udp},
    )
