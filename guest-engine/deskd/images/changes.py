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

DEFAULT_SHELL = ["/bin/sh", "-c"]
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_MAXIMUM_PORT = 65535

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
    """Return the instructions, of which one change may hold several in lines of their own."""
    lines = [line.strip() for change in changes for line in change.splitlines() or [""]]
    found = [line for line in lines if line and not line.startswith("#")]
    if lines and not found:
        raise errors.InvalidArgument("file with no instructions: leave the empty change out")
    return found


def _list_or_shell(config: ContainerConfig, text: str) -> list[str]:
    """Parse the JSON form; anything else is a command line for the shell."""
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError:
            words = None
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            return words
    if not text:
        return []
    return [*(config.shell or DEFAULT_SHELL), text]


def _cmd(config: ContainerConfig, text: str) -> ContainerConfig:
    return msgspec.structs.replace(config, cmd=_list_or_shell(config, text))


def _entrypoint(config: ContainerConfig, text: str) -> ContainerConfig:
    return msgspec.structs.replace(config, entrypoint=_list_or_shell(config, text))


def _env(config: ContainerConfig, text: str) -> ContainerConfig:
    values = dict(entry.partition("=")[::2] for entry in config.env or [])
    for key, value in _pairs("ENV", text):
        values[key] = value
    return msgspec.structs.replace(config, env=[f"{key}={value}" for key, value in values.items()])


def _label(config: ContainerConfig, text: str) -> ContainerConfig:
    return msgspec.structs.replace(
        config, labels={**(config.labels or {}), **dict(_pairs("LABEL", text))}
    )


def _expose(config: ContainerConfig, text: str) -> ContainerConfig:
    ports = dict(config.exposed_ports or {})
    for word in text.split():
        found = _PORT.fullmatch(word)
        first = int(found[1]) if found else 0
        last = int(found[2] or first) if found else 0
        if not found or not 0 < first <= last <= _MAXIMUM_PORT:
            raise errors.InvalidArgument(
                f"Invalid containerPort: {word}: write PORT or PORT/tcp, udp or sctp"
            )
        for port in range(first, last + 1):
            ports[f"{port}/{(found[3] or 'tcp').lower()}"] = {}
    return msgspec.structs.replace(config, exposed_ports=ports)


def _user(config: ContainerConfig, text: str) -> ContainerConfig:
    return msgspec.structs.replace(config, user=_expand(config, text))


def _workdir(config: ContainerConfig, text: str) -> ContainerConfig:
    path = posixpath.normpath(posixpath.join("/", config.working_dir or "/", _expand(config, text)))
    return msgspec.structs.replace(config, working_dir="/" + path.lstrip("/"))


def _volume(config: ContainerConfig, text: str) -> ContainerConfig:
    words = _json_list(text) if text.startswith("[") else text.split()
    volumes = dict(config.volumes or {})
    for word in words:
        if not word.strip():
            raise errors.InvalidArgument("VOLUME specified can not be an empty string")
        volumes[word.strip()] = {}
    return msgspec.structs.replace(config, volumes=volumes)


def _json_list(text: str) -> list[str]:
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.DecodeError as error:
        raise errors.InvalidArgument(f"{text} is not a JSON list of strings: {error}") from error


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
    signal = _expand(config, text)
    parse_signal(signal)
    return msgspec.structs.replace(config, stop_signal=signal)


def _healthcheck(config: ContainerConfig, text: str) -> ContainerConfig:
    options: dict[str, int] = {}
    rest = text
    while rest.startswith("--"):
        option, _, rest = rest.partition(" ")
        name, _, value = option[2:].partition("=")
        rest = rest.lstrip()
        if name == "retries" and value.isdigit():
            options["retries"] = int(value)
        elif name in ("interval", "timeout", "start-period", "start-interval"):
            options[name.replace("-", "_")] = _duration_ns(value)
        elif name == "retries":
            raise errors.InvalidArgument(f"--retries cannot be negative ({value})")
        else:
            raise errors.InvalidArgument(f"HEALTHCHECK does not know the option {option}")
    kind, _, command = rest.partition(" ")
    if kind.upper() == "NONE":
        return msgspec.structs.replace(config, healthcheck=HealthConfig(test=["NONE"]))
    command = command.strip()
    if kind.upper() != "CMD":
        raise errors.InvalidArgument(f'Unknown type "{kind.upper()}" in HEALTHCHECK (try CMD)')
    if not command:
        raise errors.InvalidArgument("Missing command after HEALTHCHECK CMD")
    test = ["CMD-SHELL", command]
    if command.startswith("["):
        test = ["CMD", *_json_list(command)]
    return msgspec.structs.replace(
        config,
        healthcheck=msgspec.convert(
            {_API[key]: value for key, value in options.items()} | {"Test": test}, HealthConfig
        ),
    )


_API = {
    "interval": "Interval", "timeout": "Timeout", "start_period": "StartPeriod",
    "start_interval": "StartInterval", "retries": "Retries",
}  # fmt: skip


def _duration_ns(text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise errors.InvalidArgument(
            f'invalid duration "{text}": write for example 30s or 1m30s'
        ) from error


def _pairs(instruction: str, text: str) -> list[tuple[str, str]]:
    """Parse ``A=1 B="two words"``, or the old form ``A everything else``."""
    words = _words(text)
    if "=" not in words[0]:
        key, _, value = text.partition(" ")
        if not value.strip():
            raise errors.InvalidArgument(f"{instruction} must have two arguments")
        return [(key, value.strip())]
    pairs: list[tuple[str, str]] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise errors.InvalidArgument(
                f'Syntax error - can\'t find = in "{word}". Must be of the form: name=value'
            )
        pairs.append((key, value))
    return pairs


def _words(text: str) -> list[str]:
    """Split at blanks outside of quotes; quotes go, a backslash keeps the next character."""
    words: list[str] = []
    current, quote, position, started = "", "", 0, False
    while position < len(text):
        character = text[position]
        if character == "\\" and quote != "'" and position + 1 < len(text):
            position += 1
            current, started = current + text[position], True
        elif quote:
            if character == quote:
                quote = ""
            else:
                current += character
        elif character in "\"'":
            quote, started = character, True
        elif character.isspace():
            if started:
                words.append(current)
            current, started = "", False
        else:
            current, started = current + character, True
        position += 1
    if quote:
        raise errors.InvalidArgument(
            f"unexpected end of statement while looking for {quote}: {text}"
        )
    return [*words, current] if started else words


def _expand(config: ContainerConfig, text: str) -> str:
    """Replace ``$NAME`` and ``${NAME}`` by the image's environment."""
    values = dict(entry.partition("=")[::2] for entry in config.env or [])
    return _VARIABLE.sub(lambda found: values.get(found[1] or found[2], ""), text)


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
