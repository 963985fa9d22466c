"""A broker that returns more than was published fills no memory."""

from __future__ import annotations

import pytest
from pamqp import frame
from pamqp.commands import Basic, Channel, Confirm, Tx
from pamqp.header import ContentHeader
from tests.support.peers import FakeServer, Peer

import leveret
from leveret.errors import MessageReturned

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_a_transaction_keeps_no_more_returned_messages_than_it_published() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select, Channel.Open)
        await peer.expect(Tx.Select)
        peer.send(Tx.SelectOk(), 2)
        for _ in range(2):
            await peer.expect(Basic.Publish)
            await peer.receive()
            await peer.receive()
        await peer.expect(Tx.Commit)
        returned = frame.marshal(Basic.Return(312, "NO_ROUTE", "", "q"), 2)
        for _ in range(1000):
            peer.send_bytes(returned + frame.marshal(ContentHeader(0, 0), 2))
        peer.send(Tx.CommitOk(), 2)
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url) as client, client.producer() as producer:
        transaction = producer.transaction()

        async def transact() -> None:
            async with transaction:
                await transaction.publish("a", "q")
                await transaction.publish("b", "q")

        with pytest.raises(MessageReturned, match="2 of 2"):
            await transact()
        assert len(transaction.returned_messages) == 2
