"""``--device``, ``--gpus`` and the devices' limits, parsed into what the Engine API takes.

The forms are those of Docker's command line reference. Each function raises ``UsageError`` that
quotes the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from desk.cli.specs import JsonObject, fields
from desk.errors import UsageError
from desk.sizes import parse_size

_CDI_NAME = re.compile(r"[a-zA-Z0-9][\w.-]*/[a-zA-Z0-9][\w.-]*=[\w.:-]+")
"""A device by its name in the Container Device Interface: ``vendor.com/class=device``."""


def split_devices(items: Iterable[str]) -> tuple[list[JsonObject], list[str]]:
    """Part the CDI names among ``--device`` values, as a ``DeviceRequest``, from the paths."""
    names: list[str] = []
    paths: list[str] = []
    for item in items:
        (names if _CDI_NAME.fullmatch(item) else paths).append(item)
    return ([{"Driver": "cdi", "DeviceIDs": names}] if names else []), paths


def parse_device(text: str) -> JsonObject:
    """Parse ``/dev/x[:/dev/y][:rwm]``."""
    parts = text.split(":")
    permissions = "rwm"
    if len(parts) > 1 and re.fullmatch(r"[rwm]+", parts[-1]):
        permissions = parts.pop()
    if not 1 <= len(parts) <= 2 or not all(part.startswith("/") for part in parts):
        raise UsageError(
            f"invalid device {text!r}", hint="Write /dev/x, /dev/x:/dev/y or /dev/x:/dev/y:rwm."
        )
    return {
        "PathOnHost": parts[0],
        "PathInContainer": parts[-1],
        "CgroupPermissions": permissions,
    }


def parse_throttle(text: str, *, bytes_: bool) -> JsonObject:
    """Parse ``/dev/x:RATE``; bytes a second may have a unit."""
    path, separator, rate = text.rpartition(":")
    if not separator or not path.startswith("/dev/"):
        raise UsageError(f"invalid device rate {text!r}", hint="Write /dev/sda:10mb.")
    if not bytes_ and not rate.isdecimal():
        raise UsageError(f"invalid device rate {text!r}: {rate!r} is no whole number")
    return {"Path": path, "Rate": parse_size(rate, what="rate") if bytes_ else int(rate)}


def parse_weight(text: str) -> JsonObject:
    """Parse ``/dev/x:WEIGHT``."""
    path, separator, weight = text.rpartition(":")
    if not separator or not weight.isdecimal() or not path.startswith("/dev/"):
        raise UsageError(f"invalid device weight {text!r}", hint="Write /dev/sda:500.")
    return {"Path": path, "Weight": int(weight)}


def parse_gpus(text: str) -> JsonObject:
    """Parse ``all``, ``2`` or ``device=0,capabilities=…`` into a ``DeviceRequest``."""
    request: JsonObject = {"Driver": "", "Count": 0, "DeviceIDs": None, "Options": {}}
    capabilities = ["gpu"]
    counted = False
    for position, item in enumerate(fields(text)):
        key, separator, value = item.partition("=")
        if not separator:
            if position:
                raise UsageError(f"invalid field {item!r} in --gpus {text!r}: it has no value")
            key, value = "count", item
        if key == "count":
            request["Count"], counted = _gpu_count(value, text), True
        elif key == "driver":
            request["Driver"] = value
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            capabilities = [*value.split(","), "gpu"]
        elif key == "options":
            request["Options"] = dict(option.partition("=")[::2] for option in fields(value))
        else:
            raise UsageError(
                f"unknown field {key!r} in --gpus {text!r}",
                hint="Write --gpus all, --gpus 2 or --gpus device=0.",
            )
    if not counted and request["DeviceIDs"] is None:
        request["Count"] = 1
    return {**request, "Capabilities": [capabilities]}


def _gpu_count(value: str, whole: str) -> int:
    if value == "all":
        return -1
    try:
        return int(value)
    except ValueError:
        raise UsageError(
            f"invalid number of GPUs {value!r} in --gpus {whole!r}", hint="Write a number or all."
        ) from None
