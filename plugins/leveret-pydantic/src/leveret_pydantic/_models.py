"""Which models are pydantic's."""

from __future__ import annotations

import collections
import collections.abc
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel
from pydantic.dataclasses import is_pydantic_dataclass
from typing_inspection import typing_objects
from typing_inspection.introspection import is_union_origin

__all__ = ["is_pydantic_model"]

#: What can hold models in JSON. Other generic classes are somebody else's, and iterators are validated too late.
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
    """Tells whether something is a pydantic model, or a type that holds one.

    Args:
        model: Anything.

    Returns:
        True for subclasses of `BaseModel` (`RootModel` is one), pydantic dataclasses, and containers, unions,
        `Annotated`, `NewType` and type aliases with one of them in it. False for everything else, whatever it is.
    """
    try:
        return _holds_model(model)
    except Exception:
        # Consumers are given all kinds of objects. What cannot even be looked at is not ours.
        return False


def _holds_model(model: Any) -> bool:
    waiting = [model]
    aliases: list[Any] = []  # Those that were followed: an alias may hold itself.
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
            return True  # A generic one with its arguments; generic BaseModels are classes again.
    return False
