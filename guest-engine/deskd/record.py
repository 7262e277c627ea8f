"""Small typed values, as dataclasses are, without what those cost at start-up.

``dataclasses`` writes and compiles five methods for each class while a module is imported, and
brings the module ``inspect``. For the engine's eighty value classes that was half of its start.
Here a class costs next to nothing until its first instance is made; then its ``__init__`` is
written, with the same signature and speed.

    class Point(Record):                    # immutable, comparable, hashable
    class Counter(Record, frozen=False):    # its fields can be set; not hashable
    class Options(Record, kw_only=True):
"""

from __future__ import annotations

from collections.abc import Callable

# Type checkers take this name for true. What is loaded before the engine's first answer does
# without the module typing, which would be a tenth of it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_options):
        return lambda made: made


_REQUIRED = object()


class _Factory:
    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], T]) -> T:
    """Give each instance a default of its own, made by ``default_factory``."""
    return _Factory(default_factory)  # type: ignore[return-value]  # the class's body reads it


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class _RecordType(type):
    """Makes fields of a class's annotations: slots, with the values in its body as defaults."""

    _fields: dict[str, Any]

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        frozen: bool = True,
        kw_only: bool = False,
    ) -> _RecordType:
        own = namespace.get("__annotations__", {})
        defaults = {key: namespace.pop(key, _REQUIRED) for key in own}
        namespace["__slots__"] = tuple(own)
        namespace["__init__"] = _first_init
        if not frozen:
            namespace["__setattr__"] = object.__setattr__
            namespace["__delattr__"] = object.__delattr__
            namespace["__hash__"] = None
        made = super().__new__(mcs, name, bases, namespace)
        fields: dict[str, Any] = {}
        for base in reversed(made.__mro__[1:]):
            fields |= getattr(base, "_fields", {})
        made._fields = fields | defaults
        made._kw_only = kw_only
        return made

    _kw_only: bool


def finish(base: type[Record]) -> None:
    """Write the ``__init__`` of every record class loaded so far, below ``base``. A process that
    forks does this before, or each of its children would."""
    for cls in base.__subclasses__():
        if cls.__init__ is _first_init:
            cls.__init__ = _make_init(cls)  # type: ignore[method-assign]
        finish(cls)


def _first_init(self: Record, *args: Any, **kwargs: Any) -> None:
    cls = type(self)
    cls.__init__ = _make_init(cls)  # type: ignore[method-assign]
    cls.__init__(self, *args, **kwargs)


class Record(metaclass=_RecordType):
    """A value whose class is its annotated fields; see the module's text."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} cannot be changed: {name}")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash(_values(self))

    def __repr__(self) -> str:
        parts = (f"{name}={getattr(self, name)!r}" for name in type(self)._fields)
        return f"{type(self).__qualname__}({', '.join(parts)})"


def _values(record: Any) -> tuple[Any, ...]:
    return tuple([getattr(record, name) for name in type(record)._fields])


def as_dict(record: Record) -> dict[str, Any]:
    """Return the fields by name; values are not copied."""
    return {name: getattr(record, name) for name in type(record)._fields}


def replace(record: T, **changes: Any) -> T:
    """Return a copy of a record with some fields changed; ``TypeError`` for an unknown one."""
    return type(record)(**{**as_dict(record), **changes})  # type: ignore[arg-type]


def _make_init(cls: _RecordType) -> Any:
    """Write ``__init__``: it fills the slots by their descriptors, which works for frozen ones."""
    scope: dict[str, Any] = {"_missing": _REQUIRED}
    required, optional, body = [], [], []
    for name, default in cls._fields.items():
        scope[f"_set_{name}"] = getattr(cls, name).__set__
        value = name
        if default is _REQUIRED:
            required.append(name)
        elif isinstance(default, _Factory):
            scope[f"_make_{name}"] = default.make
            optional.append(f"{name}=_missing")
            value = f"_make_{name}() if {name} is _missing else {name}"
        else:
            scope[f"_default_{name}"] = default
            optional.append(f"{name}=_default_{name}")
        body.append(f"    _set_{name}(self, {value})\n")
    star = ["*"] if cls._kw_only and cls._fields else []
    head = ", ".join(["self", *star, *required, *optional])
    source = f"def __init__({head}):\n{''.join(body) or '    pass'}"
    exec(source, scope)
    return scope["__init__"]
