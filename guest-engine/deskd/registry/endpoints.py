"""Where a registry answers: mirrors, HTTPS or plain HTTP, and the certificates it is checked with.

The rules are dockerd's: ``docker.io`` is ``registry-1.docker.io``, mirrors are tried before it;
a registry is spoken to by verified HTTPS, unless it is insecure (named so, or on this machine):
then by HTTPS without verification, and by HTTP where that does not answer.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from deskd.domain.reference import DEFAULT_DOMAIN
from deskd.errors import InvalidArgument
from deskd.record import Record
from deskd.settings import is_network, parse_mirror

HUB_HOST = "registry-1.docker.io"
HUB_SEARCH_HOST = "index.docker.io"
_HUB_NAMES = ("", "docker.io", "index.docker.io", "registry-1.docker.io")
_LOOPBACK = ("127.0.0.0/8", "::1/128")
_HOST = re.compile(r"[a-z0-9.:\[\]_-]+")


class Endpoint(Record):
    """One way to a registry. ``host`` may have a port; ``path`` is what a mirror has before /v2/.

    ``certificates`` are the directories with the registry's own CA and client certificates.
    """

    scheme: str
    host: str
    path: str = ""
    verified: bool = True
    mirror: bool = False
    certificates: tuple[Path, ...] = ()

    @property
    def base(self) -> str:
        """The address that the paths of the API follow: ``https://host/v2/``."""
        return f"{self.scheme}://{self.host}{self.path}/v2/"


class Endpoints:
    """The endpoints of every registry, by the engine's settings."""

    def __init__(
        self,
        mirrors: Sequence[str] = (),
        insecure: Sequence[str] = (),
        certificate_roots: Sequence[str] = (),
    ) -> None:
        self._mirrors = [parse_mirror(mirror) for mirror in mirrors]
        self._insecure_hosts = {item.lower() for item in insecure if not is_network(item)}
        networks = [item for item in insecure if is_network(item)]
        self._insecure_networks = [ipaddress.ip_network(n) for n in (*_LOOPBACK, *networks)]
        self._certificate_roots = [Path(root) for root in certificate_roots]

    def of(self, domain: str) -> list[Endpoint]:
        """Return the endpoints of a reference's domain, in the order in which to try them."""
        if domain != DEFAULT_DOMAIN:
            return self._of_host(domain)
        found: list[Endpoint] = []
        for scheme, host, path in self._mirrors:
            certificates = self._certificates(host)
            verified = not self.is_insecure(host)
            found.append(Endpoint(scheme, host, path, verified, True, certificates))
        return [*found, *self._of_host(HUB_HOST)]

    def of_login(self, address: str) -> list[Endpoint]:
        """Return the endpoints of what a person wrote after ``docker login``.

        Raises ``InvalidArgument`` for what is no address.
        """
        try:
            host = urlsplit(address if "://" in address else f"//{address}").netloc.lower()
        except ValueError:
            raise _no_address(address) from None
        if host in _HUB_NAMES:
            return self._of_host(HUB_HOST)
        if "@" in host or not _HOST.fullmatch(host):
            raise _no_address(address)
        return self._of_host(host)

    def of_search(self, domain: str) -> list[Endpoint]:
        """Return the endpoints that answer a search in this registry."""
        return self._of_host(HUB_SEARCH_HOST if domain == DEFAULT_DOMAIN else domain)

    def _of_host(self, host: str) -> list[Endpoint]:
        certificates = self._certificates(host)
        if not self.is_insecure(host):
            return [Endpoint("https", host, certificates=certificates)]
        return [
            Endpoint("https", host, verified=False, certificates=certificates),
            Endpoint("http", host),
        ]

    def is_insecure(self, host: str) -> bool:
        """Say whether a registry needs no verified HTTPS; may ask the name server."""
        name = urlsplit(f"//{host}").hostname or host
        if name == "localhost" or {host.lower(), name} & self._insecure_hosts:
            return True
        try:
            addresses = [ipaddress.ip_address(name)]
        except ValueError:
            if host == HUB_HOST or len(self._insecure_networks) == len(_LOOPBACK):
                return False  # asking the name server takes time, and could change nothing
            addresses = _resolve(name)
        return any(address in net for address in addresses for net in self._insecure_networks)

    def _certificates(self, host: str) -> tuple[Path, ...]:
        places = (root / host for root in self._certificate_roots)
        return tuple(place for place in places if place.is_dir())


def _resolve(name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        found = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return []  # the request itself will say so
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def _no_address(text: str) -> InvalidArgument:
    return InvalidArgument(f"{text!r} is no address of a registry; write HOST or HOST:PORT")
