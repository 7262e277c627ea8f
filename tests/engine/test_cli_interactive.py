"""``desk run -it`` and its relatives on a real terminal."""

from __future__ import annotations

from pathlib import Path

import pexpect
import pytest

from tests.cli_process import DESK, Cli
from tests.engine_process import EngineProcess

pytestmark = pytest.mark.root


@pytest.fixture
def desk(engine: EngineProcess, tmp_path: Path) -> Cli:
    return Cli(engine.socket, tmp_path / "home")


def finished(child: pexpect.spawn) -> int:
    """Read to the end and return the exit code."""
    child.expect(pexpect.EOF)
    child.close()
    assert child.signalstatus is None
    code: int = child.exitstatus
    return code


def test_a_shell_has_the_id_as_host_name_the_window_and_its_changes(desk: Cli) -> None:
    child = desk.spawn("run", "-it", "--rm", "busybox", "sh")
    child.expect("# ")
    child.sendline("hostname; stty size")
    child.expect(r"([0-9a-f]{12})\r\n30 100")
    assert desk.ok("ps", "-q").strip() == child.match.group(1)
    child.setwinsize(40, 120)
    child.sendline("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.1; done; echo seen-$((1+1))")
    child.expect("seen-2")
    child.sendline("exit 5")
    assert finished(child) == 5


def test_detaching_leaves_it_running_and_attach_comes_back(desk: Cli) -> None:
    child = desk.spawn("run", "-it", "--name", "shell", "busybox", "sh")
    child.expect("# ")
    child.send("\x10\x11")
    assert finished(child) == 0
    assert desk.ok("ps", "--format", "{{.Names}}") == "shell\n"
    child = desk.spawn("attach", "--detach-keys", "ctrl-a,d", "shell")
    child.sendline("echo again-$((1+1))")
    child.expect("again-2")
    child.send("\x01d")
    assert finished(child) == 1  # as Docker's attach ends; its run ends with 0
    child = desk.spawn("attach", "shell")
    child.sendline("exit 6")
    assert finished(child) == 6


def test_ctrl_c_and_ctrl_d_go_to_the_process(desk: Cli) -> None:
    child = desk.spawn("run", "-it", "--rm", "busybox", "sh", "-c", "trap 'echo int' INT; cat; cat")
    child.sendline("ready")
    child.expect("ready\r\nready\r\n")
    child.sendcontrol("c")
    child.expect("int")
    child.sendline("more")
    child.expect("more\r\nmore\r\n")
    child.sendcontrol("d")
    assert finished(child) == 0


def test_exec_on_a_terminal(desk: Cli) -> None:
    desk.ok("run", "-d", "--name", "web", "busybox", "sleep", "60")
    child = desk.spawn("exec", "-it", "web", "sh")
    child.expect("# ")
    child.sendline("tty; stty size; exit 4")
    child.expect(r"/dev/pts/\d+\r\n30 100")
    assert finished(child) == 4


def test_the_terminal_is_as_before_whatever_happened(desk: Cli) -> None:
    child = pexpect.spawn(
        "bash", ["--norc"], env={**desk.environment, "PS1": "HOST> "}, encoding="utf-8", timeout=60
    )
    child.delaybeforesend = None
    program = f"{DESK} -H unix://{desk.socket}"
    child.expect("HOST> ")
    child.sendline("before=$(stty -g); echo")
    for command, code in (
        ("run -it --rm busybox sh -c 'exit 3'", 3),
        ("run -it --rm busybox no-such-program", 127),
        ("exec -it none sh", 1),
    ):
        child.sendline(
            f"{program} {command}; echo code-$? same-$([ $before = $(stty -g) ]; echo $?)"
        )
        child.expect(r"code-(\d+) same-(\d)")
        assert child.match.groups() == (str(code), "0")
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()


def test_a_terminal_from_a_pipe_is_refused(desk: Cli) -> None:
    done = desk("run", "-it", "--rm", "busybox", "sh", stdin=b"echo x\n")
    assert done.code == 1
    assert done.err.startswith("desk: the input device is not a TTY\n")
    assert desk.ok("ps", "-aq") == ""


def test_output_is_not_touched_by_a_terminal_that_is_only_for_output(desk: Cli) -> None:
    assert desk.ok("run", "--rm", "-t", "busybox", "echo", "x") == "x\r\n"


def test_an_interrupted_follow_ends_with_130(desk: Cli) -> None:
    desk.ok("run", "-d", "--name", "web", "busybox", "sh", "-c", "echo up; sleep 60")
    child = desk.spawn("logs", "-f", "web")
    child.expect("up")
    # A signal that comes in the instant before a blocking call is seen only after the call
    # (Python's handlers run between two steps), as one more press of the keys shows.
    child.sendcontrol("c")
    if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=10):
        child.sendcontrol("c")
    assert finished(child) == 130
