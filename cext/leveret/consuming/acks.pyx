"""The deliveries of a channel that are not settled yet, and their acknowledgements."""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free

from leveret.wire.buffers cimport SendBuffer
from leveret.wire.content cimport put_settlement
from leveret.wire.message cimport Message
from leveret.wire.numbers cimport BASIC_ACK
from leveret.wire.runs cimport ContentRun

cdef enum:
    FIRST_SLOTS = 256

# The states of a delivery.
cdef enum:
    UNSETTLED = 1
    ACKED = 2
    SETTLED = 3
    # Unsettled, but only for the part that has reserved it: its copy is being published, or the consumer holds it.
    RESERVED = 4


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
        unsettled: Deliveries that were neither acknowledged nor rejected.
        ready: Acknowledged deliveries whose acknowledgement was not written yet.
        acked: How many were acknowledged so far.
        rejected: How many were rejected so far (basic.reject, basic.nack).
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
            False when a tag is lower than one seen before, which AMQP forbids; such a message is not noted.
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
            # Tags of deliveries that need no acknowledgement, to another consumer of the channel.
            self.states[self.next_delivery_tag & self.mask] = SETTLED
            self.next_delivery_tag += 1
        self.states[delivery_tag & self.mask] = UNSETTLED
        self.next_delivery_tag = delivery_tag + 1
        self.unsettled += 1
        return True

    def is_open(self, uint64_t delivery_tag):
        """True while this delivery is neither acknowledged nor rejected."""
        return (self.first <= delivery_tag < self.next_delivery_tag
                and self.states[delivery_tag & self.mask] == UNSETTLED)

    def first_unhandled(self):
        """Returns the lowest delivery tag that was neither acknowledged here nor settled, or `next_delivery_tag`."""
        cdef uint64_t tag = self.first
        while tag < self.next_delivery_tag and self.states[tag & self.mask] != UNSETTLED:
            tag += 1
        return tag

    cpdef bint is_pending(self, uint64_t delivery_tag) noexcept:
        """True while the broker waits for this delivery's settlement, because none was written yet."""
        return (self.first <= delivery_tag < self.next_delivery_tag
                and self.states[delivery_tag & self.mask] != SETTLED)

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

    def reserve(self, uint64_t delivery_tag):
        """Keeps an unsettled delivery from being settled until `restore`.

        Returns:
            False when it is settled or reserved already, or was never made.
        """
        if (delivery_tag < self.first or delivery_tag >= self.next_delivery_tag
                or self.states[delivery_tag & self.mask] != UNSETTLED):
            return False
        self.states[delivery_tag & self.mask] = RESERVED
        return True

    def restore(self, uint64_t delivery_tag):
        """Ends what `reserve` began. Returns False when the delivery is not reserved."""
        if (delivery_tag < self.first or delivery_tag >= self.next_delivery_tag
                or self.states[delivery_tag & self.mask] != RESERVED):
            return False
        self.states[delivery_tag & self.mask] = UNSETTLED
        return True

    def reject(self, uint64_t delivery_tag):
        """Marks a delivery as rejected; its caller writes basic.reject or basic.nack. Returns as `ack` does."""
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
        return put_settlement(out, self.channel, BASIC_ACK, delivery_tag, 0)

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
            # The tag must be one that the broker still has, so not one that was rejected.
            self.ready -= prefix
            put_settlement(out, self.channel, BASIC_ACK, last, 1 if prefix > 1 else 0)
            frames += 1
        while stragglers and self.ready and tag < self.next_delivery_tag:
            if self.states[tag & self.mask] == ACKED:
                self.states[tag & self.mask] = SETTLED
                self.ready -= 1
                put_settlement(out, self.channel, BASIC_ACK, tag, 0)
                frames += 1
            tag += 1
        return frames
