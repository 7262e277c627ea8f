"""Published ports on the host: which there should be, and the listeners that serve them."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from desk.agent.acceptor import Acceptor, reset
from desk.agent.checkup import Finding
from desk.agent.datagrams import Datagrams
from desk.agent.link import Link
from desk.errors import SshError
from desk.ssh.session import Session

_log = logging.getLogger(__name__)

_BACKLOG = 128
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_LINK_S = 5.0


@dataclass(frozen=True, slots=True, order=True)
class Forward:
    """One published port: where to listen on the host, where to connect in the machine."""

    protocol: str
    address: str
    port: int
    target: str

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}/{self.protocol}"


@dataclass(slots=True)
class _Port:
    container: str
    state: str
    error: str = ""
    hint: str = ""
    refusal: str = ""
    listener: socket.socket | None = None
    # How often a connection was passed on or could not be, and why the last one could not.
    attempts: int = 0
    trouble: str = ""


def wanted_forwards(containers: Iterable[Mapping[str, Any]]) -> dict[Forward, str]:
    """Return the forwards for a container list of the Engine API (``/containers/json``), each
    with its container's name.

    Ports published on every address, or on a loopback address, are served on the host's loopback;
    those on an address of the machine itself are served on 127.0.0.1.
    """
    wanted: dict[Forward, str] = {}
    for container in containers:
        names = container.get("Names") or [str(container.get("Id", ""))[:12]]
        name = str(names[0]).removeprefix("/")
        ports = [port for port in container.get("Ports") or [] if port.get("PublicPort")]
        # Docker tells a port on every address twice, for IPv4 and for IPv6; IPv4 goes first,
        # because ::1 leads to the machine's 127.0.0.1 where both are served.
        for port in sorted(ports, key=lambda port: ":" in str(port.get("IP", ""))):
            for forward in _forwards_of(port):
                same_place = (forward.protocol, forward.address, forward.port)
                if not any((f.protocol, f.address, f.port) == same_place for f in wanted):
                    wanted[forward] = name
    return wanted


def _forwards_of(port: Mapping[str, Any]) -> list[Forward]:
    protocol, number = str(port.get("Type") or "tcp"), int(port["PublicPort"])
    try:
        address = ipaddress.ip_address(port.get("IP") or "0.0.0.0")
    except ValueError:
        _log.warning("port %d is published on %r, which is no address", number, port.get("IP"))
        return []
    if address.is_loopback:
        return [Forward(protocol, str(address), number, str(address))]
    if not address.is_unspecified:
        return [Forward(protocol, "127.0.0.1", number, str(address))]
    if address.version == 6:
        return [Forward(protocol, "::1", number, "::1")]
    return [
        Forward(protocol, "127.0.0.1", number, "127.0.0.1"),
        Forward(protocol, "::1", number, "127.0.0.1"),
    ]


class PortForwards:
    """The host's listeners for published ports; calls may come from any thread."""

    def __init__(self, link: Link, acceptor: Acceptor, datagrams: Datagrams) -> None:
        self._link = link
        self._acceptor = acceptor
        self._datagrams = datagrams
        self._lock = threading.Lock()
        self._attempted = threading.Condition(self._lock)
        self._ports: dict[Forward, _Port] = {}
        self._promised: dict[int, Collection[Forward]] = {}

    def reconcile(self, wanted: Mapping[Forward, str]) -> None:
        """Close what is neither wanted nor promised, open what is new, try again what failed."""
        with self._lock:
            held = {forward for promise in self._promised.values() for forward in promise}
            for forward in [f for f in self._ports if f not in wanted and f not in held]:
                self._close(forward, self._ports.pop(forward))
            for forward, container in wanted.items():
                self._want(forward, container)

    def promise(self, number: int, wanted: Mapping[Forward, str]) -> str:
        """Open ports for a container that is about to start, all or none, and hold them until
        ``settle(number)``. Return why one that the container asks for cannot be had here, else an
        empty text.
        """
        with self._lock:
            fresh = [forward for forward in wanted if forward not in self._ports]
            refusal = next(
                filter(None, (self._want(f, name).refusal for f, name in wanted.items())), ""
            )
            if refusal:
                for forward in [forward for forward in fresh if forward in self._ports]:
                    self._close(forward, self._ports.pop(forward))
            else:
                self._promised[number] = wanted.keys()
            return refusal

    def settle(self, number: int) -> None:
        """Forget a promise; ``reconcile`` closes what is not wanted after all. Idempotent."""
        with self._lock:
            self._promised.pop(number, None)

    def settle_all(self) -> None:
        """Forget every promise."""
        with self._lock:
            self._promised.clear()

    def close(self) -> None:
        """Close every port."""
        self.settle_all()
        self.reconcile({})

    @property
    def has_failures(self) -> bool:
        """Whether some port could not be opened and may be on another try."""
        with self._lock:
            return any(port.state == "busy" for port in self._ports.values())

    def describe(self) -> list[dict[str, object]]:
        """Return every port with its state (``open``, ``busy``, ``unsupported``; ``dead`` where
        nothing is relayed from it), for status."""
        with self._lock:
            return [
                {
                    "protocol": forward.protocol,
                    "address": forward.address,
                    "port": forward.port,
                    "container": port.container,
                    **self._state_of(forward, port),
                }
                for forward, port in sorted(self._ports.items(), key=lambda item: item[0])
            ]

    def probe(self, timeout_s: float) -> list[Finding]:
        """Connect to every TCP port as a program on this computer would, all at once, and return a
        finding for each port; it is well where the connection arrived in the machine."""
        with self._lock:
            ports = sorted(self._ports.items(), key=lambda item: item[0])
            before = {f: p.attempts for f, p in ports if p.state == "open" and f.protocol == "tcp"}
        deadline = time.monotonic() + timeout_s
        troubles: dict[Forward, str] = {}
        with contextlib.ExitStack() as closing:
            for forward in before:
                try:
                    address = (forward.address, forward.port)
                    closing.enter_context(socket.create_connection(address, timeout_s))
                except OSError as error:
                    troubles[forward] = error.strerror or str(error)
            waited = [forward for forward in before if forward not in troubles]
            with self._attempted:
                self._attempted.wait_for(
                    lambda: all(
                        forward not in self._ports
                        or self._ports[forward].attempts > before[forward]
                        for forward in waited
                    ),
                    max(0.0, deadline - time.monotonic()),
                )
                for forward in waited:
                    port = self._ports.get(forward)
                    if port is not None:
                        arrived = port.attempts > before[forward]
                        late = f"no answer within {timeout_s:g} s"
                        troubles[forward] = port.trouble if arrived else late
                findings = []
                for forward, port in ports:
                    fault = str(self._state_of(forward, port)["error"])
                    if not fault and troubles.get(forward):
                        fault = f"port {forward} of {port.container}: {troubles[forward]}"
                    findings.append(Finding("port", fault=fault))
        return findings

    def _state_of(self, forward: Forward, port: _Port) -> dict[str, object]:
        if forward.protocol == "udp" and port.state == "open" and self._datagrams.error:
            error = f"port {forward} of {port.container} leads nowhere: {self._datagrams.error}"
            hint = "Bring the machine's engine up to date: `desk machine upgrade`."
            return {"state": "dead", "error": error, "hint": hint}
        return {"state": port.state, "error": port.error, "hint": port.hint}

    def _want(self, forward: Forward, container: str) -> _Port:
        port = self._ports.get(forward)
        if port is None:
            port = self._ports[forward] = _Port(container, "new")
        port.container = container
        if port.listener is None:
            self._open(forward, port)
        return port

    def _open(self, forward: Forward, port: _Port) -> None:
        before = port.error
        if forward.protocol not in _KINDS:
            port.state = "unsupported"
            port.error = f"{forward} of {port.container} is not forwarded: TCP and UDP ports are"
            port.hint = "Reach it from inside the machine: `desk machine ssh`."
        else:
            try:
                port.listener = _listen(forward)
            except OSError as error:
                port.state = "busy"
                port.error, port.hint = _explain(forward, port.container, error)
                port.refusal = _refuse(forward, error)
            else:
                port.state, port.error, port.hint, port.refusal = "open", "", "", ""
                self._serve_from(port.listener, forward)
                _log.info("port %s of %s is open", forward, port.container)
        if port.error and port.error != before:
            _log.warning("%s. %s", port.error, port.hint)

    def _close(self, forward: Forward, port: _Port) -> None:
        if port.listener is not None:
            if forward.protocol == "udp":
                self._datagrams.remove(port.listener)
            else:
                self._acceptor.remove(port.listener)
            _log.info("port %s of %s is closed", forward, port.container)

    def _serve_from(self, listener: socket.socket, forward: Forward) -> None:
        if forward.protocol == "udp":
            self._datagrams.add(listener, forward.target, forward.port)
        else:
            self._acceptor.add(listener, lambda local, ended: self._serve(local, forward, ended))

    def _serve(self, local: socket.socket, forward: Forward, ended: Callable[[], None]) -> None:
        session = self._link.present
        if session is not None:
            self._relay(session, local, forward, ended)
            return
        threading.Thread(
            target=self._serve_later, args=(local, forward, ended), name="connection", daemon=True
        ).start()

    def _serve_later(
        self, local: socket.socket, forward: Forward, ended: Callable[[], None]
    ) -> None:
        """Wait for a machine that is just coming back."""
        try:
            session = self._link.session(_LINK_S)
        except SshError as error:
            self._refuse(local, forward, ended, error)
        else:
            self._relay(session, local, forward, ended)

    def _relay(
        self, session: Session, local: socket.socket, forward: Forward, ended: Callable[[], None]
    ) -> None:
        session.relay_tcp(
            local,
            forward.target,
            forward.port,
            opened=lambda: self._note(forward, ""),
            refused=lambda error: self._refuse(local, forward, ended, error),
            ended=ended,
        )

    def _refuse(
        self,
        local: socket.socket,
        forward: Forward,
        ended: Callable[[], None],
        error: SshError,
    ) -> None:
        _log.info("a connection to %s was reset: %s", forward, error.text)
        self._note(forward, error.text)
        reset(local)
        ended()

    def _note(self, forward: Forward, trouble: str) -> None:
        with self._attempted:
            port = self._ports.get(forward)
            if port is not None:
                port.attempts += 1
                port.trouble = trouble
            self._attempted.notify_all()


def _listen(forward: Forward) -> socket.socket:
    family = socket.AF_INET6 if ":" in forward.address else socket.AF_INET
    kind = _KINDS[forward.protocol]
    listener = socket.socket(family, kind)
    try:
        if sys.platform == "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        elif kind == socket.SOCK_STREAM:  # for UDP it would let two programs have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((forward.address, forward.port))
        if kind == socket.SOCK_STREAM:
            listener.listen(_BACKLOG)
    except BaseException:
        with contextlib.suppress(OSError):
            listener.close()
        raise
    return listener


def _refuse(forward: Forward, error: OSError) -> str:
    """Return the words for a container that cannot start without the port, in Docker's form; empty
    where it may start: a computer without IPv6 does not have ::1."""
    address = f"[{forward.address}]" if ":" in forward.address else forward.address
    where = f"Bind for {address}:{forward.port} failed: "
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where}port is already allocated: another program on this computer uses it; stop "
            "that program or publish another port"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{where}ports below 1024 need a privilege on this computer; publish one above 1023, "
            "for example -p 8080:80"
        )
    return ""


def _explain(forward: Forward, container: str, error: OSError) -> tuple[str, str]:
    where = f"port {forward} of {container} cannot be opened on this computer"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where}: another program uses it",
            "Stop that program, or publish another port with `-p`; Desk tries again by itself.",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{where}: ports below 1024 need a privilege here",
            "Publish a port above 1023, for example `-p 8080:80`.",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return (
            f"{where}: this computer does not have that address",
            "Publish the port on 127.0.0.1 or on every address.",
        )
    return f"{where}: {error.strerror or error}", "Desk tries again by itself."
