"""A broker of the tests that answers obligingly, remembers what it got, and can be told what not to answer."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pamqp import body, frame, header
from pamqp.commands import Basic

import leveret
from tests.support.peers import ANSWERS, FakeServer, Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pamqp import base


@dataclass
class Scripted:
    """The script of a `FakeServer`.

    Attributes:
        unanswered: How many methods of a name are still to be left without an answer.
        instead: What to do instead of answering, by the name of a method: called with the peer, the channel's number
            and the method.
        received: The channel's number and the method of all that came, on all connections.
        peers: The server's ends of the connections.
    """

    unanswered: dict[str, float] = field(default_factory=dict)
    instead: dict[str, Callable[[Peer, int, Any], None]] = field(default_factory=dict)
    received: list[tuple[int, Any]] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake()
        self.peers.append(peer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                channel, value = await peer.receive()
                self.received.append((channel, value))
                left = self.unanswered.get(value.name, 0)
                if left:
                    self.unanswered[value.name] = left - 1
                elif value.name in self.instead:
                    self.instead[value.name](peer, channel, value)
                else:
                    self.answer(peer, channel, value)

    def answer(self, peer: Peer, channel: int, value: Any) -> None:
        """Answers a method as a good server does."""
        answers: dict[str, Callable[[Any], base.Frame]] = {
            **ANSWERS,
            "Basic.Cancel": lambda cancel: Basic.CancelOk(cancel.consumer_tag),
        }
        if value.name in answers:
            peer.send(answers[value.name](value), channel)

    def got(self, name: str) -> list[tuple[int, Any]]:
        """The channel's number and the method of all that came with this name."""
        return [(channel, value) for channel, value in self.received if value.name == name]

    def deliver(self, *tags: int, redelivered: bool = False, bodies: str = "{}") -> None:
        """Delivers messages to the consumer that was asked for last; a body is its delivery tag, or a text with it."""
        channel, consume = self.got("Basic.Consume")[-1]
        for tag in tags:
            text = bodies.format(tag).encode()
            deliver = Basic.Deliver(consume.consumer_tag, tag, redelivered, "", "q")
            properties = Basic.Properties(content_type="application/json")
            for value in (deliver, header.ContentHeader(body_size=len(text), properties=properties)):
                self.peers[-1].send_bytes(frame.marshal(value, channel))
            self.peers[-1].send_bytes(frame.marshal(body.ContentBody(text), channel))

    def given_back(self) -> list[int]:
        """The delivery tags of basic.nack, in order."""
        return [nack.delivery_tag for _, nack in self.got("Basic.Nack")]


@contextlib.asynccontextmanager
async def connected(broker: Scripted, **settings: Any) -> AsyncIterator[leveret.Client]:
    """Starts the broker and connects a client that comes back at once when its connection is lost."""
    async with (
        FakeServer(broker) as server,
        leveret.connect(server.url, recovery_initial_delay=0.01, **settings) as client,
    ):
        yield client
