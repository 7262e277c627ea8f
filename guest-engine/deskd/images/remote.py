"""Asking registries without fetching images: ``GET /distribution/NAME/json`` and searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from deskd import errors
from deskd.domain import image as rules
from deskd.domain.filters import Filters
from deskd.domain.foreign_json import FOREIGN_JSON_ERRORS
from deskd.domain.manifest import Platform
from deskd.domain.reference import DEFAULT_DOMAIN, Reference, check_digest
from deskd.images.connecting import Registries, with_repository
from deskd.images.pulling import CONFIG_BYTES, translate
from deskd.registry.authorization import Authorizer
from deskd.registry.blobs import fetch_small
from deskd.registry.failures import Broken, RegistryError, Unreachable
from deskd.registry.repository import Repository
from deskd.registry.transport import Transport, read_limited, refusal

SEARCH_FILTERS = ("is-automated", "is-official", "stars")
SEARCH_BYTES = 4 * 1024 * 1024


def inspect(registries: Registries, reference: Reference) -> dict[str, Any]:
    """Return ``DistributionInspect``: the descriptor of a manifest and its platforms."""
    wanted = reference.with_default_tag()

    def work(repository: Repository) -> dict[str, Any]:
        fetched = repository.manifest(wanted.digest or wanted.tag)
        manifest = fetched.parsed()
        if manifest.manifests is not None:
            platforms = [entry.platform for entry in manifest.manifests if entry.platform]
        elif manifest.config is not None:
            check_digest(manifest.config.digest)
            raw = fetch_small(repository, manifest.config, CONFIG_BYTES, "the configuration")
            config = rules.parse_config(raw, wanted.familiar)
            platforms = [Platform(config.architecture, config.os, config.variant)]
        else:
            platforms = []
        return {
            "Descriptor": {
                "mediaType": fetched.media_type,
                "digest": fetched.digest,
                "size": len(fetched.raw),
            },
            "Platforms": platforms,
        }

    try:
        return with_repository(registries, wanted, work)
    except RegistryError as error:
        if error.code in ("DENIED", "UNAUTHORIZED"):
            kind = errors.Unauthorized if error.code == "UNAUTHORIZED" else errors.Forbidden
            raise kind(error.reason) from error
        raise translate(error, wanted) from error


class _Found(msgspec.Struct):
    """One result of a search, as the first registries answered it and Docker Hub still does."""

    name: str = ""
    description: str | None = None
    star_count: int = 0
    is_official: bool = False
    is_automated: bool = False


class _Results(msgspec.Struct):
    results: list[_Found] | None = None


def search(
    registries: Registries, term: str, limit: int, filters: Filters
) -> Sequence[dict[str, Any]]:
    """Return ``ImageSearch``: what a registry finds for ``[HOST/]TERM``."""
    filters.check(SEARCH_FILTERS)
    stars = [_stars(text) for text in filters.get("stars")]
    official = filters.flag("is-official") if filters.get("is-official") else None
    automated = filters.flag("is-automated") if filters.get("is-automated") else None
    if not 1 <= limit <= 100:
        raise errors.InvalidArgument(f"limit {limit} is outside the range of [1, 100]")
    domain, words = _split(term)
    return [
        {
            "name": found.name,
            "description": found.description or "",
            "star_count": found.star_count,
            "is_official": found.is_official,
            "is_automated": found.is_automated,
        }
        for found in _ask(registries, domain, words, limit)
        if all(found.star_count >= wanted for wanted in stars)
        and official in (None, found.is_official)
        and automated in (None, found.is_automated)
    ]


def _stars(text: str) -> int:
    if not text.isdigit():
        raise errors.InvalidArgument(f"invalid filter 'stars=[{text}]'")
    return int(text)


def _split(term: str) -> tuple[str, str]:
    if "://" in term:
        raise errors.InvalidArgument(
            f"invalid repository name: repository name ({term}) should not have a scheme"
        )
    first, slash, rest = term.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        domain = DEFAULT_DOMAIN if first in ("docker.io", "index.docker.io") else first
        return domain, rest
    return DEFAULT_DOMAIN, term


def _ask(registries: Registries, domain: str, words: str, limit: int) -> list[_Found]:
    last: errors.DeskdError | None = None
    for endpoint in registries.endpoints.of_search(domain):
        transport = Transport(endpoint, registries.cancellation)
        url = f"{endpoint.scheme}://{endpoint.host}/v1/search?" + urlencode(
            {"q": words, "n": limit}
        )
        try:
            answer = Authorizer(transport, registries.credentials).send("GET", url)
            if answer.status != 200:
                raise refusal("GET", url, answer)
            body = read_limited(answer, SEARCH_BYTES, f"the answer of {endpoint.host}")
            return msgspec.json.decode(body, type=_Results).results or []
        except Unreachable as error:
            last = error
        except RegistryError as error:
            if error.status in (404, 405):
                raise errors.Unsupported(
                    f"the registry {endpoint.host} does not answer searches (HTTP "
                    f"{error.status}): name an image, or search another registry"
                ) from error
            raise
        except FOREIGN_JSON_ERRORS as error:
            raise Broken(f"{endpoint.host} gave no list of images: {error}") from error
        finally:
            transport.close()
    assert last is not None, "every registry has an endpoint"
    raise last
