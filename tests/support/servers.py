"""The RabbitMQ servers that are here, as parameters of tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.support.rabbitmq import RabbitMQUnavailableError, find_server, find_servers

if TYPE_CHECKING:
    from tests.support.rabbitmq import RabbitMQNode, RabbitMQServer

#: One parameter for each server, for fixtures and for parametrize with indirect=True. Without any server it is one that
#: skips the test, so that the run shows what it left out.
ON_EVERY_SERVER: Final = [
    pytest.param(server, id=str(server) if server else "rabbitmq", marks=pytest.mark.integration)
    for server in find_servers() or (None,)
]


def server_of(request: pytest.FixtureRequest) -> RabbitMQServer:
    """Returns the server that a fixture's parameter names; skips the test when there is none."""
    if request.param is None:
        try:
            find_server()
        except RabbitMQUnavailableError as error:
            pytest.skip(str(error))
    server: RabbitMQServer = request.param
    return server


def node_of(request: pytest.FixtureRequest) -> RabbitMQNode:
    """Returns the run's node of the server that a fixture's parameter names; skips the test when there is none."""
    node: RabbitMQNode = request.getfixturevalue("rabbitmq_nodes")(server_of(request))
    return node
