"""Every operation on containers, execs and the engine has a handler that reads what the Engine
API v1.47 lets a client send."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.engine_api import Operation, operations

from deskd.api.routes import ROUTES
from deskd.api.routes import containers as container_routes
from deskd.api.routes import exec as exec_routes
from deskd.api.routing import Router
from deskd.domain.container import ContainerConfig, HostConfig
from deskd.registry.authorization import Credentials
from deskd.services.exec import ExecConfig

_READERS = {"text", "texts", "path", "flag", "integer"}
NOT_READ = {
    # dockerd passes it over, too: the keys of an attached client are those of its attach.
    ("ContainerStart", "detachKeys"),
}
NOT_KNOWN = {
    # Linux has dropped the limit (5.16), and dockerd ignores it with cgroup v2.
    "HostConfig.KernelMemoryTCP",
    "KernelMemoryTCP",
    # No registry asks for it any more, and dockerd passes it over.
    "email",
}
BODIES: dict[str, tuple[Any, ...]] = {
    "ContainerCreate": (ContainerConfig, container_routes._CreateBody),
    "ContainerUpdate": (HostConfig,),
    "ContainerExec": (ExecConfig,),
    "ExecStart": (exec_routes._StartBody,),
    "SystemAuth": (Credentials,),
}


def handler(operation: Operation) -> Any:
    path = operation.path.replace("{id}", "0123")
    return Router(ROUTES).find(operation.method, path, (1, 47))[0]


def query_names(function: Any) -> set[str]:
    """Return the parameters that a handler reads, itself or in a function of the routes."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = function.__globals__.get(node.func.id)
            if inspect.isfunction(called) and called.__module__.startswith("deskd.api.routes"):
                found |= query_names(called)
        elif isinstance(node, ast.DictComp):  # {name: query.flag(name) for name in NAMES}
            names = node.generators[0].iter
            if isinstance(names, ast.Name):
                found |= set(function.__globals__[names.id])
            else:
                found |= set(ast.literal_eval(names))
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _READERS
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value))
    return found


@pytest.mark.parametrize("operation", operations().values(), ids=operations())
def test_parameters_are_read(operation: Operation) -> None:
    not_read = set(operation.query) - query_names(handler(operation))
    assert not_read == {name for key, name in NOT_READ if key == operation.name}


def structures(kind: Any) -> Iterator[msgspec.inspect.StructType]:
    """Yield the structures that a value of this type may be, have in its list or its map."""
    if isinstance(kind, msgspec.inspect.StructType):
        yield kind
    elif isinstance(kind, msgspec.inspect.UnionType):
        for part in kind.types:
            yield from structures(part)
    elif isinstance(kind, msgspec.inspect.ListType):
        yield from structures(kind.item_type)
    elif isinstance(kind, msgspec.inspect.DictType):
        yield from structures(kind.value_type)


def unknown(shape: Any, kinds: list[msgspec.inspect.StructType], where: str) -> Iterator[str]:
    """Name the fields of a shape that none of the structures has."""
    if isinstance(shape, list):
        yield from unknown(shape[0], kinds, where)
    elif isinstance(shape, dict) and "*" in shape:
        yield from unknown(shape["*"], kinds, where)
    elif isinstance(shape, dict):
        fields = {field.encode_name: field.type for kind in kinds for field in kind.fields}
        for name, inner in shape.items():
            place = f"{where}.{name}".removeprefix(".")
            if name in fields:
                yield from unknown(inner, list(structures(fields[name])), place)
            else:
                yield place


def test_bodies_are_read_to_their_last_field() -> None:
    with_body = {key for key, value in operations().items() if isinstance(value.body, dict)}
    assert with_body == set(BODIES)
    found = {
        place
        for name, kinds in BODIES.items()
        for place in unknown(
            operations()[name].body,
            [kind for item in kinds for kind in structures(msgspec.inspect.type_info(item))],
            "",
        )
    }
    assert found == NOT_KNOWN
