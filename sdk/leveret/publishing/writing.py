"""Publishing one message the long way: for options, waiting for room, several forms of bodies, and policies."""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from typing import TYPE_CHECKING, Any

from leveret.errors import BackpressureError, LeveretError, PublishError
from leveret.message import Outcome
from leveret.publishing.deadlines import CLOCK_STEPS
from leveret.publishing.options import refuse_confirm_timeout
from leveret.publishing.outcomes import error_of, late
from leveret.publishing.publishing import NO_RECEIPT, Receipt, Ticket

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Protocol

    from leveret.connection.connection import Connection
    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.deadlines import Deadlines
    from leveret.publishing.lifecycle import ProducerLife
    from leveret.publishing.options import PublishOptions
    from leveret.publishing.outcomes import TicketBook
    from leveret.publishing.packing import Packer
    from leveret.publishing.publish_batch import PublishBatch
    from leveret.publishing.publishing import Publishing
    from leveret.publishing.room import Room
    from leveret.publishing.template import PublishTemplate, Template
    from leveret.settings import ProducerSettings

    class TicketOwner(Protocol):
        """Waits for a ticket when a user awaits it."""

        def wait_for(self, ticket: Ticket, /) -> Coroutine[Any, Any, Receipt]: ...


__all__ = ["MessageWriter"]


class MessageWriter:
    """Packs messages of one producer, waits for room, appends them to the send buffer and waits for their confirms.

    Args:
        settings: The producer's options.
        life: Its state.
        window: Its publishings without an outcome.
        room: Where callers wait.
        packer: Packs messages.
        tickets: Observes tickets.
        deadlines: Told of messages that waited.
        owner: Waits for a ticket when a user awaits it.
        hand_out: Completes finished tickets.
        start_clock: Starts the producer's clock, unless it runs.
        guarded: Calls what appends a message without waiting, if the circuit breaker allows it.

    Attributes:
        batch: Where messages are appended and counted.
    """

    batch: PublishBatch

    def __init__(
        self,
        settings: ProducerSettings,
        life: ProducerLife,
        window: ConfirmWindow,
        room: Room,
        packer: Packer,
        tickets: TicketBook,
        deadlines: Deadlines,
        *,
        owner: TicketOwner,
        hand_out: Callable[[list[Ticket] | None], None],
        start_clock: Callable[[], None],
        guarded: Callable[[Callable[[], Ticket]], Ticket],
    ) -> None:
        self.settings = settings
        self.life = life
        self.window = window
        self.room = room
        self.packer = packer
        self.tickets = tickets
        self.deadlines = deadlines
        self.start_clock = start_clock
        self._owner = owner
        self._hand_out = hand_out
        self._guarded = guarded
        self._step = deadlines.step
        self._loop = asyncio.get_running_loop()
        self._connection: Connection

    def use(self, batch: PublishBatch, connection: Connection) -> None:
        """Tells where messages are written from now on."""
        self.batch = batch
        self._connection = connection
        self.packer.frame_max = connection.negotiated.frame_max
        self.room.use(connection)

    def check_loop(self) -> None:
        """Raises `WrongLoopError` in another thread or event loop."""
        self._connection.check_loop()

    def is_outside(self) -> bool:
        """Whether no event loop runs in this thread, and the producer's can be reached from here."""
        return _get_running_loop() is None and self._connection.is_of_this_process and not self._loop.is_closed()

    def append(self, frames: PublishTemplate, body: bytes, ticket: Ticket, index: int = 0, sends: int = 0) -> None:
        """Appends a message to the send buffer; `sends` is how often it was written before."""
        if self.batch.add(frames, body, ticket, index, sends):
            self.start_clock()

    def publish(
        self, publishing: Publishing[Any], frames: PublishTemplate, body: bytes, deadline: float, limit: int
    ) -> None:
        """Appends a message, or has it wait for room.

        Args:
            publishing: Told when it is appended, or why not.
            frames: What `packer` made.
            body: What `packer` made.
            deadline: When to give up, by the loop's clock.
            limit: The most publishings without an outcome.
        """
        room = self.room
        gives_ticket = publishing.gives_ticket
        full = room.is_full(limit, waits=not gives_ticket) and not (gives_ticket and room.may_hold(limit))
        if full or room.waiting:
            publishing.wait(frames, body)
            room.queue(publishing, -1 if limit == room.limit else limit - 1, deadline)
        else:
            # A producer may be opened first.
            is_late = self._loop.time() + self.settings.publish_timeout - deadline > self._step
            self._write(publishing, frames, body, deadline if is_late else None)

    def write(self, publishing: Publishing[Any], deadline: float) -> None:
        """Appends a message that waited for room."""
        try:
            self._write(publishing, publishing.template, publishing.body, deadline)
        except LeveretError as error:
            publishing.fail(error)

    def _write(self, publishing: Publishing[Any], frames: PublishTemplate, body: bytes, deadline: float | None) -> None:
        if publishing.gives_ticket:
            ticket = self._guarded(lambda: self._put_nowait(frames, body))
        else:
            ticket = Ticket(self._owner)
            self.append(frames, body, ticket)
        if deadline is not None and ticket.pending:
            self.deadlines.limit(deadline, ticket.delivery_tag, ticket.delivery_tag)
        publishing.written(ticket)

    def attempts(
        self,
        frames: PublishTemplate,
        body: bytes,
        patience: float,
        reporting: set[Ticket],
        *,
        first: Publishing[Receipt] | None = None,
        failure: PublishError | None = None,
    ) -> Callable[[float], Coroutine[Any, Any, Receipt]]:
        """Returns what makes one attempt to publish a message, with the deadline that it is given.

        Args:
            frames: What `packer` made.
            body: What `packer` made.
            patience: Seconds for its confirm.
            reporting: The ticket is added to this set while its outcome is waited for.
            first: The first attempt, when it has begun.
            failure: How an attempt before ended.
        """
        sends = 0 if failure is None else failure.attempts

        async def attempt(deadline: float) -> Receipt:
            nonlocal first, sends
            try:
                if first is not None:
                    begun, first = first, None
                    return await self.outcome_of(begun, patience)
                return await self._publish_frames(frames, body, patience, deadline, reporting, sends)
            except PublishError as error:
                sends = max(sends, error.attempts)
                raise

        return attempt

    async def outcome_of(self, publishing: Publishing[Receipt], patience: float) -> Receipt:
        """Waits for a publishing that has begun, with a `confirm_timeout` of its own."""
        if patience < self.settings.confirm_timeout:
            ended: asyncio.Future[None] = self._loop.create_future()
            publishing.add_done_callback(lambda _: None if ended.done() else ended.set_result(None))
            await self._wait_confirmed(patience, lambda: publishing.ticket, ended)
        return await publishing

    async def _publish_frames(
        self,
        frames: PublishTemplate,
        body: bytes,
        patience: float,
        deadline: float,
        reporting: set[Ticket] | None,
        sends: int = 0,
    ) -> Receipt:
        self.check_loop()
        room = self.room
        limit = room.limit
        # An attempt of a retry policy is made some time after the call, too, and a producer may be opened first.
        is_late = reporting is not None or self._loop.time() + self.settings.publish_timeout - deadline > self._step
        if room.waiting or room.is_full(limit):
            is_late = True
            await room.wait(limit, -1, deadline)
        ticket = Ticket(self._owner)
        try:
            self.append(frames, body, ticket, 0, sends)
        except BaseException:
            room.wake()  # the turn passes to the next caller
            raise
        if not self.settings.confirms:
            return NO_RECEIPT
        if is_late:
            self.deadlines.limit(deadline, ticket.delivery_tag, ticket.delivery_tag)
        future = self.tickets.observe(ticket)
        if future is not None:
            if reporting is not None:
                reporting.add(ticket)
            if patience >= self.settings.confirm_timeout:
                await future
            else:
                await self._wait_confirmed(patience, lambda: ticket, future)
        if ticket.failures is not None:
            raise error_of(ticket, self.settings.confirm_timeout)
        return Receipt(ticket.delivery_tag, Outcome.CONFIRMED, ticket.attempts())

    async def _wait_confirmed(
        self, seconds: float, ticket_of: Callable[[], Ticket | None], future: asyncio.Future[None]
    ) -> None:
        """Waits for the outcome with a `confirm_timeout` of the message's own, which begins when the socket took it.

        Args:
            seconds: The timeout.
            ticket_of: Returns the ticket; None before the message is written.
            future: Done when there is an outcome.
        """
        deadlines = self.deadlines
        step = min(deadlines.step, seconds / CLOCK_STEPS)
        since = deadlines.confirming_since
        appended: int | None = None
        until: float | None = None  # known when the socket has taken the message
        while not future.done():
            now = self._loop.time()
            if deadlines.confirming_since != since:  # the channel is lost, or it was sent again on another one
                since = deadlines.confirming_since
                appended = until = None
            if ticket_of() is not None:
                progress = self._connection.transport.progress
                appended = progress[0] if appended is None else appended
                if until is None and since is not None and progress[1] >= appended:
                    until = now + seconds
            if until is not None and until <= now:
                break
            # `wait` does not cancel the future.
            await asyncio.wait([future], timeout=step if until is None else until - now)
        ticket = ticket_of()
        if not future.done() and ticket is not None:
            self._hand_out(self.window.give_up(ticket.delivery_tag, late("confirm_timeout", seconds)))
            self.room.wake()
            self.tickets.wake()

    def publish_nowait(self, value: Any, routing_key: str | Template, options: PublishOptions) -> Ticket:
        """Publishes one message without waiting; see `Producer.publish_nowait`."""
        refuse_confirm_timeout(options)
        return self._put_nowait(*self.packer.pack(value, routing_key, options))

    def _put_nowait(self, frames: PublishTemplate, body: bytes) -> Ticket:
        if _get_running_loop() is not self._loop:
            self.check_loop()
        room = self.room
        limit = self.settings.max_buffered
        if not room.is_full(limit, waits=False):
            ticket = Ticket(self._owner)
            self.append(frames, body, ticket)
            return ticket
        if room.may_hold(limit):
            ticket = Ticket(self._owner)
            self.batch.hold(frames, body, ticket)
            self.start_clock()
            return ticket
        if not room.obstacle(limit)[0]:
            raise room.refusal()
        raise BackpressureError(f"not sent: {room.overflow(limit)}")
