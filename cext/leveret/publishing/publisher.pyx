"""The compiled way of a message: from the call to the send buffer, and from the confirm to its caller.

`CompiledPublisher` is the base of `Producer`: it has the ordinary calls, and passes all others on to its subclass.
"""
from cpython.bytes cimport PyBytes_CheckExact
from cpython.dict cimport PyDict_Size
from cpython.list cimport PyList_GET_SIZE
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport uint64_t

from leveret.publishing.builder cimport MessagePublisher
from leveret.publishing.confirms cimport ConfirmWindow, Slot
from leveret.publishing.publish_batch cimport LARGE_FRAMES, PublishBatch
from leveret.publishing.publishing cimport RECEIPT, TICKET, Publishing, Ticket, new_publishing, new_ticket
from leveret.publishing.template cimport PublishTemplate, Template
from leveret.wire.buffers cimport SendBuffer
from leveret.wire.runs cimport SettlementRun

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()

from leveret.errors import WrongLoopError


cdef class CompiledPublisher(MessagePublisher):
    """The compiled base of `Producer`: `publish` and `publish_nowait` of an ordinary message.

    `Producer` is its only subclass. It sets the attributes, and has the long way for waiting, policies and a
    `confirm_timeout` of one message.
    """

    def settled(self, SettlementRun run not None):
        """Applies confirms and wakes the callers that waited for them."""
        cdef list finished
        self._waiters.hold()
        try:
            if self._watched or self._waiting or self._flushing:
                self._settle(run)
            else:
                finished = self._window.settle(run)
                if finished is not None:
                    self._complete(finished)
        finally:
            self._waiters.release()

    def _complete(self, list finished not None):
        """Wakes the callers that wait for these tickets, and remembers failed tickets without a caller for `flush`."""
        cdef Ticket ticket
        cdef Publishing publishing
        for ticket in finished:
            if type(ticket.future) is Publishing:
                publishing = <Publishing>ticket.future  # the ticket lets go of it
                if ticket.failures is not None and publishing.may_go_on():
                    self._try_again(publishing)
                else:
                    publishing.finish()
            elif self._guard is not None and self._guard.finished(ticket):
                pass
            elif ticket.future is None:
                self._remember(ticket)
            elif not ticket.future.done():
                ticket.future.set_result(None)

    # Writes a message and returns its ticket. Returns None for whatever needs the long way, which also finds errors.
    # To be called only in the event loop.
    cdef Ticket put(self, value, routing_key, Py_ssize_t limit, dict options, bint waits):
        cdef ConfirmWindow window = self._window
        cdef PublishTemplate template
        cdef Ticket ticket
        cdef object body
        if not self.has_room(window, limit, waits):
            return None
        if options is not None:
            if PyDict_Size(options) == 0:
                options = None
            elif "confirm_timeout" in options:
                return None
        if self._packer.one_form:
            if options is None and routing_key is self._last_key and self._last_template is not None:
                template = self._last_template  # a key of None is not the last key
                if template.id_at:
                    template = self._packer.identified(template)
            else:
                template = self.frames_of(routing_key, options)
            if PyBytes_CheckExact(value) and (self._ready or template.misfit is not None):
                body = value
            else:
                body = self.encode(value) if template.misfit is None else self.encode_given(value, template.misfit)
                if not self.has_room(window, limit, waits):
                    return None  # the serializer published or closed something itself
        else:
            template, body = self._packer.packed(value, routing_key, options)
            if not self.has_room(window, limit, waits):
                return None
        ticket = new_ticket(self)
        if template.size > LARGE_FRAMES and template is not self._last_template:
            self._batch.add(template, body, ticket)  # frames of its own count among the bytes that are kept
        else:
            self._batch.put(template, <bytes>body, ticket, 0)
        if self._timer is None:
            self._start_clock()
        return ticket

    # The frames of a message, when all bodies have one form.
    cdef PublishTemplate frames_of(self, routing_key, dict options):
        cdef PublishTemplate template
        if options is not None:
            return self._packer.frames(routing_key, options)
        template = self._packer.pattern(routing_key)
        if PyUnicode_CheckExact(routing_key) or type(routing_key) is Template:
            self._last_template = template
            self._last_key = routing_key
        return template if template.id_at == 0 else self._packer.identified(template)

    # As put, for a caller that waits for the outcome. When nothing is in flight the message is written at once:
    # waiting for others to share the write would gain nothing (Nagle's algorithm, RFC 896, does the same). During a
    # read the end of the read is soon enough.
    cdef Ticket send(self, value, routing_key, dict options):
        cdef SendBuffer out
        cdef Ticket ticket
        if not self._waiters.at_home():
            return None  # another thread must not touch the send buffer
        if self._batch is None or self._window.outstanding or self._batch.out.attended:
            return self.put(value, routing_key, self._limit, options, True)
        out = self._batch.out
        out.attended = True
        try:
            ticket = self.put(value, routing_key, self._limit, options, True)
        finally:
            out.attended = False
            if out.used or out.in_pieces:
                self._transport.flush()
        return ticket

    # Keeps what a policy needs to have a message tried again.
    cdef int keep(self, Publishing publishing, Ticket ticket) except -1:
        cdef Slot* slot = &self._window.slots[ticket.delivery_tag & <uint64_t>self._window.mask]
        publishing.template, publishing.body = <PublishTemplate>slot.template, <bytes>slot.body
        publishing.deadline = self._loop.time() + self._publish_timeout
        return 0

    # Whether a message can be written. Those that do not wait for the socket fill the send buffer.
    cdef inline bint has_room(self, ConfirmWindow window, Py_ssize_t limit, bint waits) noexcept:
        return (self._alive and window.outstanding < limit and window.outstanding_bytes < self._max_bytes
                and window.next_delivery_tag - window.first < self._max_span
                and not (waits and self._batch.out.paused) and not self._batch.out.blocked)

    def _encoded(self, value):
        return self.encode(value)

    cdef object encode(self, value):
        try:
            body = self._encode(value)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise self._encoder.failed(error, value)  # it has its cause
        if not PyBytes_CheckExact(body):
            raise self._encoder.not_bytes(body)
        return body

    # For a message whose caller gives the content type or encoding; see `BodyEncoder.given`.
    cdef object encode_given(self, value, str misfit):
        body = self._encoder.given(value, misfit)
        return self.encode(value) if body is None else body

    def _put_values(self, PublishTemplate template not None, list values not None, Py_ssize_t start, Ticket ticket,
                    Py_ssize_t index, Py_ssize_t max_bytes, kind):
        """Encodes and appends values of a batch, one after the other.

        Args:
            template: Exchange, routing key and properties; with message ids, the pattern for those of each value.
            values: What the serializer takes.
            start: Where in `values` to begin.
            ticket: Told about the outcomes.
            index: The index of `values[start]` in the ticket.
            max_bytes: Ends when their bodies have so many bytes.
            kind: Ends before a value of this type.

        Returns:
            How many were appended. It also ends when the producer does.

        Raises:
            CodecError: One is refused; what came before was appended, as `PublishBatch.published` tells.
        """
        cdef PublishBatch batch = self._batch
        cdef PublishTemplate frames = template
        cdef Py_ssize_t i = start
        cdef uint64_t full = batch.published_bytes + <uint64_t>max(1, max_bytes)
        cdef bint as_they_are = (self._ready or template.misfit is not None) and template.id_at == 0
        cdef Py_ssize_t many
        cdef object value
        # The serializer may change the list, and close the producer.
        while i < PyList_GET_SIZE(values) and self._alive and batch.published_bytes < full:
            if as_they_are:
                many = batch.add_run(template, values, i, ticket, index + i - start,
                                     <Py_ssize_t>(full - batch.published_bytes))
                if many:
                    i += many
                    continue
            value = values[i]
            if not (PyBytes_CheckExact(value) and (self._ready or template.misfit is not None)):
                if type(value) is kind:
                    break
                value = self.encode(value) if template.misfit is None else self.encode_given(value, template.misfit)
                if not self._alive:
                    break
            if template.id_at:
                frames = self._packer.identified(template)
            batch.put(frames, <bytes>value, ticket, index + i - start)
            i += 1
        return i - start

    def publish(self, value, routing_key="", **options):
        """Publishes one value. Awaiting what it returns waits for the broker's confirm.

        The publishing begins with the call. Many may be in flight at once, up to `max_outstanding`; the others wait for
        their turn, first come, first served. The outcome comes within `publish_timeout` seconds. When the wait is
        cancelled a written message is not taken back.

        Args:
            value: What the serializer takes.
            routing_key: The routing key, or what `template` made.
            **options: See `PublishOptions`.

        Returns:
            A publishing, to be awaited as the result of an `async def` is, once or more often; see `Publishing`. It
            gives a receipt; the outcome is CONFIRMED, or UNKNOWN when the producer has no confirms. `flush` raises for
            publishings that failed and were not awaited.

        Raises:
            WrongLoopError: The call is in another event loop. Where no loop runs it begins in the producer's own, for
                `asyncio.run_coroutine_threadsafe`. All others are raised where it is awaited:
            EncodeFailed, BodyTooLarge: The value or an option does not fit; nothing was sent.
            MessageNacked: The broker refused it.
            MessageReturned: No queue took it. An event that may have no subscriber is published with
                `mandatory=False`.
            ExchangeNotFound: There is no such exchange. The producer goes on, on a new channel.
            MessageRefused: The broker closes the channel for this message, for example because it is too large.
            ConfirmTimeout: The message was written, and no confirm came within `confirm_timeout` seconds from then or
                `publish_timeout` seconds from this call; the outcome is UNKNOWN, the stage "confirm".
            PublishError: With outcome NOT_SENT: it could not be written within `publish_timeout` seconds, and `stage`
                says what it waited for; or the producer is closed. With UNKNOWN: the channel or connection was lost
                and nothing is sent again (`on_loss="unknown"`, or the producer was closed meanwhile); the cause says
                why.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
        """
        return self.publish_message(value, routing_key, options)

    cdef object publish_message(self, object value, object routing_key, dict options):
        cdef Publishing publishing = new_publishing(self, self._waiters, RECEIPT)
        cdef Ticket ticket
        try:
            # Callers that wait already go first, and a breaker that is not closed is asked.
            if (self._waiting or (self._breaker is not None and self._breaker.closed is not True)
                    or (ticket := self.send(value, routing_key, options)) is None):
                self._publish(publishing, value, routing_key, options)
            else:
                if self._guard is not None and ticket.pending:
                    self.keep(publishing, ticket)
                publishing.expect(ticket)
        except (KeyboardInterrupt, SystemExit, WrongLoopError):
            raise
        except BaseException as error:
            publishing.fail(error)
        return publishing

    def enqueue(self, value, routing_key="", **options):
        """Publishes one value as `publish_nowait` does. Awaiting what it returns waits while there is no room.

        Room is what `max_buffered` and `max_outstanding_bytes` allow; first come, first served. There may be room
        without a connection.

        Args:
            value: What the serializer takes.
            routing_key: The routing key, or what `template` made.
            **options: See `PublishOptions`.

        Returns:
            A publishing, as `publish`. It gives a ticket, as `publish_nowait`, whose outcome comes within
            `publish_timeout` seconds of this call, too.

        Raises:
            WrongLoopError: The call is in another event loop. Where no loop runs it begins in the producer's own, for
                `asyncio.run_coroutine_threadsafe`. All others are raised where it is awaited:
            EncodeFailed, BodyTooLarge: As `publish`; nothing was sent.
            PublishError: With outcome NOT_SENT: there was no room within `publish_timeout` seconds, and `stage` says
                why; or the producer is closed.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
        """
        return self.enqueue_message(value, routing_key, options)

    cdef object enqueue_message(self, object value, object routing_key, dict options):
        cdef Publishing publishing = new_publishing(self, self._waiters, TICKET)
        cdef Ticket ticket
        try:
            if (self._waiting or not self._waiters.at_home()
                    or (self._breaker is not None and self._breaker.closed is not True)
                    or (ticket := self.put(value, routing_key, self._max_buffered, options, False)) is None):
                self._enqueue(publishing, value, routing_key, options)
            else:
                publishing.expect(ticket)
        except (KeyboardInterrupt, SystemExit, WrongLoopError):
            raise
        except BaseException as error:
            publishing.fail(error)
        return publishing

    def publish_nowait(self, value, routing_key="", **options):
        """Publishes one value without waiting; it leaves with the next write, or when there is a connection again.

        Args:
            value: What the serializer takes.
            routing_key: The routing key, or what `template` made.
            **options: See `PublishOptions`.

        Returns:
            A ticket, which has its outcome within `publish_timeout` seconds. Await it for the receipt; it raises what
            `publish` raises. `flush` raises for tickets that failed and were not awaited.

        Raises:
            BackpressureError: `max_buffered` publishings or `max_outstanding_bytes` bytes have no outcome yet, or the
                broker blocks publishers; nothing was sent.
            EncodeFailed, BodyTooLarge: As `publish`.
            PublishError: The producer is closed; the outcome is NOT_SENT.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
            WrongLoopError: Called from another thread or event loop.
        """
        return self.publish_nowait_message(value, routing_key, options)

    cdef object publish_nowait_message(self, object value, object routing_key, dict options):
        cdef Ticket ticket
        if (not self._waiters.at_home() or (self._breaker is not None and self._breaker.closed is not True)
                or (ticket := self.put(value, routing_key, self._max_buffered, options, False)) is None):
            return self._publish_nowait(value, routing_key, options)
        return ticket
