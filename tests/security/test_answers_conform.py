"""Answers that the API's definitions tell little of have the fields that clients read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine_process import Api

pytestmark = pytest.mark.root

Shape = dict[str, Any]
LIST, MAP, NULL = list, dict, type(None)

STATS: Shape = {
    "read": str, "preread": str, "name": str, "id": str, "num_procs": int, "pids_stats": MAP,
    "blkio_stats": MAP, "storage_stats": MAP, "memory_stats": {"usage": int, "limit": int},
    "cpu_stats": {"cpu_usage": {"total_usage": int}, "online_cpus": int, "throttling_data": MAP},
    "networks": {"eth0": {"rx_bytes": int, "tx_bytes": int}},
}  # fmt: skip
NETWORK: Shape = {
    "Name": str, "Id": str, "Created": str, "Scope": str, "Driver": str, "EnableIPv6": bool,
    "IPAM": {"Driver": str, "Config": LIST}, "Internal": bool, "Attachable": bool,
    "Ingress": bool, "Containers": MAP, "Options": (MAP, NULL), "Labels": (MAP, NULL),
}  # fmt: skip


def problems(answer: Any, shape: Any, where: str = "") -> list[str]:
    """Name what an answer lacks or has with another type."""
    if isinstance(shape, dict):
        if not isinstance(answer, dict):
            return [f"{where} is no object: {answer!r}"]
        found = [f"{where}.{name} is missing" for name in shape if name not in answer]
        for name, inner in shape.items():
            if name in answer:
                found += problems(answer[name], inner, f"{where}.{name}")
        return found
    kinds = shape if isinstance(shape, tuple) else (shape,)
    # In Python True is an int, in JSON it is none.
    fits = isinstance(answer, kinds) and (bool in kinds or not isinstance(answer, bool))
    return [] if fits else [f"{where} is {answer!r}"]


def test_answers_have_the_fields_that_clients_read(api: Api) -> None:
    container = api.run("sleep", "60", name="conforming")
    pairs = [
        (api.get(f"/containers/{container}/stats", stream=False, **{"one-shot": True}), STATS),
        (api.get("/networks/bridge"), NETWORK),
        (api.get("/volumes"), {"Volumes": LIST, "Warnings": (LIST, NULL)}),
    ]
    found = [problem for answer, shape in pairs for problem in problems(answer, shape)]
    assert found == []
