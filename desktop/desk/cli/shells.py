"""Shell code that sets and unsets environment variables, for each shell, and which shell it is.

The forms are docker-machine's. Values are quoted so that each shell reads back the same bytes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from desk.errors import UsageError

_FAMILIES = {
    "ash": "sh",
    "bash": "sh",
    "busybox": "sh",
    "dash": "sh",
    "ksh": "sh",
    "mksh": "sh",
    "sh": "sh",
    "yash": "sh",
    "zsh": "sh",
    "fish": "fish",
    "powershell": "powershell",
    "pwsh": "powershell",
    "powershell_ise": "powershell",
    "cmd": "cmd",
    "csh": "tcsh",
    "tcsh": "tcsh",
    "emacs": "emacs",
    "nu": "nu",
    "nushell": "nu",
    "xonsh": "xonsh",
}
_MOST_ANCESTORS = 12
_SH_SPECIAL = r"""\\$`\""""
_FISH_SPECIAL = r"""\\$\""""
_EMACS_SPECIAL = r"""\\\""""
_PLAIN = re.compile(r"[A-Za-z0-9/._:,@%+=-]*\Z")


def family(shell: str) -> str:
    """Return the family of a shell's name or path; ``UsageError`` for one that is not known."""
    name = _program_name(shell)
    if name not in _FAMILIES:
        raise UsageError(
            f"unknown shell {shell!r}",
            hint="Use bash, zsh, sh, fish, powershell, cmd, tcsh, nu, xonsh or emacs.",
        )
    return _FAMILIES[name]


def _program_name(program: str) -> str:
    """Return ``bash`` for ``-bash``, ``/bin/bash`` or ``bash.exe``."""
    name = re.split(r"[\\/]", program.strip())[-1].lstrip("-").lower()
    return name.removesuffix(".exe")


# --- which shell --------------------------------------------------------------------------------


def detect(environ: Mapping[str, str] = os.environ) -> str:
    """Return the family of the shell that called this process: the nearest ancestor that is a
    shell, else what ``$SHELL`` names, else the system's own."""
    for name in _ancestors():
        known = _FAMILIES.get(_program_name(name))
        if known:
            return known
    login = _FAMILIES.get(_program_name(environ.get("SHELL", "")))
    return login or ("cmd" if sys.platform == "win32" else "sh")


def _ancestors() -> Iterator[str]:
    if sys.platform == "win32":
        from desk.cli import windows_processes

        yield from windows_processes.ancestors(_MOST_ANCESTORS)
        return
    pid = os.getppid()
    for _ in range(_MOST_ANCESTORS):
        if pid <= 1:
            return
        found = _process(pid)
        if found is None:
            return
        pid, name = found
        yield name


def _process(pid: int) -> tuple[int, str] | None:
    """Return the parent and the name of a process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return _process_from_ps(pid)
    name, _, rest = status.partition("(")[2].rpartition(")")
    return int(rest.split()[1]), name


def _process_from_ps(pid: int) -> tuple[int, str] | None:
    """The same without /proc (macOS)."""
    try:
        answer = subprocess.run(
            ["ps", "-o", "ppid=,comm=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        ).stdout.split(None, 1)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (int(answer[0]), answer[1].strip()) if len(answer) == 2 else None


# --- code ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assignment:
    """One variable and its new value; ``None`` unsets it."""

    name: str
    value: str | None


def script(
    shell: str,
    assignments: Sequence[Assignment],
    command: Sequence[str],
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Return the code for a family of shells, and the comments that tell how to run it."""
    # What is unset comes first: that way unquoted `eval $(…)` works in sh too.
    ordered = sorted(assignments, key=lambda item: item.value is not None)
    lines = [
        _unset(shell, item.name) if item.value is None else _set(shell, item.name, item.value)
        for item in ordered
        # PowerShell complains about a variable that is not there.
        if item.value is not None or shell != "powershell" or item.name in environ
    ]
    return "".join(line + "\n" for line in [*lines, *_advice(shell, command)])


def _set(shell: str, name: str, value: str) -> str:
    if shell == "sh":
        return f"export {name}={_escaped(value, _SH_SPECIAL)}"
    if shell == "fish":
        quoted = _escaped(value, _FISH_SPECIAL).replace("\n", '"\\n"')
        return f"set -gx {name} {quoted};"
    if shell == "powershell":
        quoted = re.sub(r'([`$"\u201c\u201d\u201e])', r"`\1", value).replace("\n", "`n")
        return f'$Env:{name} = "{quoted}"'
    if shell == "cmd":
        plain = not re.search(r"[&|<>^()!;, ]", value)
        return f"SET {name}={value}" if plain else f'SET "{name}={value}"'
    if shell == "tcsh":
        return f"setenv {name} {_csh_quoted(value)};"
    if shell == "nu":
        return f"$env.{name} = {_nu_quoted(value)}"
    if shell == "xonsh":
        return f"${name} = {value!r}"
    quoted = _escaped(value, _EMACS_SPECIAL)
    return f'(setenv "{name}" {quoted})'


def _unset(shell: str, name: str) -> str:
    return {
        "sh": f"unset {name};",
        "fish": f"set -e {name};",
        "powershell": f"Remove-Item Env:\\{name}",
        "cmd": f"SET {name}=",
        "tcsh": f"unsetenv {name};",
        "nu": f"hide-env --ignore-errors {name}",
        "xonsh": f"${{...}}.pop({name!r}, None)",
        "emacs": f'(setenv "{name}" nil)',
    }[shell]


def _escaped(value: str, special: str) -> str:
    """Return ``value`` in double quotes with a backslash before each special character."""
    return '"' + re.sub(f"([{special}])", r"\\\1", value) + '"'


def _nu_quoted(value: str) -> str:
    """Nushell's double quotes take no ``$`` and end a line only by an escape."""
    return _escaped(value, _EMACS_SPECIAL).replace("\n", "\\n").replace("\r", "\\r")


def _csh_quoted(value: str) -> str:
    """csh cannot quote ``$`` and ``!`` reliably, and ``eval`` runs blanks together: whatever is
    not plain goes through printf's octal escapes."""
    if _PLAIN.match(value):
        return f'"{value}"'
    octal = "".join(
        chr(byte) if _PLAIN.match(chr(byte)) and byte != ord("%") else f"\\{byte:03o}"
        for byte in os.fsencode(value)
    )
    return f"\"`printf '{octal}'`\""


def _advice(shell: str, command: Sequence[str]) -> tuple[str, ...]:
    run = "Run this command to configure your shell: "
    typed = " ".join(_typed(shell, word) for word in command)
    if shell == "fish":
        return f"# {run}", f"# eval ({typed})"
    if shell == "powershell":
        return f"# {run}", f"# & {typed} | Invoke-Expression"
    if shell == "cmd":
        return f"REM {run}", f"REM \t@FOR /f \"tokens=*\" %i IN ('{typed}') DO @%i"
    if shell == "tcsh":  # a comment must be a command here, and must not run what it shows
        return f": '{run}';", f": 'eval `{typed}`';".replace("!", "\\!")
    if shell == "nu":  # it reads no code but from a file whose name it knows before
        return f"# {run}", f"# {typed} | save --force ~/.desk-env.nu", "# source ~/.desk-env.nu"
    if shell == "xonsh":
        return f"# {run}", f"# execx($({typed}))"
    if shell == "emacs":
        inner = typed.replace("\\", "\\\\").replace('"', '\\"')
        return (
            f";; {run}",
            f';; (with-temp-buffer (shell-command "{inner}" (current-buffer)) (eval-buffer))',
        )
    return f"# {run}", f'# eval "$({typed})"'


def _typed(shell: str, word: str) -> str:
    if _PLAIN.match(word) and word:
        return word
    if shell in ("powershell", "cmd"):
        return f'"{word}"'
    return '"' + word.replace('"', '\\"') + '"' if shell == "tcsh" else _sh_quoted(word)


def _sh_quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def command_as_typed(program: str, arguments: Sequence[str]) -> list[str]:
    """Return the command line with the program's name as the person typed it."""
    return [PurePath(program).name.removesuffix(".exe") or "desk", *arguments]
