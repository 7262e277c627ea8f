"""Entry points of ``desk`` and ``desk-env``.

Nothing is imported here before the garbage collector rests: all that start-up makes is kept, and
looking through it again and again costs a tenth of the time until a command runs.
"""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run ``desk``."""
    gc.disable()
    from desk.cli.program import cli, run_program

    _begin()
    sys.exit(run_program(cli, "desk"))


def env_main() -> None:
    """Run ``desk-env [MACHINE]``, which is ``desk env [MACHINE]``."""
    gc.disable()
    from desk.cli.commands.env import env
    from desk.cli.program import run_program

    _begin()
    sys.exit(run_program(env, "desk-env"))


def _begin() -> None:
    gc.freeze()
    gc.enable()
