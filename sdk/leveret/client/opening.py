"""Openings: `async with connect(...)` closes what it opened, `await connect(...)` leaves that to the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from leveret.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType

__all__ = ["AsyncCloseable", "Opening"]


class AsyncCloseable(Protocol):
    """Something that is closed with `await`."""

    async def close(self) -> None:
        """Closes it."""


C = TypeVar("C", bound=AsyncCloseable)


class Opening(Generic[C]):
    """Opens something: `async with` closes it at the end, `await` leaves that to the caller. Use it once at a time."""

    def __init__(self, opened: Callable[[], Awaitable[C]], what: str) -> None:
        self._opened = opened
        self._what = what
        self._is_used = False
        self._value: C | None = None

    async def _open(self) -> C:
        if self._is_used:
            raise ConfigurationError(f"{self._what} was opened already; call it again for another one")
        self._is_used = True
        try:
            return await self._opened()
        except BaseException:
            # It may be tried again.
            self._is_used = False
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
        self._is_used = False
