"""A listener: calls what a user gave, plain or async, without ever being disturbed by it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Listener"]

logger = logging.getLogger("leveret.monitoring")

#: Events that wait for an async function that does not return; further ones are left out.
_MOST_WAITING: Final = 100


class Listener:
    """Calls a function with one event after the other. What it raises, and that it hangs, is logged once each.

    Args:
        name: The option that the function was given as.
        function: It may be async; then the next event waits until it has returned.
    """

    def __init__(self, name: str, function: Callable[[Any], object]) -> None:
        self._name = name
        self._function = function
        self._waiting: deque[object] = deque()
        self._task: asyncio.Task[None] | None = None
        self._logged: set[str] = set()

    def tell(self, event: object) -> None:
        """Passes an event on: at once, or when the function has returned from those before."""
        if self._task is None:
            self._call(event)
        elif len(self._waiting) < _MOST_WAITING:
            self._waiting.append(event)
        else:
            self._once("does not return, and further events are left out", None)

    def _call(self, event: object) -> None:
        result = self._result_of(event)
        if result is not None:
            self._task = asyncio.ensure_future(self._work(result))

    async def _work(self, result: Any) -> None:
        try:
            while result is not None:
                try:
                    await result
                except Exception as error:
                    self._once("raised", error)
                result = None
                while self._waiting and result is None:
                    result = self._result_of(self._waiting.popleft())
        finally:
            self._task = None

    def _result_of(self, event: object) -> Any:
        try:
            result = self._function(event)
        except Exception as error:
            self._once("raised", error)
            return None
        return result if inspect.isawaitable(result) else None

    async def close(self) -> None:
        """Cancels the function where it is still at work."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1)

    def _once(self, what: str, error: Exception | None) -> None:
        if what not in self._logged:
            self._logged.add(what)
            logger.warning("%s %s (logged once)", self._name, what, exc_info=error)
