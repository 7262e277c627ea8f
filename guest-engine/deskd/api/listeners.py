"""Binding the sockets that ``--host`` names.

Imports little: they listen before the rest of the engine is loaded.
"""

from __future__ import annotations

import contextlib
import os
import socket
from contextlib import ExitStack

from deskd.errors import Conflict, DeskdError, InvalidArgument, SystemFailure
from deskd.layout import ExecRoot
from deskd.settings import Settings

SOCKET_MODE = 0o660
BACKLOG = 1024
FIRST_PASSED_DESCRIPTOR = 3  # sd_listen_fds(3)


def open_listeners(
    settings: Settings, exec_root: ExecRoot, stack: ExitStack
) -> list[socket.socket]:
    """Bind everything that ``--host`` names; without one, the socket of the exec root.

    Raises ``InvalidArgument`` and ``Conflict`` that name the host.
    """
    listeners: list[socket.socket] = []
    for host in settings.hosts or (f"unix://{exec_root.socket}",):
        scheme, separator, rest = host.partition("://")
        if not separator:
            raise InvalidArgument(f"--host {host} must be unix://PATH, tcp://IP:PORT or fd://")
        if scheme == "unix":
            listeners.append(_unix_listener(rest or exec_root.socket, settings.group, stack))
        elif scheme == "tcp":
            listeners.append(_tcp_listener(host, rest))
        elif scheme == "fd":
            listeners += _passed_listeners()
        else:
            raise InvalidArgument(f"--host {host}: unknown kind {scheme}; use unix, tcp or fd")
    for listener in listeners:
        stack.callback(listener.close)
    return listeners


def _unix_listener(path: str, group: str, stack: ExitStack) -> socket.socket:
    if len(os.fsencode(path)) > 107:
        raise InvalidArgument(f"the socket path {path} is longer than 107 bytes; choose a shorter")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(path):
            if _answers(path):
                raise Conflict(
                    f"another engine answers on {path}; stop it or choose another --host"
                )
            os.unlink(path)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        listener.bind(path)
        os.chmod(path, SOCKET_MODE)
        if group:
            os.chown(path, 0, _group_id(group))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SystemFailure(f"cannot listen on {path}: {error.strerror}") from error
    except DeskdError:
        listener.close()
        raise
    stack.callback(remove_file, path)
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def _group_id(group: str) -> int:
    import grp

    try:
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise InvalidArgument(f"--group {group}: there is no such group; create it first") from None


def _tcp_listener(host: str, rest: str) -> socket.socket:
    address, colon, port = rest.rpartition(":")
    if not colon or not port.isdigit():
        raise InvalidArgument(f"--host {host} needs an address and a port, as tcp://127.0.0.1:2375")
    address = address.strip("[]") or "127.0.0.1"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, int(port)))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise SystemFailure(
            f"cannot listen on {host}: {getattr(error, 'strerror', None) or error}; "
            "choose another address or port"
        ) from error
    return listener


def _passed_listeners() -> list[socket.socket]:
    """Take the sockets that systemd passed (sd_listen_fds(3))."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") not in (None, str(os.getpid())) or not count.isdigit():
        raise InvalidArgument(
            "--host fd:// needs sockets passed by systemd (LISTEN_FDS); there are none"
        )
    return [socket.socket(fileno=FIRST_PASSED_DESCRIPTOR + index) for index in range(int(count))]


def remove_file(path: str) -> None:
    """Remove a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
