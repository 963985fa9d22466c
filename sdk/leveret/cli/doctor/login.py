"""Checks the login and the virtual host: one connection, as a program would open it."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import leveret
from leveret.cli.doctor.finding import failed, ok
from leveret.errors import (
    AuthenticationError,
    ConnectionClosed,
    ConnectionLost,
    IncompatibleProtocol,
    OperationTimeout,
    printable,
)
from leveret.settings import PluginSettings
from leveret.wire.numbers import NOT_ALLOWED

if TYPE_CHECKING:
    from leveret.cli.doctor.finding import Finding
    from leveret.cli.doctor.visit import Visit

__all__ = ["is_local", "login", "virtual_host"]


def is_local(visit: Visit) -> bool:
    """Returns whether the broker is on this host, as far as its addresses say so."""
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for _, address in visit.reached)


async def login(visit: Visit) -> Finding:
    """Logs in. The connection stays open for the checks that follow."""
    settings = visit.settings
    external = settings.mechanism == "EXTERNAL"
    who = "the client's certificate" if external else f"user {printable(settings.username, 64)!r}"
    try:
        visit.client = await leveret.connect(settings, plugins=PluginSettings(allow=()))
    except AuthenticationError as error:
        return failed(f"{who} by {settings.mechanism}: {error.reply_text or error}", _advice_for_login(visit))
    except ConnectionClosed as error:
        if error.reply_code != NOT_ALLOWED:
            raise
        # The broker looks at the virtual host after the login.
        visit.refusal = error
    except IncompatibleProtocol as error:
        return failed(str(error), _advice_for_protocol(error.began_with))
    except (ConnectionLost, OperationTimeout) as error:
        advice = "Is this the broker's port for AMQP (5672, or 5671 with TLS)? Its log may say why it hung up."
        return failed(str(error), advice)
    where = "" if visit.client is None else f" at {visit.client.connection.endpoint or settings.unix_socket}"
    return ok(f"{who} by {settings.mechanism}{where}")


def _advice_for_login(visit: Visit) -> str:
    if visit.settings.mechanism == "EXTERNAL":
        return "Does the broker have the plugin rabbitmq_auth_mechanism_ssl, and a user named as the certificate?"
    advice = "Check user and password; the broker's log says more."
    if visit.settings.username == "guest" and not is_local(visit):
        advice += " RabbitMQ lets guest in from its own host only: make another user."
    return advice


def _advice_for_protocol(began_with: bytes) -> str:
    if began_with.startswith(b"HTTP/"):
        return "A web server answers there: RabbitMQ's management has port 15672, AMQP has 5672."
    if began_with.startswith(b"\x15\x03"):  # an alert of TLS 1.0 to 1.3, RFC 8446 section 5.1
        return "TLS is spoken there: write amqps:// in the URL."
    return "Is that the broker's port? RabbitMQ has 5672 for AMQP 0-9-1, and 5671 with TLS."


async def virtual_host(visit: Visit) -> Finding:
    """Says whether the broker opened the virtual host."""
    name = printable(visit.settings.virtual_host, 64)
    error = visit.refusal
    if error is None:
        return ok(f"{name!r}")
    text = error.reply_text if isinstance(error, ConnectionClosed) else str(error)
    advice = (
        f"Does it exist (rabbitmqctl list_vhosts), and may the user open it "
        f"(rabbitmqctl list_permissions -p {name})? In a URL '/' is written %2F."
    )
    return failed(f"{name!r}: {text}", advice)
