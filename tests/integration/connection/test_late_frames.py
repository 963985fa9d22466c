"""Frames that a server sent before it heard that a channel is closed: they are dropped, and the connection goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from pamqp.commands import Basic, Channel
from tests.support.conversation import raw_method
from tests.support.handling import until
from tests.support.scripted import Scripted, connected

import leveret
from leveret.errors import ConfigurationError, NotFound, PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.peers import Peer
    from tests.support.rabbitmq import RabbitMQNode

pytestmark = pytest.mark.usefixtures("no_leftovers")

CLOSE = Channel.Close(406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out", 0, 0)


def _delivery(peer: Peer, channel: int) -> None:
    peer.send_bytes(raw_method(channel, 60, 60, b"\3tag" + (1).to_bytes(8) + b"\0\0\1q"))
    peer.send_bytes(b"\2" + channel.to_bytes(2) + (14).to_bytes(4) + b"\0\x3c\0\0" + (1).to_bytes(8) + b"\0\0\xce")
    peer.send_bytes(b"\3" + channel.to_bytes(2) + (1).to_bytes(4) + b"x\xce")


LATE: dict[str, Callable[[Peer, int], None]] = {
    "channel.close": lambda peer, channel: peer.send(CLOSE, channel),
    "basic.cancel": lambda peer, channel: peer.send(Basic.Cancel("tag"), channel),
    "a confirm": lambda peer, channel: peer.send(Basic.Ack(1), channel),
    "a delivery": _delivery,
    "an answer": lambda peer, channel: peer.send(Basic.QosOk(), channel),
}


@pytest.mark.parametrize("closing", ["by the server", "by both sides"])
@pytest.mark.parametrize("late", LATE)
async def test_the_connection_goes_on_when_a_frame_comes_late_on_a_closed_channel(closing: str, late: str) -> None:
    scripted = Scripted()
    async with connected(scripted) as client:
        channel = await client.connection.channel()
        peer = scripted.peers[-1]
        if closing == "by the server":
            peer.send(CLOSE, channel.number)
            LATE[late](peer, channel.number)
            await until(lambda: channel.error is not None)
            assert isinstance(channel.error, PreconditionFailed)
        else:
            # Our close is on its way when theirs comes, and is answered last.
            def close(peer: Peer, number: int, _: object) -> None:
                peer.send(CLOSE, number)
                LATE[late](peer, number)
                peer.send(Channel.CloseOk(), number)

            scripted.instead["Channel.Close"] = close
            await channel.close()
        scripted.instead.clear()
        other = await client.connection.channel()
        await other.basic_qos(1)
        await until(lambda: len(scripted.got("Channel.CloseOk")) >= 1)
        assert client.connection.is_open
        assert other.number != channel.number
        # RabbitMQ ends the connection at the second one: the channel is closed for it after the first.
        assert len(scripted.got("Channel.CloseOk")) == 1


async def test_the_number_of_a_channel_that_the_server_closed_is_used_when_all_others_are() -> None:
    scripted = Scripted()
    async with connected(scripted, channel_max=3) as client:
        first = await client.connection.channel()
        second = await client.connection.channel()
        scripted.peers[-1].send(CLOSE, first.number)
        await until(lambda: first.error is not None)
        third = await client.connection.channel()
        await second.close()
        fourth = await client.connection.channel()
        fifth = await client.connection.channel()
        assert [it.number for it in (second, third, fourth, fifth)] == [2, 3, 2, 1]
        with pytest.raises(ConfigurationError, match="channel_max"):
            await client.connection.channel()
        await fifth.basic_qos(1)


async def test_two_requests_that_fail_in_a_row_close_one_channel_and_not_the_connection(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    channel = await client.connection.channel()
    requests = [channel.queue_declare(name("missing"), passive=True) for _ in range(5)]
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(result, NotFound) for result in results)
    other = await client.connection.channel()
    await other.basic_qos(1)
    assert client.connection.is_open


@pytest.mark.server_version(before=(4, 3))
async def test_the_connection_goes_on_when_the_broker_repeats_channel_close_until_it_is_answered(
    rabbitmq: RabbitMQNode, unique_name: Callable[[str], str]
) -> None:
    def limit(milliseconds: int, tick: int) -> None:
        for option, value in (("consumer_timeout", milliseconds), ("channel_tick_interval", tick)):
            rabbitmq.ctl("eval", f"application:set_env(rabbit, {option}, {value}).")

    work = unique_name("work")
    await asyncio.to_thread(limit, 500, 100)  # both are read when a channel begins
    try:
        async with leveret.connect(rabbitmq.url) as client:
            await client.declare(leveret.Topology().queue(work))
            async with client.producer() as producer:
                await producer.publish_batch([1, 2, 3], work)
            async with client.consumer(work, ack="manual") as consumer:
                await anext(consumer)
                # A program that is busy for two seconds, which does not answer meanwhile.
                connection = consumer._connection
                connection.transport.pause_reading()
                await asyncio.sleep(2)
                connection.transport.resume_reading()
                await until(lambda: not consumer.health().live or connection.error is not None)
                other = await connection.channel()
                await other.basic_qos(1)
                assert connection.is_open
            await client.delete_queue(work)
    finally:
        await asyncio.to_thread(limit, 1_800_000, 60_000)
