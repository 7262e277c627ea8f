"""Which HTTP status each kind of error gets: the one table that decides."""

from __future__ import annotations

from deskd import errors

_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (errors.InvalidArgument, 400),
    (errors.Unauthorized, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.NotModified, 304),
    (errors.Unsupported, 501),
    (errors.Unavailable, 503),
    (errors.ResourceExhausted, 500),
    (errors.SystemFailure, 500),
    (errors.DataLoss, 500),
    (errors.DeskdError, 500),
)


# Docker's clients show these words to people.
REASONS = {
    200: "OK",
    201: "Created",
    204: "No Content",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Request Entity Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


def status_of(error: Exception) -> int:
    """Return the HTTP status for ``error``; what was not raised on purpose is 500.

    An error may carry its own ``http_status`` where Docker's status depends on the operation (a
    program that is not found is 404 at start and 400 at exec).
    """
    own = getattr(error, "http_status", None)
    if isinstance(own, int):
        return own
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return 500
