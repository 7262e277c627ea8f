"""What goes wrong with registries, and how each of it is told.

``RegistryError`` is an answer that refuses, ``Unreachable`` the want of one. Their texts are those
that people know from Docker where Docker has one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from deskd import errors
from deskd.domain.foreign_json import FOREIGN_JSON_ERRORS

MAXIMUM_TEXT = 1000


class Unreachable(errors.Unavailable):
    """No registry answers in HTTP (HTTP 500, as Docker says it)."""

    http_status = 500


class Broken(errors.SystemFailure):
    """A transfer broke off; a further try may do better."""


class WrongContent(errors.DataLoss):
    """What a registry sent is not what its digest or its size says."""


class RegistryError(errors.DeskdError):
    """A registry's refusal. ``code`` and ``detail`` are those of the distribution specification
    (``MANIFEST_UNKNOWN``), as far as the answer had them; ``retry_after_s`` is what it asked for.
    """

    def __init__(
        self, method: str, url: str, status: int, code: str, detail: str, retry_after_s: float = 0
    ) -> None:
        reason = f"{code.lower().replace('_', ' ')}: {detail}" if code else detail
        super().__init__(reason or f"{method} {url}: unexpected status {status}")
        self.method = method
        self.url = url
        self.status = status
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s

    @property
    def is_passing(self) -> bool:
        """True where the registry may answer otherwise in a moment."""
        return self.status == 429 or self.status >= 500


class _Item(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Body(msgspec.Struct):
    errors: list[_Item] | None = None
    details: str = ""
    message: str = ""


def read_refusal(
    method: str, url: str, status: int, body: bytes, retry_after: str = ""
) -> RegistryError:
    """Make an error of an answer's status and body."""
    code = detail = ""
    try:
        parsed = msgspec.json.decode(body, type=_Body)
        if parsed.errors:
            code, detail = parsed.errors[0].code[:100], parsed.errors[0].message
        else:
            detail = parsed.details or parsed.message
    except FOREIGN_JSON_ERRORS:
        pass  # a proxy's page of HTML or nothing at all: the status says enough
    if not code and status == 401:
        code, detail = "UNAUTHORIZED", detail or "authentication required"
    if not code and status == 403:
        code, detail = "DENIED", detail or "requested access to the resource is denied"
    if not code and status == 429:
        code, detail = "TOOMANYREQUESTS", detail or "the registry asks to wait"
    detail = " ".join(detail.split())[:MAXIMUM_TEXT]
    if not code:
        said = f": {detail}" if detail else ""
        detail = f"{method} {url}: received unexpected HTTP status: {status}{said}"
    return RegistryError(method, url, status, code, detail, _delay_s(retry_after))


def _delay_s(retry_after: str) -> float:
    """Read ``Retry-After``: seconds or a date (RFC 9110, section 10.2.3)."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    if date.tzinfo is None:  # "-0000": UTC that nobody vouches for
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
