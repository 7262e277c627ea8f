"""``desk`` beside the docker CLI at a terminal: detaching, signals, streams and the window.

Each scenario is played with both programs on one engine; what they print, how they end and what
becomes of the container must be the same.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.cli_process import Cli
from tests.engine_process import EngineProcess

pytestmark = pytest.mark.root

TRAPS = (
    'for s in HUP INT QUIT TERM USR1; do trap "echo got-$s; exit 9" $s; done;'
    " echo up; while :; do sleep 0.1; done"
)
"""Tells that it is ready, and which signal ended it."""


class Player:
    """One of the two programs at a terminal of 30 rows and 100 columns."""

    def __init__(self, desk: Cli, *, ours: bool) -> None:
        self.desk = desk
        docker = shutil.which("docker")
        assert docker is not None, "the tests need the docker CLI: install Debian's docker-cli"
        self._program = desk.command() if ours else [docker]

    def spawn(self, *arguments: str) -> pexpect.spawn:
        child = pexpect.spawn(
            self._program[0],
            [*self._program[1:], *arguments],
            env=self.desk.environment,
            encoding="utf-8",
            dimensions=(30, 100),
            timeout=60,
        )
        child.delaybeforesend = None
        return child

    def state(self, container: str) -> str:
        return self.desk.ok("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", container)


def ended(child: pexpect.spawn) -> tuple[int | None, int | None]:
    """Read to the end; return exit code and signal."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus, child.signalstatus


def output(child: pexpect.spawn) -> tuple[str, int | None]:
    """Return all that is printed until the end, with one kind of line end, and the exit code."""
    text = child.read()
    child.close()
    return re.sub(r"\r+\n", "\n", text), child.exitstatus


# --- scenarios ----------------------------------------------------------------------------------


def run_and_detach(play: Player) -> Any:
    child = play.spawn("run", "-it", "--name", "shell", "busybox", "sh")
    child.expect("# ")
    child.send("\x10\x11")
    return ended(child), play.state("shell")


def start_and_detach(play: Player) -> Any:
    play.desk.ok("create", "-it", "--name", "shell", "busybox", "sh")
    child = play.spawn("start", "-ai", "shell")
    child.expect("# ")
    child.send("\x10\x11")
    return ended(child), play.state("shell")


def attach_and_detach_with_other_keys(play: Player) -> Any:
    play.desk.ok("run", "-dit", "--name", "shell", "busybox", "sh")
    child = play.spawn("attach", "--detach-keys", "ctrl-a,d", "shell")
    child.sendline("echo again-$((1+1))")
    child.expect("again-2")
    child.send("\x01d")
    return ended(child), play.state("shell")


def exec_and_detach(play: Player) -> Any:
    play.desk.ok("run", "-d", "--name", "shell", "busybox", "sleep", "600")
    child = play.spawn("exec", "-it", "shell", "sh")
    child.expect("# ")
    child.send("\x10\x11")
    return ended(child), play.state("shell")


def attach_until_the_end(play: Player) -> Any:
    play.desk.ok("run", "-dit", "--name", "shell", "busybox", "sh")
    child = play.spawn("attach", "shell")
    child.sendline("echo here-$((1+1))")
    child.expect("here-2")
    child.sendline("exit 7")
    return ended(child), play.state("shell")


def unfinished_detach_keys_are_typed(play: Player) -> Any:
    child = play.spawn("run", "-it", "--rm", "busybox", "sh", "-c", "stty raw -echo; echo up; cat")
    child.expect("up")
    child.send("a\x10b\x04")
    child.expect("a\x10b\x04")
    child.send("\x10\x11")
    return ended(child)


def signalled(number: signal.Signals) -> Callable[[Player], Any]:
    def scenario(play: Player) -> Any:
        child = play.spawn("run", "--name", "shell", "busybox", "sh", "-c", TRAPS)
        child.expect("up")
        child.kill(number)
        child.expect(f"got-{number.name.removeprefix('SIG')}")
        return ended(child), play.state("shell")

    return scenario


def interrupted_at_the_terminal(play: Player) -> Any:
    child = play.spawn("run", "--name", "shell", "busybox", "sh", "-c", TRAPS)
    child.expect("up")
    child.sendcontrol("c")
    child.expect("got-INT")
    return ended(child), play.state("shell")


def attached_and_interrupted(play: Player) -> Any:
    script = TRAPS.replace("sleep 0.1", "echo tick; sleep 0.1")
    play.desk.ok("run", "-d", "--name", "shell", "busybox", "sh", "-c", script)
    child = play.spawn("attach", "shell")
    child.expect("tick")  # what it shows from now on, it also passes signals on to
    child.sendcontrol("c")
    child.expect("got-INT")
    return ended(child), play.state("shell")


def terminated_on_a_terminal(play: Player) -> Any:
    child = play.spawn("run", "-it", "--name", "shell", "busybox", "sh", "-c", TRAPS)
    child.expect("up")
    child.kill(signal.SIGTERM)
    child.expect("got-TERM")
    return ended(child), play.state("shell")


def input_without_a_terminal(play: Player) -> Any:
    child = play.spawn("run", "-i", "--rm", "busybox", "sh", "-c", "tty; read x; echo got $x")
    child.expect("not a tty")
    child.sendline("hi")
    return output(child)


def a_terminal_without_input(play: Player) -> Any:
    return output(play.spawn("run", "-t", "--rm", "busybox", "sh", "-c", "tty; stty size"))


def neither(play: Player) -> Any:
    return output(play.spawn("run", "--rm", "busybox", "sh", "-c", "tty; read x; echo got-$x"))


def start_with_input(play: Player) -> Any:
    script = "echo ready; read x; echo hi $x; exit 4"
    play.desk.ok("create", "-i", "--name", "shell", "busybox", "sh", "-c", script)
    child = play.spawn("start", "-i", "shell")
    child.expect("ready")
    child.sendline("foo")
    child.expect("hi foo")
    return ended(child)


def attach_without_input(play: Player) -> Any:
    script = "(while :; do echo tick; sleep 0.1; done) & read x; exit 7"
    play.desk.ok("run", "-dit", "--name", "shell", "busybox", "sh", "-c", script)
    child = play.spawn("attach", "--no-stdin", "shell")
    child.expect("tick")
    child.sendline("not for you")
    for _ in range(3):
        child.expect("tick")
    play.desk.ok("kill", "shell")
    return ended(child), play.state("shell")


def window_of_an_exec(play: Player) -> Any:
    play.desk.ok("run", "-d", "--name", "shell", "busybox", "sleep", "600")
    child = play.spawn("exec", "-it", "shell", "sh")
    child.expect("# ")
    child.sendline("stty size")
    child.expect("30 100")
    child.setwinsize(40, 120)
    child.sendline("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.1; done; exit 3")
    return ended(child)


def prune_refused(play: Player) -> Any:
    play.desk.ok("create", "--name", "shell", "busybox")
    child = play.spawn("container", "prune")
    child.expect(r"\[y/N\]")
    child.sendline("n")
    return ended(child), play.state("shell")


SCENARIOS: list[Callable[[Player], Any]] = [
    run_and_detach,
    start_and_detach,
    attach_and_detach_with_other_keys,
    exec_and_detach,
    attach_until_the_end,
    unfinished_detach_keys_are_typed,
    interrupted_at_the_terminal,
    attached_and_interrupted,
    terminated_on_a_terminal,
    input_without_a_terminal,
    a_terminal_without_input,
    neither,
    start_with_input,
    attach_without_input,
    window_of_an_exec,
    prune_refused,
]


def compare(engine: EngineProcess, home: Path, scenario: Callable[[Player], Any]) -> None:
    desk = Cli(engine.socket, home)
    theirs = scenario(Player(desk, ours=False))
    engine.remove_everything()
    assert scenario(Player(desk, ours=True)) == theirs


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_at_a_terminal_desk_does_what_docker_does(
    engine: EngineProcess, tmp_path: Path, scenario: Callable[[Player], Any]
) -> None:
    compare(engine, tmp_path / "home", scenario)


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1]
)
def test_signals_are_passed_on_as_docker_passes_them_on(
    engine: EngineProcess, tmp_path: Path, number: signal.Signals
) -> None:
    compare(engine, tmp_path / "home", signalled(number))
