"""The event loop: running a program on it, and listening on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from leveret.transport.frame_transport import FrameTransport

__all__ = ["run", "serve"]

T = TypeVar("T")


async def serve(
    factory: Callable[[], FrameTransport],
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    path: str | None = None,
    backlog: int = 128,
) -> asyncio.Server:
    """Listens, with TCP_NODELAY, for the embedded broker and for tests.

    Args:
        factory: Makes a transport for each connection.
        host: The address to listen on.
        port: 0 lets the kernel choose.
        path: A unix socket instead of host and port.
        backlog: How many connections may wait to be accepted.

    Returns:
        The listening server.
    """
    loop = asyncio.get_running_loop()
    if path is not None:
        return await loop.create_unix_server(factory, path, backlog=backlog)
    return await loop.create_server(factory, host, port, backlog=backlog)


def run(main: Coroutine[Any, Any, T] | Awaitable[T], *, debug: bool | None = None) -> T:
    """Runs a coroutine to its end, on uvloop where it is installed and on asyncio elsewhere.

    Args:
        main: The program's coroutine.
        debug: As for `asyncio.run`.

    Returns:
        What the coroutine returns.
    """
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)  # type: ignore[arg-type]
