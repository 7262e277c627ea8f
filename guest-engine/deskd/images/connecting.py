"""From an image's name to a repository that answers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from deskd import errors
from deskd.domain.reference import Reference
from deskd.record import Record
from deskd.registry.authorization import Authorizer, Credentials
from deskd.registry.cancellation import Cancellation, Cancelled
from deskd.registry.endpoints import Endpoint, Endpoints
from deskd.registry.failures import Broken, RegistryError, Unreachable
from deskd.registry.repository import Repository
from deskd.registry.transport import Transport

log = logging.getLogger(__name__)
T = TypeVar("T")


class Registries(Record):
    """How registries are reached, and who asks."""

    endpoints: Endpoints
    credentials: Credentials
    cancellation: Cancellation


def with_repository(
    registries: Registries,
    reference: Reference,
    work: Callable[[Repository], T],
    *,
    writing: bool = False,
) -> T:
    """Call ``work`` with the first repository that answers; mirrors only read.

    A mirror that does not have the image, or fails before ``work`` has done anything that cannot be
    done again, is passed over. Raises the last endpoint's error.
    """
    candidates = registries.endpoints.of(reference.domain)
    if writing:
        candidates = [endpoint for endpoint in candidates if not endpoint.mirror]
    last: errors.DeskdError | None = None
    for endpoint in candidates:
        with ExitStack() as stack:
            repository = _open(registries, endpoint, reference, stack, writing=writing)
            try:
                repository.ping()
            except (Unreachable, Broken) as error:
                last = _clearer(last, error)
                log.info("%s: %s", endpoint.base, error)
                continue
            except RegistryError as error:
                if not endpoint.mirror:
                    raise
                last = error
                continue
            if not endpoint.mirror:
                return work(repository)
            try:
                return work(repository)
            except Cancelled:
                raise
            except errors.DeskdError as error:
                log.info("the mirror %s is passed over: %s", endpoint.host, error)
                last = error
    assert last is not None, "every registry has an endpoint"
    raise last


def _clearer(first: errors.DeskdError | None, second: errors.DeskdError) -> errors.DeskdError:
    """Return the error to show: of HTTPS and HTTP on one port, a certificate says more."""
    return first if first is not None and "certificate" in str(first) else second


def _open(
    registries: Registries,
    endpoint: Endpoint,
    reference: Reference,
    stack: ExitStack,
    *,
    writing: bool,
) -> Repository:
    transport = Transport(endpoint, registries.cancellation)
    stack.callback(transport.close)
    # What is secret between a person and a registry is none of a mirror's business.
    credentials = Credentials() if endpoint.mirror else registries.credentials
    authorizer = Authorizer(transport, credentials)
    return Repository(transport, authorizer, reference.path, writing=writing)
