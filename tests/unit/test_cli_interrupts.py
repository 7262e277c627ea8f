"""A signal that does not break the main thread's system call off is seen all the same."""

from __future__ import annotations

import signal
import subprocess
import sys

PROGRAM = """
import signal, socket, threading
from desk.cli import interrupts
interrupts.start()
# Another thread takes the signal: for the main thread, that is as if it came just too early.
threading.Thread(target=threading.Event().wait, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
ours, theirs = socket.socketpair()
try:
    print("waiting", flush=True)
    ours.recv(1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupt_ends_a_wait_that_it_did_not_break_off() -> None:
    argv = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            assert process.wait(60) == 0
        finally:  # the block's end waits for the process
            process.kill()
