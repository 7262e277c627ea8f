"""The frame of the command line: lazy commands, help, mistyped commands, exit codes, completion."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from tests.programs import program

import desk
from desk.cli.catalog import Entry
from desk.cli.framework import DeskCommand, LazyGroup
from desk.cli.program import cli, run_command
from desk.compose import Desk
from desk.errors import EngineUnreachable
from desk.paths import Home

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESK_HOME", str(tmp_path / "home"))
    for name in ("DESK_MACHINE", "DOCKER_HOST", "DOCKER_MACHINE_NAME"):
        monkeypatch.delenv(name, raising=False)


def invoke(*arguments: str) -> int:
    return run_command(cli, arguments, "desk")


def groups(group: LazyGroup, path: str) -> Iterator[tuple[str, Entry, click.Command]]:
    """Walk all commands with their entries."""
    context = click.Context(group, info_name=path)
    for name, entry in group.entries().items():
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", entry, command
        if isinstance(command, LazyGroup):
            yield from groups(command, f"{path} {name}")


def test_every_sentence_in_the_overview_is_the_commands_own() -> None:
    assert isinstance(cli, LazyGroup)
    for path, entry, command in groups(cli, "desk"):
        first = (command.help or "").strip().partition("\n\n")[0].replace("\n", " ")
        assert entry.summary == first, path


def test_every_command_has_help_with_an_example_within_80_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert isinstance(cli, LazyGroup)
    for path, _, command in groups(cli, "desk"):
        arguments = [*path.split()[1:], "--help"]
        assert invoke(*arguments) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"Usage: {path} "), path
        if isinstance(command, DeskCommand):
            assert "\nExample:\n  " in text, path
        assert max(map(len, text.splitlines())) <= 80, path


def test_version_is_the_projects() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == desk.__version__


@pytest.mark.parametrize(
    ("arguments", "code", "first", "second"),
    [
        (["pss"], 1, "desk: 'pss' is not a desk command", "Did you mean `desk ps`"),
        (["rum"], 1, "desk: 'rum' is not a desk command", "`desk rm` or `desk run`?"),
        (
            ["machine", "sart"],
            1,
            "desk: 'sart' is not a desk machine command",
            "desk machine start",
        ),
        (["ps", "--filter"], 125, "desk: option '--filter' requires", "See `desk ps --help`."),
        (["qqqq"], 1, "desk: 'qqqq' is not a desk command", "See `desk --help`."),
        (["ps", "--foo"], 125, "desk: no such option '--foo'", "See `desk ps --help`."),
        (["rm"], 1, "desk: missing argument 'CONTAINER...'", "See `desk rm --help`."),
        (["run"], 1, "desk: missing argument 'IMAGE'", "See `desk run --help`."),
        (["ps", "x"], 1, "desk: got unexpected extra argument", "See `desk ps --help`."),
        (["run", "-p", "x", "i"], 125, "desk: invalid port in 'x'", "Write -p"),
        (["-m", "../x", "ps"], 125, "desk: '../x' cannot name a machine", "Use letters"),
        (["-H", "ftp://x", "ps"], 125, "desk: invalid engine address", "Use unix://"),
        (["-H", "unix:///none", "ps"], 1, "desk: cannot reach the engine", "Check the address"),
        (["-H", "unix:///none", "run", "i"], 125, "desk: cannot reach", "Check the address"),
        (["ps"], 1, "desk: there is no machine yet", "`desk up`"),
        (["run", "i"], 125, "desk: there is no machine yet", "`desk up`"),
        (["-m", "big", "ps"], 1, "desk: machine big does not exist", "desk up --name big"),
        (["machine", "status"], 1, "desk: there is no machine yet", "`desk up`"),
        (["env"], 1, "desk: there is no machine yet", "`desk up`"),
        (["down"], 1, "desk: there is no machine yet", "`desk up`"),
        (["env", "--shell", "elvish"], 125, "desk: unknown shell 'elvish'", "Use bash"),
        (["up", "--memory", "1m"], 125, "desk: --memory 1m is too small", "At least 128 MiB"),
        (["up", "--driver", "xen"], 125, "desk: 'xen' is no machine driver", "Use one of"),
        (["run", "--detach-keys", "x-y", "i"], 1, "desk: invalid --detach-keys", "ctrl-"),
        (["logs", "--tail", "x", "c"], 125, "desk: invalid value 'x' for --tail", "number"),
        (["update", "c"], 1, "desk: nothing to change was named", "--help"),
        (["cp", "a", "b"], 1, "desk: one side must be a container", "CONTAINER:PATH"),
    ],
)
def test_errors_are_a_sentence_and_a_remedy(
    arguments: list[str],
    code: int,
    first: str,
    second: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert invoke(*arguments) == code
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(first)
    assert second in lines[1]


def test_a_broken_settings_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    file = Home(Path(os.environ["DESK_HOME"])).settings
    file.parent.mkdir()
    file.write_text("{")
    assert invoke("ps") == 1
    assert capsys.readouterr().err.startswith(f"desk: {file}: no JSON")


def test_the_machine_is_chosen_by_flag_environment_and_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from desk.cli.session import Session

    home = Home(Path(os.environ["DESK_HOME"]))
    for name in ("one", "two"):
        home.machine(name).directory.mkdir(parents=True)
        home.machine(name).config.write_text("{}")
    assert Session().machine == "default"
    home.settings.write_text('{"format": 1, "active_machine": "one"}')
    assert Session().machine == "one"
    monkeypatch.setenv("DOCKER_MACHINE_NAME", "two")
    monkeypatch.setenv("DOCKER_HOST", Desk().machine_url("two"))
    assert Session().machine == "two"
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere")
    assert Session().machine == "one"
    monkeypatch.setenv("DESK_MACHINE", "three")
    session = Session()
    assert session.machine == "three"
    session.choose(host="", machine="four")
    assert session.machine == "four"


def test_an_engine_by_address_beats_machines() -> None:
    from desk.cli.session import Session

    session = Session()
    session.choose(host="unix:///nowhere", machine="x")
    with pytest.raises(EngineUnreachable, match="/nowhere"):
        session.client.system.version()


def modules_after(*arguments: str) -> set[str]:
    """Run a command in a new interpreter and return the modules that it has loaded."""
    program = (
        "import sys\nfrom desk.cli.program import cli, run_command\n"
        f"run_command(cli, {list(arguments)!r}, 'desk')\n"
        "sys.stderr.write('\\n'.join(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stderr.splitlines())


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], ["-H", "unix:///none", "ps"], ["ps"], ["run", "i"]]
)
def test_fast_commands_load_nothing_heavy(arguments: list[str]) -> None:
    heavy = {
        "paramiko",
        "PySide6",
        "qemu",
        "vagrant",
        "rich",
        "asyncio",
        "http.client",
        "email.parser",
        "subprocess",
        "importlib.metadata",
        "desk.machine.manager",
        "desk.agent",
        "desk.gui",
        "ssl",
        "tarfile",
    }
    assert not heavy & modules_after(*arguments)


def test_version_and_help_load_no_engine_client() -> None:
    assert "desk.engine.client" not in modules_after("--help")


def desk_program() -> str:
    return str(Path(sys.executable).with_name("desk"))


def test_a_closed_pipe_is_no_error() -> None:
    code = f"{desk_program()} run --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0].startswith("Usage: desk run")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_code_is_the_shells_own(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("completion", shell) == 0
    text = capsys.readouterr().out
    assert "_DESK_COMPLETE" in text
    done = subprocess.run(
        [program(shell), "-n"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""


def complete(words: str, position: int) -> list[str]:
    done = subprocess.run(
        [desk_program()],
        env={
            **os.environ,
            "_DESK_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(position),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_commands_flags_and_machines_are_completed() -> None:
    home = Home(Path(os.environ["DESK_HOME"]))
    for name in ("alpha", "beta"):
        home.machine(name).directory.mkdir(parents=True)
        home.machine(name).config.write_text("{}")
    assert complete("desk ima", 1) == ["image", "images"]
    assert complete("desk machine st", 2) == ["start", "stats", "status", "stop"]
    assert complete("desk run --memory-s", 2) == ["--memory-swap", "--memory-swappiness"]
    assert complete("desk machine stop a", 3) == ["alpha"]
    assert complete("desk -m ", 2) == ["alpha", "beta"]
    assert complete("desk rm x", 2) == []  # no engine answers; no complaint, no machine started


def test_a_fault_in_desk_itself_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def faulty() -> None:
        raise RuntimeError("out of luck")

    assert run_command(faulty, [], "desk") == 1
    error = capsys.readouterr().err
    assert error.startswith("desk: internal error: RuntimeError: out of luck\n")
    assert "DESK_DEBUG=1" in error
    monkeypatch.setenv("DESK_DEBUG", "1")
    with pytest.raises(RuntimeError):
        run_command(faulty, [], "desk")


def test_other_names_of_commands_that_docker_knows() -> None:
    assert invoke("container", "list", "--help") == 0
    assert invoke("image", "remove", "--help") == 0
    assert invoke("remove", "--help") == 1
