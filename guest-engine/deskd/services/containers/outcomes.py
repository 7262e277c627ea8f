"""Small rules of a container's life: restart policies, codes of failed starts, log attributes."""

from __future__ import annotations

import re

from deskd.domain.container import RestartPolicy
from deskd.domain.state import ContainerRecord
from deskd.errors import InvalidArgument, StartFailed
from deskd.runtime.log_options import pattern

CANNOT_INVOKE, ENGINE_ERROR = 126, 128


def policy_restarts(policy: RestartPolicy, exit_code: int, restarts: int) -> bool:
    if policy.name in ("always", "unless-stopped"):
        return True
    if policy.name != "on-failure" or exit_code == 0:
        return False
    return policy.maximum_retry_count == 0 or restarts < policy.maximum_retry_count


def failed_start_code(error: Exception, otherwise: int = ENGINE_ERROR) -> int:
    """Return the exit code of a start that failed: the program's own fault has one."""
    return error.exit_code if isinstance(error, StartFailed) else otherwise


def log_extra(record: ContainerRecord, options: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return what the log options ``labels``, ``env``, their patterns and ``tag`` ask for.

    Raises ``InvalidArgument`` for a tag that cannot be written.
    """
    environment = dict(item.partition("=")[::2] for item in record.config.env or [])
    extra = {**_asked(record.labels, options, "labels"), **_asked(environment, options, "env")}
    if options.get("tag"):
        extra["tag"] = _tag(record, options["tag"])
    return tuple(extra.items())


def _asked(values: dict[str, str], options: dict[str, str], name: str) -> dict[str, str]:
    wanted = options.get(name, "").split(",")
    matching = pattern(options, f"{name}-regex")
    return {
        key: value
        for key, value in values.items()
        if key in wanted or (matching is not None and matching.search(key))
    }


def _tag(record: ContainerRecord, template: str) -> str:
    image_id = record.image_id.partition(":")[2]
    fields = {
        "ID": record.short_id,
        "FullID": record.id,
        "Name": record.name,
        "ImageID": image_id[:12],
        "ImageFullID": record.image_id,
        "ImageName": record.image_name,
        "DaemonName": "docker",
    }

    def value(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise InvalidArgument(
                f"the log tag {template!r} names {match[1] or 'nothing'}; it may name "
                f"{', '.join(f'{{{{.{name}}}}}' for name in fields)}"
            )
        return fields[match[1]]

    text = re.sub(r"\{\{\s*\.?(.*?)\s*\}\}", value, template)
    if "{{" in text:
        raise InvalidArgument(f"the log tag {template!r} has an unclosed action")
    return text
