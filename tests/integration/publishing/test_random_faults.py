"""Faults at any time: what was confirmed is in the queue, first sightings are in order, each publishing ends once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.queues import messages
from tests.support.reopening import outcomes

import leveret
from leveret import Outcome
from leveret.errors import BackpressureError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from tests.support.brokers import Broker

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")

#: At least so many publishings, and so many faults meanwhile.
COUNT = 1500
FAULTS = 25
#: What the broker closes the producer's channel for.
OFFENCES: list[dict[str, Any]] = [{"exchange": "no such exchange"}, {"user_id": "somebody else"}]


class Faults:
    """Makes one fault after the other until it is told to stop."""

    def __init__(self, dice: random.Random, proxy: FaultProxy, broker: Broker) -> None:
        self._dice = dice
        self._proxy = proxy
        self._broker = broker
        self.made: Counter[str] = Counter()
        self.enough = False

    async def run(self) -> None:
        while not self.enough:
            await asyncio.sleep(self._dice.uniform(0.005, 0.05))
            kind = self._dice.choice(["reset", "reset", "half close", "swallow", "cut", "slice", "refuse", "forced"])
            self.made[kind] += 1
            proxy = self._proxy
            if kind == "reset":
                proxy.reset()
            elif kind == "half close":
                proxy.half_close(self._dice.choice(["to_client", "to_broker", "both"]))
            elif kind == "swallow":
                # Confirms get lost, as with the connection that carries them.
                proxy.swallow()
                await asyncio.sleep(self._dice.uniform(0, 0.02))
                proxy.reset()
                proxy.resume()
            elif kind == "cut":
                proxy.cut_after(self._dice.choice(["basic.publish", "basic.ack"]), self._dice.randrange(1, 200))
            elif kind == "slice":
                proxy.slice(self._dice.randrange(1, 50), pause=0.0)
                await asyncio.sleep(0.01)
                proxy.reset()
                proxy.resume()
            elif kind == "refuse":
                proxy.refuse()
                proxy.reset()
                await asyncio.sleep(self._dice.uniform(0, 0.1))
                proxy.accept()
            elif self.made[kind] < 5:
                await self._broker.close_connections()


@pytest.mark.time_limit(60)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("on_loss", ["resend", "unknown"])
async def test_nothing_that_was_confirmed_is_lost_and_first_sightings_are_in_order(
    proxy: FaultProxy, broker: Broker, queue: str, seed: int, on_loss: str
) -> None:
    dice = random.Random(f"{seed} {on_loss}")
    faults = Faults(dice, proxy, broker)
    offenders: set[int] = set()
    ended: dict[int, Awaitable[Any]] = {}
    batches: list[tuple[range, asyncio.Task[leveret.BatchResult]]] = []
    options: dict[str, Any] = {"recovery_initial_delay": 0.002, "recovery_max_delay": 0.02, "close_timeout": 1.0}
    # The calls of each form, in their order.
    numbers: dict[str, list[int]] = {"publish": [], "nowait": [], "enqueue": []}

    def offence(number: int) -> dict[str, Any]:
        if dice.random() < 0.004:
            offenders.add(number)
            return dice.choice(OFFENCES)
        return {}

    async with leveret.connect(proxy.url, **options) as client:
        producer = await client.producer(max_outstanding=50, batch_size=20, on_loss=on_loss).open()
        make_faults = asyncio.create_task(faults.run())
        number = 0
        while number < COUNT or sum(faults.made.values()) < FAULTS:
            assert not make_faults.done(), make_faults.exception()
            kind = dice.choice([*numbers, "batch", "pause"])
            if kind == "pause":
                await asyncio.sleep(dice.uniform(0, 0.02))
                continue
            if kind == "publish":
                ended[number] = asyncio.create_task(producer.publish(number, queue, **offence(number)))
            elif kind == "nowait":
                try:
                    ended[number] = producer.publish_nowait(number, queue, **offence(number))
                except BackpressureError:  # the socket is full
                    await asyncio.sleep(0.001)
                    continue
            elif kind == "enqueue":
                ended[number] = await producer.enqueue(number, queue, **offence(number))
            else:
                chunk = range(number, number + dice.randrange(1, 60))
                values = [producer.message(each) for each in chunk]
                for value in values:
                    value.options.update(offence(value.value))  # type: ignore[typeddict-item]
                batches.append((chunk, asyncio.create_task(producer.publish_batch(values, queue))))
                number = chunk[-1]
            if kind in numbers:
                numbers[kind].append(number)
            number += 1
            await asyncio.sleep(0)
        # The fault that is being made ends: closing connections would go on in another process.
        faults.enough = True
        await make_faults
        proxy.resume()
        proxy.accept()
        known = dict(zip(ended, await outcomes(ended.values()), strict=True))
        for chunk, task in batches:
            result = await task
            known |= {each: result.outcome(index) for index, each in enumerate(chunk)}
        await producer.flush()
        counters = producer.counters()
        await producer.close()

    assert counters["outstanding"] == 0
    assert counters["published"] == sum(counters[name] for name in ("confirmed", "returned", "nacked", "unknown"))
    assert counters["confirmed"] == sum(each is Outcome.CONFIRMED for each in known.values())
    assert set(known) == set(range(number))
    async with leveret.connect(broker.url) as reader:
        found = await messages(reader, queue)
    there = {message.value for message in found}
    assert {each for each, how in known.items() if how is Outcome.CONFIRMED} <= there
    assert not there & offenders
    if on_loss == "resend":
        assert {each for each, how in known.items() if how is not Outcome.CONFIRMED} == offenders
        seen = Counter[int]()
        for message in found:
            resent = (message.headers or {}).get("x-leveret-resent", 0)
            assert resent or not seen[message.value], "a copy says that it is one"
            seen[message.value] += 1
    else:
        assert len(found) == len(there), "nothing is sent twice"
        assert set(known.values()) <= {Outcome.CONFIRMED, Outcome.UNKNOWN}
    first = list(dict.fromkeys(message.value for message in found))
    position = {value: index for index, value in enumerate(first)}
    # Batches are published by tasks of their own, which take turns.
    for calls in (*numbers.values(), *(chunk for chunk, _ in batches)):
        in_queue = [position[value] for value in calls if value in position]
        assert in_queue == sorted(in_queue), calls
