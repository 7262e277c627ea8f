"""Shows what the build is doing, one line a step, and runs the programs it needs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from guestbuild.errors import BuildError


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """Print ``text`` now, dots while it lasts on a terminal, and the seconds that it took."""
    began = time.monotonic()
    done = threading.Event()
    terminal = sys.stderr.isatty()
    print(f"  {text} ...", end="" if terminal else "\n", file=sys.stderr, flush=True)

    def tick() -> None:
        while not done.wait(1.0):
            print(".", end="", file=sys.stderr, flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if terminal:
        ticker.start()
    try:
        yield
    except BaseException:
        done.set()
        print(" failed" if terminal else f"  {text}: failed", file=sys.stderr, flush=True)
        raise
    done.set()
    took = f"{time.monotonic() - began:.1f} s"
    print(f" {took}" if terminal else f"  {text}: {took}", file=sys.stderr, flush=True)


def run(
    argv: Sequence[str | Path],
    *,
    what: str,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> bytes:
    """Run a program and return its standard output; raises ``BuildError`` with its last words."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, env=env, cwd=cwd, check=False,
            stdin=subprocess.DEVNULL if stdin is None else None,
        )  # fmt: skip
    except OSError as error:
        raise BuildError(f"{what}: {words[0]} does not run: {error.strerror}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise BuildError(f"{what} failed: {words[0]}: {' / '.join(said[-3:]) or 'no message'}")
    return done.stdout
