"""What the tests' proxies have in common: a port of their own, and threads that end with them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any, Self


class ProxyListener:
    """Accepts clients while it is entered; ``accepted`` of a subclass says what becomes of them."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        while self._threads:
            self._threads.pop().join(60)
        self._listener.close()

    def start(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do ``work`` in a thread; it looks at ``closing`` now and then."""
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def accepted(self, client: socket.socket) -> None:
        """Take a new client, in the thread that accepts."""
        raise NotImplementedError

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.accepted(client)
