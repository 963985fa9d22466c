"""Content where none can be ends a client's connection to the embedded broker, before it takes memory."""

from __future__ import annotations

import pytest
from tests.corpus.frames import NO_PROPERTIES, body, header, publish
from tests.support.session import Client

from leveret.broker import EmbeddedBroker
from leveret.protocol.commands import PROTOCOL_HEADER, Channel, Connection, Queue, encode, make

pytestmark = pytest.mark.usefixtures("no_leftovers")

CONTENT = publish(1) + header(1, 10) + body(1, b"x")
START_OK = encode(0, make(Connection.StartOk, client_properties={}, response="\0guest\0guest"))
TUNE_OK = encode(0, make(Connection.TuneOk, channel_max=10, frame_max=4096, heartbeat=0))
OPEN = encode(0, make(Connection.Open, virtual_host="/"))
#: RabbitMQ takes 8 bytes more than the negotiated frame, and so does this broker.
LIMIT = 1000 + 4096 + 8


@pytest.mark.parametrize("opened", [b"", encode(1, make(Channel.Open))], ids=["no channel", "channel.open"])
@pytest.mark.parametrize(
    "before", [b"", PROTOCOL_HEADER, PROTOCOL_HEADER + START_OK], ids=["nothing", "header", "start-ok"]
)
async def test_content_before_tune_ok_closes_the_socket(broker: EmbeddedBroker, before: bytes, opened: bytes) -> None:
    client = Client(broker)
    client.feed(before + opened + CONTENT)
    assert client.wire.closed == "closed"
    client.lose()


async def test_content_before_connection_open_ends_the_connection(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.feed(PROTOCOL_HEADER + START_OK + TUNE_OK + CONTENT)
    close = client.answers()[-1]
    assert isinstance(close, Connection.Close)
    assert close.reply_code == 505
    client.lose()


async def test_handshake_and_publishing_may_come_in_one_read() -> None:
    async with EmbeddedBroker() as broker:
        client = Client(broker)
        large = bytes(5000)  # more than a frame before connection.tune-ok may have
        tune_ok = encode(0, make(Connection.TuneOk, channel_max=10, frame_max=131_072, heartbeat=0))
        declare = encode(1, make(Queue.Declare, queue="q"))
        content = publish(1) + header(1, len(large)) + body(1, large)
        opened = encode(1, make(Channel.Open))
        client.feed(PROTOCOL_HEADER + START_OK + tune_ok + OPEN + opened + declare + content)
        assert not client.wire.closed
        assert broker.queue_depth("q") == 1
        client.lose()


@pytest.mark.parametrize("beyond", [-1, 0, 1])
async def test_incomplete_contents_of_all_channels_have_one_limit(beyond: int) -> None:
    async with EmbeddedBroker(max_message_size=1000, frame_max=4096) as broker:
        client = Client(broker)
        client.frame_max = 4096
        client.open(1, 2, 3)
        client.feed(publish(1) + header(1, 1000, NO_PROPERTIES + bytes(4000)) + body(1, bytes(200)))
        client.feed(publish(2) + header(2, 1000) + body(2, bytes(LIMIT - 4202 - 2 + beyond)))
        if beyond <= 0:
            assert isinstance(client.ask(3, Queue.Declare, queue="q"), Queue.DeclareOk)
        else:
            (close,) = client.answers()
            assert (close.reply_code, close.reply_text.split(" - ")[0]) == (506, "RESOURCE_ERROR")
            assert f"limit of {LIMIT}" in close.reply_text
        client.lose()


async def test_content_is_dropped_on_a_channel_that_the_broker_has_closed() -> None:
    async with EmbeddedBroker(max_message_size=1000, frame_max=4096) as broker:
        client = Client(broker)
        client.frame_max = 4096
        client.open(1, 2)
        client.ask(1, Queue.Declare, queue="missing", passive=True)  # channel.close, 404
        for _ in range(20):
            client.feed(publish(1) + header(1, 1000, NO_PROPERTIES + bytes(4000)) + body(1, bytes(1000)))
        client.feed(publish(1) + header(1, 1000, NO_PROPERTIES + bytes(4000)) + body(1, bytes(999)))
        client.feed(publish(2) + header(2, 1000, NO_PROPERTIES + bytes(4000)) + body(2, bytes(999)))
        assert client.answers() == []
        client.feed(body(1, b"x"))
        # The channel's next user comes in the same read.
        declare = encode(1, make(Queue.Declare, queue="q"))
        content = publish(1) + header(1, 4) + body(1, b"body")
        opened = encode(1, make(Channel.CloseOk)) + encode(1, make(Channel.Open))
        client.feed(opened + declare + content)
        assert [type(answer) for answer in client.answers()] == [Channel.OpenOk, Queue.DeclareOk]
        assert broker.queue_depth("q") == 1
        client.lose()
