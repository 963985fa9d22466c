"""What runs in the thread of a `FaultProxy`: it accepts connections, and makes the faults that the proxy asks for."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import sys
from collections import Counter
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from leveret.testing.ways import Conditions, Cut, How, Route, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from leveret.testing.faults import Fault

__all__ = ["DIRECTIONS", "Pending", "Relay", "serve"]

#: The ways of each direction.
DIRECTIONS: Final = {"both": ("to_client", "to_broker"), "to_client": ("to_client",), "to_broker": ("to_broker",)}
#: What each kind of fault that lasts changes; the third is made from the fault's amount.
_CHANGES: Final[dict[str, Callable[[float], dict[str, Any]]]] = {
    "stall": lambda amount: {"stall": True},
    "swallow": lambda amount: {"swallow": True},
    "throttle": lambda amount: {"rate": amount},
    "slice": lambda amount: {"size": max(1, int(amount)), "pause": 0.001},
    "delay": lambda amount: {"delay": amount},
}


class Pending(Future[None]):
    """Something that a proxy will do: a cut, or the end of a schedule.

    It is a `concurrent.futures.Future`, so `result(timeout)` waits in any thread. In a coroutine, await it; use
    `asyncio.timeout` for a deadline. `cancel()` takes it back. A proxy that is closed ends it with `RuntimeError`.
    """

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.wrap_future(self).__await__()


class _Watch:
    """Waits for the n-th frame of a kind."""

    def __init__(self, kind: str, count: int, directions: tuple[str, ...], how: How, forward: bool) -> None:
        self.pending = Pending()
        self._kind = kind
        self._left = count
        self._directions = directions
        self._cut = Cut(how, forward, self)

    def seen(self, to: str, kind: str) -> Cut | None:
        """Counts a frame; returns the cut when this is the one."""
        if kind != self._kind or to not in self._directions:
            return None
        self._left -= 1
        return None if self._left else self._cut


class Relay:
    """The connections through a proxy, and what is done to them. Its methods are called in the proxy's thread.

    Args:
        port: The port of 127.0.0.1 to listen on.
        addresses: Where the broker may be: family and address.
        has_frames: Whether frames can be seen; not with TLS.

    Attributes:
        loop: The thread's event loop.
        routes: The open connections.
        accepted: How many connections there were.
        counts: How many frames were handed on, by direction and kind.
    """

    def __init__(self, port: int, addresses: Sequence[tuple[int, Any]], has_frames: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.routes: set[Route] = set()
        self.accepted = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        self._port = port
        self._addresses = addresses
        self._watcher = self if has_frames else None
        self._conditions = {way: Conditions() for way in DIRECTIONS["both"]}
        self._listener: socket.socket | None = None
        self._watches: list[_Watch] = []
        self._playing: dict[Pending, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    # ------------------------------------------------------------------ calls from other threads

    def begin(self, done: Future[Any], function: Callable[[], Any]) -> None:
        """Calls a function, or runs a coroutine function in a task, for who waits for `done`."""

        async def run() -> None:
            try:
                result = function()
                done.set_result(await result if inspect.iscoroutine(result) else result)
            except Exception as error:
                done.set_exception(error)

        task = self.loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def run(self) -> None:
        """Runs until `stop`; then ends everything."""
        await self._stopped.wait()
        self.refuse()
        ended = RuntimeError("the proxy was closed before that")
        for watch in self._watches:
            _end(watch.pending, ended)
        for pending, task in self._playing.items():
            _end(pending, ended)
            task.cancel()
        await self.reset()

    def stop(self) -> None:
        """Ends `run`."""
        self._stopped.set()

    # ------------------------------------------------------------------ connections

    def accept(self) -> None:
        """Listens."""
        if self._listener is not None:
            return
        listener = socket.socket()
        try:
            share_port(listener)
            listener.bind(("127.0.0.1", self._port))
            listener.listen(512)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        self._listener = listener
        self.loop.add_reader(listener, self._accept_all, listener)

    def refuse(self) -> None:
        """Does not listen any more."""
        if self._listener is not None:
            self.loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept_all(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    client, _ = listener.accept()
                except ConnectionAbortedError:
                    continue
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                route = Route(client, self._addresses, self._conditions, self._watcher)
                self.accepted += 1
                self.routes.add(route)
                route.task.add_done_callback(partial(self._forget, route))

    def _forget(self, route: Route, task: asyncio.Task[None]) -> None:
        self.routes.discard(route)

    async def reset(self) -> int:
        """Resets all connections; returns their number."""
        routes = list(self.routes)
        for route in routes:
            route.end(reset=True)
        if routes:
            await asyncio.wait([route.task for route in routes])
        return len(routes)

    def half_close(self, directions: tuple[str, ...]) -> int:
        """Sends FIN in these directions; returns the number of connections."""
        routes = list(self.routes)
        for route in routes:
            route.half_close(directions)
        return len(routes)

    # ------------------------------------------------------------------ conditions

    def change(self, directions: tuple[str, ...], values: dict[str, Any]) -> None:
        """Changes how bytes travel."""
        for way in directions:
            self._conditions[way].change(**values)

    def resume(self, directions: tuple[str, ...]) -> None:
        """Bytes travel freely again."""
        for way in directions:
            self._conditions[way].clear()

    def play(self, schedule: tuple[Fault, ...]) -> Pending:
        """Makes one fault after the other."""
        pending = Pending()
        self._playing[pending] = task = self.loop.create_task(self._play(schedule))
        task.add_done_callback(partial(self._played, pending))
        pending.add_done_callback(lambda pending: self.loop.call_soon_threadsafe(task.cancel))
        return pending

    def _played(self, pending: Pending, task: asyncio.Task[None]) -> None:
        del self._playing[pending]
        if not task.cancelled():
            _end(pending, task.exception())

    async def _play(self, schedule: tuple[Fault, ...]) -> None:
        for fault in schedule:
            await asyncio.sleep(fault.after)
            directions = DIRECTIONS[fault.direction]
            if fault.kind == "reset":
                await self.reset()
            elif fault.kind == "half_close":
                self.half_close(directions)
            elif fault.kind == "refuse":
                self.refuse()
                try:
                    await asyncio.sleep(fault.duration)
                finally:
                    self.accept()
            else:
                before = {way: self._conditions[way].terms for way in directions}
                self.change(directions, _CHANGES[fault.kind](fault.amount))
                try:
                    await asyncio.sleep(fault.duration)
                finally:
                    for way, terms in before.items():
                        self._conditions[way].put(terms)

    # ------------------------------------------------------------------ frames

    def watch(self, kind: str, count: int, directions: tuple[str, ...], how: How, forward: bool) -> Pending:
        """Cuts a connection at the n-th frame of a kind."""
        watch = _Watch(kind, count, directions, how, forward)
        self._watches.append(watch)
        watch.pending.add_done_callback(lambda pending: self.loop.call_soon_threadsafe(self._unwatch, watch))
        return watch.pending

    def _unwatch(self, watch: _Watch) -> None:
        with contextlib.suppress(ValueError):
            self._watches.remove(watch)

    def seen(self, way: Way, kind: str) -> Cut | None:
        """Counts a frame; returns the cut that is due at it, if one is. See `Watcher`."""
        self.counts[way.to, kind] += 1
        due = [cut for watch in self._watches if not watch.pending.done() and (cut := watch.seen(way.to, kind))]
        return due[0] if due else None

    def cut(self, way: Way, cut: Cut) -> None:
        """Does what a cut says. See `Watcher`."""
        if cut.how == "stall":
            self.change(DIRECTIONS["both"], {"stall": True})
        elif cut.how == "reset":
            way.route.end(reset=True)
        else:
            way.route.half_close(DIRECTIONS["both"])
        _end(cut.watch.pending)


def share_port(sock: socket.socket) -> None:
    """Lets two sockets have one port: the one that keeps it, and the one that listens."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Linux needs no more where one of them does not listen, and so nobody else can listen there.
    if sys.platform != "linux" and hasattr(socket, "SO_REUSEPORT"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def serve(port: int, addresses: Sequence[tuple[int, Any]], has_frames: bool, started: Future[Relay]) -> None:
    """Runs a relay until it is stopped; the function of a proxy's thread."""

    async def main() -> None:
        try:
            relay = Relay(port, addresses, has_frames)
            relay.accept()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(relay)
        await relay.run()

    # Not uvloop, which owns its sockets: here they are closed by hand, with RST or without.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def _end(pending: Pending, error: BaseException | None = None) -> None:
    """Ends it, unless somebody cancelled it meanwhile."""
    with contextlib.suppress(InvalidStateError):
        if error is None:
            pending.set_result(None)
        else:
            pending.set_exception(error)
