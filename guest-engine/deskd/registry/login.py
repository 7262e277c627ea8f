"""``docker login``: asking a registry whether it knows somebody."""

from __future__ import annotations

from deskd.errors import DeskdError, InvalidArgument, Unauthorized, Unavailable
from deskd.registry.authorization import Authorizer, Credentials
from deskd.registry.cancellation import Cancellation
from deskd.registry.endpoints import Endpoint, Endpoints
from deskd.registry.failures import RegistryError, Unreachable
from deskd.registry.transport import Transport, finish


def log_in(endpoints: Endpoints, credentials: Credentials, cancellation: Cancellation) -> str:
    """Check credentials; return the registry's identity token, mostly empty. Blocks.

    Raises ``InvalidArgument``, ``Unauthorized`` (the registry says no) and ``Unavailable``.
    """
    if not credentials.identity_token and not (credentials.username and credentials.password):
        raise InvalidArgument("a login needs a username and a password")
    failure: DeskdError | None = None
    for endpoint in endpoints.of_login(credentials.server_address):
        try:
            return _log_in_at(endpoint, credentials, cancellation)
        except Unreachable as error:
            failure = Unavailable(str(error))
    assert failure is not None, "every registry has an endpoint"
    raise failure


def _log_in_at(endpoint: Endpoint, credentials: Credentials, cancellation: Cancellation) -> str:
    transport = Transport(endpoint, cancellation)
    try:
        authorizer = Authorizer(transport, credentials)
        answer = authorizer.send("GET", endpoint.base)
        finish(answer)
        if answer.status == 401:
            raise _refused(endpoint)
        if answer.status != 200:
            raise Unavailable(
                f"login attempt to {endpoint.base} failed with status: {answer.status}"
            )
        return authorizer.identity_token
    except RegistryError as error:
        if error.status == 401:
            raise _refused(endpoint) from error
        raise
    finally:
        transport.close()


def _refused(endpoint: Endpoint) -> Unauthorized:
    return Unauthorized(f'Get "{endpoint.base}": unauthorized: incorrect username or password')
