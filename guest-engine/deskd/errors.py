"""The engine's error tree: each class says what kind of failure it is, its text what to do.

``api/status.py`` maps each class to one HTTP status; nothing else decides a status.
"""

from __future__ import annotations


class DeskdError(Exception):
    """Root of every error the engine raises on purpose; the text is one sentence for a person."""


class InvalidArgument(DeskdError):
    """The request cannot be understood or asks for something that cannot be (HTTP 400)."""


class StartFailed(InvalidArgument):
    """A program could not be executed (HTTP 400). ``exit_code`` is Docker's: 127 for a program
    that is not there, 126 for one that cannot be invoked."""

    def __init__(self, text: str, exit_code: int = 126) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Unauthorized(DeskdError):
    """A registry or a policy wants other credentials (HTTP 401)."""


class Forbidden(DeskdError):
    """The request is understood and refused (HTTP 403)."""


class NotFound(DeskdError):
    """The named object does not exist (HTTP 404)."""


class Conflict(DeskdError):
    """The object's present state or name forbids the operation (HTTP 409)."""


class NotModified(DeskdError):
    """The object already is as asked for (HTTP 304)."""


class Unsupported(DeskdError):
    """The kernel, the platform or this engine lacks what the request needs (HTTP 501)."""


class Unavailable(DeskdError):
    """Something the engine depends on does not answer now (HTTP 503)."""


class ResourceExhausted(DeskdError):
    """No space, memory, address or port is left (HTTP 500, as Docker answers)."""


class SystemFailure(DeskdError):
    """The kernel or the file system refused what should have worked (HTTP 500)."""


class DataLoss(DeskdError):
    """Stored data is damaged or fails verification (HTTP 500)."""
