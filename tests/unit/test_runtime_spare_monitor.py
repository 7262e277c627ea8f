"""The launcher hands an order to its spare monitor exactly once."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import pytest

from deskd.runtime.launcher import _Launcher


def test_a_spare_that_closes_after_its_order_has_taken_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    launcher = object.__new__(_Launcher)
    launcher._spare = ours
    send_fds = socket.send_fds

    def send_and_let_the_spare_close(
        connection: socket.socket, buffers: Iterable[bytes], fds: Iterable[int]
    ) -> int:
        sent = send_fds(connection, buffers, fds)
        assert theirs.recv(100) == b"order"
        theirs.close()
        return sent

    monkeypatch.setattr(socket, "send_fds", send_and_let_the_spare_close)
    assert launcher._hand_over(b"order", [])


def test_a_dead_spare_takes_nothing() -> None:
    ours, theirs = socket.socketpair()
    launcher = object.__new__(_Launcher)
    launcher._spare = ours
    theirs.close()
    assert not launcher._hand_over(b"order", [])
    assert launcher._spare is None
