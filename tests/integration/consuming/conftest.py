"""What the tests of consumers share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from tests.support.handling import Queues
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import leveret


@pytest.fixture
async def queues(client: leveret.Client, name: Callable[[str], str]) -> Queues:
    """A queue and its dead letters."""
    return await Queues(client, name).declare()


@pytest.fixture
def program_errors() -> Iterator[list[str]]:
    """The errors of the program that consumers log, which would fail the test otherwise."""
    texts: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        if record.levelno == logging.ERROR:
            texts.append(record.getMessage())
        return record.levelno != logging.ERROR

    logger = logging.getLogger("leveret.consuming")
    logger.addFilter(take)
    yield texts
    logger.removeFilter(take)


@pytest.fixture
def scripted() -> Scripted:
    """A broker that answers by a script."""
    return Scripted()
