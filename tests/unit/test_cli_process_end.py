"""How a ``desk`` process begins and ends: closed and full outputs, and what is left to do."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.cli_process import DESK

_LEFT_TO_DO = """
import atexit, sys, threading, time
from desk.cli.main import main
def late():
    time.sleep(0.2)
    print("a thread's last words")
if {threads}:
    threading.Thread(target=late).start()
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
atexit.register(print, "at the end")
sys.argv = ["desk", *{words}]
main()
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_takes_and_says_nothing(closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" --version {closed}', DESK],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Desk version ") == (closed in ("2>&-", "<&-"))


def test_a_full_output_is_an_error() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" --version >/dev/full', DESK],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "desk: No space left on device\n")


@pytest.mark.parametrize(
    ("words", "code", "threads"),
    [(["--version"], 0, False), (["--version"], 0, True), (["nonsense"], 1, False)],
)
def test_the_end_does_what_is_left_to_do(words: list[str], code: int, threads: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LEFT_TO_DO.format(words=words, threads=threads)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == code, done.stderr
    said = done.stdout.splitlines()
    assert said[-1] == "at the end"
    assert ("a thread's last words" in said) == threads
