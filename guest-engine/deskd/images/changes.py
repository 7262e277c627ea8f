"""Dockerfile instructions that change an image's configuration (``--change`` of import, commit).

Rules from the Dockerfile reference: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD,
STOPSIGNAL, USER, VOLUME, WORKDIR.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Sequence

import msgspec

from deskd import errors
from deskd.domain.container import ContainerConfig, HealthConfig
from deskd.domain.signals import parse_signal
from deskd.domain.times import parse_duration
from deskd.images.expansion import expand, expand_words

DEFAULT_SHELL = ["/bin/sh", "-c"]
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_PROTOCOLS = ("tcp", "udp", "sctp")
_CONTINUED = re.compile(r"(?<!\\)\\[ \t]*$")
_MAXIMUM_PORT = 65535
_SHORTEST_NS = 1_000_000

_MAY_BE_EMPTY = ("CMD", "ENTRYPOINT")
_ONE_ARGUMENT = ("STOPSIGNAL", "USER", "WORKDIR")

Applier = Callable[[ContainerConfig, str], ContainerConfig]


def apply(config: ContainerConfig, changes: Sequence[str]) -> ContainerConfig:
    """Return ``config`` with the instructions applied; raises ``InvalidArgument``."""
    has_own_command = False
    for text in _instructions(changes):
        word, _, rest = text.partition(" ")
        instruction = word.upper()
        applier = _APPLIERS.get(instruction)
        if applier is None:
            raise errors.InvalidArgument(
                f"{word} is not a valid change command: use {', '.join(sorted(_APPLIERS))}"
            )
        rest = rest.strip()
        if not rest and instruction not in _MAY_BE_EMPTY:
            number = "exactly one" if instruction in _ONE_ARGUMENT else "at least one"
            raise errors.InvalidArgument(f"{instruction} requires {number} argument")
        if instruction == "ENTRYPOINT" and not has_own_command:
            # A new entry point makes an inherited command meaningless, as in a Dockerfile.
            config = msgspec.structs.replace(config, cmd=None)
        config = applier(config, rest)
        has_own_command |= instruction == "CMD"
    return config


def _instructions(changes: Sequence[str]) -> list[str]:
    """Return the instructions, of which one change may hold several in lines of their own; a
    backslash at its end continues a line."""
    found: list[str] = []
    for change in changes:
        begun = ""
        for line in change.splitlines():
            if line.lstrip().startswith("#"):
                continue
            continued = _CONTINUED.sub("", line)
            begun += continued
            if continued == line:
                found.append(begun.strip())
                begun = ""
        found.append(begun.strip())
    found = [line for line in found if line]
    if changes and not found:
        raise errors.InvalidArgument("file with no instructions: leave the empty change out")
    return found


def _json_list(text: str) -> list[str] | None:
    """Read the JSON form of a list; None where this is none, but words or a command line."""
    try:
        found = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list) and not all(isinstance(word, str) for word in found):
        raise errors.InvalidArgument(
            "when using JSON array syntax, arrays must be comprised of strings only"
        )
    return found if isinstance(found, list) else None


def _list_or_shell(config: ContainerConfig, text: str) -> list[str]:
    """Parse the JSON form; anything else is a command line for the shell."""
    words = _json_list(text)
    if words is None:
        words = [*(config.shell or DEFAULT_SHELL), text] if text else []
    return words


def _cmd(config: ContainerConfig, text: str) -> ContainerConfig:
    return msgspec.structs.replace(config, cmd=_list_or_shell(config, text))


def _entrypoint(config: ContainerConfig, text: str) -> ContainerConfig:
    return msgspec.structs.replace(config, entrypoint=_list_or_shell(config, text))


def _env(config: ContainerConfig, text: str) -> ContainerConfig:
    values = dict(entry.partition("=")[::2] for entry in config.env or [])
    for key, value in _pairs(config, "ENV", text):
        values[key] = value
    return msgspec.structs.replace(config, env=[f"{key}={value}" for key, value in values.items()])


def _label(config: ContainerConfig, text: str) -> ContainerConfig:
    return msgspec.structs.replace(
        config, labels={**(config.labels or {}), **dict(_pairs(config, "LABEL", text))}
    )


def _expose(config: ContainerConfig, text: str) -> ContainerConfig:
    ports = dict(config.exposed_ports or {})
    for word in [port for part in text.split() for port in expand_words(part, config.env or [])]:
        numbers, _, protocol = word.partition("/")
        protocol = protocol.lower() or "tcp"
        found = _PORT.fullmatch(numbers)
        first = int(found[1]) if found else 0
        last = int(found[2] or first) if found else 0
        if not found or not 0 < first <= last <= _MAXIMUM_PORT:
            raise errors.InvalidArgument(
                f"Invalid containerPort: {numbers}: write PORT or PORT/tcp, udp or sctp"
            )
        if protocol not in _PROTOCOLS:
            raise errors.InvalidArgument(f"Invalid proto: {protocol}: use tcp, udp or sctp")
        for port in range(first, last + 1):
            ports[f"{port}/{protocol}"] = {}
    return msgspec.structs.replace(config, exposed_ports=ports)


def _user(config: ContainerConfig, text: str) -> ContainerConfig:
    return msgspec.structs.replace(config, user=expand(text, config.env or []))


def _workdir(config: ContainerConfig, text: str) -> ContainerConfig:
    path = posixpath.normpath(
        posixpath.join("/", config.working_dir or "/", expand(text, config.env or []))
    )
    return msgspec.structs.replace(config, working_dir="/" + path.lstrip("/"))


def _volume(config: ContainerConfig, text: str) -> ContainerConfig:
    words = _json_list(text)
    if words == []:
        raise errors.InvalidArgument("VOLUME requires at least one argument")
    volumes = dict(config.volumes or {})
    for word in text.split() if words is None else words:
        path = expand(word, config.env or []).strip()
        if not path:
            raise errors.InvalidArgument("VOLUME specified can not be an empty string")
        volumes[path] = {}
    return msgspec.structs.replace(config, volumes=volumes)


def _on_build(config: ContainerConfig, text: str) -> ContainerConfig:
    if text.split(maxsplit=1)[0].upper() in ("ONBUILD", "FROM", "MAINTAINER"):
        word = text.split(maxsplit=1)[0].upper()
        raise errors.InvalidArgument(
            "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"
            if word == "ONBUILD"
            else f"{word} isn't allowed as an ONBUILD trigger"
        )
    return msgspec.structs.replace(config, on_build=[*(config.on_build or []), text])


def _stop_signal(config: ContainerConfig, text: str) -> ContainerConfig:
    signal = expand(text, config.env or [])
    parse_signal(signal)
    return msgspec.structs.replace(config, stop_signal=signal)


def _healthcheck(config: ContainerConfig, text: str) -> ContainerConfig:
    options: dict[str, int] = {}
    rest = text
    while rest.startswith("--"):
        option, _, rest = rest.partition(" ")
        name, _, value = option[2:].partition("=")
        rest = rest.lstrip()
        if name not in _API:
            raise errors.InvalidArgument(f"unknown flag: {name}: HEALTHCHECK has {_HEALTH_FLAGS}")
        if not value:
            raise errors.InvalidArgument(f"missing a value on flag: {name}")
        options[name] = _retries(value) if name == "retries" else _duration_ns(name, value)
    kind, _, command = rest.partition(" ")
    command = command.strip()
    if kind.upper() == "NONE":
        if command:
            raise errors.InvalidArgument("HEALTHCHECK NONE takes no arguments")
        return msgspec.structs.replace(config, healthcheck=HealthConfig(test=["NONE"]))
    if kind.upper() != "CMD":
        raise errors.InvalidArgument(f'Unknown type "{kind.upper()}" in HEALTHCHECK (try CMD)')
    words = _json_list(command)
    if words == [] or not command:
        raise errors.InvalidArgument("Missing command after HEALTHCHECK CMD")
    test = ["CMD-SHELL", command] if words is None else ["CMD", *words]
    return msgspec.structs.replace(
        config,
        healthcheck=msgspec.convert(
            {_API[key]: value for key, value in options.items()} | {"Test": test}, HealthConfig
        ),
    )


def _retries(text: str) -> int:
    try:
        number = int(text)
    except ValueError as error:
        raise errors.InvalidArgument(f"--retries must be a number ({text})") from error
    if number < 0:
        raise errors.InvalidArgument(f"--retries cannot be negative ({number})")
    return number


_API = {
    "interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod",
    "start-interval": "StartInterval", "retries": "Retries",
}  # fmt: skip
_HEALTH_FLAGS = ", ".join(f"--{name}" for name in _API)


def _duration_ns(name: str, text: str) -> int:
    try:
        duration_ns = 0 if text == "0" else parse_duration(text.removeprefix("-"))
    except ValueError as error:
        raise errors.InvalidArgument(
            f'invalid duration "{text}": write for example 30s or 1m30s'
        ) from error
    if text.startswith("-") or 0 < duration_ns < _SHORTEST_NS:
        raise errors.InvalidArgument(f'Interval "{name}" cannot be less than 1ms')
    return duration_ns


def _pairs(config: ContainerConfig, instruction: str, text: str) -> list[tuple[str, str]]:
    """Parse ``A=1 B="two words"``, or the old form ``A everything else``. Variables are those from
    before the instruction."""
    words = _words(text)
    if "=" not in words[0]:
        key, _, value = text.partition(" ")
        if not value.strip():
            raise errors.InvalidArgument(f"{instruction} must have two arguments")
        pairs = [(key, value.strip())]
    else:
        for word in words:
            if "=" not in word:
                raise errors.InvalidArgument(
                    f'Syntax error - can\'t find = in "{word}". Must be of the form: name=value'
                )
        pairs = [(key, value) for key, _, value in (word.partition("=") for word in words)]
    environment = config.env or []
    expanded = [(expand(key, environment), expand(value, environment)) for key, value in pairs]
    if not all(key for key, _ in expanded):
        raise errors.InvalidArgument(f"{instruction} names can not be blank")
    return expanded


def _words(text: str) -> list[str]:
    """Split at blanks outside of quotes; quotes and backslashes stay for the expansion."""
    words: list[str] = []
    current, quote, position = "", "", 0
    while position < len(text):
        character = text[position]
        if character == "\\" and quote != "'":
            current += text[position : position + 2]
            position += 1
        elif character.isspace() and not quote:
            words.append(current)
            current = ""
        else:
            if character == quote:
                quote = ""
            elif character in "\"'" and not quote:
                quote = character
            current += character
        position += 1
    return [word for word in [*words, current] if word]


_APPLIERS: dict[str, Applier] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
