"""Checks of a machine's options that several drivers share."""

from __future__ import annotations

from collections.abc import Collection

from desk.errors import UsageError
from desk.machine.model import MachineSpec


def check_known(spec: MachineSpec, known: Collection[str]) -> None:
    """Raise ``UsageError`` for an option that the machine's driver does not have."""
    unknown = sorted(set(spec.options) - set(known))
    if unknown:
        raise UsageError(
            f"the driver {spec.driver} has no option {unknown[0]!r}",
            hint=f"Its options are: {', '.join(sorted(known))}.",
        )


def port_option(spec: MachineSpec, name: str, default: int) -> int:
    """Return a port number among the options; raises ``UsageError`` for what is none."""
    text = spec.options.get(name, "")
    return port_number(text) if text else default


def port_number(text: str) -> int:
    """Return the port number in a text; raises ``UsageError`` for what is none."""
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UsageError(f"{text!r} is no port number", hint="Ports go from 1 to 65535.")
    return int(text)
