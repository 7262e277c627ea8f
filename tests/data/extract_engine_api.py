"""Extract the facts that tests need from the Engine API's OpenAPI file (needs PyYAML).

    python tests/data/extract_engine_api.py v1.47.yaml > tests/data/engine_api_1_47.json

The file is published at https://docs.docker.com/reference/api/engine/version/v1.47.yaml. Of each
operation on containers, execs and the engine this keeps method, path, query parameters, and the
shape of its body and of its answer: an object is a map of its fields, an array a list of one
shape, a map by free names has the one key ``*``, and everything else is the name of its type.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

TAGS = {"Container", "Exec", "System"}


def shape(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """Return the shape of a schema, with references and unions of objects resolved."""
    if "$ref" in schema:
        return shape(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    fields: dict[str, Any] = {}
    for part in schema.get("allOf", ()):
        found = shape(part, definitions)
        if isinstance(found, dict):
            fields.update(found)
        else:
            return found  # a scalar with a description of its own
    for name, inner in schema.get("properties", {}).items():
        fields[name] = shape(inner, definitions)
    if fields:
        return dict(sorted(fields.items()))
    if schema.get("type") == "array":
        return [shape(schema.get("items", {}), definitions)]
    free = schema.get("additionalProperties")
    if isinstance(free, dict):
        return {"*": shape(free, definitions)}
    return schema.get("type", "any")


def operation(method: str, path: str, facts: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """Return what the tests need of one operation."""
    parameters = facts.get("parameters", ())
    body = next((item["schema"] for item in parameters if item["in"] == "body"), None)
    answers = [
        answer["schema"]
        for status, answer in facts["responses"].items()
        if 200 <= int(status) < 300 and "schema" in answer
    ]
    return {
        "name": facts["operationId"],
        "method": method.upper(),
        "path": path,
        "query": sorted(item["name"] for item in parameters if item["in"] == "query"),
        "body": shape(body, definitions) if body else None,
        "answer": shape(answers[0], definitions) if answers else None,
    }


def main() -> None:
    """Print the facts of the file that is named on the command line."""
    document = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    found = [
        operation(method, path, facts, document["definitions"])
        for path, methods in document["paths"].items()
        for method, facts in methods.items()
        if TAGS & set(facts.get("tags", ()))
    ]
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
