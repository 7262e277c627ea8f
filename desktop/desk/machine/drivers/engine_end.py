"""Ending what an engine runs, through its own API: what switching a machine off means where the
machine is no virtual one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from desk.engine.client import EngineClient
from desk.engine.transport import Transport
from desk.errors import EngineError

_CLEAN_UP_S = 60.0
_AT_ONCE = 16


def stop_containers(transport: Transport, *, grace_s: float) -> None:
    """Stop every running container, each with at most ``grace_s`` seconds, so that their restart
    policies hold for the engine's next start; raises ``EngineError``."""
    with EngineClient(transport, timeout_s=grace_s + _CLEAN_UP_S) as client:
        try:
            client.system.prepare_restart(policy_only=True, grace_s=int(grace_s))
        except EngineError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
        else:
            return
        # An engine of an older Desk.
        running = [str(container["Id"]) for container in client.containers.list()]

        def end(container_id: str) -> None:
            client.containers.stop(container_id, timeout_s=int(grace_s))

        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            list(pool.map(end, running))


def remove_everything(transport: Transport) -> None:
    """Remove every container and network, so that no process, mount or interface stays."""
    with EngineClient(transport, timeout_s=_CLEAN_UP_S) as client:
        for container in client.containers.list(all_=True):
            client.containers.remove(str(container["Id"]), force=True, volumes=True)
        client.networks.prune()
