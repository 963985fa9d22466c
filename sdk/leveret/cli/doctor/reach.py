"""Checks how the broker is reached: names of hosts, TCP, TLS."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from leveret.cli.doctor.certificates import expiry_of, handshake, refused_certificate
from leveret.cli.doctor.finding import failed, milliseconds, ok, skipped, some, warning
from leveret.errors import printable
from leveret.runtime.threads import in_daemon_thread
from leveret.settings import Endpoint
from leveret.transport.dialing import tls_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from leveret.cli.doctor.finding import Finding
    from leveret.cli.doctor.visit import Visit

__all__ = ["names", "tcp", "tls"]

#: Days before a certificate expires from which on the check warns.
_SOON: Final = 30
#: Ports of RabbitMQ that speak something else than AMQP.
_OTHER_PORTS: Final = {
    15671: "the management's HTTPS",
    15672: "the management's HTTP",
    15692: "Prometheus metrics",
    1883: "MQTT",
    5552: "streams",
    61613: "STOMP",
}


async def names(visit: Visit) -> Finding:
    """Resolves the names of the hosts."""
    if visit.settings.unix_socket is not None:
        return skipped("a unix socket has no host name")
    found: list[str] = []
    problems: list[str] = []

    async def resolve(endpoint: Endpoint) -> None:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(visit.step):
                answers = await in_daemon_thread(
                    lambda: socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM),
                    "leveret doctor DNS",
                )
        except TimeoutError:
            problems.append(f"{endpoint.host}: no answer within {visit.step:g} s")
        except UnicodeError:
            problems.append(f"{endpoint.host}: that is no host name")
        except OSError as error:
            problems.append(f"{endpoint.host}: {error.strerror or error}")
        else:
            addresses = list(dict.fromkeys(str(address[0]) for *_, address in answers))
            visit.addresses[endpoint] = addresses
            took = milliseconds(time.perf_counter() - began)
            is_numeric = addresses == [endpoint.host]
            found.append(
                f"{endpoint.host} is an address" if is_numeric else f"{endpoint.host}: {some(addresses)} ({took})"
            )

    await asyncio.gather(*map(resolve, visit.settings.endpoints))
    text = "; ".join(dict.fromkeys(found + problems))
    if not problems:
        return ok(text)
    advice = "Check the spelling, and the resolver of this host (/etc/resolv.conf)."
    return warning(text, advice) if found else failed(text, advice)


async def tcp(visit: Visit) -> Finding:
    """Connects to each address of each host, and to a unix socket."""
    path = visit.settings.unix_socket
    if path is not None:
        took, problem = await _timed(lambda: asyncio.open_unix_connection(path), visit.step)
        if problem is None:
            return ok(f"{path} in {milliseconds(took)}")
        return failed(f"{path}: {_text_of(problem)}", "Does the broker run, and is this the path that it listens on?")
    problems: list[OSError] = []

    async def connect(endpoint: Endpoint, address: str) -> str:
        where = str(Endpoint(address, endpoint.port))
        took, problem = await _timed(lambda: asyncio.open_connection(address, endpoint.port), visit.step)
        if problem is None:
            visit.reached.append((endpoint, address))
            return f"{where} in {milliseconds(took)}"
        problems.append(problem)
        return f"{where}: {_text_of(problem)}"

    addresses = [(endpoint, address) for endpoint, all_ in visit.addresses.items() for address in all_]
    text = some(await asyncio.gather(*(connect(*pair) for pair in addresses)))
    if not visit.reached:
        return failed(text, _advice_for(problems, visit))
    # That one address of a host refuses is usual: localhost has one of IPv6, and few brokers listen there.
    lost = visit.addresses.keys() - {endpoint for endpoint, _ in visit.reached}
    if lost or any(isinstance(problem, TimeoutError) for problem in problems):
        return warning(text, f"{_advice_for(problems, visit)} Leveret goes on with the addresses that answer.")
    return ok(text)


async def _timed(
    connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]], limit: float
) -> tuple[float, OSError | None]:
    began = time.perf_counter()
    try:
        async with asyncio.timeout(limit):
            _, writer = await connect()
    except TimeoutError:
        return limit, TimeoutError(f"no answer within {limit:g} s")
    except OSError as error:
        return 0.0, error
    took = time.perf_counter() - began
    writer.transport.abort()
    return took, None


def _text_of(error: OSError) -> str:
    # asyncio replaces the system's words by "Connect call failed".
    return (os.strerror(error.errno) if error.errno else str(error)).lower()


def _advice_for(problems: list[OSError], visit: Visit) -> str:
    advice = []
    if any(isinstance(problem, TimeoutError) for problem in problems):
        advice.append("Where nothing answers, a firewall may drop what is sent, or no machine has the address.")
    if any(problem.errno == errno.ECONNREFUSED for problem in problems):
        advice.append("Where the connection is refused nothing listens: does the broker run, and is this its port?")
    advice += [
        f"Port {port} is usually for {_OTHER_PORTS[port]}; AMQP has 5672, and 5671 with TLS."
        for port in sorted({endpoint.port for endpoint in visit.settings.endpoints} & _OTHER_PORTS.keys())
    ]
    return " ".join(advice) or "Check the network between this host and the broker."


async def tls(visit: Visit) -> Finding:
    """Makes a TLS handshake with an address of each host, and looks at the certificate."""
    settings = visit.settings.tls
    if settings is None:
        return skipped("not used: the URL begins with amqp://")
    context = tls_context(settings, "the broker")
    found: list[str] = []
    advice: list[str] = []
    days_left: list[float] = []
    trusted = 0
    for endpoint, address in {host: (host, address) for host, address in reversed(visit.reached)}.values():
        name = settings.server_hostname or endpoint.host
        try:
            async with asyncio.timeout(visit.step):
                seen = await handshake(address, endpoint.port, context, name)
        except TimeoutError:
            found.append(f"{endpoint}: no TLS handshake within {visit.step:g} s")
            advice.append("Is that a TLS port? AMQP with TLS has 5671.")
        except OSError as error:
            text, todo = await refused_certificate(error, address, endpoint.port, name, visit.step)
            found.append(f"{endpoint}: {text}")
            advice.append(todo)
        else:
            trusted += 1
            expires = expiry_of(seen.certificate)
            days = (expires - datetime.now(UTC)).total_seconds() / 86_400
            days_left.append(days)
            lasts = f"expires in {days:.0f} days ({expires:%Y-%m-%d})"
            found.append(f"{endpoint}: {seen.version}, the certificate for {printable(name)} {lasts}")
            if days < _SOON:
                advice.append("Renew the certificate.")
    text, todo = "; ".join(found), " ".join(dict.fromkeys(advice))
    if not trusted:
        return failed(text, todo)
    return warning(text, todo) if advice else ok(text, figures={"expires_days": min(days_left)})
