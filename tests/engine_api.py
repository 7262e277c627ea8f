"""The Engine API v1.47 as data/engine_api_1_47.json tells it: operations, and the shapes of their
bodies and answers (data/extract_engine_api.py makes that file and says how shapes are written)."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_FACTS = Path(__file__).parent / "data" / "engine_api_1_47.json"
_KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "object": (dict,),
    "any": (object,),
}


class Operation(NamedTuple):
    """One operation; ``body`` and ``answer`` are None where there is no JSON."""

    name: str
    method: str
    path: str
    query: list[str]
    body: Any
    answer: Any


@functools.cache
def operations() -> dict[str, Operation]:
    """Return all operations on containers, execs and the engine by name."""
    found = [Operation(**facts) for facts in json.loads(_FACTS.read_text())]
    return {operation.name: operation for operation in found}


def differences(answer: Any, shape: Any, where: str) -> Iterator[str]:
    """Name what an answer lacks or has with another type. An empty list or map is none, and
    neither is null where Go has a nil list, map or pointer."""
    if isinstance(shape, str):
        # In Python True is an int, in JSON it is none.
        if not isinstance(answer, _KINDS[shape]) or (
            shape == "integer" and isinstance(answer, bool)
        ):
            yield f"{where} is {answer!r}"
    elif answer is None:
        return
    elif isinstance(answer, list) != isinstance(shape, list) or not isinstance(
        answer, (list, dict)
    ):
        yield f"{where} is {answer!r}"
    elif isinstance(shape, list):
        for item in answer:
            yield from differences(item, shape[0], f"{where}[]")
    elif isinstance(answer, dict) and "*" in shape:
        for item in answer.values():
            yield from differences(item, shape["*"], f"{where}.*")
    else:
        for name, inner in shape.items():
            if name in answer:
                yield from differences(answer[name], inner, f"{where}.{name}")
            else:
                yield f"{where}.{name} is missing"
