"""Event loops that tests run on: uvloop, unless a test asks for all of them with ``@every_loop``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

LOOP_FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
try:
    import uvloop
except ImportError:  # Windows, PyPy
    DEFAULT_LOOP = "asyncio"
else:
    LOOP_FACTORIES["uvloop"] = uvloop.new_event_loop
    DEFAULT_LOOP = "uvloop"

#: Marks a test, class or module (``pytestmark``) to run once on each event loop.
every_loop = pytest.mark.asyncio(loop_factories=sorted(LOOP_FACTORIES))
