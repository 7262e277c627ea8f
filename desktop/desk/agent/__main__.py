"""``python -m desk.agent MACHINE --directory DIR``: the agent's process.

Instructions (``AgentSpec.to_json``) come on standard input. One line of JSON goes to standard
output when the sockets are there (``{"ready": PID}``) or when that failed (``{"error", "hint",
"conflict"}``); standard output is closed then. ``desk.agent.spawn`` is the other side of this.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


def main() -> int:
    """Run one agent until it is told to stop; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m desk.agent", description=__doc__)
    parser.add_argument("machine")
    parser.add_argument("--directory", type=Path, required=True, help="the machine's directory")
    parser.add_argument("--foreground", action="store_true", help="stay a child of the caller")
    arguments = parser.parse_args()
    instructions = sys.stdin.read()
    if sys.platform != "win32":
        # Sockets, log and PID file are the owner's alone.
        os.umask(0o077)
        if not arguments.foreground:
            # The caller waits for its child only; the agent itself belongs to init.
            if os.fork():
                os._exit(0)
            os.setsid()
    from desk.agent.agent import Agent
    from desk.agent.log import open_log
    from desk.agent.spec import AgentSpec
    from desk.errors import Conflict, DeskError
    from desk.paths import MachinePaths

    paths = MachinePaths(arguments.directory.absolute())
    try:
        spec = AgentSpec.from_json(instructions)
        log = open_log(paths.agent_log, foreground=arguments.foreground)
        agent = Agent(paths, spec)
        agent.start()
    except DeskError as error:
        _tell({"error": error.text, "hint": error.hint, "conflict": isinstance(error, Conflict)})
        return 1
    except OSError as error:
        _tell({"error": f"the agent cannot start: {error}", "hint": "Check that directory."})
        return 1
    _tell({"ready": os.getpid()})
    with log:
        agent.run()
    return 0


def _tell(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)
    # The caller reads to the end; whatever is printed later goes nowhere.
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)


if __name__ == "__main__":
    sys.exit(main())
