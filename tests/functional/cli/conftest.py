"""Shops for the tests of `leveret run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.shop import Shop

import leveret
from leveret.cli.process import BrokerProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def embedded_url() -> Iterator[str]:
    with BrokerProcess() as broker:
        yield broker.url


@pytest.fixture
async def local_shop(tmp_path: Path, embedded_url: str, unique_name: Callable[[str], str]) -> AsyncIterator[Shop]:
    """What does not depend on the broker is tested with one only."""
    made = Shop(tmp_path, embedded_url, unique_name("shop"))
    yield made
    async with leveret.connect(made.url) as client:
        await client.delete_queue(made.queue)
