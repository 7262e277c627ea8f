"""docs/desk-api.json, which describes Desk's own part of the API, says what the engine does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deskd.api.routes import ROUTES
from deskd.api.routes.bin import BinEntries
from deskd.api.routes.publishing import FolderAnswerBody, PortAnswer
from deskd.domain import fault
from deskd.services.containers.machine_restart import RestartRequest
from deskd.services.containers.power import LEASE_S, LEAST_NANO_CPUS, PowerReport, Source

FILE = Path(__file__).parents[2] / "docs" / "desk-api.json"
API: dict[str, Any] = json.loads(FILE.read_text())
OPERATIONS = {
    (method.upper(), path): {"parameters": [], **operation}
    | {"parameters": [*item.get("parameters", ()), *operation.get("parameters", ())]}
    for path, item in API["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
}
SCHEMAS: dict[str, Any] = API["components"]["schemas"]


def test_it_has_every_route_of_desks_and_no_other() -> None:
    routes = {(route.method, route.path) for route in ROUTES if route.path.startswith("/desk/")}
    assert set(OPERATIONS) == routes


def test_handlers_are_named_as_in_the_file() -> None:
    """Those of faults carry the operation's name; all take what the path says."""
    for (method, path), operation in OPERATIONS.items():
        in_path = {item["name"] for item in operation["parameters"] if item["in"] == "path"}
        assert in_path == set(re.findall(r"{(\w+)}", path))
        (route,) = (route for route in ROUTES if (route.method, route.path) == (method, path))
        if path.startswith("/desk/faults"):
            module, _, name = route.handler.partition(":")
            handler = getattr(import_module(f"deskd.api.routes.{module}"), name)
            assert handler.__doc__ == f"``{operation['operationId']}``"


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("FaultRequest", fault.FaultRequest),
        ("Fault", fault.Fault),
        ("LinkFault", fault.LinkFault),
        ("DnsFault", fault.DnsFault),
        ("PortAnswer", PortAnswer),
        ("FolderAnswer", FolderAnswerBody),
        ("RestartRequest", RestartRequest),
        ("BinEntries", BinEntries),
        ("PowerReport", PowerReport),
    ],
)
def test_its_structures_are_the_engines(name: str, structure: type[msgspec.Struct]) -> None:
    described, fields = SCHEMAS[name]["properties"], msgspec.structs.fields(structure)
    assert set(described) == {field.encode_name for field in fields}
    kinds = {
        field["name"]: _plain(field, components)
        for (schema,), components in [msgspec.json.schema_components([structure])]
        for field in [
            {"name": key, **value}
            for key, value in components[schema["$ref"].rpartition("/")[2]]["properties"].items()
        ]
    }
    assert {key: _plain(value, SCHEMAS) for key, value in described.items()} == kinds


def _plain(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Return the JSON type of a field; what may also be null has the type that it else has."""
    for choice in schema.get("anyOf", ()):
        if choice.get("type") != "null":
            return _plain(choice, definitions)
    for part in schema.get("allOf", ()):
        return _plain(part, definitions)
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if schema["type"] == "array":
        return f"[{_plain(schema['items'], definitions)}]"
    kind: str = schema["type"]
    return kind


def test_answers_that_can_be_given_are_its_enumerations() -> None:
    assert SCHEMAS["DnsFault"]["properties"]["Answer"]["enum"] == list(fault.DNS_ANSWERS)
    longest = {
        schema["maximum"]
        for name, schema in SCHEMAS["LinkFault"]["properties"].items()
        if name.endswith("Ms")
    }
    assert longest == {fault.LONGEST_LATENCY_MS}
    report = SCHEMAS["PowerReport"]["properties"]
    assert report["Source"]["enum"] == list(Source)
    assert str(LEAST_NANO_CPUS) in report["NanoCpus"]["description"]
    assert f"{LEASE_S:.0f} s" in OPERATIONS["POST", "/desk/power"]["description"]


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"].rpartition("/")[2]
        for inner in part.values():
            yield from _references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _references(inner)


def test_every_structure_is_there_and_used() -> None:
    assert set(_references(API)) == set(SCHEMAS)
