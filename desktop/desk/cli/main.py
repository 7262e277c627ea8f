"""Entry points of ``desk`` and ``desk-env``.

Nothing is imported here before the garbage collector rests: all that start-up makes is kept, and
looking through it again and again costs a tenth of the time until a command runs.
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn


def main() -> None:
    """Run ``desk``."""
    gc.disable()
    from desk.cli.program import cli, run_program

    _begin()
    _leave(run_program(cli, "desk"))


def env_main() -> None:
    """Run ``desk-env [MACHINE]``, which is ``desk env [MACHINE]``."""
    gc.disable()
    from desk.cli.commands.env import env
    from desk.cli.program import run_program

    _begin()
    _leave(run_program(env, "desk-env"))


def _begin() -> None:
    gc.freeze()
    gc.enable()


def _leave(code: int) -> NoReturn:
    """End the process with ``code``.

    Taking the interpreter apart, module by module, would be a tenth of a short command's time and
    gives back nothing that the system does not take anyway. What was registered for the end is
    done all the same; who left a thread that is waited for, or an output that cannot be
    written, gets Python's own end.
    """
    import atexit
    import os
    import threading

    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if all(thread.daemon for thread in others):
        atexit._run_exitfuncs()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            sys.exit(code)
        os._exit(code)
    sys.exit(code)
