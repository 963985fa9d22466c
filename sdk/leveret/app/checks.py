"""Checks of an app's own, which are part of its health: a database that answers, a disk that has room."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from leveret.errors import printable
from leveret.settings.functions import is_async, name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.client.client import Client

__all__ = ["HealthCheck"]

logger = logging.getLogger("leveret.app")


class HealthCheck:
    """Calls a function again and again while an app runs, and keeps what it says.

    A plain function is called in a thread. There is one call at a time: one that does not return is not called again.

    Args:
        function: Called with the client. It returns None, or what is wrong; what it raises is wrong, too.
        every: Seconds between two calls.
        timeout: Seconds for a call.

    Attributes:
        problem: What is wrong, or None.
    """

    def __init__(self, function: Callable[[Client], Any], every: float, timeout: float) -> None:
        self.problem: str | None = f"check {name_of(function)}: it has not answered yet"
        self._function = function
        self._name = name_of(function)
        self._every = every
        self._timeout = timeout
        self._known: str | None = None

    async def keep(self, client: Client) -> None:
        """Calls the function until it is cancelled."""
        while True:
            call = asyncio.ensure_future(self._call(client))
            try:
                done, _ = await asyncio.wait([call], timeout=self._timeout)
                if not done:
                    self._note(f"it did not answer within {self._timeout:g} s")
                    # No deadline: a thread cannot be stopped, and a second one would hang beside it.
                    await asyncio.wait([call])
                self._note(call.result())
            finally:
                call.cancel()
            await asyncio.sleep(self._every)

    async def _call(self, client: Client) -> str | None:
        try:
            if is_async(self._function):
                async with asyncio.timeout(self._timeout):
                    found = await self._function(client)
            else:
                found = await asyncio.to_thread(self._function, client)
        except TimeoutError:
            return f"it did not answer within {self._timeout:g} s"
        except Exception as error:
            return printable(f"{type(error).__name__}: {error}")
        return None if found is None else printable(str(found))

    def _note(self, problem: str | None) -> None:
        self.problem = None if problem is None else f"check {self._name}: {problem}"
        if (problem is None) != (self._known is None):
            if problem is None:
                logger.info("check %s: it is well again", self._name)
            else:
                logger.warning("%s", self.problem)
        self._known = problem
