"""The host side's error tree: one sentence that names the thing, a hint that says what to do.

The command line prints ``text`` and ``hint`` on standard error and exits with ``exit_code``; the
app shows the same two sentences.
"""

from __future__ import annotations

from typing import ClassVar


class DeskError(Exception):
    """Root of every error a person can meet; ``hint`` names the remedy, empty if there is none."""

    exit_code: ClassVar[int] = 1

    def __init__(self, text: str, *, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint


class UsageError(DeskError):
    """The command was typed wrong (125, as Docker answers for its own flags)."""

    exit_code = 125


class InvalidRequest(DeskError):
    """The flags can be read, but what they ask for cannot be (1, as Docker answers then)."""


class NotFound(DeskError):
    """A machine, image file, container … does not exist."""


class Conflict(DeskError):
    """The thing exists already, or its state forbids the operation."""


class MachineError(DeskError):
    """The machine cannot be had, started, stopped or reached."""


class MachineNotRunning(MachineError):
    """The command needs a running machine."""


class DriverError(MachineError):
    """QEMU, Vagrant or the remote host failed; the text quotes its own last words."""


class ImageError(MachineError):
    """A guest image is missing, truncated or fails its checksum."""


class SshError(MachineError):
    """The SSH connection cannot be made or was lost."""


class HostKeyMismatch(SshError):
    """The machine shows another host key than the one Desk made for it."""


class PreconditionFailed(DeskError):
    """A check before an operation failed (docker-machine's exit code 3)."""

    exit_code = 3


class EngineError(DeskError):
    """The engine answered with an error; ``status`` is the HTTP status, ``path`` what was asked
    (``/containers/web/start``), empty where that is not known."""

    exit_code = 125

    def __init__(self, text: str, *, status: int = 0, hint: str = "", path: str = "") -> None:
        super().__init__(text, hint=hint)
        self.status = status
        self.path = path


class EngineUnreachable(EngineError):
    """Nothing answers on the engine's socket."""
