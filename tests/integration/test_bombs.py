"""Bodies that are made to hurt: what they may take is measured, and consumers go on as if they had never come."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.bombs import MAX_SIZE, bombs

import leveret

if TYPE_CHECKING:
    from leveret import Message

MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("no_leftovers")


def test_at_least_twenty_bombs_stay_within_the_limit_and_one_mebibyte() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.bombs"], capture_output=True, text=True, timeout=120, check=True
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["name"] for result in results] == list(bombs())
    assert len(results) >= 20
    for result in results:
        assert result["raised"] in ("BodyTooLarge", "DecodeFailed"), result
        assert 0 <= result["grown"] <= MAX_SIZE + MIB, result


async def test_bombs_are_dead_lettered_and_the_consumer_goes_on(client: leveret.Client, queue: str, name: Any) -> None:
    dead = name("dead")
    work = name("work")
    await client.declare(
        leveret.Topology()
        .queue(dead)
        .queue(work, leveret.Classic(dead_letter_exchange="", dead_letter_routing_key=dead))
    )
    made = bombs()
    async with client.producer(serializer="bytes") as producer:
        for encoding, body in made.values():
            await producer.publish(body, work, content_type="application/json", content_encoding=encoding)
        await producer.publish(b'"still here"', work, content_type="application/json")
    consumer = client.consumer(work, max_decompressed_size=MAX_SIZE, max_decompression_ratio=1_000_000)
    handled: list[Any] = []

    async def handle(value: Any, message: Message) -> None:
        handled.append(value)
        consumer.stop()

    await consumer.run(handle)

    assert handled == ["still here"]
    assert consumer.counters()["undecodable"] == consumer.counters()["dead_lettered"] == len(made)
    assert await client.purge(dead) == len(made)
