"""Frozen data classes with slots that cost little to define: `dataclass`, `field`, `fields` and `replace`.

The standard library writes, compiles and runs the methods of each data class while its module is imported. For the
sixty classes that a program needs before it publishes its first message, that is more work than publishing it. The
classes here share their methods, and otherwise behave as those of `dataclasses`: `dataclasses.fields`, `asdict`,
`replace` and `is_dataclass` take them, and type checkers see the standard library's functions.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["dataclass", "field", "fields", "replace"]

_MISSING: Final[Any] = object()
_NONE: Final[Mapping[Any, Any]] = MappingProxyType({})


class _Field:
    """A field, with the names of `dataclasses.Field`."""

    name: str
    type: str
    kw_only: bool
    __slots__ = ("default", "default_factory", "hash", "kw_only", "metadata", "name", "repr", "type")

    def __init__(
        self,
        *,
        default: Any = _MISSING,
        default_factory: Any = _MISSING,
        repr: bool = True,  # noqa: A002 - the standard library's name
        hash: bool = True,  # noqa: A002
        metadata: Mapping[Any, Any] = _NONE,
    ) -> None:
        self.default = default
        self.default_factory = default_factory
        self.repr = repr
        self.hash = hash
        self.metadata = metadata


class _Record:
    """What is known of a data class.

    Attributes:
        cls: The class.
        fields: Its fields by name, those of its bases first.
        positional: The names of the fields that are not keyword-only.
    """

    __slots__ = ("cls", "fields", "positional", "standard")

    def __init__(self, cls: type, fields: dict[str, _Field]) -> None:
        self.cls = cls
        self.fields = fields
        self.positional = tuple(name for name, it in fields.items() if not it.kw_only)
        self.standard: type | None = None

    def twin(self) -> type:
        """Returns a data class of the standard library with the same fields, for its functions and for `inspect`."""
        if self.standard is None:
            import dataclasses

            def given(value: Any) -> Any:
                return dataclasses.MISSING if value is _MISSING else value

            def standard(it: _Field) -> Any:
                make: Any = dataclasses.field
                return make(
                    default=given(it.default),
                    default_factory=given(it.default_factory),
                    repr=it.repr,
                    hash=None if it.hash else False,
                    metadata=it.metadata,
                    kw_only=it.kw_only,
                )

            its_fields = [(name, it.type, standard(it)) for name, it in self.fields.items()]
            self.standard = dataclasses.make_dataclass(self.cls.__name__, its_fields, frozen=True)
        return self.standard


class _OfTwin:
    """An attribute that the standard library expects of a data class; it is made when something asks for it."""

    __slots__ = ("_get",)

    def __init__(self, get: Callable[[type], Any]) -> None:
        self._get = get

    def __get__(self, instance: object, owner: Any) -> Any:
        return self._get(owner.__record__.twin())


def _signature(twin: type) -> object:
    import inspect

    return inspect.signature(twin)


# ---------------------------------------------------------------------- the methods that the classes share


def _init(self: Any, /, *positional: Any, **named: Any) -> None:
    record: _Record = self.__record__
    if positional:
        if len(positional) > len(record.positional):
            raise TypeError(
                f"{record.cls.__name__} takes {len(record.positional)} positional arguments, not {len(positional)}"
            )
        for name, value in zip(record.positional, positional, strict=False):
            if name in named:
                raise TypeError(f"{record.cls.__name__} got two values for {name!r}")
            named[name] = value
    assign = object.__setattr__
    given = 0
    for name, it in record.fields.items():
        if name in named:
            given += 1
            assign(self, name, named[name])
        elif it.default is not _MISSING:
            assign(self, name, it.default)
        elif it.default_factory is not _MISSING:
            assign(self, name, it.default_factory())
        else:
            raise TypeError(f"{record.cls.__name__} needs a value for {name!r}")
    if given != len(named):
        name = min(named.keys() - record.fields.keys())
        raise TypeError(f"{record.cls.__name__} has no field {name!r}")
    if hasattr(self, "__post_init__"):
        self.__post_init__()


def _values(self: Any) -> list[Any]:
    return [getattr(self, name) for name in self.__record__.fields]


def _set_values(self: Any, values: list[Any]) -> None:
    for name, value in zip(self.__record__.fields, values, strict=True):
        object.__setattr__(self, name, value)


def _repr(self: Any) -> str:
    shown = (f"{name}={getattr(self, name)!r}" for name, it in self.__record__.fields.items() if it.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: Any) -> bool:
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(tuple(getattr(self, name) for name, it in self.__record__.fields.items() if it.hash))


def _refuse(self: Any, name: str, verb: str) -> None:
    record: _Record = self.__record__
    if type(self) is record.cls or name in record.fields:
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot {verb} field {name!r}")


def _setattr(self: Any, name: str, value: Any) -> None:
    _refuse(self, name, "assign to")
    object.__setattr__(self, name, value)


def _delattr(self: Any, name: str) -> None:
    _refuse(self, name, "delete")
    object.__delattr__(self, name)


def _replace(self: Any, /, **changes: Any) -> Any:
    return self.__class__(**{name: getattr(self, name) for name in self.__record__.fields} | changes)


#: What each class has of its own, so that no method of a base that is written by hand comes before.
_METHODS: Final = {
    "__init__": _init,
    "__setattr__": _setattr,
    "__delattr__": _delattr,
    "__getstate__": _values,
    "__setstate__": _set_values,
    "__replace__": _replace,
    "__dataclass_fields__": _OfTwin(lambda twin: twin.__dataclass_fields__),  # type: ignore[attr-defined]
    "__dataclass_params__": _OfTwin(lambda twin: twin.__dataclass_params__),  # type: ignore[attr-defined]
    "__signature__": _OfTwin(_signature),
}


def _dataclass(
    *,
    frozen: bool,
    slots: bool,
    kw_only: bool = False,
    repr: bool = True,  # noqa: A002 - the standard library's names
    eq: bool = True,
) -> Callable[[type], type]:
    """As `dataclasses.dataclass`; classes are always frozen, and their fields are in slots."""
    assert frozen
    assert slots

    def make(cls: type) -> type:
        inherited: dict[str, _Field] = {}
        for base in cls.__mro__[-1:0:-1]:
            record = vars(base).get("__record__")
            if record is not None:
                inherited |= record.fields
        own: dict[str, _Field] = {}
        members = dict(vars(cls))
        for name, its_type in cls.__annotations__.items():
            if its_type.startswith("ClassVar"):
                continue
            default = members.pop(name, _MISSING)
            it = default if isinstance(default, _Field) else _Field(default=default)
            it.name, it.type, it.kw_only = name, its_type, kw_only
            own[name] = it
        fields = inherited | own
        for name in ("__dict__", "__weakref__"):
            members.pop(name, None)
        members["__slots__"] = tuple(name for name in own if name not in inherited)
        members["__match_args__"] = tuple(name for name, it in fields.items() if not it.kw_only)
        members.update(_METHODS)
        if repr:
            members.setdefault("__repr__", _repr)
        if eq:
            if "__eq__" not in members:
                members["__eq__"] = _eq
                members.setdefault("__hash__", _hash)
            elif members.get("__hash__") is None:
                members["__hash__"] = _hash
        # A class gets its slots when it is made.
        made = type(cls)(cls.__name__, cls.__bases__, members)
        made.__qualname__ = cls.__qualname__
        made.__record__ = _Record(made, fields)  # type: ignore[attr-defined]
        return made

    return make


def _fields(record: Any) -> tuple[_Field, ...]:
    """Returns the fields of a data class of this module or of its instance, as `dataclasses.fields`."""
    return tuple(record.__record__.fields.values())


if TYPE_CHECKING:
    from dataclasses import dataclass, field, fields, replace
else:
    dataclass, field, fields, replace = _dataclass, _Field, _fields, _replace
