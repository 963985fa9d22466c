"""Openings: `async with connect(...)` closes what it opened, `await connect(...)` leaves that to the caller."""

from __future__ import annotations

import enum
import warnings
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, TypeVar

from leveret.errors import ConfigurationError, NotOpened
from leveret.protocol.transitions import moved

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping
    from types import TracebackType

__all__ = ["OPENING_TRANSITIONS", "AsyncCloseable", "Opening", "OpeningState"]


class AsyncCloseable(Protocol):
    """Something that is closed with `await`."""

    async def close(self) -> None:
        """Closes it."""


C = TypeVar("C", bound=AsyncCloseable)


class OpeningState(enum.Enum):
    """The life of an opening."""

    NEW = "never opened"
    IN_USE = "being opened, or open"
    FREE = "closed again, not opened because of an error, or dropped; it may be opened"


#: Which state may follow which.
OPENING_TRANSITIONS: Final[Mapping[OpeningState, frozenset[OpeningState]]] = {
    OpeningState.NEW: frozenset({OpeningState.IN_USE, OpeningState.FREE}),
    OpeningState.IN_USE: frozenset({OpeningState.FREE}),
    OpeningState.FREE: frozenset({OpeningState.IN_USE}),
}


class Opening(Generic[C]):
    """Opens something: `async with` closes it at the end, `await` leaves that to the caller. Use it once at a time.

    It is not the thing itself: other uses raise `NotOpened`, and one that is dropped without being opened warns
    (`RuntimeWarning`), as a coroutine does that was never awaited.
    """

    def __init__(self, opened: Callable[[], Awaitable[C]], what: str) -> None:
        self._opened = opened
        self._what = what
        self._state = OpeningState.NEW
        self._value: C | None = None

    def __repr__(self) -> str:
        return f"<Opening {self._what}: {self._state.value}>"

    async def _open(self) -> C:
        if self._state is OpeningState.IN_USE:
            raise ConfigurationError(f"{self._what} was opened already; call it again for another one")
        self._state = moved(OPENING_TRANSITIONS, self._state, OpeningState.IN_USE)
        try:
            return await self._opened()
        except BaseException:
            # It may be tried again.
            self._state = moved(OPENING_TRANSITIONS, self._state, OpeningState.FREE)
            raise

    def __await__(self) -> Generator[Any, None, C]:
        return self._open().__await__()

    async def __aenter__(self) -> C:
        self._value = await self._open()
        return self._value

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        value, self._value = self._value, None
        if value is not None:
            await value.close()
        self._state = moved(OPENING_TRANSITIONS, self._state, OpeningState.FREE)

    def drop(self) -> None:
        """Says that it will not be opened, for a caller that only wants the arguments checked."""
        self._state = moved(OPENING_TRANSITIONS, self._state, OpeningState.FREE)

    # ------------------------------------------------------------------ mistakes

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)  # what Python and its tools look for
        raise self._misused(f"has no {name!r}")

    def __enter__(self) -> NoReturn:
        raise self._misused("cannot be used by a plain `with`")

    def __exit__(self, *_: object) -> None:
        """Is never called; Python looks for it before it calls `__enter__`."""

    def _misused(self, problem: str) -> NotOpened:
        return NotOpened(f"{self._what} {problem}: it was not opened; {self._how()}")

    def _how(self) -> str:
        return f"write `async with {self._what} as ...:`, or `... = await {self._what}` and close that yourself"

    def __del__(self) -> None:
        if self.__dict__.get("_state") is OpeningState.NEW:
            warnings.warn(
                f"{self._what} was never opened; {self._how()}",
                RuntimeWarning,
                stacklevel=2,
                source=self,
            )
