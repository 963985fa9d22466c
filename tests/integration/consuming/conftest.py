"""What the tests of consumers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.handling import Queues
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import leveret


@pytest.fixture
async def queues(client: leveret.Client, name: Callable[[str], str]) -> Queues:
    """A queue and its dead letters."""
    return await Queues(client, name).declare()


@pytest.fixture
async def failing(queues: Queues) -> AsyncIterator[Queues]:
    """A queue whose retry and parking queues are removed."""
    yield queues
    for suffix in ("retry.100", "retry.200", "parked"):
        await queues.client.delete_queue(f"{queues.work}.{suffix}")


@pytest.fixture
def scripted() -> Scripted:
    """A broker that answers by a script."""
    return Scripted()
