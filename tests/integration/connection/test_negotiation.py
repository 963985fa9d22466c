"""Names, heartbeats and frame sizes are negotiated with the broker."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from tests.support.rabbitmq import RabbitMQNode, listed
from tests.support.servers import ON_EVERY_SERVER, server_of

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.settings import ConnectionSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.integration
async def test_s3_client_name_is_what_the_broker_lists(rabbitmq: RabbitMQNode) -> None:
    async with leveret.connect(rabbitmq.url, client_name="High Performance Application"):
        ((properties,),) = await listed(rabbitmq, "High Performance Application (publish)")
        assert '{"product","Leveret"}' in properties
        assert f'{{"version","{leveret.__version__}"}}' in properties
        for capability in ("publisher_confirms", "consumer_cancel_notify", "connection.blocked", "basic.nack"):
            assert f'{{"{capability}",true}}' in properties


@pytest.mark.integration
async def test_s5_heartbeats_are_every_30_s_unless_they_are_off(rabbitmq: RabbitMQNode) -> None:
    assert ConnectionSettings().heartbeat == 30.0
    async with leveret.connect(rabbitmq.url, client_name="s5") as client:  # RabbitMQ asks for 60
        assert client.connection.negotiated.heartbeat == 30
        assert await listed(rabbitmq, "s5 (publish)", "timeout") == [["30"]]
    async with leveret.connect(rabbitmq.url, heartbeat=0, client_name="s5 off") as client:
        assert client.connection.negotiated.heartbeat == 0
        assert await listed(rabbitmq, "s5 off (publish)", "timeout") == [["0"]]


@pytest.mark.parametrize(("ours", "theirs", "agreed"), [(30, 5, 5), (5, 30, 5), (30, 0, 30), (0, 30, 0)])
async def test_s5_heartbeats_follow_both_sides_when_they_differ(ours: int, theirs: int, agreed: int) -> None:
    async with EmbeddedBroker(heartbeat=theirs) as broker, leveret.connect(broker.url, heartbeat=ours) as client:
        assert client.connection.negotiated.heartbeat == agreed


FRAME_MAX = 1_048_576


async def test_s34_a_frame_max_of_1_mib_is_lowered_when_the_server_allows_less(
    broker: Broker, name: Callable[[str], str]
) -> None:
    async with leveret.connect(broker.url, frame_max=FRAME_MAX) as client:
        assert client.connection.negotiated.frame_max == 131_072


def lowered(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """The level and text of each line about a lowered limit."""
    return [(record.levelno, record.message) for record in caplog.records if "lowered" in record.message]


async def test_s34_the_log_says_once_for_each_connection_what_the_broker_lowered(
    broker: Broker, name: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "leveret.client")
    async with leveret.connect(broker.url, frame_max=FRAME_MAX, client_name="s34") as client:
        text = "connection 's34 (publish)': the broker lowered frame_max from 1048576 to 131072"
        assert lowered(caplog) == [(logging.WARNING, text)]
        async with client.producer(), client.producer():
            assert len(lowered(caplog)) == 1
        async with client.consumer("no queue"):
            await client.consuming_link()
        assert [line.partition(":")[0] for _, line in lowered(caplog)] == [
            "connection 's34 (publish)'",
            "connection 's34 (consume)'",
        ]


async def test_s34_a_lowered_default_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "leveret.client")
    async with EmbeddedBroker(frame_max=8192, channel_max=7) as broker:
        async with leveret.connect(broker.url, channel_max=9):
            assert lowered(caplog) == [
                (logging.INFO, "connection 'leveret (publish)': the broker lowered frame_max from 131072 to 8192"),
                (logging.WARNING, "connection 'leveret (publish)': the broker lowered channel_max from 9 to 7"),
            ]
        caplog.clear()
        async with leveret.connect(broker.url, frame_max=8192, channel_max=7):
            assert lowered(caplog) == []


@pytest.fixture(params=ON_EVERY_SERVER)
def large_frames(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RabbitMQNode]:
    """A RabbitMQ that allows the guide's frames."""
    with RabbitMQNode(tmp_path, server=server_of(request), config=f"frame_max = {FRAME_MAX}") as node:
        yield node


async def round_trip_in_frames_of(client: leveret.Client, frame_max: int) -> None:
    """Publishes 3 MiB and gets them back."""
    body = bytes(range(256)) * 12_288
    await client.declare(Topology().queue("large"))
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(body, "large")
    async with client.consumer("large") as consumer:
        message = await consumer.get()
        assert message is not None
        assert message.body == body
        assert client.consuming_link.connection is not None
        frames = client.consuming_link.connection.transport.reader.received_frames
    # The body in as few frames as fit, and fewer than ten of the connection, the channel and the header.
    in_body = -(-len(body) // (frame_max - 8))
    assert in_body <= frames < in_body + 10


@pytest.mark.integration
async def test_s34_a_frame_max_of_1_mib_is_negotiated_when_the_server_allows_it(large_frames: RabbitMQNode) -> None:
    async with leveret.connect(large_frames.url, frame_max=FRAME_MAX) as client:
        assert client.connection.negotiated.frame_max == FRAME_MAX
        assert await listed(large_frames, "leveret (publish)", "frame_max") == [[str(FRAME_MAX)]]
        await round_trip_in_frames_of(client, FRAME_MAX)


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"), [(FRAME_MAX, FRAME_MAX, FRAME_MAX), (FRAME_MAX, 8192, 8192), (4096, FRAME_MAX, 4096)]
)
async def test_s34_bodies_are_split_by_the_frame_max_when_it_was_negotiated(
    ours: int, theirs: int, agreed: int
) -> None:
    async with EmbeddedBroker(frame_max=theirs) as broker, leveret.connect(broker.url, frame_max=ours) as client:
        assert client.connection.negotiated.frame_max == agreed
        await round_trip_in_frames_of(client, agreed)


async def test_what_the_server_is_can_be_read_when_the_connection_is_open(client: leveret.Client) -> None:
    negotiated = client.connection.negotiated
    assert negotiated.channel_max >= 100
    assert negotiated.server_properties["product"]
    assert negotiated.server_properties["version"]
    assert negotiated.capabilities["publisher_confirms"] is True
