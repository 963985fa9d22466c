"""Messages and acknowledgements in bulk: templates and batches out, windows of what is not settled yet.

The windows count delivery tags. They cost nothing per message but a slot in a ring, and settling a range of
tags costs one step for each tag, once.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_CLEAR, Py_INCREF
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from leveret.wire.buffers cimport SendBuffer
from leveret.wire.endian cimport lv_put16, lv_put32, lv_put64
from leveret.wire.framing cimport (
    BASIC, BASIC_ACK, BASIC_DELIVER, BASIC_PUBLISH, FRAME_BODY, FRAME_END, FRAME_HEADER, FRAME_METHOD,
    FRAME_OVERHEAD, SETTLE_MULTIPLE, SETTLE_NACK, ContentRun, Message, SettlementRun, Writer)
from leveret.transport.waiting cimport Waiter

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()

import os

from leveret.wire.framing import decode_properties
from leveret.errors import BodyTooLarge, EncodeFailed, LeveretError

cdef enum:
    FIRST_SLOTS = 256
    # Bodies above this are not copied: from here on a piece of its own costs less than the copying (make compare
    # ARGS="--sizes 4k,8k,16k --peers leveret" with other values). They must fit SLACK of _buffers when they are copied.
    LARGE = 8192

# Outcome's values (leveret.message), without a Python object for each message.
cdef enum:
    PENDING = 0
    CONFIRMED = 1
    RETURNED = 2
    NACKED = 3
    UNKNOWN = 5

# The state of a slot beside those: returned by the broker, its confirm still to come.
cdef enum:
    FREE = 0
    OPEN = 1
    OPEN_RETURNED = 2

# The states of a delivery.
cdef enum:
    UNSETTLED = 1
    ACKED = 2
    SETTLED = 3


# A frame's end (AMQP 0-9-1 section 4.2.3).
cdef bytes END = b"\xce"


# The body of a message as frames that fit frame_max; returns the byte behind them.
cdef inline uint8_t* _put_body(uint8_t* p, uint16_t channel, const uint8_t* body, Py_ssize_t size,
                               Py_ssize_t chunk) noexcept nogil:
    cdef Py_ssize_t n
    while size > 0:
        n = size if size < chunk else chunk
        p[0] = FRAME_BODY
        lv_put16(p + 1, channel)
        lv_put32(p + 3, <uint32_t>n)
        memcpy(p + 7, body, n)
        p[7 + n] = FRAME_END
        p += n + FRAME_OVERHEAD
        body += n
        size -= n
    return p


# Chunks of a smaller frame_max would be empty or negative.
cdef int _check_frame_max(uint32_t frame_max) except -1:
    if frame_max < 4096:
        raise ValueError(f"frame_max {frame_max} is below the protocol's minimum of 4096 bytes")
    return 0


cdef inline Py_ssize_t _body_frames(Py_ssize_t size, Py_ssize_t chunk) noexcept nogil:
    return (size + chunk - 1) // chunk


# The body of a message that has one. A view (FrameReader.view_bodies) would be read as the bytes object that it is not.
cdef inline object _body_of(Message message):
    cdef object body = message.body
    if not PyBytes_CheckExact(body):
        raise TypeError(f"a message whose body is bytes is needed here, not one whose body is a {type(body).__name__}")
    return body


@cython.final
cdef class PublishTemplate:
    """The frames of a publishing, packed once: all but its channel, its body and its body's size.

    Args:
        exchange: The exchange; empty for the default exchange.
        routing_key: The routing key.
        raw_properties: What `Properties.encode` returns.
        mandatory: Ask the broker to return the message when no queue takes it.
        frame_max: The negotiated limit; the properties must fit one frame (AMQP 0-9-1 section 4.2.6.1).

    Raises:
        EncodeFailed: A name is longer than 255 bytes, or the properties do not fit one frame.
    """

    def __cinit__(self, str exchange not None, str routing_key not None, bytes raw_properties not None=b"\x00\x00", *,
                  bint mandatory=False, uint32_t frame_max=131072):
        cdef Writer w = Writer()
        cdef Py_ssize_t header = 12 + PyBytes_GET_SIZE(raw_properties)
        if header + FRAME_OVERHEAD > frame_max:
            raise EncodeFailed(f"the properties and headers take {header + FRAME_OVERHEAD} bytes; the negotiated "
                               f"frame_max is {frame_max}")
        self.exchange = exchange
        self.routing_key = routing_key
        self.raw_properties = raw_properties
        self.mandatory = mandatory
        w.put8(FRAME_METHOD)
        w.put16(0)
        w.put32(0)
        w.put16(BASIC)
        w.put16(BASIC_PUBLISH)
        w.put16(0)
        w.put_shortstr(exchange, "exchange")
        w.put_shortstr(routing_key, "routing_key")
        w.put8(1 if mandatory else 0)
        lv_put32(w.data + 3, <uint32_t>(w.used - 7))
        w.put8(FRAME_END)
        self.header_at = w.used
        w.put8(FRAME_HEADER)
        w.put16(0)
        w.put32(<uint32_t>header)
        w.put16(BASIC)
        w.put16(0)
        w.put64(0)
        w.put_raw(<uint8_t*>PyBytes_AS_STRING(raw_properties), PyBytes_GET_SIZE(raw_properties))
        w.put8(FRAME_END)
        self.prefix = w.take()
        self.data = <uint8_t*>PyBytes_AS_STRING(self.prefix)
        self.size = PyBytes_GET_SIZE(self.prefix)


@cython.final
@cython.freelist(512)
cdef class Receipt:
    """What `publish` returns: the broker has confirmed the message.

    Attributes:
        delivery_tag: The publishing's sequence number in its producer, from 1 (RabbitMQ: publisher confirms).
        outcome: `Outcome.CONFIRMED`; without confirms `Outcome.UNKNOWN`, because nobody can know.
    """

    def __cinit__(self, uint64_t delivery_tag=0, uint8_t outcome=CONFIRMED):
        self.delivery_tag = delivery_tag
        self.ended = outcome

    @property
    def outcome(self):
        # Here, because it loads dataclasses, which `import leveret` does not need.
        from leveret.message import Outcome

        return Outcome(self.ended)

    def __eq__(self, other):
        if type(other) is not Receipt:
            return NotImplemented
        return self.delivery_tag == (<Receipt>other).delivery_tag and self.ended == (<Receipt>other).ended

    def __hash__(self):
        return hash((self.delivery_tag, self.ended))

    def __repr__(self):
        return f"Receipt(delivery_tag={self.delivery_tag}, outcome={self.outcome!r})"


@cython.final
@cython.freelist(512)
cdef class Ticket:
    """What becomes of one publishing, or of all the publishings of a batch.

    Awaiting it waits for the outcome; see `Producer.publish_nowait`.

    Attributes:
        delivery_tag: The sequence number of the first publishing in its producer.
        count: How many publishings it stands for.
        pending: How many have no outcome yet.
        confirmed: How many ended confirmed.
        failures: None, or by index an `Outcome` value, the returned `Message`, or the error that ended it.
        future: Set by whoever waits; finished tickets with a future are handed out by the window.
        observed: Somebody looked at the outcome, or will.
    """

    def __cinit__(self, owner=None):
        self.owner = owner

    def __await__(self):
        return self.owner.wait_for(self).__await__()

    @property
    def done(self):
        """True when every publishing has its outcome."""
        return self.pending == 0

    def fail(self, Py_ssize_t index, reason):
        """Records why the publishing with this index did not end as confirmed."""
        if self.failures is None:
            self.failures = {}
        self.failures[index] = reason

    def __repr__(self):
        return f"<Ticket delivery_tag={self.delivery_tag} pending={self.pending} of {self.count}>"


cdef bint _same_properties(bytes raw_properties, Message message) except -1:
    if raw_properties == message.raw_properties:
        return True
    try:
        return decode_properties(raw_properties) == message.properties
    except LeveretError:
        return False


@cython.final
cdef class ConfirmWindow:
    """The publishings of a producer that the broker has not settled yet.

    It keeps them whole, so that those which a lost channel left without an outcome can be sent again: see `renumber`.
    Delivery tags count the producer's publishings from 1. On its first channel they are the broker's too.

    Attributes:
        first: The lowest delivery tag without an outcome.
        next_delivery_tag: The tag that the next publishing will get.
        outstanding: How many publishings have no outcome.
        outstanding_bytes: Their bodies' bytes.
        confirmed: How many were confirmed so far.
        nacked: How many were refused so far.
        returned: How many were returned so far.
        unknown: How many ended unknown so far.
        ignored: Confirms that named a tag with an outcome already, or one that was never given.
    """

    def __cinit__(self):
        self.slots = <Slot*>calloc(FIRST_SLOTS, sizeof(Slot))
        if self.slots is NULL:
            raise MemoryError()
        # A list beside the slots, so that the garbage collector sees the tickets: through their owner they may
        # hold this window. Templates and bodies hold nothing.
        self.tickets = [None] * FIRST_SLOTS
        self.mask = FIRST_SLOTS - 1
        self.first = self.next_delivery_tag = 1
        self.finished = []

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.slots is not NULL:
            for i in range(self.mask + 1):
                Py_CLEAR(self.slots[i].template)
                Py_CLEAR(self.slots[i].body)
        free(self.slots)

    # Afterwards there is a slot for the next tag. What is collected as garbage meanwhile may publish, too.
    cdef inline int make_room(self) except -1:
        while self.next_delivery_tag - self.first > <uint64_t>self.mask:
            self.grow()
        return 0

    cdef int grow(self) except -1:
        cdef Py_ssize_t mask = 2 * self.mask + 1
        cdef list tickets = [None] * (mask + 1)
        cdef Slot* slots = <Slot*>calloc(mask + 1, sizeof(Slot))
        cdef uint64_t tag = self.first
        if slots is NULL:
            raise MemoryError()
        while tag < self.next_delivery_tag:
            slots[tag & mask] = self.slots[tag & self.mask]
            tickets[tag & mask] = self.tickets[tag & self.mask]
            tag += 1
        free(self.slots)
        self.slots = slots
        self.tickets = tickets
        self.mask = mask
        return 0

    cdef uint64_t open(self, Ticket ticket, Py_ssize_t index, PublishTemplate template, bytes body,
                       Py_ssize_t size) except 0:
        cdef uint64_t tag
        cdef Slot* slot
        self.make_room()
        tag = self.next_delivery_tag
        slot = &self.slots[tag & self.mask]
        slot.state = OPEN
        slot.index = index
        slot.size = size
        if template is not None:
            Py_INCREF(template)
            Py_INCREF(body)
            slot.template = <PyObject*>template
            slot.body = <PyObject*>body
        if ticket is not None:
            self.tickets[tag & self.mask] = ticket
            if ticket.count == 0:
                ticket.delivery_tag = tag
            ticket.count += 1
            ticket.pending += 1
        self.next_delivery_tag = tag + 1
        self.outstanding += 1
        self.outstanding_bytes += size
        return tag

    # Gives an open publishing its outcome, and its ticket the reason. The caller advances `first`.
    cdef int end(self, uint64_t tag, int outcome, reason=None) except -1:
        cdef Slot* slot = &self.slots[tag & self.mask]
        cdef Ticket ticket = <Ticket>self.tickets[tag & self.mask]
        if slot.state == OPEN_RETURNED:
            outcome = RETURNED  # basic.return said so, and nothing that comes or does not come after it changes that
        slot.state = FREE
        Py_CLEAR(slot.template)
        Py_CLEAR(slot.body)
        self.outstanding -= 1
        self.outstanding_bytes -= slot.size
        if outcome == CONFIRMED:
            self.confirmed += 1
        elif outcome == RETURNED:
            self.returned += 1
        elif outcome == NACKED:
            self.nacked += 1
        else:
            self.unknown += 1
        if ticket is not None:
            self.tickets[tag & self.mask] = None
            ticket.pending -= 1
            if outcome == CONFIRMED:
                ticket.confirmed += 1
            elif outcome != RETURNED:
                ticket.fail(slot.index, outcome if reason is None else reason)
            if ticket.pending == 0 and (ticket.future is not None
                                        or (ticket.failures is not None and not ticket.observed)):
                self.finished.append(ticket)
        return 0

    cdef int end_through(self, uint64_t tag, int outcome, reason=None) except -1:
        while self.first <= tag:
            if self.slots[self.first & self.mask].state != FREE:
                self.end(self.first, outcome, reason)
            self.first += 1
        return 0

    # Ends one publishing if it is open; returns whether it was.
    cdef bint end_one(self, uint64_t tag, int outcome, reason=None) except -1:
        if tag < self.first or tag >= self.next_delivery_tag or self.slots[tag & self.mask].state == FREE:
            return False
        self.end(tag, outcome, reason)
        return True

    cdef void advance(self) noexcept:
        while self.first < self.next_delivery_tag and self.slots[self.first & self.mask].state == FREE:
            self.first += 1

    cdef list take_finished(self):
        cdef list finished = self.finished
        if not finished:
            return None
        self.finished = []
        return finished

    def track(self, Ticket ticket=None, Py_ssize_t size=0):
        """Takes the next delivery tag for a publishing that was written by other means; returns the tag.

        It cannot be sent again.
        """
        return self.open(ticket, 0, None, None, size)

    def settle(self, SettlementRun run not None, list told=None):
        """Applies the broker's confirms.

        Args:
            run: basic.ack and basic.nack methods in the order they came.
            told: (delivery tag, multiple, nack) is appended for each confirm, with the tags that the publishings have
                here. The confirm of several that were sent again on another channel is told for each of them.

        Returns:
            None, or the tickets that are finished now and that somebody waits for, or that failed unobserved.
        """
        cdef Py_ssize_t i
        cdef uint64_t tag
        cdef int outcome
        cdef bint multiple
        for i in range(run.count):
            tag = run.tags[i]
            outcome = NACKED if run.flags[i] & SETTLE_NACK else CONFIRMED
            multiple = run.flags[i] & SETTLE_MULTIPLE
            if self.resent is not None and self.settle_resent(tag, multiple, outcome, told):
                continue
            if multiple and tag == 0:
                tag = self.next_delivery_tag - 1  # all of them (AMQP 0-9-1 section 1.8.3.13)
            elif tag - 1 < self.next_delivery_tag - 1 - self.offset:  # without a sign, so that 0 is refused as well
                tag += self.offset
            else:
                self.ignored += 1
                continue
            if told is not None:
                told.append((tag, multiple, outcome == NACKED))
            if multiple:
                if tag < self.first:
                    self.ignored += 1
                    continue
                self.end_through(tag, outcome)
            elif not self.end_one(tag, outcome):
                self.ignored += 1
                continue
            self.advance()
        return self.take_finished()

    # After `renumber`: the confirm of publishings that were sent again. Returns whether it was one of those alone.
    cdef bint settle_resent(self, uint64_t tag, bint multiple, int outcome, list told) except -1:
        cdef Py_ssize_t count = PyList_GET_SIZE(self.resent)
        cdef Py_ssize_t i
        cdef uint64_t again
        cdef bint known = False
        if multiple and tag == 0 and self.resending:
            tag = <uint64_t>count
        if tag > <uint64_t>count or (multiple and tag == 0 and not self.resending):
            # Behind all of them: the tags of these are lower, so `multiple` reaches them anyway.
            if self.resending:
                self.ignored += 1
            elif self.first > self.resent_last:
                self.resent = None
            return self.resending
        for i in range(self.resent_from if multiple else <Py_ssize_t>tag - 1, <Py_ssize_t>tag):
            again = self.resent[i] if i >= 0 else 0
            if again:
                self.resent[i] = 0  # each of them is confirmed once
                if told is not None:
                    told.append((again, False, outcome == NACKED))
                known = self.end_one(again, outcome) or known
        if multiple and <Py_ssize_t>tag > self.resent_from:
            self.resent_from = <Py_ssize_t>tag
        if not known:
            self.ignored += 1
        self.advance()
        return True

    def is_open(self, uint64_t delivery_tag):
        """True while this publishing has no outcome."""
        return (self.first <= delivery_tag < self.next_delivery_tag
                and self.slots[delivery_tag & self.mask].state != FREE)

    def mark_returned(self, uint64_t delivery_tag, message):
        """Notes that the broker returned this publishing; its confirm will end it as returned.

        Returns:
            False when the publishing has an outcome already.
        """
        cdef Slot* slot
        cdef Ticket ticket
        if not self.is_open(delivery_tag):
            return False
        slot = &self.slots[delivery_tag & self.mask]
        ticket = <Ticket>self.tickets[delivery_tag & self.mask]
        slot.state = OPEN_RETURNED
        if ticket is not None:
            ticket.fail(slot.index, message)
        return True

    def tie_return(self, Message message not None):
        """Ties a returned message to its publishing, and marks that.

        The broker returns in the order of publishing, and before the confirm. So the first mandatory publishing behind
        the last returned one that has the same bytes is the one; those with the same bytes cannot be told apart by
        anybody. Brokers may pack the properties anew: RabbitMQ sorts headers (4.0) and takes BCC out. So properties may
        have other bytes and the same values, and if there is nothing like that, they may be any.

        Returns:
            The delivery tag, or 0 when nothing like it is in flight.
        """
        cdef uint64_t start = min(max(self.first, self.return_at), self.next_delivery_tag)
        cdef uint64_t tag = 0
        cdef bint any_properties
        for any_properties in range(2):
            tag = self.find_returned(message, start, self.next_delivery_tag, any_properties)
            if tag == 0:
                # In another order than the protocol says.
                tag = self.find_returned(message, self.first, start, any_properties)
            if tag:
                self.mark_returned(tag, message)
                self.return_at = tag + 1
                break
        return tag

    cdef uint64_t find_returned(self, Message message, uint64_t tag, uint64_t end, bint any_properties) except? 0:
        cdef Slot* slot
        cdef PublishTemplate template
        cdef Py_ssize_t size = 0 if message.body is None else PyBytes_GET_SIZE(_body_of(message))
        while tag < end:
            slot = &self.slots[tag & self.mask]
            if slot.state == OPEN and slot.template is not NULL and slot.size == size:
                template = <PublishTemplate>slot.template
                if (template.mandatory and template.routing_key == message.routing_key
                        and template.exchange == message.exchange and <bytes>slot.body == message.body
                        and (any_properties or _same_properties(template.raw_properties, message))):
                    return tag
            tag += 1
        return 0

    def expire(self, uint64_t delivery_tag, reason=None):
        """Ends every open publishing up to this one as unknown.

        Args:
            delivery_tag: The last of them.
            reason: What their tickets say; the outcome by default.

        Returns:
            As `settle`.
        """
        self.end_through(min(delivery_tag, self.next_delivery_tag - 1), UNKNOWN, reason)
        self.advance()
        return self.take_finished()

    def give_up(self, uint64_t delivery_tag, reason=None):
        """Ends one open publishing as unknown; its confirm may still come and is ignored then. Returns as `settle`."""
        self.end_one(delivery_tag, UNKNOWN, reason)
        self.advance()
        return self.take_finished()

    def exchanges(self):
        """Returns the set of the exchanges that open publishings went to."""
        cdef set names = set()
        cdef uint64_t tag = self.first
        cdef Slot* slot
        while tag < self.next_delivery_tag:
            slot = &self.slots[tag & self.mask]
            if slot.state != FREE and slot.template is not NULL:
                names.add((<PublishTemplate>slot.template).exchange)
            tag += 1
        return names

    def give_up_exchange(self, str exchange not None, reason):
        """Ends the open publishings to an exchange as unknown. Returns as `settle`."""
        cdef uint64_t tag = self.first
        cdef Slot* slot
        while tag < self.next_delivery_tag:
            slot = &self.slots[tag & self.mask]
            if (slot.state != FREE and slot.template is not NULL
                    and (<PublishTemplate>slot.template).exchange == exchange):
                self.end(tag, UNKNOWN, reason)
            tag += 1
        self.advance()
        return self.take_finished()

    def renumber(self):
        """A new channel takes over: prepares `PublishBatch.resend` of what has no outcome.

        The new channel counts from 1. Publishings keep their tags here, and confirms are translated.

        Returns:
            As `settle`: what was returned has its outcome, and what was written by other means cannot be sent again.
        """
        cdef uint64_t tag = self.first
        cdef Slot* slot
        while tag < self.next_delivery_tag:
            slot = &self.slots[tag & self.mask]
            if slot.state == OPEN_RETURNED or (slot.state == OPEN and slot.body is NULL):
                self.end(tag, UNKNOWN)
            tag += 1
        self.advance()
        self.resent = []
        self.resent_from = 0
        self.resending = True
        self.resend_at = self.first
        self.return_at = self.first
        return self.take_finished()


@cython.final
cdef class PublishBatch:
    """Appends publishings to a connection's send buffer and takes their delivery tags, in one step.

    Args:
        out: The connection's send buffer.
        window: Where the publishings wait for their confirms; None without confirms.
        channel: The channel to publish on.
        frame_max: The negotiated limit; larger bodies are split.
        max_body_size: The largest body, in bytes.

    Attributes:
        published: How many messages were appended; one that was sent again counts once.
        published_bytes: Their bodies' bytes.
    """

    def __cinit__(self, SendBuffer out not None, ConfirmWindow window, *, uint16_t channel=1,
                  uint32_t frame_max=131072, Py_ssize_t max_body_size=134217728):
        self.window = window
        self.max_body_size = max_body_size
        self.attach(out, channel, frame_max)

    def attach(self, SendBuffer out not None, uint16_t channel, uint32_t frame_max):
        """Goes over to another channel, maybe of another connection."""
        _check_frame_max(frame_max)
        self.out = out
        self.channel = channel
        self.frame_max = frame_max
        # With frames that are small themselves no piece is large.
        self.copied_size = LARGE if LARGE < self.max_body_size and LARGE < frame_max else self.max_body_size

    cdef uint64_t put(self, PublishTemplate template, bytes body, Ticket ticket, Py_ssize_t index) except? 0:
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef Py_ssize_t total
        cdef uint64_t tag = 0
        cdef uint8_t* p
        if size > self.copied_size:
            return self.put_large(template, body, ticket, index)
        total = self.total(template, size)
        # Everything that can fail comes before the tag is taken: a failed publish must not skew the numbers. And
        # between here and commit() nothing may run that appends to the block.
        if self.window is not None:
            self.window.make_room()
        p = self.out.reserve(total)
        if self.window is not None:
            tag = self.window.open(ticket, index, template, body, size)
        self.write(p, template, body, size)
        self.published += 1
        self.published_bytes += <uint64_t>size
        self.out.commit(total)
        return tag

    # The bytes of a publishing's frames.
    cdef inline Py_ssize_t total(self, PublishTemplate template, Py_ssize_t size) except -1:
        if template.size - template.header_at > <Py_ssize_t>self.frame_max:
            raise EncodeFailed(f"the properties and headers take {template.size - template.header_at} bytes; the "
                               f"negotiated frame_max is {self.frame_max}")
        return (template.size + size
                + FRAME_OVERHEAD * _body_frames(size, <Py_ssize_t>self.frame_max - FRAME_OVERHEAD))

    # All but the body.
    cdef inline void write_prefix(self, uint8_t* p, PublishTemplate template, Py_ssize_t size) noexcept:
        memcpy(p, template.data, template.size)
        lv_put16(p + 1, self.channel)
        lv_put16(p + template.header_at + 1, self.channel)
        lv_put64(p + template.header_at + 11, <uint64_t>size)

    cdef inline void write(self, uint8_t* p, PublishTemplate template, bytes body, Py_ssize_t size) noexcept:
        self.write_prefix(p, template, size)
        _put_body(p + template.size, self.channel, <const uint8_t*>PyBytes_AS_STRING(body), size,
                  <Py_ssize_t>self.frame_max - FRAME_OVERHEAD)

    # A large publishing behind `before`, as pieces to be written one after another: ends and beginnings of frames, and
    # between them the body itself or views of its parts. Returns a new list, whose bytes are those of `before` and of
    # the publishing's frames.
    cdef list large_pieces(self, list before, PublishTemplate template, bytes body):
        cdef Py_ssize_t chunk = <Py_ssize_t>self.frame_max - FRAME_OVERHEAD
        cdef list pieces = list(before)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef Py_ssize_t at = 0
        cdef Py_ssize_t n = min(size, chunk)
        cdef Py_ssize_t ends = 0
        cdef bytes head
        cdef object view = None
        cdef uint8_t* p
        if pieces and pieces[len(pieces) - 1] is END:
            # The end of the large body before this one goes into the same piece as our beginning.
            pieces.pop()
            ends = 1
        head = PyBytes_FromStringAndSize(NULL, ends + template.size + FRAME_OVERHEAD - 1)
        p = <uint8_t*>PyBytes_AS_STRING(head)
        p[0] = FRAME_END
        p += ends
        self.write_prefix(p, template, size)
        p += template.size
        while True:
            p[0] = FRAME_BODY
            lv_put16(p + 1, self.channel)
            lv_put32(p + 3, <uint32_t>n)
            pieces.append(head)
            if n == size:
                pieces.append(body)
                break
            if view is None:
                view = memoryview(body)
            pieces.append(view[at:at + n])
            at += n
            if at == size:
                break
            n = min(size - at, chunk)
            head = PyBytes_FromStringAndSize(NULL, FRAME_OVERHEAD)
            p = <uint8_t*>PyBytes_AS_STRING(head)
            p[0] = FRAME_END
            p += 1
        pieces.append(END)
        return pieces

    # put() for a body of more than `copied_size` bytes: it is not copied, the transport gets the body itself.
    cdef uint64_t put_large(self, PublishTemplate template, bytes body, Ticket ticket, Py_ssize_t index) except? 0:
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef Py_ssize_t total
        cdef uint64_t tag = 0
        cdef list pieces
        if size > self.max_body_size:
            raise BodyTooLarge(f"a body of {size} bytes is larger than the limit of {self.max_body_size}")
        total = self.total(template, size)
        pieces = self.large_pieces(self.out.seal(), template, body)
        if self.window is not None:
            tag = self.window.open(ticket, index, template, body, size)
        self.published += 1
        self.published_bytes += <uint64_t>size
        self.out.splice(pieces, total)
        return tag

    def add(self, PublishTemplate template not None, body not None, Ticket ticket=None, Py_ssize_t index=0):
        """Appends one publishing.

        Args:
            template: Exchange, routing key and properties.
            body: Any object with a contiguous buffer. What is not bytes is copied, because it may change; bytes of more
                than 8 KiB are not copied at all, and the socket is given them as they are.
            ticket: Told about the outcome.
            index: The publishing's index in the ticket.

        Returns:
            The delivery tag; 0 without confirms.

        Raises:
            BodyTooLarge: Over the limit; nothing was appended and no tag taken.
            EncodeFailed: The properties do not fit the negotiated frame_max; likewise.
            TypeError: The body is not bytes-like.
        """
        if not PyBytes_CheckExact(body):
            body = memoryview(body).cast("B").tobytes()
        return self.put(template, <bytes>body, ticket, index)

    def add_many(self, PublishTemplate template not None, list bodies not None, Ticket ticket, Py_ssize_t index=0,
                 Py_ssize_t start=0, Py_ssize_t limit=-1):
        """Appends publishings that differ only in their bodies.

        Args:
            template: Exchange, routing key and properties.
            bodies: Bytes objects.
            ticket: Told about the outcomes.
            index: The index of `bodies[start]` in the ticket.
            start: Where in `bodies` to begin.
            limit: How many to append at the most; -1 for all.

        Returns:
            How many were appended.

        Raises:
            BodyTooLarge: Over the limit; what came before was appended.
        """
        cdef Py_ssize_t i
        cdef Py_ssize_t end = len(bodies)
        cdef object body
        if start < 0 or start > end:
            raise ValueError(f"start {start} is outside the {end} bodies")
        if limit >= 0 and limit < end - start:
            end = start + limit
        for i in range(start, end):
            if i >= PyList_GET_SIZE(bodies):
                # Writing a full block calls back, and the list may have lost its tail there.
                raise ValueError(f"the list of bodies was cut to {i} while it was published")
            body = bodies[i]
            if not PyBytes_CheckExact(body):
                raise TypeError(f"body {i} is {type(body).__name__}, not bytes")
            self.put(template, <bytes>body, ticket, index + i - start)
        return end - start

    def resend(self, Py_ssize_t limit):
        """Appends again what has no outcome, oldest first; `ConfirmWindow.renumber` comes before the first call.

        Args:
            limit: How many to append at the most.

        What does not fit the new frame_max ends unknown, with an `EncodeFailed`; its ticket is handed out by the next
        call of the window that hands out any.

        Returns:
            True when that was all, and new publishings may follow.
        """
        cdef ConfirmWindow window = self.window
        cdef Slot* slot
        cdef PublishTemplate template
        cdef bytes body
        cdef list pieces
        cdef Py_ssize_t total
        cdef uint64_t tag
        if window is None or not window.resending:
            raise ValueError("there is nothing to send again: `renumber` comes before")
        while window.resend_at < window.next_delivery_tag:
            if limit <= 0:
                return False
            tag = window.resend_at
            window.resend_at += 1
            slot = &window.slots[tag & window.mask]
            if tag < window.first or slot.state == FREE:
                continue
            template, body = <PublishTemplate>slot.template, <bytes>slot.body
            try:
                total = self.total(template, slot.size)
            except EncodeFailed as error:
                window.end(tag, UNKNOWN, error)
                continue
            if slot.size > self.copied_size:
                pieces = self.large_pieces(self.out.seal(), template, body)
                window.resent.append(tag)
                self.out.splice(pieces, total)
            else:
                self.write(self.out.reserve(total), template, body, slot.size)
                window.resent.append(tag)
                self.out.commit(total)
            limit -= 1
        window.advance()
        window.resending = False
        window.resent_last = window.next_delivery_tag - 1
        window.offset = window.next_delivery_tag - 1 - <uint64_t>PyList_GET_SIZE(window.resent)
        return True


# Without confirms nobody knows more.
NO_RECEIPT = Receipt(0, UNKNOWN)


# How often this process is the child of a fork. In a child the loop that the parent ran looks as if it ran still.
cdef int _forks = 0


def _forked():
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


cdef class Publisher:
    """What a producer does for each message: the short way of `publish` and `publish_nowait`.

    `Producer` fills the attributes and has the long way, for whatever is not plain: options, waiting, several forms of
    bodies, policies. The attributes are its own.
    """

    def __cinit__(self, *args, **kwargs):
        self.thread = PyThread_get_thread_ident()
        self.forks = _forks

    def settled(self, SettlementRun run not None):
        """Applies confirms, and lets those go on who waited for them."""
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
        """Wakes those who wait for these tickets, and remembers those that failed and nobody waits for."""
        cdef Ticket ticket
        for ticket in finished:
            if ticket.future is None:
                self._remember(ticket)
            elif type(ticket.future) is Waiter:
                (<Waiter>ticket.future).set_result(None)
            elif not ticket.future.done():
                ticket.future.set_result(None)

    # A ticket of a message that was written, or None: then the long way finds out what to do, or what is wrong.
    cdef Ticket offer(self, value, routing_key, Py_ssize_t limit):
        cdef ConfirmWindow window = self._window
        cdef PublishTemplate template
        cdef PyObject* found
        cdef Ticket ticket
        cdef object body
        if not self.has_room(window, limit) or not self.at_home():
            return None
        if routing_key is self._last_key and self._last_template is not None:  # None is the key of none
            template = self._last_template
        else:
            if type(routing_key) is not str:
                return None
            found = PyDict_GetItem(self._templates, routing_key)
            if found is NULL:
                return None
            template = self._last_template = <PublishTemplate>found
            self._last_key = routing_key
        if self._ready and PyBytes_CheckExact(value):
            body = value
        else:
            body = self.encode(value)
            if not self.has_room(window, limit):
                return None  # the serializer did something else, too
        ticket = Ticket.__new__(Ticket)
        ticket.owner = self
        self._batch.put(template, <bytes>body, ticket, 0)
        if self._timer is None:
            self._start_clock()
        return ticket

    # As offer, for a caller that waits for the outcome. When nothing is in flight nothing is gained by waiting for
    # others to share a write with (Nagle's algorithm, RFC 896, does the same). During a read its end is soon enough.
    cdef Ticket send(self, value, routing_key):
        cdef SendBuffer out
        cdef Ticket ticket
        if self._batch is None or self._window.outstanding or self._batch.out.attended:
            return self.offer(value, routing_key, self._limit)
        out = self._batch.out
        out.attended = True
        try:
            ticket = self.offer(value, routing_key, self._limit)
        finally:
            out.attended = False
            if out.used:
                self._transport.flush()
        return ticket

    # Whether this is called in the event loop. False only means that the long way has to look: it asks
    # asyncio.get_running_loop, which in Python 3.11 makes a system call each time.
    cdef inline bint at_home(self) except -1:
        return (PyThread_get_thread_ident() == self.thread and self.forks == _forks
                and self._loop.is_running() is True)

    cdef inline bint has_room(self, ConfirmWindow window, Py_ssize_t limit) noexcept:
        return (self._plain and window.outstanding < limit and window.outstanding_bytes < self._max_bytes
                and not self._batch.out.paused and not self._batch.out.blocked)

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

    def _put_values(self, PublishTemplate template not None, list values not None, Py_ssize_t start, Ticket ticket,
                    Py_ssize_t index, Py_ssize_t max_bytes, kind):
        """Encodes and appends values of a batch, one after the other.

        Args:
            template: Exchange, routing key and properties.
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
        cdef Py_ssize_t i = start
        cdef uint64_t full = batch.published_bytes + <uint64_t>max(1, max_bytes)
        cdef object value
        # The serializer may change the list, and close the producer.
        while i < PyList_GET_SIZE(values) and self._alive and batch.published_bytes < full:
            value = values[i]
            if not (self._ready and PyBytes_CheckExact(value)):
                if type(value) is kind:
                    break
                value = self.encode(value)
                if not self._alive:
                    break
            batch.put(template, <bytes>value, ticket, index + i - start)
            i += 1
        return i - start

    async def publish(self, value, routing_key="", **options):
        """Publishes one value and waits for the broker's confirm.

        Many calls may wait at once; up to `max_outstanding` are in flight, and the others wait for their turn.
        When this is cancelled the message may have been written; it is not taken back.

        Args:
            value: What the serializer takes.
            routing_key: The routing key, or what `template` made.
            **options: See `PublishOptions`.

        Returns:
            A receipt; the outcome is CONFIRMED, or UNKNOWN when the producer has no confirms.

        Raises:
            EncodeFailed, BodyTooLarge: The value or an option does not fit; nothing was sent.
            MessageNacked: The broker refused it.
            MessageReturned: It was mandatory and no queue took it.
            ExchangeNotFound: There is no such exchange. The producer goes on, on a new channel.
            ConfirmTimeout: No confirm within `confirm_timeout` seconds; the outcome is UNKNOWN, the stage "confirm".
            PublishError: With outcome NOT_SENT: it could not be written within `publish_timeout` seconds, and `stage`
                says what it waited for; or the producer is closed. With UNKNOWN: the channel or connection was lost;
                the cause says why.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
        """
        cdef Ticket ticket
        cdef Receipt receipt
        cdef Waiter waiter
        # Those who wait go first.
        if options or self._waiting or (ticket := self.send(value, routing_key)) is None:
            return await self._publish(value, routing_key, options)
        if ticket.pending:
            ticket.observed = True
            waiter = self._waiters.new()
            ticket.future = waiter
            await waiter
        if ticket.failures is not None:
            raise self._outcome_error(ticket)
        if not self._confirms:
            return NO_RECEIPT
        receipt = Receipt.__new__(Receipt)
        receipt.delivery_tag = ticket.delivery_tag
        receipt.ended = CONFIRMED
        return receipt

    def publish_nowait(self, value, routing_key="", **options):
        """Publishes one value without waiting; it leaves with the next write.

        Args:
            value: What the serializer takes.
            routing_key: The routing key, or what `template` made.
            **options: See `PublishOptions`.

        Returns:
            A ticket. Await it for the receipt; it raises what `publish` raises. `flush` raises for those that
            failed and were not awaited.

        Raises:
            BackpressureError: `max_buffered` publishings or `max_outstanding_bytes` bytes have no outcome yet,
                the socket is full, the broker blocks publishers, or the connection is being made again; nothing was
                sent.
            EncodeFailed, BodyTooLarge: As `publish`.
            PublishError: The producer is closed; the outcome is NOT_SENT.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
            WrongLoopError: Called from another thread or event loop.
        """
        cdef Ticket ticket
        if options or (ticket := self.offer(value, routing_key, self._max_buffered)) is None:
            return self._publish_nowait(value, routing_key, options)
        return ticket


# basic.ack, basic.nack and basic.reject have one shape: tag and an octet of bits.
cdef int _put_settlement(SendBuffer out, uint16_t channel, uint16_t method_id, uint64_t tag, uint8_t bits) except -1:
    cdef uint8_t* p = out.reserve(21)
    p[0] = FRAME_METHOD
    lv_put16(p + 1, channel)
    lv_put32(p + 3, 13)
    lv_put16(p + 7, BASIC)
    lv_put16(p + 9, method_id)
    lv_put64(p + 11, tag)
    p[19] = bits
    p[20] = FRAME_END
    return out.commit(21)


@cython.final
cdef class AckWindow:
    """The deliveries of one channel that are not settled yet.

    Acknowledgements leave as one `multiple` for the contiguous prefix, so nothing is acknowledged that was not
    processed: a delivery that is still being worked on stops the prefix.

    Args:
        channel: The channel number, which is packed into the frames.

    Attributes:
        first: The lowest delivery tag that is not settled.
        next_delivery_tag: The tag that the next delivery should have.
        unsettled: Deliveries that nobody acknowledged or refused.
        ready: Acknowledged deliveries whose acknowledgement was not written yet.
        acked: How many were acknowledged so far.
        rejected: How many were refused so far.
        ignored: Acknowledgements of a tag that was settled already or never delivered.
    """

    def __cinit__(self, uint16_t channel):
        self.channel = channel
        self.states = <uint8_t*>calloc(FIRST_SLOTS, 1)
        if self.states is NULL:
            raise MemoryError()
        self.mask = FIRST_SLOTS - 1
        self.first = self.next_delivery_tag = 1

    def __dealloc__(self):
        free(self.states)

    # Afterwards the ring has a slot for tag.
    cdef int grow(self, uint64_t tag) except -1:
        cdef Py_ssize_t mask = self.mask
        cdef uint8_t* states
        cdef uint64_t i = self.first
        while tag - self.first > <uint64_t>mask:
            mask = 2 * mask + 1
        states = <uint8_t*>calloc(mask + 1, 1)
        if states is NULL:
            raise MemoryError()
        while i < self.next_delivery_tag:
            states[i & mask] = self.states[i & self.mask]
            i += 1
        free(self.states)
        self.states = states
        self.mask = mask
        return 0

    cdef void advance(self) noexcept:
        while self.first < self.next_delivery_tag and self.states[self.first & self.mask] == SETTLED:
            self.first += 1

    cpdef bint delivered(self, ContentRun run) except -1:
        """Notes deliveries that have to be settled.

        Returns:
            False when a tag is lower than one seen before, which no broker may do; such a message is not noted.
        """
        cdef Message message
        cdef bint ok = True
        for message in run.messages:
            ok = self.track(message.delivery_tag) and ok
        return ok

    cpdef bint track(self, uint64_t delivery_tag) except -1:
        """Notes one delivery. Returns as `delivered`."""
        if delivery_tag < self.next_delivery_tag or delivery_tag - self.next_delivery_tag > 0xFFFFFF:
            return False
        if delivery_tag - self.first > <uint64_t>self.mask:
            self.grow(delivery_tag)
        while self.next_delivery_tag < delivery_tag:
            # Tags that went to somebody else, for example to a consumer without acknowledgements.
            self.states[self.next_delivery_tag & self.mask] = SETTLED
            self.next_delivery_tag += 1
        self.states[delivery_tag & self.mask] = UNSETTLED
        self.next_delivery_tag = delivery_tag + 1
        self.unsettled += 1
        return True

    def is_open(self, uint64_t delivery_tag):
        """True while this delivery was neither acknowledged nor refused."""
        return (self.first <= delivery_tag < self.next_delivery_tag
                and self.states[delivery_tag & self.mask] == UNSETTLED)

    def ack(self, uint64_t delivery_tag):
        """Marks a delivery as acknowledged; `flush` writes it.

        Returns:
            False, and counts it as ignored, when the delivery is settled already or was never made.
        """
        if (delivery_tag < self.first or delivery_tag >= self.next_delivery_tag
                or self.states[delivery_tag & self.mask] != UNSETTLED):
            self.ignored += 1
            return False
        self.states[delivery_tag & self.mask] = ACKED
        self.unsettled -= 1
        self.ready += 1
        self.acked += 1
        return True

    cpdef Py_ssize_t finish(self, uint64_t delivery_tag) noexcept:
        """Marks a delivery as acknowledged unless it is settled already, which is not counted here.

        Returns:
            0 when it was settled already, or else how many acknowledgements are ready to be written.
        """
        if (delivery_tag < self.first or delivery_tag >= self.next_delivery_tag
                or self.states[delivery_tag & self.mask] != UNSETTLED):
            return 0
        self.states[delivery_tag & self.mask] = ACKED
        self.unsettled -= 1
        self.ready += 1
        self.acked += 1
        return self.ready

    # As finish, for an acknowledgement that its caller writes at once. Returns whether there is one to write.
    cdef bint finish_alone(self, uint64_t delivery_tag) noexcept:
        if (delivery_tag < self.first or delivery_tag >= self.next_delivery_tag
                or self.states[delivery_tag & self.mask] != UNSETTLED):
            return False
        self.states[delivery_tag & self.mask] = SETTLED
        self.unsettled -= 1
        self.acked += 1
        self.advance()
        return True

    def settle(self, uint64_t delivery_tag):
        """Marks a delivery as settled by a method of its own, such as basic.reject. Returns as `ack` does."""
        if (delivery_tag < self.first or delivery_tag >= self.next_delivery_tag
                or self.states[delivery_tag & self.mask] != UNSETTLED):
            self.ignored += 1
            return False
        self.states[delivery_tag & self.mask] = SETTLED
        self.unsettled -= 1
        self.rejected += 1
        self.advance()
        return True

    def flush(self, SendBuffer out not None, *, bint stragglers=False):
        """Writes the acknowledgements that may be written.

        Args:
            out: The connection's send buffer.
            stragglers: Also acknowledge, one by one, what lies behind a delivery that is not settled yet.

        Returns:
            How many basic.ack methods were written.
        """
        return self.write_ready(out, stragglers)

    # Writes basic.ack for one delivery that finish_alone took.
    cdef int write_alone(self, SendBuffer out, uint64_t delivery_tag) except -1:
        return _put_settlement(out, self.channel, BASIC_ACK, delivery_tag, 0)

    # What flush does.
    cdef Py_ssize_t write_ready(self, SendBuffer out, bint stragglers) except -1:
        cdef uint64_t tag = self.first
        cdef uint64_t last = 0
        cdef Py_ssize_t prefix = 0
        cdef Py_ssize_t frames = 0
        cdef uint8_t state
        if self.ready == 0:
            return 0
        while tag < self.next_delivery_tag:
            state = self.states[tag & self.mask]
            if state == ACKED:
                prefix += 1
                last = tag
            elif state != SETTLED:
                break
            tag += 1
        self.first = tag
        if prefix:
            # The tag must be one that the broker still has, so not one of those that were refused.
            self.ready -= prefix
            _put_settlement(out, self.channel, BASIC_ACK, last, 1 if prefix > 1 else 0)
            frames += 1
        while stragglers and self.ready and tag < self.next_delivery_tag:
            if self.states[tag & self.mask] == ACKED:
                self.states[tag & self.mask] = SETTLED
                self.ready -= 1
                _put_settlement(out, self.channel, BASIC_ACK, tag, 0)
                frames += 1
            tag += 1
        return frames


def append_settlement(SendBuffer out not None, uint16_t channel, uint16_t method_id, uint64_t delivery_tag,
                      uint8_t bits=0):
    """Appends basic.ack (80), basic.nack (120) or basic.reject (90).

    Args:
        out: The connection's send buffer.
        channel: The channel number.
        method_id: The method.
        delivery_tag: What is settled.
        bits: ack: 1 multiple; nack: 1 multiple, 2 requeue; reject: 1 requeue.
    """
    _put_settlement(out, channel, method_id, delivery_tag, bits)


def append_deliveries(SendBuffer out not None, uint16_t channel, str consumer_tag not None,
                      uint64_t first_delivery_tag, list messages not None, *, uint32_t frame_max=131072):
    """Appends messages as basic.deliver, the way a broker sends them.

    Args:
        out: The connection's send buffer.
        channel: The channel number.
        consumer_tag: The consumer.
        first_delivery_tag: The tag of the first message; the others follow.
        messages: `Message` objects with bodies.
        frame_max: The negotiated limit.

    Raises:
        ValueError: A message has no body; those before it were appended.
        TypeError: The body of a message is a view (`FrameReader.view_bodies`); likewise.
    """
    cdef Message m
    # What was packed last: a message that is like the one before needs its tag, its bit and its size written over.
    cdef Message like = None
    cdef Writer w = Writer()
    cdef Py_ssize_t chunk = <Py_ssize_t>frame_max - FRAME_OVERHEAD
    cdef Py_ssize_t size, total, tag_at, size_at = 0
    cdef uint64_t tag = first_delivery_tag
    cdef bytes tag_bytes = consumer_tag.encode("utf-8", "surrogateescape")
    cdef uint8_t* p
    _check_frame_max(frame_max)
    w.put8(FRAME_METHOD)
    w.put16(channel)
    w.put32(0)
    w.put16(BASIC)
    w.put16(BASIC_DELIVER)
    w.put_shortstr(tag_bytes, "consumer_tag")
    tag_at = w.used
    for m in messages:
        if m is None or m.body is None:
            raise ValueError("a message without its body cannot be delivered")
        size = PyBytes_GET_SIZE(_body_of(m))
        if (like is None or m.exchange is not like.exchange or m.routing_key is not like.routing_key
                or m.raw_properties is not like.raw_properties):
            w.used = tag_at
            w.put64(0)
            w.put8(0)
            w.put_shortstr(m.exchange, "exchange")
            w.put_shortstr(m.routing_key, "routing_key")
            lv_put32(w.data + 3, <uint32_t>(w.used - 7))
            w.put8(FRAME_END)
            # Type, channel, size, class and weight stand before it.
            size_at = w.used + 11
            _put_header(w, channel, m.raw_properties, 0)
            like = m
        lv_put64(w.data + tag_at, tag)
        w.data[tag_at + 8] = 1 if m.redelivered else 0
        lv_put64(w.data + size_at, <uint64_t>size)
        total = w.used + size + FRAME_OVERHEAD * _body_frames(size, chunk)
        p = out.reserve(total)
        memcpy(p, w.data, w.used)
        _put_body(p + w.used, channel, <const uint8_t*>PyBytes_AS_STRING(m.body), size, chunk)
        out.commit(total)
        tag += 1


cdef int _put_header(Writer w, uint16_t channel, bytes raw_properties, Py_ssize_t size) except -1:
    w.put8(FRAME_HEADER)
    w.put16(channel)
    w.put32(<uint32_t>(12 + PyBytes_GET_SIZE(raw_properties)))
    w.put16(BASIC)
    w.put16(0)
    w.put64(<uint64_t>size)
    w.put_raw(<uint8_t*>PyBytes_AS_STRING(raw_properties), PyBytes_GET_SIZE(raw_properties))
    return w.put8(FRAME_END)


def append_content(SendBuffer out not None, bytes method_frame not None, Message message not None, *,
                   uint16_t channel, uint32_t frame_max=131072):
    """Appends a ready method frame and the content of `message`, for example basic.return or basic.get-ok.

    Raises:
        ValueError: The message has no body; nothing was appended.
        TypeError: Its body is a view (`FrameReader.view_bodies`); likewise.
    """
    cdef Writer w = Writer()
    cdef Py_ssize_t chunk = <Py_ssize_t>frame_max - FRAME_OVERHEAD
    cdef Py_ssize_t size, total
    cdef uint8_t* p
    _check_frame_max(frame_max)
    if message.body is None:
        raise ValueError("a message without its body cannot be sent")
    size = PyBytes_GET_SIZE(_body_of(message))
    w.put_raw(<uint8_t*>PyBytes_AS_STRING(method_frame), PyBytes_GET_SIZE(method_frame))
    _put_header(w, channel, message.raw_properties, size)
    total = w.used + size + FRAME_OVERHEAD * _body_frames(size, chunk)
    p = out.reserve(total)
    memcpy(p, w.data, w.used)
    _put_body(p + w.used, channel, <const uint8_t*>PyBytes_AS_STRING(message.body), size, chunk)
    out.commit(total)
