"""The client properties (AMQP 1.4.2.2): what a connection tells the broker about this client."""

from __future__ import annotations

import platform
from typing import Any, Final

__all__ = ["client_properties"]

# The client's capabilities (RabbitMQ: capabilities). The broker sends these notifications only to clients that say so.
_CAPABILITIES: Final = {
    "publisher_confirms": True,
    "exchange_exchange_bindings": True,
    "basic.nack": True,
    "consumer_cancel_notify": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}


def client_properties(name: str) -> dict[str, Any]:
    """Returns the client properties of a connection.

    Args:
        name: The name of the connection, which the broker lists.
    """
    from leveret import __version__

    return {
        "product": "Leveret",
        "version": __version__,
        "platform": f"{platform.python_implementation()} {platform.python_version()}",
        "connection_name": name,
        "capabilities": dict(_CAPABILITIES),
    }
