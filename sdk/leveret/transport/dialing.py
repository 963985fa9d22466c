"""Dialing: the addresses of all hosts are tried side by side until one answers.

The next address is tried 0.25 s after the one before, or at once when that fails (RFC 8305, "Happy Eyeballs"), so a
silent host costs a quarter of a second and not the whole deadline. Each socket is made by the event loop and belongs to
its transport alone: a socket that this module owned too would be closed twice, and the second time its number may be
another socket's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
from collections import deque
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from leveret.errors import ConfigurationError, ConnectFailed, LeveretError, TLSVerificationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from leveret.errors import ProtocolError
    from leveret.settings import ConnectionSettings, Endpoint, TLSSettings
    from leveret.transport.frame_transport import FrameReceiver, FrameTransport

    MakeTransport = Callable[[FrameReceiver], FrameTransport]

__all__ = ["Dialing", "joined", "set_socket_options", "tls_context"]

#: Seconds between the beginnings of two attempts: "Connection Attempt Delay", RFC 8305 section 5.
STAGGER = 0.25


def tls_context(tls: TLSSettings, where: str) -> ssl.SSLContext:
    """Makes the TLS context of connections.

    Args:
        tls: The settings.
        where: The hosts, for the error.

    Raises:
        ConfigurationError: A certificate or key file cannot be used.
    """
    try:
        context = ssl.create_default_context(
            ssl.Purpose.SERVER_AUTH, cafile=tls.cafile, capath=tls.capath, cadata=tls.cadata
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.minimum_version == "TLSv1.3" else ssl.TLSVersion.TLSv1_2
        if tls.certfile:
            password = tls.keyfile_password
            context.load_cert_chain(tls.certfile, tls.keyfile, None if password is None else password.reveal())
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"TLS for {where}: {error.strerror or error}", option="tls") from error
    if tls.insecure_skip_verification:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def set_socket_options(sock: Any, settings: ConnectionSettings) -> None:
    """Applies the network options of the settings to a TCP socket. Linux doubles the sizes it is given (man 7 socket).

    Args:
        sock: A TCP socket, or what a transport gives for one.
        settings: Names and defaults of the options.
    """
    if settings.socket_receive_buffer_size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.socket_receive_buffer_size)
    if settings.socket_send_buffer_size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, settings.socket_send_buffer_size)
    # asyncio and uvloop turn it on for every TCP connection.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(settings.tcp_nodelay))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(settings.tcp_keepalive))
    if settings.tcp_keepalive:
        # macOS calls the idle time TCP_KEEPALIVE.
        idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
        if idle is not None:
            sock.setsockopt(socket.IPPROTO_TCP, idle, int(settings.tcp_keepalive_time))
        if hasattr(socket, "TCP_KEEPINTVL"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, int(settings.tcp_keepalive_interval))


class _Step:
    """Something to try: a host whose name is not resolved yet, one of its addresses, or the unix socket."""

    __slots__ = ("address", "endpoint")

    def __init__(self, endpoint: Endpoint | None, address: str | None = None) -> None:
        self.endpoint = endpoint
        self.address = address

    def where(self, settings: ConnectionSettings) -> str:
        if self.endpoint is None:
            return str(settings.unix_socket)
        return str(self.endpoint)


class _RaceEntrant:
    """The receiver of a transport that may come second; the first one to be connected gets the real receiver.

    It ignores everything but `connected`: a transport that did not win has no part in the connection, and one that
    fails before it is connected ends its attempt with an error.
    """

    def __init__(self, race: _Race, step: _Step) -> None:
        self._race = race
        self._step = step

    def connected(self, transport: FrameTransport) -> None:
        """The address answers, with TLS when the settings say so."""
        self._race.arrived(transport, self._step)

    def events_received(self, events: list[Any]) -> None:
        """The peer of a transport that came second has sent frames."""

    def stream_failed(self, error: ProtocolError) -> None:
        """The peer of a transport that came second has sent malformed frames."""

    def transport_lost(self, error: Exception | None) -> None:
        """The transport that came second is closed."""


class _Race:
    """Attempts that go on side by side, of which the first one to be connected gets the session."""

    def __init__(self, settings: ConnectionSettings, session: FrameReceiver) -> None:
        self.winner: _Step | None = None
        self._settings = settings
        self._session = session

    def arrived(self, transport: FrameTransport, step: _Step) -> None:
        if self.winner is not None:
            transport.abort()
            return
        self.winner = step
        if self._settings.unix_socket is None:
            with contextlib.suppress(OSError):  # the peer may have reset it already, which `connection_lost` tells
                set_socket_options(transport.extra_info("socket"), self._settings)
        transport.session = self._session
        self._session.connected(transport)


class Dialing:
    """The hosts and addresses that a connection has not tried yet.

    When the handshake fails on the address that `reach` returned, call it again; it goes on with the other addresses.

    Args:
        settings: Hosts, deadline, network and TLS options.
        first: The host to begin with, usually the last that was good. The others come in random order, so that the
            clients of a cluster are spread over its nodes.

    Raises:
        ConfigurationError: A certificate or key file cannot be used.
    """

    def __init__(self, settings: ConnectionSettings, first: Endpoint | None = None) -> None:
        endpoints: list[Endpoint | None] = [None] if settings.unix_socket else [*settings.endpoints]
        random.shuffle(endpoints)
        if first in endpoints:
            endpoints.remove(first)
            endpoints.insert(0, first)
        self._settings = settings
        self._steps = deque(_Step(endpoint) for endpoint in endpoints)
        self._context = None
        if settings.tls is not None:
            self._context = tls_context(settings.tls, ", ".join(map(str, settings.endpoints)))

    def __bool__(self) -> bool:
        """True while something is left to try."""
        return bool(self._steps)

    def forget(self, endpoint: Endpoint | None) -> None:
        """Leaves out the other addresses of a host, because each of them would take as long to fail."""
        self._steps = deque(step for step in self._steps if step.endpoint != endpoint)

    async def reach(self, session: FrameReceiver, make_transport: MakeTransport) -> Endpoint | None:
        """Connects to the first address that answers; its transport is given to `session.connected`.

        Args:
            session: Gets the transport.
            make_transport: Makes a transport with the session it is given, one for each attempt.

        Returns:
            The host that answered, or None for the unix socket.

        Raises:
            ConnectFailed: Nothing answered within `connect_timeout` seconds; the text names each host and its reason.
            TLSVerificationError: Every certificate was refused.
        """
        loop = asyncio.get_running_loop()
        race = _Race(self._settings, session)
        running: dict[asyncio.Task[list[_Step]], _Step] = {}
        failures: list[LeveretError] = []
        next_start = loop.time()
        deadline = next_start + self._settings.connect_timeout
        try:
            while True:
                now = loop.time()
                if self._steps and (not running or now >= next_start):
                    step = self._steps.popleft()
                    running[asyncio.create_task(self._attempt(step, race, make_transport))] = step
                    # With many addresses and little time each gets its share of what is left.
                    next_start = now + min(STAGGER, (deadline - now) / (len(self._steps) + 1))
                elif not running:
                    raise joined(failures)
                until = min(next_start, deadline) if self._steps else deadline
                await asyncio.wait(running, timeout=max(0.0, until - now), return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task.done()]:
                    step = running.pop(task)
                    try:
                        self._steps.extendleft(reversed(task.result()))
                    except (OSError, UnicodeError) as error:
                        failures.append(self._failure(step, error))
                    else:
                        if step is race.winner:
                            return step.endpoint
                    next_start = 0.0
                if loop.time() >= deadline and race.winner is None:
                    failures += [self._silence(step) for step in (*running.values(), *self._steps)]
                    self._steps.clear()
                    raise joined(failures)
        finally:
            if race.winner is not None:
                # They may be needed when the winner is of no use.
                self._steps.extendleft(reversed(running.values()))
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _attempt(self, step: _Step, race: _Race, make_transport: MakeTransport) -> list[_Step]:
        """Connects to an address, or returns the addresses of a host."""
        loop = asyncio.get_running_loop()

        def make() -> FrameTransport:
            return make_transport(_RaceEntrant(race, step))

        if step.endpoint is None:
            await loop.create_unix_connection(make, self._settings.unix_socket)
            return []
        host, port = step.endpoint.host, step.endpoint.port
        if step.address is None and not _is_numeric(host):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [_Step(step.endpoint, address) for address in _interleaved(found)]
        # The loop makes and closes the socket. What is numeric it does not resolve again.
        name = None if self._settings.tls is None else self._settings.tls.server_hostname or host
        await loop.create_connection(make, step.address or host, port, ssl=self._context, server_hostname=name)
        return []

    def _silence(self, step: _Step) -> LeveretError:
        timeout = f"within connect_timeout of {self._settings.connect_timeout:g} s"
        return ConnectFailed(f"no connection to {step.where(self._settings)} {timeout}")

    def _failure(self, step: _Step, error: OSError | UnicodeError) -> LeveretError:
        failure = _typed(step.where(self._settings), self._settings.tls, error)
        failure.__cause__ = error
        return failure


def _typed(where: str, tls: TLSSettings | None, error: OSError | UnicodeError) -> LeveretError:
    if isinstance(error, UnicodeError):
        # From the resolver's IDNA codec: a label that is empty or over 63 bytes.
        return ConnectFailed(f"cannot connect to {where}: that is no host name")
    if isinstance(error, ssl.SSLCertVerificationError):
        return TLSVerificationError(f"the certificate of {where} was refused: {error.verify_message}")
    # asyncio replaces the system's words by "Connect call failed"; the number of a gaierror is of another kind.
    if isinstance(error, (socket.gaierror, ssl.SSLError)) or error.errno is None:
        reason = getattr(error, "reason", None) or error.strerror or str(error) or type(error).__name__
    else:
        reason = os.strerror(error.errno)
    # To connect is refused or not answered, never reset: that was in the TLS handshake. Some servers that take no such
    # version say so, others just hang up.
    hung_up = isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError)
    if tls is not None and (hung_up or isinstance(error, ssl.SSLError)):
        reason = "the server hung up in the handshake" if hung_up else reason
        question = f"is that a TLS port, and does it take {tls.minimum_version} or newer (minimum_version)?"
        return ConnectFailed(f"TLS with {where} failed: {reason}; {question}")
    return ConnectFailed(f"cannot connect to {where}: {reason}")


def joined(failures: Sequence[LeveretError]) -> LeveretError:
    """One error for all that was tried: the only one, or one that tells each reason once."""
    texts = list(dict.fromkeys(str(failure) for failure in failures))
    if len(texts) == 1:
        return failures[-1]
    untrusted = all(isinstance(failure, TLSVerificationError) for failure in failures)
    error = (TLSVerificationError if untrusted else ConnectFailed)("; ".join(texts))
    error.__cause__ = failures[-1]
    return error


def _is_numeric(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return True
    return False


def _interleaved(found: Iterable[tuple[Any, ...]]) -> list[str]:
    """The numeric addresses that the resolver found, families by turns (RFC 8305 section 4), each once."""
    families: dict[int, list[str]] = {}
    for family, _, _, _, address in found:
        families.setdefault(family, []).append(address[0])
    by_turns = chain.from_iterable(zip_longest(*families.values()))
    return list(dict.fromkeys(address for address in by_turns if address is not None))
