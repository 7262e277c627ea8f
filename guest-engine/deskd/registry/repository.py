"""One repository of a registry: manifests, tags and blobs (OCI distribution specification 1.1).

Methods block and raise ``RegistryError`` for refusals, ``Unreachable`` and ``Broken`` for
connections; what may pass by itself is tried again where the method's text says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar
from urllib.parse import quote, urlencode, urljoin, urlsplit

import msgspec
from urllib3.exceptions import HTTPError

from deskd.domain.foreign_json import FOREIGN_JSON_ERRORS
from deskd.domain.manifest import INDEXES, MANIFESTS, SCHEMA_1, FetchedManifest, digest_of
from deskd.domain.reference import check_digest
from deskd.errors import InvalidArgument
from deskd.registry.authorization import Authorizer
from deskd.registry.failures import Broken, RegistryError, Unreachable, WrongContent
from deskd.registry.transport import (
    MAXIMUM_DELAY_S,
    RETRY_DELAYS_S,
    Answer,
    Transport,
    finish,
    in_words,
    read_limited,
    refusal,
)

MANIFEST_BYTES = 4 * 1024 * 1024
TAGS_BYTES = 8 * 1024 * 1024
MAXIMUM_TAGS = 10_000
ACCEPTED = ", ".join((*MANIFESTS, *INDEXES, *SCHEMA_1))
_NEXT_PAGE = re.compile(r'<([^>]+)>\s*;[^,]*\brel="?next"?')
_UPLOADED = re.compile(r"(?:bytes[= ])?0-([0-9]{1,18})")
T = TypeVar("T")

_STREAM_REFUSALS = (404, 405, 416, 501)


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class Repository:
    """``path`` is the name within the registry (``library/busybox``); ``writing`` asks for more
    rights than reading."""

    def __init__(
        self, transport: Transport, authorizer: Authorizer, path: str, *, writing: bool = False
    ) -> None:
        self.transport = transport
        self.path = path
        self._authorizer = authorizer
        self._base = f"{transport.endpoint.base}{path}/"
        self._scopes = (f"repository:{path}:{'pull,push' if writing else 'pull'}",)

    @property
    def host(self) -> str:
        return self.transport.endpoint.host

    def ping(self) -> None:
        """See whether a registry answers here at all. Raises ``Unreachable``."""
        url = self.transport.endpoint.base
        # Without credentials: what is asked for next says which.
        answer = self.transport.send("GET", url)
        if answer.status in (200, 401):
            finish(answer)
            return
        raise refusal("GET", url, answer)

    # --- manifests ------------------------------------------------------------------------------

    def manifest(self, reference: str) -> FetchedManifest:
        """Fetch the manifest of a tag or digest, checked against a digest; tries again.

        Raises ``WrongContent`` where the registry sends something else than was asked for.
        """
        return self.patiently(lambda: self._manifest(reference))

    def _manifest(self, reference: str) -> FetchedManifest:
        answer = self._get(f"manifests/{quote(reference, safe=':')}", {"Accept": ACCEPTED})
        raw = read_limited(answer, MANIFEST_BYTES, f"the manifest {reference} of {self.path}")
        wanted = reference if ":" in reference else answer.headers.get("Docker-Content-Digest", "")
        algorithm = wanted.partition(":")[0] if _is_digest(wanted) else "sha256"
        digest = digest_of(raw, algorithm)
        if _is_digest(wanted) and wanted != digest:
            raise WrongContent(
                f"manifest verification failed for digest {wanted}: {self.host} sent content with "
                f"the digest {digest}"
            )
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        return FetchedManifest(_said_type(raw) or media_type, digest, raw)

    def manifest_digest(self, reference: str) -> str:
        """Return the digest that a tag has now, "" where the registry does not tell it."""
        url = f"{self._base}manifests/{quote(reference, safe=':')}"
        answer = self.patiently(
            lambda: self._authorizer.send("HEAD", url, self._scopes, {"Accept": ACCEPTED})
        )
        if answer.status != 200:
            raise refusal("HEAD", url, answer)
        finish(answer)
        digest = answer.headers.get("Docker-Content-Digest", "")
        return digest if _is_digest(digest) else ""

    def put_manifest(self, reference: str, media_type: str, raw: bytes) -> None:
        """Store a manifest under a tag or its digest; tries again."""
        url = f"{self._base}manifests/{quote(reference, safe=':')}"

        def put() -> None:
            answer = self._authorizer.send(
                "PUT", url, self._scopes, {"Content-Type": media_type}, raw
            )
            if answer.status not in (200, 201, 202):
                raise refusal("PUT", url, answer)
            finish(answer)

        self.patiently(put)

    def tags(self) -> list[str]:
        """Return all tags, page after page."""
        url, found = f"{self._base}tags/list", []
        while url:
            page = self.patiently(lambda url=url: self._page(url))  # type: ignore[misc]
            found += page[0]
            url = page[1] if len(found) < MAXIMUM_TAGS else ""
        return found

    def _page(self, url: str) -> tuple[list[str], str]:
        answer = self._authorizer.send("GET", url, self._scopes)
        if answer.status != 200:
            raise refusal("GET", url, answer)
        body = read_limited(answer, TAGS_BYTES, f"the list of tags of {self.path}")
        try:
            tags = msgspec.json.decode(body, type=_Tags).tags or []
        except FOREIGN_JSON_ERRORS as error:
            raise Broken(f"{self.host} sent a list of tags that is not valid: {error}") from error
        following = _NEXT_PAGE.search(answer.headers.get("Link", ""))
        target = urljoin(url, following[1]) if following else ""
        # A page elsewhere would be asked for with this registry's token.
        return tags, target if urlsplit(target).netloc == urlsplit(url).netloc else ""

    # --- blobs ----------------------------------------------------------------------------------

    def open_blob(self, digest: str, offset: int = 0) -> Answer:
        """Begin to read a blob, from ``offset`` on where the registry can (status 206)."""
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        return self._get(f"blobs/{quote(digest, safe=':')}", headers)

    def has_blob(self, digest: str) -> bool:
        """Say whether the repository has a blob; tries again."""
        url = f"{self._base}blobs/{quote(digest, safe=':')}"
        answer = self.patiently(lambda: self._authorizer.send("HEAD", url, self._scopes))
        if answer.status == 404:
            finish(answer)
            return False
        if answer.status != 200:
            raise refusal("HEAD", url, answer)
        finish(answer)
        return True

    def start_upload(self, *, mount: str = "", from_path: str = "") -> str:
        """Begin to upload a blob; return where to.

        With ``mount`` (a digest) and ``from_path`` (a repository of the same registry) the
        registry may take the blob from there: the answer is "" then.
        """
        url = f"{self._base}blobs/uploads/"
        scopes: tuple[str, ...] = self._scopes
        if mount:
            url += "?" + urlencode({"mount": mount, "from": from_path})
            scopes = (*scopes, f"repository:{from_path}:pull")
        answer = self.patiently(lambda: self._authorizer.send("POST", url, scopes, None, b""))
        finish(answer)
        if answer.status == 201:
            return ""
        if answer.status != 202:
            raise refusal("POST", url, answer)
        return self._location(url, answer)

    def send_blob(self, location: str, body: Iterable[bytes]) -> str:
        """Send a blob's bytes in one stream; return where to ``complete_upload``.

        ``is_stream_refusal`` tells of the error whether the registry may take the blob as a whole.
        """
        headers = {
            "Content-Type": "application/octet-stream",
            "Transfer-Encoding": "chunked",
        }
        return self._sent(
            location, self._authorizer.send("PATCH", location, self._scopes, headers, body)
        )

    def upload_status(self, location: str) -> tuple[str, int] | None:
        """Ask how many bytes of an upload the registry has; return where the next ones go and
        their number, or None where it does not say or has none."""
        answer = self.patiently(lambda: self._authorizer.send("GET", location, self._scopes))
        finish(answer)
        found = _UPLOADED.fullmatch(answer.headers.get("Range", ""))
        # "0-0" may mean one byte and, with docker-registry, none.
        if answer.status not in (202, 204) or not found or found[1] == "0":
            return None
        target = self._location(location, answer) if "Location" in answer.headers else location
        return target, int(found[1]) + 1

    def send_piece(self, location: str, piece: bytes, position: int) -> str:
        """Send the bytes of a blob from ``position`` on; return where the next ones go."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(piece)),
            "Content-Range": f"{position}-{position + len(piece) - 1}",
        }
        return self._sent(
            location, self._authorizer.send("PATCH", location, self._scopes, headers, piece)
        )

    def complete_upload(
        self,
        location: str,
        digest: str,
        body: Iterable[bytes] | bytes = b"",
        *,
        size_bytes: int | None = None,
    ) -> None:
        """End an upload, which stores the blob; ``body`` may be its last (or only) bytes, and
        ``size_bytes`` says how many these are where they are no ``bytes``."""
        joint = "&" if "?" in location else "?"
        url = f"{location}{joint}{urlencode({'digest': digest})}"
        headers = {"Content-Type": "application/octet-stream"}
        if size_bytes is not None:
            headers["Content-Length"] = str(size_bytes)
        answer = self._authorizer.send("PUT", url, self._scopes, headers, body)
        if answer.status not in (201, 204):
            raise refusal("PUT", location, answer)
        finish(answer)

    def cancel_upload(self, location: str) -> None:
        """Tell the registry that an upload will not be completed; it may not care."""
        finish(self._authorizer.send("DELETE", location, self._scopes))

    def _sent(self, location: str, answer: Answer) -> str:
        if answer.status not in (202, 201, 204):
            raise refusal("PATCH", location, answer)
        finish(answer)
        return self._location(location, answer)

    def _location(self, url: str, answer: Answer) -> str:
        location = answer.headers.get("Location", "")
        if not location:
            raise Broken(f"{self.host} does not say where to upload to (no Location)")
        target = urljoin(url, location)
        if urlsplit(target).hostname != urlsplit(url).hostname:
            raise Broken(f"{self.host} wants an upload sent to {target}, which is another host")
        return target

    def _get(self, name: str, headers: dict[str, str]) -> Answer:
        url = f"{self._base}{name}"
        answer = self._authorizer.send("GET", url, self._scopes, headers)
        if answer.status not in (200, 206):
            raise refusal("GET", url, answer)
        return answer

    def patiently(self, request: Callable[[], T]) -> T:
        """Repeat a request that may be repeated, where the registry is busy or breaks off."""
        for delay_s in RETRY_DELAYS_S:
            try:
                return request()
            except RegistryError as error:
                if not error.is_passing or error.retry_after_s > MAXIMUM_DELAY_S:
                    raise
                wait_s = max(delay_s, error.retry_after_s)
            except Broken:
                wait_s = delay_s
            except HTTPError as error:
                raise Unreachable(f"{self.host}: {in_words(error, self.host)}") from error
            self.transport.cancellation.pause(wait_s)
        return request()


def is_stream_refusal(error: RegistryError) -> bool:
    """Say whether a registry seems not to know uploads in pieces, which the distribution
    specification leaves to it: the request, its method or the piece's place is unknown there."""
    return error.method == "PATCH" and error.status in _STREAM_REFUSALS


def _quoted(reference: str) -> str:
    return quote(reference, safe=":")


def _is_digest(text: str) -> bool:
    try:
        check_digest(text)
    except InvalidArgument:
        return False
    return True


def _said_type(raw: bytes) -> str:
    """Return the media type that a manifest itself says."""
    try:
        document = msgspec.json.decode(raw)
    except FOREIGN_JSON_ERRORS:
        return ""
    said = document.get("mediaType") if isinstance(document, dict) else ""
    return said if isinstance(said, str) else ""
