"""Machines and containers as plain network namespaces: real ones, gone when the test ends."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from deskd.domain.network import Endpoint, NetlinkScript
from deskd.kernel import netlink

CLONE_NEWNET = 0x40000000

_CONTAINER = r"""
import json, socket, struct, sys, threading
def send(requests):
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    for request in requests:
        s.send(request)
        answer = s.recv(65536)
        number = struct.unpack_from("=i", answer, 16)[0]
        if number:
            return f"errno {-number} for {request.hex()}"
    return ""
def set_sysctls(pairs):
    for name, value in pairs:
        with open("/proc/sys/" + name.replace(".", "/"), "w") as file:
            file.write(value)
def serve_tcp(s, text):
    while True:
        c, peer = s.accept()
        c.sendall(f"{text} {peer[0]}".encode())
        c.close()
def serve_udp(s, text):
    while True:
        data, peer = s.recvfrom(2048)
        s.sendto(f"{text} {peer[0]}".encode(), peer)
def listen(kind, port, text):
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        listen_in(family, everywhere, kind, port, text)
def listen_in(family, everywhere, kind, port, text):
    s = socket.socket(family, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((everywhere, port))
    if kind == socket.SOCK_STREAM:
        s.listen()
    target = serve_tcp if kind == socket.SOCK_STREAM else serve_udp
    threading.Thread(target=target, args=(s, text), daemon=True).start()
def fetch(kind, host, port, timeout, own_port):
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        s = socket.socket(family, kind)
        s.bind(("::" if ":" in host else "0.0.0.0", own_port))
        s.settimeout(timeout)
        s.connect((host, port))
        if kind == socket.SOCK_DGRAM:
            s.send(b"?")
        return s.recv(2048).decode()
    except OSError as error:
        return f"error: {type(error).__name__}"
kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
print("ready", flush=True)
for line in sys.stdin:
    verb, *arguments = json.loads(line)
    if verb == "netlink":
        answer = send([bytes.fromhex(item) for item in arguments[0]])
    elif verb == "sysctls":
        answer = set_sysctls(arguments[0])
    elif verb == "listen":
        answer = listen(kinds[arguments[0]], *arguments[1:])
    else:
        answer = fetch(kinds[arguments[0]], *arguments[1:])
    print(json.dumps(answer), flush=True)
"""


class Container:
    """A process in a network namespace of its own, told what to do line by line."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-S", "-c", _CONTAINER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    @property
    def pid(self) -> int:
        return self._process.pid

    def _ask(self, *command: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run_script(self, script: NetlinkScript) -> None:
        """Do what a monitor and its first process do with an endpoint's script."""
        with netlink.RouteSocket() as route:
            for request, offset in zip(script.outside, script.outside_pid_offsets, strict=True):
                patched = bytearray(request)
                if offset is not None:
                    patched[offset : offset + 4] = netlink.uint32(self.pid)
                route.request(bytes(patched))
        self._ask("sysctls", script.sysctls)
        assert self._ask("netlink", [request.hex() for request in script.inside]) == ""

    def join(self, endpoint: Endpoint) -> str:
        """Run the endpoint's script and return the container's address."""
        self.run_script(endpoint.script)
        return endpoint.settings.ip_address

    def listen(self, kind: str, port: int, text: str) -> None:
        """Answer on a port with ``text`` and the peer's address."""
        self._ask("listen", kind, port, text)

    def fetch(
        self, kind: str, host: str, port: int, timeout_s: float = 60.0, own_port: int = 0
    ) -> str:
        """Return what a server says, or ``error: CLASS``."""
        answer: str = self._ask("fetch", kind, host, port, timeout_s, own_port)
        return answer

    def interfaces(self) -> dict[str, Any]:
        """Return the namespace's interfaces as ``ip`` shows them, by name."""
        command = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "-j", "-d", "address"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return {link["ifname"]: link for link in json.loads(shown)}

    def routes(self, version: int = 4) -> list[dict[str, Any]]:
        command = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", f"-{version}", "-j", "route"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found: list[dict[str, Any]] = json.loads(shown)
        return found

    def stop(self) -> None:
        """End the process, and with it the namespace."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def containers(number: int) -> Iterator[list[Container]]:
    """Start containers and stop them at the end."""
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(number):
            container = Container()
            stack.callback(container.stop)
            started.append(container)
        yield started


def in_namespace(body: Callable[[], None]) -> None:
    """Run ``body`` in a thread with a fresh network namespace, in which only ``lo`` is up.

    Threads and processes that it starts are in that namespace too; it ends with the last one.
    """
    failure: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), "unshare")
            with netlink.RouteSocket() as route:
                route.request(netlink.set_up(netlink.LOOPBACK_INDEX))
            body()
        except BaseException as error:  # noqa: BLE001 (handed to the test's own thread)
            failure.append(error)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def run_in_namespace(body: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine function on an event loop in a fresh network namespace."""

    async def main() -> None:
        await body()

    in_namespace(lambda: asyncio.run(main()))


def link_names() -> set[str]:
    """Return the names of this namespace's interfaces."""
    with netlink.RouteSocket() as route:
        return {link.name for link in route.links()}
