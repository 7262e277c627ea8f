"""The job ``netlink``: send ready-made rtnetlink requests inside a process's network namespace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deskd.errors import SystemFailure
from deskd.kernel import network_sysctls, rtnetlink_raw
from deskd.runtime.jobs.enter import enter_container


def run(arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Arguments: ``pid``, ``outside``, ``outside_pid_offsets``, ``inside`` (hexadecimal
    requests) and ``sysctls``, as ``deskd.runtime.plan.encode`` writes ``NetlinkMessages``."""
    pid = int(arguments["pid"])
    outside = [bytes.fromhex(text) for text in arguments.get("outside") or ()]
    offsets = arguments.get("outside_pid_offsets") or [None] * len(outside)
    try:
        rtnetlink_raw.send(
            [
                message if offset is None else rtnetlink_raw.patch_pid(message, offset, pid)
                for message, offset in zip(outside, offsets, strict=True)
            ]
        )
        enter_container(pid, ("net",))
        for name, value in arguments.get("sysctls") or ():
            network_sysctls.write(name, value)
        rtnetlink_raw.send([bytes.fromhex(text) for text in arguments.get("inside") or ()])
    except OSError as error:
        raise SystemFailure(f"the container's network cannot be changed: {error}") from error
