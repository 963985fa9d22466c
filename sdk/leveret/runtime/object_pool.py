"""Objects that are costly to make and can be used again: a pool for the processors of handlers."""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from leveret.errors import ConfigurationError
from leveret.settings.functions import plain_function

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Loan", "ObjectPool"]

logger = logging.getLogger("leveret.runtime")

T = TypeVar("T")


class ObjectPool(Generic[T]):
    """Lends objects, and keeps up to `size` of those that come back for the next borrower.

    It never waits: when none is at hand it makes one, so there may be more than `size` at once, and those that are too
    many are dropped when they come back. The object that came back last is lent first. Handlers on an event loop and
    threads may share a pool; `create` and `reset` are called in the thread that borrows or gives back.

    Args:
        create: Makes an object, a new one with each call. What it raises goes to the borrower.
        reset: Called with each object that comes back, also after an error, so that nothing of its last use is left.
            When it raises or returns False, the object is dropped. None keeps objects as they are.
        size: The most objects that lie idle, at least 1; None is twice the number of CPUs.

    Raises:
        ConfigurationError: `size` is out of range, or `create` or `reset` cannot be called, or is a coroutine function.

    Attributes:
        size: The most objects that lie idle.

    Example:
        >>> pool = ObjectPool(create=list, reset=list.clear, size=2)
        >>> with pool.lend() as lines:
        ...     lines.append("an order line")
        >>> with pool.lend() as lines:
        ...     lines
        []
        >>> pool.counters()["created"]
        1
    """

    def __init__(
        self, create: Callable[[], T], reset: Callable[[T], object] | None = None, size: int | None = None
    ) -> None:
        plain_function("create", create, "when no object is idle")
        if reset is not None:
            plain_function("reset", reset, "when an object comes back")
        if size is None:
            size = 2 * (os.cpu_count() or 1)
        candidate: object = size
        if not isinstance(candidate, int) or isinstance(candidate, bool):
            raise ConfigurationError(f"size is a whole number, not a {type(candidate).__name__}", option="size")
        if size < 1:
            raise ConfigurationError(f"size is {size}; it must be 1 or more", option="size")
        self.size = size
        self._create = create
        self._reset = reset
        # There is no lock, which a signal handler or a finalizer could meet in its own thread. Single operations of
        # deque, dict and set are atomic. Taking an idle object frees a place, and an object that
        # comes back to no free place is dropped, so there are never more idle than `size`.
        self._idle: deque[T] = deque()
        self._places: deque[None] = deque([None] * size)
        # All that is lent, by id: held, so that no other object can have that id. What `take` lent is in `_taken` too.
        self._lent: dict[int, T] = {}
        self._taken: set[int] = set()
        # With the GIL `+=` of a number is not interrupted (threads change at calls and loops). Without it a count may
        # be lost, and nothing else.
        self._created = 0
        self._reused = 0
        self._dropped_full = 0
        self._dropped_reset = 0
        self._reported = False

    def __repr__(self) -> str:
        return f"<ObjectPool size={self.size} idle={len(self._idle)} lent={len(self._lent)}>"

    def lend(self) -> Loan[T]:
        """Lends an object until the end of a `with` block, which gives it back whatever happens in it.

        Returns:
            Something to use with `with`, once at a time; it gives the object. `with` is right in `async def`, too.

        Raises:
            ConfigurationError: On entering: see `take`.
        """
        return Loan(self)

    def take(self) -> T:
        """Lends an object until `give_back`; `lend` is safer.

        The pool holds what is lent. An object that is never given back lives as long as the pool.

        Returns:
            An idle object, or a new one.

        Raises:
            ConfigurationError: `create` returned an object that is lent already.
        """
        value = self._next()
        self._taken.add(id(value))
        return value

    def give_back(self, value: T) -> None:
        """Takes back what `take` lent, resets it and keeps it if there is room.

        What `reset` raises stays here: the object is dropped and counted, and the log says so once, without contents.

        Args:
            value: The object. It is not to be used after that.

        Raises:
            ConfigurationError: The object is not lent by `take`: it was given back before, is not of this pool, or is
                that of a `with` block. A second time goes unnoticed when the object was lent again meanwhile.
        """
        try:
            self._taken.remove(id(value))
        except KeyError:
            raise ConfigurationError(
                f"the {type(value).__name__} is not taken from this pool; was it given back already?", option="value"
            ) from None
        self._accept(value)

    def counters(self) -> dict[str, int]:
        """Returns counts of what happened, and of objects now; any thread may call it.

        Returns:
            `created` and `reused`: objects lent for the first time and again. `lent` and `idle`: where objects are now.
            `dropped_full` and `dropped_reset`: objects given up because enough were idle, or because `reset` failed.
        """
        return {
            "created": self._created,
            "reused": self._reused,
            "lent": len(self._lent),
            "idle": len(self._idle),
            "dropped_full": self._dropped_full,
            "dropped_reset": self._dropped_reset,
        }

    def _next(self) -> T:
        try:
            value = self._idle.pop()
        except IndexError:
            pass
        else:
            self._places.append(None)
            self._reused += 1
            self._lent[id(value)] = value
            return value
        value = self._create()
        if id(value) in self._lent:
            raise ConfigurationError(
                f"create returned a {type(value).__name__} that is lent already; it must make a new one each time",
                option="create",
            )
        self._created += 1
        self._lent[id(value)] = value
        return value

    def _accept(self, value: T) -> None:
        del self._lent[id(value)]
        if self._reset is not None:
            try:
                kept = self._reset(value) is not False
            except Exception as error:
                self._dropped_reset += 1
                self._report(value, error)
                return
            except BaseException:
                # KeyboardInterrupt and the like are not the pool's to keep.
                self._dropped_reset += 1
                raise
            if not kept:
                self._dropped_reset += 1
                return
        try:
            self._places.pop()
        except IndexError:
            self._dropped_full += 1
        else:
            self._idle.append(value)

    def _report(self, value: T, error: Exception) -> None:
        if not self._reported:
            self._reported = True
            # The error's text and traceback may show what the object holds.
            logger.warning(
                "reset of a pooled %s raised %s; such objects are dropped (said once)",
                type(value).__name__,
                type(error).__name__,
            )


class Loan(Generic[T]):
    """One object on loan, made by `ObjectPool.lend`. Use it with `with`."""

    __slots__ = ("_lent", "_pool")

    def __init__(self, pool: ObjectPool[T]) -> None:
        self._pool = pool
        # As a list, because None may be an object like others.
        self._lent: list[T] = []

    def __enter__(self) -> T:
        if self._lent:
            raise ConfigurationError("a loan is used once at a time; call lend() again for another object")
        value = self._pool._next()
        self._lent.append(value)
        return value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool._accept(self._lent.pop())
