"""Sees to it that a signal's handler runs although the main thread waits in a system call.

Python notes a signal and runs its handler once the main thread comes back to Python code. A signal
that comes in the moment before the thread enters the call does not break the call off (nor does
one that another thread takes), and Ctrl-C would be noticed with the next output or the next Ctrl-C.
So a thread hears of each signal by ``signal.set_wakeup_fd`` and pokes the main thread with another
one, which means nothing and ends its wait.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

_PAUSES_S = (0.02, 0.1, 0.5)
"""Before each poke; most signals need none, and one too many does no harm."""


def start() -> None:
    """Begin, for the rest of this process's life. To be called by its main thread."""
    if sys.platform == "win32":  # nothing there breaks a call off
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGURG, lambda _number, _frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    main = threading.get_ident()
    threading.Thread(target=_poke, args=(reader, main), name="interrupts", daemon=True).start()


def _poke(reader: int, main: int) -> None:
    if sys.platform == "win32":
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while numbers := os.read(reader, 64):
        if set(numbers) == {signal.SIGURG}:
            continue  # a poke
        for pause_s in _PAUSES_S:
            time.sleep(pause_s)
            signal.pthread_kill(main, signal.SIGURG)
