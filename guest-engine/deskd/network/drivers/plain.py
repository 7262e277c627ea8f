"""The networks ``host`` and ``none``: no interface, no addresses."""

from __future__ import annotations

import asyncio
import secrets

import msgspec

from deskd.domain.network import Endpoint, EndpointRequest, NetlinkScript, NetworkRecord
from deskd.kernel import netlink
from deskd.network.bridge import loopback_script
from deskd.network.members import Member


class PlainDriver:
    """Gives a container the machine's network as it is (``host``) or a loopback only (``null``)."""

    uses_kernel = False

    def __init__(self, *, has_own_loopback: bool) -> None:
        self._has_own_loopback = has_own_loopback

    async def join(self, record: NetworkRecord, request: EndpointRequest) -> Member:
        """Return a member without addresses."""
        script = NetlinkScript()
        if self._has_own_loopback:
            await asyncio.to_thread(netlink.load_messages)
            script = loopback_script()
        endpoint_id = secrets.token_hex(32)
        settings = msgspec.structs.replace(
            request.settings, network_id=record.id, endpoint_id=endpoint_id
        )
        return Member(
            Endpoint(record.id, record.name, endpoint_id, settings, script, driver=record.driver)
        )
