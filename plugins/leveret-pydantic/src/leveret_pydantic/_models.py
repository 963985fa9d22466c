"""Tells pydantic's models from other types."""

from __future__ import annotations

import collections
import collections.abc
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel
from pydantic.dataclasses import is_pydantic_dataclass
from typing_inspection import typing_objects
from typing_inspection.introspection import is_union_origin

__all__ = ["is_pydantic_model"]

#: Containers of models in JSON. Other generic classes are unknown, and iterators are validated lazily.
_CONTAINERS: Final = frozenset(
    {
        list,
        tuple,
        set,
        frozenset,
        dict,
        collections.deque,
        collections.defaultdict,
        collections.OrderedDict,
        collections.abc.Collection,
        collections.abc.Sequence,
        collections.abc.MutableSequence,
        collections.abc.Set,
        collections.abc.MutableSet,
        collections.abc.Mapping,
        collections.abc.MutableMapping,
    }
)


def is_pydantic_model(model: object) -> bool:
    """Returns whether an object is a pydantic model, or a type that contains one.

    Args:
        model: Any object.

    Returns:
        True for subclasses of `BaseModel` (`RootModel` is one), pydantic dataclasses, and containers, unions,
        `Annotated`, `NewType` and type aliases that contain one of them; otherwise False.
    """
    try:
        return _holds_model(model)
    except Exception:
        # A consumer's model may be any object, also one whose attributes raise.
        return False


def _holds_model(model: Any) -> bool:
    waiting = [model]
    aliases: list[Any] = []  # the visited ones, because an alias may contain itself
    while waiting:
        each = waiting.pop()
        if isinstance(each, type):
            if issubclass(each, BaseModel) or is_pydantic_dataclass(each):
                return True
            continue
        origin = get_origin(each)
        if is_union_origin(origin) or origin in _CONTAINERS:
            waiting.extend(get_args(each))
        elif typing_objects.is_annotated(origin):
            waiting.append(get_args(each)[0])
        elif typing_objects.is_newtype(each):
            waiting.append(each.__supertype__)
        elif typing_objects.is_typealiastype(origin):
            waiting += [origin, *get_args(each)]
        elif typing_objects.is_typealiastype(each) and not any(each is alias for alias in aliases):
            aliases.append(each)
            waiting.append(each.__value__)
        elif isinstance(origin, type) and is_pydantic_dataclass(origin):
            return True  # a generic dataclass with arguments; a generic BaseModel with arguments is a class
    return False
