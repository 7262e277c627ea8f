"""Seccomp profiles in Docker's JSON format, read into plain rules for one set of capabilities.

``seccomp_default.json`` lists which system calls the default profile allows, by capability and
architecture; its data come from the Moby project (Apache-2.0).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from deskd.errors import InvalidArgument
from deskd.kernel.libc import ARCHITECTURE
from deskd.record import Record

_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_NATIVE = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"), "arm64": ("arm64", "SCMP_ARCH_AARCH64")}
_DEFAULT_ERRNO = 1


class Comparison(Record):
    """One condition on a system call's argument."""

    index: int
    operator: int
    value: int
    value_two: int


class Rule(Record):
    """What happens on some system calls under all of ``comparisons``."""

    names: tuple[str, ...]
    action: int
    comparisons: tuple[Comparison, ...]


class Profile(Record):
    """A profile for this machine; ``architectures`` are libseccomp's tokens by name."""

    default_action: int
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...]


def default_profile_text() -> str:
    """Return the default profile's JSON."""
    with open(os.path.join(os.path.dirname(__file__), "seccomp_default.json")) as file:
        return file.read()


def read_profile(
    text: str, capabilities: Iterable[str], architecture: str = ARCHITECTURE
) -> Profile:
    """Read a profile for a process with ``capabilities`` on this machine's ``architecture``.

    Raises ``InvalidArgument`` where the text is not a profile.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"the seccomp profile is no JSON object: {error}") from error
    if not isinstance(data, dict):
        raise InvalidArgument("the seccomp profile is no JSON object")
    if "defaultAction" not in data:
        raise InvalidArgument("the seccomp profile has no defaultAction")
    try:
        return _read(data, frozenset(capabilities), architecture)
    except KeyError as error:
        raise InvalidArgument(
            f"the seccomp profile lacks or misspells {error}; it is to be in Docker's format"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidArgument(f"the seccomp profile is not in Docker's format: {error}") from error


def _read(data: Mapping[str, Any], capabilities: frozenset[str], architecture: str) -> Profile:
    short, native = _NATIVE[architecture]
    architectures = [native]
    for entry in data.get("archMap") or ():
        if entry["architecture"] == native:
            architectures += entry.get("subArchitectures") or ()
    for name in data.get("architectures") or ():
        if name not in architectures:
            architectures.append(name)
    rules = []
    for entry in data.get("syscalls") or ():
        if not _applies(entry, short, capabilities):
            continue
        names = entry.get("names") or [entry["name"]]
        comparisons = tuple(
            Comparison(
                item["index"], _OPERATORS[item["op"]], item["value"], item.get("valueTwo", 0)
            )
            for item in entry.get("args") or ()
        )
        action = _action(entry["action"], entry.get("errnoRet"))
        rules.append(Rule(tuple(names), action, comparisons))
    default = _action(data["defaultAction"], data.get("defaultErrnoRet"))
    return Profile(default, tuple(architectures), tuple(rules))


def _action(name: str, errno_value: int | None) -> int:
    action = _ACTIONS[name]
    if name in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        action |= _DEFAULT_ERRNO if errno_value is None else errno_value
    return action


def _applies(entry: Mapping[str, Any], architecture: str, capabilities: frozenset[str]) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    if (arches := includes.get("arches")) and architecture not in arches:
        return False
    if not capabilities.issuperset(includes.get("caps") or ()):
        return False
    if (minimum := includes.get("minKernel")) and _kernel() < _version(minimum):
        return False
    if architecture in (excludes.get("arches") or ()):
        return False
    if not capabilities.isdisjoint(excludes.get("caps") or ()):
        return False
    return not ((minimum := excludes.get("minKernel")) and _kernel() >= _version(minimum))


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int("".join(char for char in minor if char.isdigit()) or 0)


def _kernel() -> tuple[int, int]:
    return _version(os.uname().release)
