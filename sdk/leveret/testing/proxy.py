"""A TCP proxy between a client and a broker that makes the faults of networks, for tests."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, get_args
from urllib.parse import SplitResult, urlsplit

from leveret.errors import ConfigurationError
from leveret.testing.faults import Direction, Fault, check_choice, check_number
from leveret.testing.frames import check_kind
from leveret.testing.relay import DIRECTIONS, Pending, Relay, serve, share_port
from leveret.testing.ways import How

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

__all__ = ["FaultProxy", "Pending"]

T = TypeVar("T")

#: How many seconds the proxy's thread may take to do something.
_PATIENCE: Final = 10.0
_PORTS: Final = {"amqp": 5672, "amqps": 5671}


class FaultProxy:
    """Listens on a port of 127.0.0.1, and hands bytes on between clients and the broker until it is told otherwise.

    It runs in a thread of its own, so it goes on while the test's event loop is blocked. All methods are ordinary
    functions that may be called from any thread, from coroutines too: each returns when the proxy has done it, within
    milliseconds. What they change concerns all connections, those that come later included. Use it with `with` or
    `async with`:

        async with EmbeddedBroker() as broker, FaultProxy(broker.url) as proxy:
            async with leveret.connect(proxy.url) as client:
                proxy.reset()

    A direction is `"to_client"` (what the broker sends), `"to_broker"` (what clients send) or `"both"`.

    Each way of a connection holds back at most 1 MiB; then the proxy stops reading, as a slow network does. Frames
    cannot be seen in `amqps://` connections, so `cut_after` refuses those; everything else works.

    Args:
        broker_url: Where to: `amqp://` or `amqps://` with one host. `url` has its user, virtual host and options.
        port: The port to listen on. The default, 0, takes a free one.

    Raises:
        ConfigurationError: An argument is wrong. The text names it.
    """

    def __init__(self, broker_url: str, *, port: int = 0) -> None:
        self._target = _check_url(broker_url)
        check_number("port", port, 0, 65_535)
        self._port = port
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._relay: Relay
        self._holder: socket.socket

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"port {self._port}" if self._thread else "not started"
        return f"<FaultProxy to {self._target.hostname}:{self._target.port or _PORTS[self._target.scheme]}, {state}>"

    # ------------------------------------------------------------------ life

    def start(self) -> Self:
        """Listens. `with` and `async with` call it.

        Returns:
            The proxy.

        Raises:
            OSError: The port is taken, or the broker's host is not known.
            RuntimeError: The proxy was started before.
        """
        if self._thread is not None:
            raise RuntimeError(f"{self!r} was started before")
        target = self._target
        found = socket.getaddrinfo(target.hostname, target.port or _PORTS[target.scheme], type=socket.SOCK_STREAM)
        self._holder = _bound(self._port)
        self._port = self._holder.getsockname()[1]
        started: Future[Relay] = Future()
        addresses = [(family, address) for family, _, _, _, address in found]
        work = partial(serve, self._port, addresses, target.scheme == "amqp", started)
        self._thread = threading.Thread(target=work, name=f"fault-proxy-{self._port}", daemon=True)
        self._thread.start()
        try:
            self._relay = started.result(_PATIENCE)
        except BaseException:
            self._is_closed = True
            self._holder.close()
            raise
        return self

    def close(self) -> None:
        """Resets all connections, takes no more, and ends the thread. Does nothing the second time."""
        if self._thread is None or self._is_closed:
            return
        self._is_closed = True
        self._relay.loop.call_soon_threadsafe(self._relay.stop)
        self._thread.join(_PATIENCE)
        self._holder.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ looking

    @property
    def port(self) -> int:
        """The port that it listens on."""
        self._running()
        return self._port

    @property
    def url(self) -> str:
        """The broker's URL by way of this proxy, with user, password, virtual host and options."""
        user = f"{self._target.netloc.rpartition('@')[0]}@" if "@" in self._target.netloc else ""
        return self._target._replace(netloc=f"{user}127.0.0.1:{self.port}").geturl()

    @property
    def connections(self) -> int:
        """How many connections of clients are open now."""
        return len(self._running().routes)

    @property
    def accepted(self) -> int:
        """How many connections of clients were accepted since the proxy started."""
        return self._running().accepted

    def frames(self, kind: str, direction: Direction = "both") -> int:
        """Returns how many frames of a kind were handed on since the proxy started.

        Args:
            kind: A method, such as `"basic.ack"`, or `"header"`, `"body"` or `"heartbeat"`.
            direction: Which of them.

        Raises:
            ConfigurationError: There is no such kind or direction.
        """
        check_kind(kind)
        counts = self._running().counts
        return sum(counts[to, kind] for to in _directions(direction))

    # ------------------------------------------------------------------ faults that happen at once

    def reset(self) -> int:
        """Resets each connection on both sides (RST), in the middle of whatever is under way.

        Returns:
            How many connections there were.
        """
        reset: Callable[[Relay], Any] = Relay.reset
        return int(self._call(reset))

    def half_close(self, direction: Direction = "both") -> int:
        """Ends each connection in one direction, or both, without a word of AMQP (FIN).

        With `"to_client"`, clients read the end of the stream, and what the broker sends is thrown away; what clients
        send still comes to the broker. The connection ends when both sides have closed.

        Returns:
            How many connections there were.
        """
        return self._call(Relay.half_close, _directions(direction))

    # ------------------------------------------------------------------ faults that last

    def stall(self, direction: Direction = "both") -> None:
        """Holds all bytes back until `resume`, as a network that hangs. Connections can still be made."""
        self._change(direction, stall=True)

    def swallow(self, direction: Direction = "to_client") -> None:
        """Throws away all frames until `resume`, as a firewall that forgot the connection.

        It begins and ends between frames, so a connection goes on after `resume` without what was thrown away.
        """
        self._change(direction, swallow=True)

    def throttle(self, rate: float, direction: Direction = "both") -> None:
        """Hands on at most so many bytes per second in each direction of each connection, until `resume`.

        Args:
            rate: Bytes per second, 1 or more.
            direction: Which bytes.
        """
        check_number("rate", rate, 1, 2**31)
        self._change(direction, rate=float(rate))

    def slice(self, size: int, direction: Direction = "both", *, pause: float = 0.001) -> None:
        """Hands on pieces of at most so many bytes, until `resume`: readers see frames in small parts.

        Args:
            size: Bytes, 1 or more.
            direction: Which bytes.
            pause: Seconds between pieces. With 0 a reader may find several at once.
        """
        check_number("size", size, 1, 2**31)
        check_number("pause", pause, 0, 3600)
        self._change(direction, size=int(size), pause=float(pause))

    def delay(self, seconds: float, direction: Direction = "to_client") -> None:
        """Hands on each byte so much later, until `resume`. Up to 1 MiB is on its way at once, in each direction.

        Args:
            seconds: How much later.
            direction: Which bytes.
        """
        check_number("seconds", seconds, 0, 3600)
        self._change(direction, delay=float(seconds))

    def resume(self, direction: Direction = "both") -> None:
        """Ends `stall`, `swallow`, `throttle`, `slice` and `delay`. What was held back goes on at once."""
        self._call(Relay.resume, _directions(direction))

    def refuse(self) -> None:
        """Refuses new connections (the kernel answers with RST) until `accept`. Those that are open stay so."""
        self._call(Relay.refuse)

    def accept(self) -> None:
        """Takes connections again after `refuse`."""
        self._call(Relay.accept)

    # ------------------------------------------------------------------ faults at a moment

    def cut_after(
        self, kind: str, count: int = 1, *, direction: Direction = "both", how: How = "reset", forward: bool = True
    ) -> Pending:
        """Cuts the connection that hands on the n-th frame of a kind from now on.

        Args:
            kind: A method, such as `"basic.ack"`, or `"header"`, `"body"` or `"heartbeat"`.
            count: Which one: 1 is the next, on whatever connection.
            direction: Frames of which direction count.
            how: `"reset"` and `"half_close"` end that connection. `"stall"` holds back all bytes of all connections
                until `resume`.
            forward: Whether this frame still reaches its reader. If not, at least its last byte does not.

        Returns:
            Done when the cut is made. Await it, or call `result(timeout)`; `cancel()` takes the cut back.

        Raises:
            ConfigurationError: An argument is wrong, or the broker's URL is `amqps://`.
        """
        check_kind(kind)
        check_number("count", count, 1, 2**31)
        check_choice("how", how, get_args(How))
        if self._target.scheme != "amqp":
            raise ConfigurationError("cut_after cannot see frames in amqps:// connections", option="broker_url")
        return self._call(Relay.watch, kind, int(count), _directions(direction), how, forward)

    def play(self, faults: Iterable[Fault]) -> Pending:
        """Makes one fault after the other, for example those of `draw_faults`.

        A fault that lasts is over before the next one; what was set by hand before comes back then.

        Args:
            faults: The schedule.

        Returns:
            Done when the last fault is over. Await it, or call `result(timeout)`; `cancel()` ends the schedule.
        """
        schedule = tuple(faults)
        for fault in schedule:
            if not isinstance(fault, Fault):
                raise ConfigurationError(f"faults are Fault objects, not {fault!r}", option="faults")
        return self._call(Relay.play, schedule)

    # ------------------------------------------------------------------ the thread

    def _running(self) -> Relay:
        if self._thread is None:
            raise RuntimeError(f"{self!r} is not running: use it with `with` or `async with`, or call start()")
        if self._is_closed:
            raise RuntimeError(f"{self!r} cannot be used any more")
        return self._relay

    def _change(self, direction: Direction, **values: Any) -> None:
        self._call(Relay.change, _directions(direction), values)

    def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Calls a method of the relay in its thread, and returns its result; that of a coroutine function, too."""
        relay = self._running()
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "a callback that runs in the proxy's thread cannot control it: await the Pending instead"
            )
        done: Future[T] = Future()
        relay.loop.call_soon_threadsafe(relay.begin, done, partial(function, relay, *arguments))
        return done.result(_PATIENCE)


def _check_url(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname or "," in parts.netloc:
        # The URL itself may have a password.
        raise ConfigurationError(
            "broker_url is amqp://host:port or amqps://host:port, with one host", option="broker_url"
        )
    return parts


def _directions(direction: Direction) -> tuple[str, ...]:
    check_choice("direction", direction, get_args(Direction))
    return DIRECTIONS[direction]


def _bound(port: int) -> socket.socket:
    """Returns a socket that has a port. While it is open, nobody else gets that port from the system."""
    sock = socket.socket()
    try:
        share_port(sock)
        sock.bind(("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock
