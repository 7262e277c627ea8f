"""Ports to publish that another program on this computer holds already."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from desk.errors import Conflict

if TYPE_CHECKING:
    from desk.cli.session import Session

_SOCKETS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_EVERY_ADDRESS = ("", "0.0.0.0", "127.0.0.1")


def check(session: Session, body: dict[str, Any]) -> None:
    """Raise ``Conflict`` for the first published port that cannot be opened on this computer.

    The engine in a virtual machine cannot know of it. A port that another container has is left to
    the engine, which names that container; so are all ports of an engine named by its address.
    """
    ports = list(_published(body))
    if not ports or session.engine_url or not session.desk.has_machine(session.machine):
        return
    if not session.desk.manager.inspect(session.machine)["features"]["has_ssh"]:
        return  # the engine is on this very computer and sees for itself
    for kind, port, inside in ports:
        if _is_taken(kind, port) and (kind, port) not in _ports_of_containers(session):
            raise Conflict(
                f"port 127.0.0.1:{port} is in use by another program on this computer",
                hint="Stop that program, or publish another port, such as"
                f" -p {port + 1 if port < 65535 else 8080}:{inside.removesuffix('/tcp')}.",
            )


def _published(body: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield protocol and port here, and the container's port with its protocol."""
    bindings = body.get("HostConfig", {}).get("PortBindings") or {}
    for inside, places in bindings.items():
        kind = str(inside).partition("/")[2]
        if kind not in _SOCKETS:
            continue
        for place in places or ():
            number = str(place.get("HostPort") or "")
            if place.get("HostIp", "") in _EVERY_ADDRESS and number.isdecimal() and int(number):
                yield kind, int(number), str(inside)


def _is_taken(kind: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, _SOCKETS[kind]) as probe:
        if kind == "tcp" and sys.platform != "win32":
            # As a server binds: connections that have just ended do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            if kind == "tcp":
                probe.listen()
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _ports_of_containers(session: Session) -> set[tuple[str, int]]:
    return {
        (str(port.get("Type") or "tcp"), int(port["PublicPort"]))
        for container in session.starting_client.containers.list()
        for port in container.get("Ports") or ()
        if port.get("PublicPort")
    }
