"""`leveret doctor` reads the broker's clock to the millisecond where RabbitMQ puts the time into messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.doctor import examined
from tests.support.rabbitmq import RabbitMQNode
from tests.support.servers import ON_EVERY_SERVER, server_of

from leveret.cli.doctor.finding import State

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_leftovers"), pytest.mark.time_limit(90)]


@pytest.fixture(params=ON_EVERY_SERVER)
def stamping(request: pytest.FixtureRequest, tmp_path: Path) -> RabbitMQNode:
    """A node that writes the time into each message that it takes (RabbitMQ: message interceptors)."""
    setting = "message_interceptors.incoming.set_header_timestamp.overwrite = true"
    return RabbitMQNode(tmp_path, server=server_of(request), config=setting)


@pytest.mark.server_version(since=(3, 12))
async def test_the_time_in_messages_is_read(stamping: RabbitMQNode) -> None:
    with stamping as node:
        finding = (await examined(node.url))["clock"]
    assert finding.state is State.OK
    # Of 20 messages, one was on its way for less than a tenth of a second. Without them it would be half a second.
    assert finding.figures["uncertainty_s"] < 0.1
    assert abs(finding.figures["ahead_s"]) < 0.1
