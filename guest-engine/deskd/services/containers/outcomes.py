"""Small rules of a container's life: restart policies, codes of failed starts, log attributes."""

from __future__ import annotations

from deskd.domain.container import RestartPolicy
from deskd.domain.state import ContainerRecord

CANNOT_INVOKE, NOT_FOUND, ENGINE_ERROR = 126, 127, 128


def policy_restarts(policy: RestartPolicy, exit_code: int, restarts: int) -> bool:
    if policy.name in ("always", "unless-stopped"):
        return True
    if policy.name != "on-failure" or exit_code == 0:
        return False
    return policy.maximum_retry_count == 0 or restarts < policy.maximum_retry_count


def failed_start_code(text: str) -> int:
    """As the docker CLI decides: 127 not found, 126 cannot be invoked, else the engine's fault."""
    lowered = text.lower()
    if "executable file not found" in lowered or "no such file or directory" in lowered:
        return NOT_FOUND
    if "permission denied" in lowered or "is a directory" in lowered:
        return CANNOT_INVOKE
    return ENGINE_ERROR


def log_extra(record: ContainerRecord, options: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return the labels and variables that the log options ``labels`` and ``env`` ask for."""
    extra = {
        key: record.labels[key]
        for key in options.get("labels", "").split(",")
        if key in record.labels
    }
    environment = dict(item.partition("=")[::2] for item in record.config.env or [])
    for key in options.get("env", "").split(","):
        if key in environment:
            extra[key] = environment[key]
    return tuple(extra.items())
