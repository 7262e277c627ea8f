"""The engine's value classes: what dataclasses promise, at less cost."""

from __future__ import annotations

from typing import Any

import pytest

from deskd.record import Record, as_dict, field, replace


class Point(Record):
    x: int
    y: int = 2
    tags: dict[str, str] = field(default_factory=dict)


class Named(Point):
    name: str = ""


class Counter(Record, frozen=False):
    count: int = 0


class Options(Record, kw_only=True):
    first: int = 1
    second: int


class Empty(Record):
    """Has no fields."""


def test_fields_come_by_position_by_name_and_by_default() -> None:
    point = Point(1, tags={"a": "b"})
    assert (point.x, point.y, point.tags) == (1, 2, {"a": "b"})
    assert repr(point) == "Point(x=1, y=2, tags={'a': 'b'})"
    assert Options(second=4).first == 1
    assert Named(1, 2, {}, "n") == Named(x=1, tags={}, name="n")
    assert Empty() == Empty()


def test_each_instance_gets_a_default_of_its_own() -> None:
    assert Point(1).tags is not Point(1).tags


def test_wrong_arguments_are_type_errors() -> None:
    wrong: tuple[dict[str, Any], ...] = ({}, {"x": 1, "z": 2})
    for arguments in wrong:
        with pytest.raises(TypeError):
            Point(**arguments)
    with pytest.raises(TypeError):
        Options(1, 2)  # type: ignore[call-arg]


def test_a_record_cannot_be_changed_unless_it_says_so() -> None:
    with pytest.raises(AttributeError):
        Point(1).x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del Point(1).x
    counter = Counter()
    counter.count += 1
    assert counter.count == 1
    with pytest.raises(AttributeError):
        counter.other = 1


def test_equality_is_by_class_and_value_and_hashes_follow() -> None:
    assert Counter(1) == Counter(1) != Counter(2)
    assert Point(1, 2, {}) != Named(1, 2, {})
    assert hash(Empty()) == hash(Empty())
    with pytest.raises(TypeError):
        hash(Counter())


def test_a_copy_with_changes_leaves_the_original() -> None:
    point = Point(1)
    assert as_dict(replace(point, y=5)) == {"x": 1, "y": 5, "tags": {}}
    assert point.y == 2
    with pytest.raises(TypeError):
        replace(point, z=1)
