"""What the tests of consumers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.handling import Queues
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import Callable

    import leveret


@pytest.fixture
async def queues(client: leveret.Client, name: Callable[[str], str]) -> Queues:
    """A queue and its dead letters."""
    return await Queues(client, name).declare()


@pytest.fixture
def scripted() -> Scripted:
    """A broker that answers by a script."""
    return Scripted()
