"""HTTP to registries: connections, TLS, proxies, redirects, and what fails in words.

Blocking; a transfer's threads share one ``Transport``, and its ``Cancellation`` ends them all.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import ssl
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.exceptions import SSLError as TlsError

from deskd import __version__
from deskd.registry.cancellation import Cancellation
from deskd.registry.endpoints import Endpoint
from deskd.registry.failures import Broken, Unreachable, read_refusal

CONNECT_TIMEOUT_S = 15.0
READ_TIMEOUT_S = 60.0
MAXIMUM_REDIRECTS = 10
REFUSAL_BYTES = 64 * 1024
RETRY_DELAYS_S = (0.5, 2.0)
MAXIMUM_DELAY_S = 60.0
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK_BYTES = 256 * 1024

Answer = urllib3.BaseHTTPResponse

# It writes whole URLs, which may hold what gives access to a blob.
logging.getLogger("urllib3").setLevel(logging.INFO)


class Transport:
    """Requests to one endpoint, and to the hosts to which it leads. ``close`` it at the end."""

    def __init__(self, endpoint: Endpoint, cancellation: Cancellation) -> None:
        self.endpoint = endpoint
        self.cancellation = cancellation
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._connections = _Connections()
        cancellation.add_waker(self._connections.shut_down)

    def close(self) -> None:
        """Close every connection; idempotent."""
        self.cancellation.remove_waker(self._connections.shut_down)
        for pool in self._pools.values():
            pool.clear()

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> Answer:
        """Send a request and follow redirects; return the answer, whatever its status is, with its
        body unread. End it with ``finish`` or ``close``.

        Credentials do not follow to another host, nor does HTTPS lead to HTTP. Raises
        ``Unreachable`` where nobody answers.
        """
        sent = {"User-Agent": f"Desk/{__version__}", **(headers or {})}
        for _ in range(MAXIMUM_REDIRECTS):
            answer = self._send_once(method, url, sent, body)
            target = answer.headers.get("Location", "")
            if answer.status not in _REDIRECTS or not target or method not in ("GET", "HEAD"):
                return answer
            finish(answer)
            following = urljoin(url, target)
            self._check_redirect(url, following)
            if _origin(following) != _origin(url):
                sent.pop("Authorization", None)
            url = following
        raise Broken(
            f"the registry {self.endpoint.host} redirects in a circle (last to {url}): tell its "
            "administrator"
        )

    def _check_redirect(self, url: str, following: str) -> None:
        parts = urlsplit(following)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Broken(f"{url} redirects to {following!r}, which is no address")
        if urlsplit(url).scheme == "https" and parts.scheme == "http" and self.endpoint.verified:
            raise Broken(
                f"{url} redirects from HTTPS to {following}, which nothing protects: name the "
                f"registry with --insecure-registry {self.endpoint.host} if that is meant"
            )

    def _send_once(self, method: str, url: str, headers: Mapping[str, str], body: Any) -> Answer:
        self.cancellation.check()
        try:
            return self._pool(url).urlopen(
                method,
                url,
                body=body,
                headers=dict(headers),
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError, ValueError) as error:
            self.cancellation.check()
            raise self._unreachable(method, url, error) from error

    # --- connections ----------------------------------------------------------------------------

    def _pool(self, url: str) -> urllib3.PoolManager:
        parts = urlsplit(url)
        own = parts.netloc == self.endpoint.host
        proxy = find_proxy(parts.scheme, parts.hostname or "", parts.netloc)
        key = f"{parts.scheme} {own} {proxy}"
        pool = self._pools.get(key)
        if pool is None:
            settings: dict[str, Any] = {
                "maxsize": 8,
                "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            }
            if parts.scheme == "https":
                settings["ssl_context"] = self._tls_context(own=own)
            made = _make_pool(proxy, settings)
            made.pool_classes_by_scheme = self._connections.pool_classes
            pool = self._pools.setdefault(key, made)
        return pool

    def _tls_context(self, *, own: bool) -> ssl.SSLContext:
        """Trust the system's CAs and, for the registry itself, those in its ``certs.d``."""
        if own and not self.endpoint.verified:
            # The system's CAs take time to read and say nothing here.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        if not own:
            return context
        for directory in self.endpoint.certificates:
            for path in sorted(directory.iterdir()):
                try:
                    if path.suffix == ".crt":
                        context.load_verify_locations(path)
                    elif path.suffix == ".cert":
                        context.load_cert_chain(path, path.with_suffix(".key"))
                except (OSError, ssl.SSLError) as error:
                    raise Unreachable(
                        f"the certificate {path} of the registry {self.endpoint.host} cannot be "
                        f"used ({error}): put a PEM file there, a .cert beside its .key"
                    ) from error
        return context

    def _unreachable(self, method: str, url: str, error: Exception) -> Unreachable:
        host = urlsplit(url).netloc
        cause = getattr(error, "reason", None) or error
        text = str(cause)
        said = f'{method.capitalize()} "{url}"'
        if isinstance(error, TlsError) or isinstance(cause, ssl.SSLError | TlsError):
            if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER" in text:
                return Unreachable(
                    f"{said}: http: server gave HTTP response to HTTPS client: if {host} is meant "
                    f"to be without TLS, start the engine with --insecure-registry {host}"
                )
            if "CERTIFICATE_VERIFY_FAILED" in text:
                reason = text.partition("CERTIFICATE_VERIFY_FAILED] ")[2].partition(" (_ssl")[0]
                return Unreachable(
                    f"{said}: tls: failed to verify certificate: {reason or text}: put the CA of "
                    f"{host} into certs.d/{host}/ca.crt, or correct the certificate"
                )
        return Unreachable(f"{said}: {in_words(error, host)}")


class _Connections:
    """The open connections of a transport, so that what waits for one of them can be woken."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._lock = threading.Lock()
        note = self._note

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                note(self)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                # Else each request to a registry that is meant to be insecure gives a warning.
                self.is_verified = True
                note(self)

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        self.pool_classes = {"http": PlainPool, "https": SecurePool}

    def _note(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._open.add(connection)

    def shut_down(self) -> None:
        """End every connection under the threads that read from it."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    # Not the TLS socket's own method: it would take the state away under a reader.
                    socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _make_pool(proxy: str, settings: dict[str, Any]) -> urllib3.PoolManager:
    if not proxy:
        return urllib3.PoolManager(**settings)
    parts = urlsplit(proxy)
    headers = None
    if parts.username is not None:
        from urllib.parse import unquote

        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=pair)
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return urllib3.ProxyManager(address, proxy_headers=headers, **settings)


def find_proxy(scheme: str, host: str, address: str) -> str:
    """Return the proxy that the environment names for a host ("" for none).

    As Go's programs do it: this machine is reached directly, and ``NO_PROXY`` may hold networks.
    """
    proxies = getproxies()
    proxy = proxies.get(scheme, "")
    if not proxy or host == "localhost":
        return ""
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(host)
        if ip.is_loopback:
            return ""
        for item in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")).split(","):
            with contextlib.suppress(ValueError):
                if "/" in item and ip in ipaddress.ip_network(item.strip(), strict=False):
                    return ""
    if proxy_bypass(address):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def in_words(error: BaseException, host: str) -> str:
    """Say what a connection died of; the words say what to look at."""
    from urllib3 import exceptions

    cause = getattr(error, "reason", None) or error
    if isinstance(cause, exceptions.ProxyError):
        return f"the proxy does not lead to {host} ({cause.original_error}): check HTTPS_PROXY"
    if isinstance(cause, exceptions.NameResolutionError):
        return f"lookup {host}: no such host: check the name and the network"
    if isinstance(cause, exceptions.NewConnectionError):
        inner = cause.__cause__ or cause.__context__
        reason = getattr(inner, "strerror", None) or str(inner or cause)
        return f"dial tcp {host}: connect: {reason.lower()}: check that the registry runs there"
    if isinstance(cause, exceptions.ConnectTimeoutError):
        return f"dial tcp {host}: i/o timeout: check the address and the network"
    if isinstance(cause, exceptions.ReadTimeoutError | TimeoutError):
        return f"{host} does not answer in time: try again later"
    if isinstance(cause, exceptions.ProtocolError):
        inner = cause.args[-1] if cause.args else cause
        return f"{host} broke the connection off ({inner}): try again later"
    return f"{cause or type(cause).__name__}"


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname or "", port


# --- answers ------------------------------------------------------------------------------------


def finish(answer: Answer) -> None:
    """Give an answer's connection back, or close it where its body would take long to read."""
    try:
        if len(answer.read(REFUSAL_BYTES)) < REFUSAL_BYTES:
            answer.release_conn()
            return
    except (HTTPError, OSError, ValueError):
        pass  # it is of no use any more
    answer.close()


def refusal(method: str, url: str, answer: Answer) -> Exception:
    """Return the error that an answer's body tells, and end the answer."""
    try:
        body = answer.read(REFUSAL_BYTES)
    except (HTTPError, OSError, ValueError):
        body = b""
    finally:
        answer.close()
    return read_refusal(method, url, answer.status, body, answer.headers.get("Retry-After", ""))


def read_limited(answer: Answer, limit_bytes: int, what: str) -> bytes:
    """Read a body that is kept in memory; raises ``Broken`` where it breaks off or is too long."""
    parts: list[bytes] = []
    size = 0
    try:
        for part in pieces(answer):
            size += len(part)
            if size > limit_bytes:
                answer.close()
                raise Broken(f"{what} is larger than {limit_bytes} bytes: it is refused")
            parts.append(part)
    except (HTTPError, OSError, ValueError) as error:
        answer.close()
        raise Broken(f"{what} broke off: {in_words(error, 'the registry')}") from error
    answer.release_conn()
    return b"".join(parts)


def pieces(answer: Answer) -> Iterator[bytes]:
    """Yield a body's bytes as they come."""
    while data := answer.read1(_CHUNK_BYTES):
        yield data
