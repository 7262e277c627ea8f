"""What a driver is: how containers come into the networks of one kind."""

from __future__ import annotations

from typing import Protocol

from deskd.domain.network import EndpointRequest, NetworkRecord
from deskd.network.members import Member


class Driver(Protocol):
    """Grants endpoints in networks of one kind.

    ``join`` reserves what a member needs and returns it with the requests that make its
    interface; nothing of it stays where it raises. Giving back is the caller's: addresses and
    ports are in what is returned.
    """

    @property
    def uses_kernel(self) -> bool:
        """Whether the networks must be set up in the kernel before ``join``."""

    async def join(self, record: NetworkRecord, request: EndpointRequest) -> Member: ...
