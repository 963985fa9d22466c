"""Channels are numbered, answered and closed one beside the other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.support.outcomes import failure_at_once
from tests.support.servers import ON_EVERY_SERVER

import leveret
from leveret.errors import ConfigurationError

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_channel_numbers_are_used_again_when_channels_are_closed(broker: Broker) -> None:
    async with leveret.connect(broker.url, channel_max=3) as client:
        for _ in range(5):
            channels = [await client.channel() for _ in range(3)]
            assert sorted(channel.number for channel in channels) == [1, 2, 3]
            with pytest.raises(ConfigurationError, match="all 3 channels") as refused:
                await client.channel()
            assert refused.value.option == "channel_max"
            await asyncio.gather(*(channel.close() for channel in channels))
            await channels[0].close()  # again is no error
        with pytest.raises(leveret.errors.ChannelClosed):
            await channels[0].queue_declare("q")


@pytest.mark.parametrize("broker", ON_EVERY_SERVER, indirect=True)
async def test_every_method_of_a_channel_is_answered_when_the_broker_knows_it(
    client: leveret.Client, queue: str
) -> None:
    channel = await client.channel()
    await channel.tx_select()
    await channel.tx_commit()
    await channel.tx_rollback()
    await channel.basic_qos(10, global_=True)
    assert await channel.basic_get(queue) is None
    await channel.basic_recover()
    assert await channel.flow(True) is True
    await channel.close()


async def test_a_new_secret_is_taken_when_the_broker_knows_them(client: leveret.Client) -> None:
    await client.connection.update_secret("guest", "rotation")
    assert client.connection.is_open


async def test_the_connection_lives_when_both_sides_close_a_channel_at_once(client: leveret.Client) -> None:
    # The broker answers our close as well, or does not: that depends on what it saw first.
    for _ in range(50):
        channels = [await client.channel() for _ in range(3)]
        refused = [asyncio.create_task(channel.queue_declare("missing", passive=True)) for channel in channels]
        await asyncio.sleep(0)
        await asyncio.gather(*(channel.close() for channel in channels))
        for task in refused:
            assert isinstance(await failure_at_once(task), leveret.errors.ChannelClosed)
    assert client.connection.is_open
