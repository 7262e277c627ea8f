"""Image references: parsing, normal form and the short form that people read.

The grammar is that of the distribution project (``[domain/]path[:tag][@digest]``); a reference
without a registry means ``docker.io``, one without a namespace there means ``library/``.
"""

from __future__ import annotations

import re

from deskd import errors
from deskd.record import Record

DEFAULT_DOMAIN = "docker.io"
DEFAULT_NAMESPACE = "library/"
DEFAULT_TAG = "latest"
MAXIMUM_NAME_LENGTH = 255
_LEGACY_DOMAIN = "index.docker.io"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN_COMPONENT = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(
    rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?"
)
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(
    r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}", re.ASCII
)
_IMAGE_ID = re.compile(r"[a-f0-9]{64}")
_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


class Reference(Record):
    """A named image in normal form: ``domain`` and ``path`` are never empty."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The repository in full: ``docker.io/library/busybox``."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as people write it: ``busybox``."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        rest = self.path.removeprefix(DEFAULT_NAMESPACE)
        # "docker.io/library/library/x" shortens to "library/x", which would be read as "x".
        return rest if rest != self.path and "/" not in rest else self.path

    @property
    def familiar(self) -> str:
        """The reference as people write it: ``busybox:latest``, ``busybox@sha256:…``."""
        return self.familiar_name + self._suffix()

    def __str__(self) -> str:
        return self.name + self._suffix()

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return tag + (f"@{self.digest}" if self.digest else "")

    def with_default_tag(self) -> Reference:
        """Return this reference, with ``latest`` where it has neither tag nor digest."""
        if self.tag or self.digest:
            return self
        return Reference(self.domain, self.path, DEFAULT_TAG)


def parse(text: str) -> Reference:
    """Parse what a person or a client wrote; raises ``InvalidArgument`` with the reason."""
    if _IMAGE_ID.fullmatch(text):
        raise invalid(text, "it is the form of an image ID, which cannot be a name")
    rest, at, digest = text.partition("@")
    if at:
        check_digest(digest, text)
    domain, remainder = _split_domain(rest)
    path, tag = remainder, ""
    if ":" in remainder:
        path, _, tag = remainder.rpartition(":")
        if not _TAG.fullmatch(tag):
            raise invalid(text, f"the tag {tag!r} may hold letters, digits, '_', '.' and '-' only")
    if not _DOMAIN.fullmatch(domain):
        raise invalid(text, f"{domain!r} is not a registry's host name")
    if path != path.lower():
        raise errors.InvalidArgument(
            f"invalid reference format: repository name ({path}) must be lowercase"
        )
    if not _PATH.fullmatch(path):
        raise invalid(text, "a repository name consists of lowercase letters, digits and . _ - /")
    if len(path) > MAXIMUM_NAME_LENGTH:
        raise invalid(
            text, f"repository name must not be more than {MAXIMUM_NAME_LENGTH} characters"
        )
    return Reference(domain, path, tag, digest)


def from_repository(repository: str, tag: str = "") -> Reference:
    """Build a reference from the ``repo`` and ``tag`` parameters of the API.

    ``repository`` may carry the tag itself; ``latest`` is the default. A digest is refused.
    """
    reference = parse(repository)
    if reference.digest:
        raise invalid(repository, "refusing to create a tag with a digest reference")
    if reference.familiar_name in _DIGEST_LENGTHS:
        raise errors.InvalidArgument(
            "refusing to create an ambiguous tag using digest algorithm as name: "
            f"{repository!r} would read like a digest"
        )
    if tag:
        if not _TAG.fullmatch(tag):
            raise errors.InvalidArgument(
                f"invalid tag format: {tag!r} may hold letters, digits, '_', '.' and '-' only"
            )
        reference = Reference(reference.domain, reference.path, tag)
    return reference.with_default_tag()


def check_digest(digest: str, text: str = "") -> None:
    """Raise ``InvalidArgument`` unless this is a well-formed digest of a known algorithm."""
    algorithm, _, value = digest.partition(":")
    if not _DIGEST.fullmatch(digest) or len(value) != _DIGEST_LENGTHS.get(algorithm, -1):
        raise invalid(text or digest, f"{digest!r} is not a digest such as sha256:<64 hex digits>")
    if value != value.lower():
        raise invalid(text or digest, "a digest is written in lowercase")


def invalid(text: str, reason: str) -> errors.InvalidArgument:
    """Return Docker's error for a malformed reference, with the reason."""
    return errors.InvalidArgument(f"invalid reference format: {text!r}: {reason}")


def _split_domain(text: str) -> tuple[str, str]:
    """Split off the registry: a first component with a dot, a colon or a capital, or localhost."""
    first, slash, rest = text.partition("/")
    is_domain = slash and (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    )
    domain, remainder = (first, rest) if is_domain else (DEFAULT_DOMAIN, text)
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    repository, colon, tag = remainder.partition(":")
    if domain == DEFAULT_DOMAIN and "/" not in repository:
        remainder = f"{DEFAULT_NAMESPACE}{repository}{colon}{tag}"
    return domain, remainder
