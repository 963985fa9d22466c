"""Calls a user's function with events, plain or async, and keeps its errors away from the caller."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Listener"]

logger = logging.getLogger("leveret.monitoring")

#: The most events that wait for an async function to return; further ones are dropped.
_MOST_WAITING: Final = 100


class Listener:
    """Calls a function with one event after the other. Errors, and dropped events, are logged once each.

    Args:
        option: The option that the function was given as.
        function: A plain function, or an async one, which gets the next event when it has returned. None: no calls.

    Attributes:
        task: The async call that is at work, or None.

    Raises:
        ConfigurationError: `function` is not callable.
    """

    def __init__(self, option: str, function: Callable[[Any], object] | None) -> None:
        if function is not None and not callable(function):
            raise ConfigurationError(f"{option} is a function, not a {type(function).__name__}", option=option)
        self.task: asyncio.Future[Any] | None = None
        self._option = option
        self._function = function
        self._waiting: deque[object] = deque()
        self._logged: set[str] = set()

    def tell(self, event: object) -> None:
        """Passes an event on: at once, or when the async function has returned from the events before."""
        if self.task is None:
            self._call(event)
        elif len(self._waiting) < _MOST_WAITING:
            self._waiting.append(event)
        else:
            self._once("does not return, and further events are dropped", None)

    def stop(self, caller: asyncio.Task[Any] | None = None) -> None:
        """Drops the events that wait, and cancels the async call that is at work, unless that is the caller itself."""
        self._waiting.clear()
        if self.task is not None and self.task is not caller:
            self.task.cancel()

    def _call(self, event: object) -> None:
        if self._function is None:
            return
        try:
            result = self._function(event)
            if inspect.isawaitable(result):
                self.task = asyncio.ensure_future(result)
                self.task.add_done_callback(self._returned)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # A CancelledError, too: it is the function's own, and must not end the reports.
            self._once("raised", error)

    def _returned(self, task: asyncio.Future[Any]) -> None:
        self.task = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._once("raised", error)
        while self._waiting and self.task is None:
            self._call(self._waiting.popleft())

    def _once(self, what: str, error: BaseException | None) -> None:
        if what not in self._logged:
            self._logged.add(what)
            logger.warning("%s %s (logged once)", self._option, what, exc_info=error)
