"""Matching of JSON keys without case, as Go's decoder does it for hand-written requests."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec

# The names of the API's fields begin with a capital letter. What begins with a small one is a
# key of somebody's map (a label), or a field whose writer relies on Go's leniency.
_SMALL_KEY = re.compile(rb'"[a-z][A-Za-z0-9]*"\s*:')


def may_differ(body: bytes) -> bool:
    """Say whether a body may name fields in another case; much cheaper than finding out."""
    return _SMALL_KEY.search(body) is not None


def with_field_names(value: Any, kind: Any) -> Any:
    """Return decoded JSON with the keys that ``kind`` spells; an exact match wins."""
    return _renamed(value, _type_info(kind))


@lru_cache(maxsize=64)
def _type_info(kind: Any) -> Any:
    from msgspec import inspect

    return inspect.type_info(kind)


def _renamed(value: Any, info: Any) -> Any:
    from msgspec import inspect

    if isinstance(info, inspect.UnionType):
        wanted = inspect.ListType if isinstance(value, list) else inspect.StructType
        members = [t for t in info.types if isinstance(t, wanted | inspect.DictType)]
        return _renamed(value, members[0]) if members else value
    if isinstance(info, inspect.StructType) and isinstance(value, dict):
        return _with_names(value, info)
    if isinstance(info, inspect.DictType) and isinstance(value, dict):
        return {key: _renamed(item, info.value_type) for key, item in value.items()}
    if isinstance(info, inspect.ListType) and isinstance(value, list):
        return [_renamed(item, info.item_type) for item in value]
    return value


def _with_names(value: dict[str, Any], info: msgspec.inspect.StructType) -> dict[str, Any]:
    exact = {field.encode_name: field.type for field in info.fields}
    folded = {name.lower(): name for name in exact}
    renamed: dict[str, Any] = {}
    for key, item in value.items():
        name = key if key in exact else folded.get(key.lower(), key)
        if name != key and name in value:
            continue
        renamed[name] = _renamed(item, exact[name]) if name in exact else item
    return renamed
