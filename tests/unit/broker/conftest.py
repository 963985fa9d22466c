"""What the tests of the embedded broker share."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest
from tests.support.session import Client

from leveret.broker import EmbeddedBroker
from leveret.broker.virtual_host import Scheduler, VirtualHost

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
async def broker() -> EmbeddedBroker:
    made = EmbeddedBroker(max_message_size=1_000_000)
    made.scheduler = Scheduler(asyncio.get_running_loop())
    made.vhosts = {"/": VirtualHost("/", made.scheduler)}
    return made


@pytest.fixture
async def client(broker: EmbeddedBroker) -> Client:
    return Client(broker).open(1)


@pytest.fixture
def no_errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
