"""Transactions: publishings that enter their queues when a block ends, or not at all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from leveret.errors import (
    ChannelClosed,
    ConfigurationError,
    ConfirmTimeout,
    LeveretError,
    OperationTimeout,
    PublishError,
    again,
)
from leveret.message import Outcome
from leveret.publishing.lifecycle import first_channel
from leveret.publishing.options import refuse_confirm_timeout
from leveret.publishing.outcomes import closed_by_publishing, exchange_error, failure, not_sent
from leveret.publishing.publish_batch import PublishBatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self, Unpack

    from leveret.connection.channel import Channel
    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.publishing.options import PublishOptions
    from leveret.publishing.packing import Packer
    from leveret.publishing.template import Template
    from leveret.settings import ProducerSettings
    from leveret.wire.message import Message
    from leveret.wire.runs import ContentRun, SettlementRun

__all__ = ["Transaction"]


class Transaction:
    """Messages that enter their queues when their block ends (AMQP 0-9-1 section 1.9). Made by `Producer.transaction`.

        async with producer.transaction() as transaction:
            await transaction.publish(order, "order.created")
            await transaction.publish(invoice, "invoice.created")

    When the block ends they are committed, and when it raises or is cancelled none of them enters a queue. The end of
    the block raises when the commit fails, and the outcome of the error holds for the transaction as a whole:

    * NOT_SENT: nothing is in any queue, because the commit was not sent, or because the broker refused a publishing,
      as it does with an exchange that does not exist (`ExchangeNotFound`). It may be done again.
    * RETURNED: it is committed, except for the mandatory messages that no queue took; see `returned_messages`.
    * UNKNOWN: the connection was lost during the commit, or it was not answered, or a queue refused a message
      (`overflow="reject-publish"`). All, some or none are in their queues.

    Not guaranteed is that all of them become visible at once, nor that a broker that stops during the commit has
    all or none of them when it starts again, not even in a single queue (RabbitMQ: broker semantics).

    It is slow: opening the channel, the commit and the closing are round trips that the block waits for, the commit
    waits for the disk, and nothing is under way meanwhile. Until then the broker keeps everything in memory. Publisher
    confirms tell as much about each message, and any number of them may be under way (RabbitMQ: publisher confirms).

    Attributes:
        count: How many messages were published in it so far.
        returned_messages: After a commit that raised `MessageReturned`: the messages that came back.
    """

    def __init__(
        self, link: Link, settings: ProducerSettings, packer: Packer, refusal: Callable[[], PublishError | None]
    ) -> None:
        self.count = 0
        self.returned_messages: list[Message] = []
        self._link = link
        self._settings = settings
        self._packer = packer
        # Returns why its producer will never publish again, or None.
        self._refusal = refusal
        self._channel: Channel
        self._batch: PublishBatch
        self._entered = False
        #: Publishings are taken: its block was entered and has not ended.
        self._open = False
        self._committing = False
        #: Why it cannot be committed any more.
        self._error: PublishError | None = None

    def __repr__(self) -> str:
        return f"<Transaction count={self.count}{'' if self._open else ' (not open)'}>"

    async def publish(self, value: Any, routing_key: str | Template = "", **options: Unpack[PublishOptions]) -> None:
        """Publishes one value in the transaction; the broker confirms nothing before the commit.

        It waits only while the socket is full or the broker blocks publishers. When it raises because of this value the
        others are not affected, and the transaction may go on.

        Args:
            value: What the serializer takes.
            routing_key: The routing key, or what `Producer.template` made.
            **options: See `PublishOptions`; all but `confirm_timeout`.

        Raises:
            EncodeFailed, BodyTooLarge: The value or an option does not fit; nothing was sent.
            ExchangeNotFound: There was no such exchange for a publishing before this one.
            PublishError: With outcome NOT_SENT: it could not be written within `publish_timeout` seconds, and `stage`
                says what it waited for; or the channel is lost, and the transaction with it; or its block has ended.
        """
        refuse_confirm_timeout(options)
        self._check_open()
        template, body = self._packer.pack(value, routing_key, options)
        await self._room()
        self._check_open()  # the block may have ended meanwhile
        self._batch.add(template, body)
        self.count += 1

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ConfigurationError("a transaction can be entered once; make another one")
        self._entered = True
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        try:
            channel = await first_channel(self._link, self._select, self._settings, "the transaction")
        except (PublishError, ConfigurationError, ChannelClosed):
            raise
        except LeveretError as error:
            raise not_sent(f"the transaction could not begin: {error}", cause=error) from error
        connection = channel.connection
        self._batch = PublishBatch(
            connection.transport.out,
            None,
            channel=channel.number,
            frame_max=connection.negotiated.frame_max,
            max_body_size=self._settings.max_body_size,
        )
        self._open = True
        return self

    async def _select(self, connection: Connection) -> Channel:
        channel = self._channel = await connection.channel()
        channel.publisher = self
        self._error = None  # of an attempt before this one
        try:
            await channel.tx_select()
        except BaseException:
            channel.publisher = None  # another one may be opened
            channel.abandon()
            raise
        return channel

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        try:
            if kind is None and self.count:
                await self._commit()
        finally:
            # A channel that is closed takes with it what it did not commit.
            await self._channel.close()
        if self.returned_messages:
            error = failure(self.returned_messages[0], 0, self._settings.confirm_timeout)
            count = len(self.returned_messages)
            error.args = (f"committed without {count} of {self.count} messages, which came back; the first: {error}",)
            raise error

    async def _commit(self) -> None:
        await self._room()
        self._committing = True
        try:
            await self._channel.tx_commit()
        except OperationTimeout as error:
            raise ConfirmTimeout(
                f"the transaction may be committed: {error}", outcome=Outcome.UNKNOWN, stage="confirm"
            ) from error
        except LeveretError as error:
            raise self._lost(error) from error

    def _check_open(self) -> None:
        if not self._open:
            state = "has ended" if self._entered else "has not begun; use `async with`"
            raise not_sent(f"the transaction {state}")
        if self._error is not None:
            raise again(self._error)

    async def _room(self) -> None:
        """Waits until the broker and the socket take publishings; raises when the channel is lost."""
        connection = self._channel.connection
        connection.check_loop()
        if connection.obstacle() is not None:
            seconds = self._settings.publish_timeout
            stage = text = ""
            try:
                async with asyncio.timeout(seconds):
                    while self._error is None and (obstacle := connection.obstacle()) is not None:
                        stage, text = obstacle
                        await connection.wait_flowing()
            except TimeoutError:
                raise not_sent(f"{text}; waited publish_timeout of {seconds:g} s", stage) from None
        if self._error is not None:
            raise again(self._error)

    def _lost(self, error: LeveretError) -> PublishError:
        """What the loss of the channel means for the transaction."""
        # RabbitMQ looks for the exchange when it reads the publishing, and drops everything behind it.
        failed: PublishError
        if self._committing and not closed_by_publishing(error):
            failed = PublishError(
                f"the transaction may be committed, all or a part of it: {error}", outcome=Outcome.UNKNOWN
            )
        else:
            text = f"nothing was committed: {error}"
            failed = exchange_error(error, text, Outcome.NOT_SENT) or PublishError(text, outcome=Outcome.NOT_SENT)
        failed.__cause__ = error
        return failed

    # ------------------------------------------------------------------ channel.PublisherSink

    def settled(self, run: SettlementRun) -> None:
        """A broker has nothing to confirm on this channel."""

    def returned(self, run: ContentRun) -> None:
        """Notes mandatory messages that came back; they come before tx.commit-ok."""
        # No more than were published: otherwise a faulty broker could fill the memory.
        self.returned_messages += run.messages[: self.count - len(self.returned_messages)]

    def channel_lost(self, error: LeveretError) -> None:
        """The transaction is lost, unless it has ended or the commit will tell."""
        # When this side closed the channel there is no caller to tell, and a waiting commit raises by itself.
        if not self._committing and self._error is None:
            self._error = self._lost(error)
