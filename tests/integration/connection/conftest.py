"""What the tests of connections share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import leveret
    from leveret import DedicatedConnection


@pytest.fixture
async def dedicated(client: leveret.Client) -> AsyncIterator[DedicatedConnection]:
    """A dedicated connection with few channels."""
    async with client.dedicated_connection("dedicated", max_channels=3) as connection:
        yield connection
