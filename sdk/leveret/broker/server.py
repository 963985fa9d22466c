"""The embedded broker: options, listening, starting and stopping."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import stat
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

from leveret.broker.session import BrokerSession
from leveret.broker.transport import BrokerTransport
from leveret.broker.virtual_host import Scheduler, VirtualHost
from leveret.errors import ConfigurationError, TransportError
from leveret.transport.loop import run, serve
from leveret.wire.numbers import CONNECTION_FORCED, FRAME_MIN_SIZE, REPLY_CODES
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

__all__ = ["EmbeddedBroker", "serve_forever"]

MIB: Final = 1024 * 1024


class EmbeddedBroker:
    """An AMQP 0-9-1 server in this process, for development, tests and benchmarks.

    It behaves as RabbitMQ 3.10 does, reply codes and texts included. It keeps everything in memory: durable queues and
    persistent messages are gone after `stop`. It refuses features that it does not implement with reply code 540, and
    ignores none. It is not thread safe: start, stop and use it in one event loop. Clients may run in other threads and
    processes.

    Example:
        >>> import asyncio
        >>> async def main():
        ...     async with EmbeddedBroker() as broker:
        ...         return broker.url
        >>> asyncio.run(main())
        'amqp://guest:guest@127.0.0.1:.../%2F'

    Args:
        host: The address to listen on.
        port: The port; 0 lets the kernel choose one.
        path: A unix socket to listen on instead of host and port.
        users: Passwords by user name. Each user has all rights.
        virtual_hosts: Names of the virtual hosts.
        heartbeat: The interval offered to clients, in whole seconds; 0 for none.
        frame_max: The largest frame offered to clients, in bytes; at least 4096.
        channel_max: The most channels of one connection.
        max_message_size: The largest body, in bytes.
        handshake_timeout: Seconds from a connection's start to connection.open.
        allow_remote: Allows addresses that other machines can reach.
        backlog: How many connections may wait to be accepted.

    Raises:
        ConfigurationError: An option is out of range. The text names it.

    Attributes:
        sessions: The sessions of all connections that are open or opening.
        blocked_reason: Why publishers are blocked, or None.
        stopping: True while the broker stops. It then refuses connections, also those that are already accepted.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        path: str | os.PathLike[str] | None = None,
        users: Mapping[str, str] | None = None,
        virtual_hosts: Iterable[str] = ("/",),
        heartbeat: float = 60.0,
        frame_max: int = 131072,
        channel_max: int = 2047,
        max_message_size: int = 128 * MIB,
        handshake_timeout: float = 10.0,
        allow_remote: bool = False,
        backlog: int = 128,
    ) -> None:
        self._host = host
        self._port = _integer("port", port, 0, 65535)
        self._path = None if path is None else os.fspath(path)
        self.users = {"guest": "guest"} if users is None else dict(users)
        self._vhost_names = tuple(virtual_hosts)
        self.heartbeat = _number("heartbeat", heartbeat, 0, 65535)
        self.frame_max = _integer("frame_max", frame_max, FRAME_MIN_SIZE, 0x7FFFFFFF)
        self.channel_max = _integer("channel_max", channel_max, 1, 65535)
        # RabbitMQ's own upper limit is 512 MiB.
        self.max_message_size = _integer("max_message_size", max_message_size, 1, 512 * MIB)
        self.handshake_timeout = _number("handshake_timeout", handshake_timeout, 0.001, 86400)
        self._backlog = _integer("backlog", backlog, 1, 65535)
        if self.heartbeat != int(self.heartbeat):
            raise ConfigurationError(
                f"heartbeat is {heartbeat:g} s; AMQP 0-9-1 negotiates whole seconds", option="heartbeat"
            )
        if not self.users or not all(map(_is_text, [*self.users, *self.users.values()])) or "" in self.users:
            raise ConfigurationError("users maps at least one name to its password; both are strings", option="users")
        if isinstance(virtual_hosts, str) or not self._vhost_names or not all(map(_is_vhost, self._vhost_names)):
            raise ConfigurationError(
                "virtual_hosts needs at least one name, each of 1 to 255 bytes", option="virtual_hosts"
            )
        if self._path is None and not allow_remote and not _is_loopback(host):
            raise ConfigurationError(
                f"host is {host!r}, which other machines may reach; the embedded broker does not encrypt. To listen "
                "there nevertheless, pass allow_remote=True",
                option="host",
            )
        self.vhosts: dict[str, VirtualHost] = {}
        self.sessions: dict[BrokerSession, None] = {}
        self.blocked_reason: str | None = None
        self.stopping = False
        self._server: asyncio.Server | None = None
        self._all_gone: asyncio.Future[None] | None = None
        self._inode: int | None = None

    # ------------------------------------------------------------------ life

    async def start(self) -> Self:
        """Starts to listen. A stopped broker starts again without queues and messages, on the same port.

        Returns:
            The broker itself.

        Raises:
            TransportError: The broker cannot listen on the address. The text names it.
        """
        if self._server is not None:
            return self
        self.scheduler = Scheduler(asyncio.get_running_loop())
        self.vhosts = {name: VirtualHost(name, self.scheduler) for name in self._vhost_names}
        self.blocked_reason = None
        self.stopping = False
        where = self._path or f"{self._host}:{self._port}"
        try:
            if self._path is not None:
                await _assert_unused(self._path)
            self._server = await serve(
                self._accept, host=self._host, port=self._port, path=self._path, backlog=self._backlog
            )
        except OSError as error:
            raise TransportError(f"cannot listen on {where}: {error.strerror or error}") from error
        if self._path is not None:
            self._inode = os.stat(self._path).st_ino
        else:
            self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self, *, timeout: float = 2.0) -> None:
        """Closes all connections, as RabbitMQ does at shutdown, and drops all queues and messages.

        Args:
            timeout: Seconds that clients have to answer connection.close. After that their sockets are closed.
        """
        server, self._server = self._server, None
        if server is None:
            return
        self.stopping = True
        server.close()
        try:
            self.close_connections(CONNECTION_FORCED, "broker forced connection closure with reason 'shutdown'")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._sessions_gone()
        finally:
            for session in list(self.sessions):
                session.abort()
            # Aborted sockets are closed in the next turn of the loop.
            await self._sessions_gone()
            await server.wait_closed()
            for vhost in self.vhosts.values():
                vhost.close()
            self.scheduler.close()
            self._remove_socket_file()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _accept(self) -> BrokerTransport:
        reader = FrameReader(
            server=True,
            protocol_header=True,
            handshake=True,
            frame_max=FRAME_MIN_SIZE,
            max_body_size=self.max_message_size,
        )
        return BrokerTransport(BrokerSession(self), reader)

    async def _sessions_gone(self) -> None:
        while self.sessions:
            self._all_gone = asyncio.get_running_loop().create_future()
            await self._all_gone

    def session_ended(self, session: BrokerSession) -> None:
        """Removes a session whose socket is closed."""
        self.sessions.pop(session, None)
        if not self.sessions and self._all_gone is not None and not self._all_gone.done():
            self._all_gone.set_result(None)

    def _remove_socket_file(self) -> None:
        # Only this broker's own file; another broker may have replaced it.
        if self._path is not None:
            with contextlib.suppress(OSError):
                if os.stat(self._path).st_ino == self._inode:
                    os.unlink(self._path)

    # ------------------------------------------------------------------ where it is

    @property
    def port(self) -> int:
        """The TCP port; 0 on a unix socket, and before the first start unless one was chosen."""
        return 0 if self._path is not None else self._port

    @property
    def url(self) -> str:
        """The URL of the first virtual host for the first user, password included."""
        user, password = next(iter(self.users.items()))
        login = f"{quote(user, safe='')}:{quote(password, safe='')}"
        vhost = quote(self._vhost_names[0], safe="")
        if self._path is not None:
            return f"amqp+unix://{login}@/{vhost}?unix_socket={quote(os.path.abspath(self._path))}"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"amqp://{login}@{host}:{self._port}/{vhost}"

    def __repr__(self) -> str:
        where = self._path or f"{self._host}:{self._port}"
        return f"<EmbeddedBroker {where} {'stopped' if self._server is None else 'running'}>"

    # ------------------------------------------------------------------ for tests

    def queue_depth(self, name: str, vhost: str = "/") -> int:
        """Returns how many messages are ready in a queue.

        Args:
            name: The queue's name.
            vhost: The virtual host's name.

        Raises:
            ConfigurationError: The virtual host or queue does not exist.
        """
        if vhost not in self.vhosts:
            raise ConfigurationError(f"the broker has no virtual host {vhost!r}", option="vhost")
        queue = self.vhosts[vhost].queues.get(name)
        if queue is None:
            raise ConfigurationError(f"virtual host {vhost!r} has no queue {name!r}", option="name")
        return len(queue)

    def block(self, reason: str = "low on memory") -> None:
        """Blocks publishers, as RabbitMQ does when it is short of memory.

        A connection that publishes from now on gets connection.blocked, if it supports that, and the broker stops
        reading from it. The broker then sees neither its heartbeats nor its connection.close. Connections that only
        consume are not affected.

        Args:
            reason: The reason in connection.blocked.
        """
        if len(reason.encode("utf-8", "surrogateescape")) > 255:
            raise ConfigurationError("reason is longer than the 255 bytes of a short string", option="reason")
        self.blocked_reason = reason

    def unblock(self) -> None:
        """Ends `block`: sends connection.unblocked, and reads on from the blocked connections."""
        self.blocked_reason = None
        for session in list(self.sessions):
            session.unblock()

    def close_connections(
        self,
        reply_code: int = CONNECTION_FORCED,
        reply_text: str = "the embedded broker was asked to close all connections",
    ) -> None:
        """Sends connection.close to every client.

        Args:
            reply_code: A reply code of AMQP; 320 tells clients to reconnect.
            reply_text: The text after the reply code's name.

        Raises:
            ConfigurationError: AMQP 0-9-1 has no such reply code.
        """
        if reply_code not in REPLY_CODES:
            raise ConfigurationError(f"AMQP 0-9-1 has no reply code {reply_code}", option="reply_code")
        for session in list(self.sessions):
            session.close(reply_code, reply_text)
        self.scheduler.run()


def serve_forever(
    host: str = "127.0.0.1",
    port: int = 0,
    path: str | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Runs an embedded broker until SIGINT or SIGTERM, on uvloop where it is installed.

    It installs signal handlers for both, and removes them before it returns.

    Args:
        host: As for `EmbeddedBroker`.
        port: As for `EmbeddedBroker`.
        path: As for `EmbeddedBroker`.
        on_ready: Called with the broker's URL when clients can connect.

    Raises:
        ConfigurationError: An option is out of range.
        TransportError: The broker cannot listen on the address.
    """
    run(_serve(EmbeddedBroker(host=host, port=port, path=path), on_ready))


async def _serve(broker: EmbeddedBroker, on_ready: Callable[[str], None] | None) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    try:
        async with broker:
            if on_ready is not None:
                on_ready(broker.url)
            await stopped.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def _assert_unused(path: str) -> None:
    """Raises if a server listens on a unix socket: the event loop would silently replace its file."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return
    writer.close()
    raise TransportError(f"cannot listen on {path}: another server listens there")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_vhost(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value.encode()) < 256


def _integer(option: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigurationError(f"{option} is {value!r}; it must be an integer from {least} to {most}", option=option)
    return value


def _number(option: str, value: object, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise ConfigurationError(
            f"{option} is {value!r}; it must be a number of seconds from {least:g} to {most:g}", option=option
        )
    return float(value)
