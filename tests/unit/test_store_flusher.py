"""The thread that brings commits to the disk: its end."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deskd.store import flusher
from deskd.store.flusher import Flusher

LIMIT_S = 60.0


def test_an_end_ordered_while_a_note_is_taken_back_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flusher, "DELAY_S", 0.01)
    subject = Flusher(str(tmp_path / "engine.db"))
    closer = threading.Thread(target=subject.close, daemon=True)
    clearing, ordered = threading.Event(), threading.Event()

    class ClosedBeforeClear(threading.Event):
        """Lets ``close`` give its whole order between the thread's waiting and its ``clear``."""

        def set(self) -> None:
            super().set()
            if subject._closing.is_set():
                ordered.set()

        def clear(self) -> None:
            clearing.set()
            ordered.wait(LIMIT_S)
            super().clear()

    subject._noted = ClosedBeforeClear()
    subject.note()
    assert clearing.wait(LIMIT_S)
    closer.start()
    closer.join(LIMIT_S)
    assert not closer.is_alive()
