"""``desk env`` in the real shells: what they read back is what was meant, whatever it contains."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.programs import program

from desk.cli import shells
from desk.cli.commands.env import changes, recalled, setting, unsetting
from desk.cli.shells import Assignment
from desk.errors import UsageError

NASTY = [
    "plain",
    "with space",
    "two  spaces",
    'double"quote',
    "single'quote",
    "dollar$HOME and ${HOME}",
    "back`echo x`tick",
    "back\\slash\\",
    "percent%d",
    "bang!bang",
    "star*?[a]",
    "semi;colon & pipe | (x) #y",
    "~tilde",
    "umlaut-ü",
    "",
]
SHOW = f"{shlex.quote(sys.executable)} -c 'import os; print(ascii(os.environ.get(\"K\")))'"


def run(shell: str, code: str, environ: dict[str, str] | None = None) -> str:
    path = program(shell)
    arguments = [path, "-f", "-c"] if shell == "tcsh" else [path, "-c"]
    done = subprocess.run(
        [*arguments, code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUTF8": "1", **(environ or {})},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


EVALUATED = {
    "bash": 'eval "$(cat {file})"; {show}',
    "zsh": 'eval "$(cat {file})"; {show}',
    "dash": 'eval "$(cat {file})"; {show}',
    "fish": "eval (cat {file}); {show}",
    "tcsh": "eval `cat {file}`; {show}",
}


@pytest.mark.parametrize("shell", EVALUATED)
@pytest.mark.parametrize("value", NASTY)
def test_every_shell_reads_back_the_value(tmp_path: Path, shell: str, value: str) -> None:
    file = tmp_path / "code"
    file.write_text(shells.script(shells.family(shell), [Assignment("K", value)], ["desk", "env"]))
    shown = run(shell, EVALUATED[shell].format(file=shlex.quote(str(file)), show=SHOW))
    assert shown == ascii(value)


@pytest.mark.parametrize("shell", EVALUATED)
def test_every_shell_unsets(tmp_path: Path, shell: str) -> None:
    file = tmp_path / "code"
    file.write_text(shells.script(shells.family(shell), [Assignment("K", None)], ["desk", "env"]))
    code = EVALUATED[shell].format(file=shlex.quote(str(file)), show=SHOW)
    assert run(shell, code, {"K": "old"}) == "None"
    environ = dict(os.environ)
    environ.pop("K", None)
    assert run(shell, code) == "None"


def test_unquoted_eval_works_too(tmp_path: Path) -> None:
    file = tmp_path / "code"
    assignments = setting("default", "unix:///a/b.sock", {}, no_proxy=False)
    file.write_text(shells.script("sh", assignments, ["desk", "env"]))
    code = f"eval $(cat {file}); echo ${{DOCKER_TLS_VERIFY-gone}} $DOCKER_HOST"
    environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/x"}
    assert run("bash", code, environ) == "gone unix:///a/b.sock"


def test_each_shell_has_its_own_form() -> None:
    def code(shell: str, environ: dict[str, str] | None = None) -> list[str]:
        assignments = [Assignment("A", 'x"$y'), Assignment("B", None)]
        return shells.script(shell, assignments, ["desk-env", "dev"], environ or {}).splitlines()

    assert code("sh") == [
        "unset B;",
        r'export A="x\"\$y"',
        "# Run this command to configure your shell: ",
        '# eval "$(desk-env dev)"',
    ]
    assert code("fish")[:2] == ["set -e B;", r'set -gx A "x\"\$y";']
    assert code("fish")[3] == "# eval (desk-env dev)"
    assert code("powershell") == [
        '$Env:A = "x`"`$y"',
        "# Run this command to configure your shell: ",
        "# & desk-env dev | Invoke-Expression",
    ]
    assert code("powershell", {"B": "1"})[0] == "Remove-Item Env:\\B"
    assert code("cmd") == [
        "SET B=",
        'SET A=x"$y',
        "REM Run this command to configure your shell: ",
        "REM \t@FOR /f \"tokens=*\" %i IN ('desk-env dev') DO @%i",
    ]
    assert shells.script("cmd", [Assignment("A", "a & b")], ["d"]).splitlines()[0] == (
        'SET "A=a & b"'
    )
    assert code("tcsh")[0] == "unsetenv B;"
    assert code("emacs") == [
        '(setenv "B" nil)',
        r'(setenv "A" "x\"$y")',
        ";; Run this command to configure your shell: ",
        ';; (with-temp-buffer (shell-command "desk-env dev" (current-buffer)) (eval-buffer))',
    ]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("/usr/bin/bash", "sh"),
        ("-zsh", "sh"),
        ("pwsh", "powershell"),
        ("PowerShell.exe", "powershell"),
        (r"C:\Windows\System32\cmd.exe", "cmd"),
        ("csh", "tcsh"),
    ],
)
def test_shells_are_known_by_name(name: str, family: str) -> None:
    assert shells.family(name) == family


def test_an_unknown_shell_is_named() -> None:
    with pytest.raises(UsageError, match="unknown shell 'elvish'"):
        shells.family("elvish")


@pytest.mark.parametrize(
    ("shell", "family"),
    [("bash", "sh"), ("fish", "fish"), ("tcsh", "tcsh"), ("zsh", "sh"), ("dash", "sh")],
)
def test_the_calling_shell_counts_not_the_login_shell(
    tmp_path: Path, shell: str, family: str
) -> None:
    script = tmp_path / "detect.py"
    script.write_text("from desk.cli import shells\nprint(shells.detect())\n")
    # A second command keeps the shell from replacing itself by the first.
    code = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}; true"
    assert run(shell, code, {"SHELL": "/bin/something-else"}) == family


def test_stale_settings_of_another_engine_are_unset() -> None:
    values = {a.name: a.value for a in setting("dev", "unix:///s", {}, no_proxy=False)}
    assert values == {
        "DOCKER_TLS_VERIFY": None,
        "DOCKER_HOST": "unix:///s",
        "DOCKER_CERT_PATH": None,
        "DOCKER_CONTEXT": None,
        "DOCKER_MACHINE_NAME": "dev",
    }


def as_environment(environ: dict[str, str], assignments: list[Assignment]) -> dict[str, str]:
    """The environment after the assignments."""
    values = {**environ, **{a.name: a.value for a in assignments}}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("no_proxy", [False, True])
@pytest.mark.parametrize(
    "before",
    [
        {},
        {"DOCKER_HOST": "tcp://far:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/c d"},
        {"DOCKER_CONTEXT": "other", "NO_PROXY": "example.org,localhost"},
        {"no_proxy": "x", "DOCKER_MACHINE_NAME": ""},
    ],
)
def test_unset_brings_back_what_was_there(before: dict[str, str], no_proxy: bool) -> None:
    own = ("unix:///a", "unix:///b")
    environ = as_environment(before, setting("a", own[0], before, no_proxy=no_proxy, own=own))
    assert environ["DOCKER_HOST"] == "unix:///a"
    # Another machine, and again: what stood before the first is what counts.
    for name, url in (("b", own[1]), ("b", own[1]), ("a", own[0])):
        change = setting(name, url, environ, no_proxy=no_proxy, own=own)
        environ = as_environment(environ, change)
    assert environ["DOCKER_HOST"] == "unix:///a"
    assert as_environment(environ, unsetting(environ)) == before


def test_no_proxy_is_extended_once() -> None:
    environ = {"NO_PROXY": "example.org,localhost"}
    environ = as_environment(environ, setting("dev", "unix:///s", environ, no_proxy=True))
    assert environ["NO_PROXY"] == "example.org,localhost,127.0.0.1"
    again = setting("dev", "unix:///s", environ, no_proxy=True)
    assert not changes(again, environ)
    lower = as_environment({}, setting("d", "u", {"no_proxy": "x"}, no_proxy=True))
    assert lower["no_proxy"] == "x,localhost,127.0.0.1"
    # A proxy setting that came later is kept by a first --no-proxy after it.
    plain = as_environment({}, setting("dev", "unix:///s", {}, no_proxy=False))
    plain["NO_PROXY"] = "later"
    both = as_environment(plain, setting("dev", "unix:///s", plain, no_proxy=True))
    assert as_environment(both, unsetting(both)) == {"NO_PROXY": "later"}


def test_a_spoiled_memory_of_before_is_no_memory() -> None:
    for spoiled in ("", "%%%", "bm8=", "W10=", "eyJQQVRIIjogIi9ldmlsIn0="):
        environ = {"DOCKER_HOST": "unix:///s", "DESK_ENV_BEFORE": spoiled}
        assert recalled(environ) is None
        assert as_environment(environ, unsetting(environ)) == {}


def test_nothing_changes_where_all_is_set() -> None:
    environ = as_environment({}, setting("dev", "unix:///s", {}, no_proxy=False))
    assert not changes(setting("dev", "unix:///s", environ, no_proxy=False), environ)
    environ["DOCKER_CONTEXT"] = "other"
    assert changes(setting("dev", "unix:///s", environ, no_proxy=False), environ)
    assert not changes(unsetting({}), {})


def test_xonsh_reads_back_every_value_and_unsets(tmp_path: Path) -> None:
    # One start for all of them: xonsh takes its time.
    names = [f"K{number}" for number in range(len(NASTY))]
    assignments = [
        *(Assignment(name, value) for name, value in zip(names, NASTY, strict=True)),
        Assignment("GONE", None),
        Assignment("NEVER", None),
    ]
    file = tmp_path / "code"
    file.write_text(shells.script("xonsh", assignments, ["desk", "env"]))
    show = tmp_path / "show.py"
    show.write_text("import json, os; print(json.dumps(dict(os.environ)))")
    python = f"{sys.executable} {show}"
    xonsh = Path(sys.executable).with_name("xonsh")
    done = subprocess.run(
        [xonsh, "--no-rc", "-c", f"execx(open('{file}').read())\n{python}"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "GONE": "old", "HOME": str(tmp_path), "PYTHONUTF8": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [shown[name] for name in names] == NASTY
    assert not {"GONE", "NEVER"} & shown.keys()


def test_nushell_is_quoted_by_its_rules() -> None:
    assignments = [Assignment("A", "x\"\\$y'\n"), Assignment("B", None)]
    lines = shells.script("nu", assignments, ["desk-env", "dev"]).splitlines()
    assert lines[:2] == ["hide-env --ignore-errors B", '$env.A = "x\\"\\\\$y\'\\n"']
    assert lines[3:] == ["# desk-env dev | save --force ~/.desk-env.nu", "# source ~/.desk-env.nu"]
