"""Records: the data classes of `leveret.records` behave as those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from leveret import records

if TYPE_CHECKING:
    from types import ModuleType


def make(module: ModuleType) -> tuple[Any, Any]:
    """The same two classes, made by one of the two modules."""

    @module.dataclass(frozen=True, slots=True)
    class Point:
        """A point."""

        x: int
        y: int = 2
        tags: list[str] = module.field(default_factory=list, hash=False)
        secret: str = module.field(default="s", repr=False, metadata={"unit": "m"})
        count: ClassVar[int] = 7

        def moved(self) -> int:
            return self.x + self.y

    @module.dataclass(frozen=True, slots=True, kw_only=True)
    class Named(Point):
        """A point with a name."""

        name: str = "n"

        def __post_init__(self) -> None:
            object.__setattr__(self, "name", self.name.upper())

    return Point, Named


OURS, THEIRS = make(records), make(dataclasses)
CALLS: dict[str, Any] = {
    "repr": lambda Point, Named: repr(Point(1)),
    "repr of a subclass": lambda Point, Named: repr(Named(1, 3, name="a")),
    "equality": lambda Point, Named: (
        Point(1) == Point(1, 2),
        Point(1) == Point(2),
        Point(1) == Named(1),
        Point(1) == 1,
    ),
    "hash": lambda Point, Named: hash(Point(1, tags=["a"])) == hash(Point(1, tags=["b"])),
    "method": lambda Point, Named: Point(1).moved(),
    "factory": lambda Point, Named: Point(1).tags is Point(1).tags,
    "names": lambda Point, Named: (Point.__match_args__, Named.__match_args__, Point.__slots__, Named.__slots__),
    "class": lambda Point, Named: (Point.__name__, Point.__qualname__, Point.__module__, Point.__doc__, Point.count),
    "fields": lambda Point, Named: [(it.name, it.type, it.repr, it.kw_only) for it in dataclasses.fields(Named)],
    "metadata": lambda Point, Named: dict(dataclasses.fields(Point(1))[3].metadata),
    "asdict": lambda Point, Named: dataclasses.asdict(Named(1, tags=["a"])),
    "astuple": lambda Point, Named: dataclasses.astuple(Point(1)),
    "replace": lambda Point, Named: repr(dataclasses.replace(Named(1), name="b")),
    "is_dataclass": lambda Point, Named: (dataclasses.is_dataclass(Point), dataclasses.is_dataclass(Point(1))),
    "signature": lambda Point, Named: str(inspect.signature(Named)),
    "deepcopy": lambda Point, Named: repr(copy.deepcopy(Named(1, tags=["a"]))),
    "state": lambda Point, Named: Point(1).__getstate__(),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_record_is_what_a_data_class_is(what: str) -> None:
    assert CALLS[what](*OURS) == CALLS[what](*THEIRS)


REFUSED: dict[str, Any] = {
    "a value that is missing": lambda Point, Named: Point(),
    "too many values": lambda Point, Named: Point(1, 2, [], "s", 5),
    "two values": lambda Point, Named: Point(1, x=1),
    "an unknown field": lambda Point, Named: Point(1, z=1),
    "a positional keyword": lambda Point, Named: Named(1, 2, [], "s", "name"),
    "assigning": lambda Point, Named: setattr(Point(1), "x", 2),
    "deleting": lambda Point, Named: delattr(Point(1), "x"),
    "replacing an unknown field": lambda Point, Named: dataclasses.replace(Point(1), z=1),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_record_refuses_what_a_data_class_refuses(what: str) -> None:
    kinds = []
    for classes in (OURS, THEIRS):
        with pytest.raises((TypeError, AttributeError)) as caught:
            REFUSED[what](*classes)
        kinds.append(caught.type)
    assert kinds[0] is kinds[1]


@records.dataclass(frozen=True, slots=True)
class Kept:
    """What can be pickled has to be found in its module."""

    value: int


def test_a_record_is_pickled() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(Kept(3), protocol)) == Kept(3)


def test_a_class_of_its_own_below_a_record_may_have_more() -> None:
    class Loose(Kept):
        pass

    loose: Any = Loose(1)
    loose.more = 2
    assert (loose.more, records.replace(loose, value=5).value) == (2, 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loose.value = 2
