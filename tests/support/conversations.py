"""A pika client that notes what the broker answers."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

if TYPE_CHECKING:
    from collections.abc import Callable


class Conversation:
    """A pika client that notes what the broker answers."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.name = name
        self.seen: list[object] = []
        self._connections: list[BlockingConnection] = []
        self._channel: BlockingChannel | None = None

    def connect(self, **options: Any) -> BlockingConnection:
        parameters = pika.URLParameters(self.url)
        for option, value in options.items():
            setattr(parameters, option, value)
        connection = BlockingConnection(parameters)
        self._connections.append(connection)
        return connection

    @property
    def channel(self) -> BlockingChannel:
        if self._channel is None or self._channel.is_closed:
            connection = self._channel.connection if self._channel is not None else None
            if connection is None or connection.is_closed:
                connection = self.connect()
            self._channel = connection.channel()
        return self._channel

    def try_(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Notes the answer, or the error with code and text."""
        try:
            result = call(*arguments, **options)
        except pika.exceptions.ChannelClosedByBroker as error:
            self.seen.append(("channel", error.reply_code, error.reply_text))
            return None
        except pika.exceptions.ConnectionClosedByBroker as error:
            self.seen.append(("connection", error.reply_code, error.reply_text))
            return None
        except pika.exceptions.AMQPError as error:
            self.seen.append(type(error).__name__)
            return None
        method = getattr(result, "method", None)
        if method is None:
            self.seen.append("done")
        elif isinstance(method, pika.spec.Queue.DeclareOk):
            self.seen.append(("declared", method.message_count, method.consumer_count))
        else:
            self.seen.append((type(method).__name__, getattr(method, "message_count", None)))
        return result

    def declare(self, suffix: str = "", **options: Any) -> str:
        name = self.name + suffix
        self.channel.queue_declare(name, **options)
        return name

    def note(self, *values: object) -> None:
        self.seen.append(values)

    def depth(self, queue: str, at_least: int = 0) -> int:
        """The queue's depth, once it is what somebody waits for: RabbitMQ does much in the background."""
        deadline = time.monotonic() + 5
        while True:
            count = int(self.channel.queue_declare(queue, passive=True).method.message_count)
            if count >= at_least or time.monotonic() > deadline:
                return count
            time.sleep(0.02)

    def get(self, queue: str, **options: Any) -> tuple[Any, Any, Any]:
        """basic.get, once there is something."""
        deadline = time.monotonic() + 5
        while True:
            answer = self.channel.basic_get(queue, **options)
            if answer[0] is not None or time.monotonic() > deadline:
                return answer
            time.sleep(0.02)

    def close(self) -> None:
        for connection in self._connections:
            if connection.is_open:
                with contextlib.suppress(pika.exceptions.AMQPError):
                    connection.close()
        self._channel = None
        with BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            for suffix in ("", ".a", ".b", ".c", ".d"):
                with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):
                    channel.queue_delete(self.name + suffix)
                if channel.is_closed:
                    channel = connection.channel()
                channel.exchange_delete(self.name + suffix)
