"""The publishings without an outcome.

The window counts delivery tags. A publishing costs a slot in a ring, and settling a range of tags costs one step for
each tag, once. What is published together or confirmed together is counted together: `open_run` and `confirm_run`.
"""
cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from leveret.publishing.confirm_times cimport ConfirmTimes
from leveret.publishing.publishing cimport CONFIRMED, Publishing, Ticket
from leveret.publishing.template cimport PublishTemplate
from leveret.wire.content cimport body_of
from leveret.wire.message cimport Message
from leveret.wire.numbers cimport SETTLE_MULTIPLE, SETTLE_NACK
from leveret.wire.own_headers cimport with_sent_at
from leveret.wire.runs cimport SettlementRun

from leveret.errors import LeveretError
from leveret.wire.properties import decode_properties

# As those of Cython, for objects that are only borrowed: a slot's reference changes without a variable that has one.
cdef extern from "Python.h":
    PyObject* item "PyList_GET_ITEM"(list items, Py_ssize_t i) noexcept
    void set_item "PyList_SET_ITEM"(list items, Py_ssize_t i, PyObject* value) noexcept
    Py_ssize_t size_of "PyBytes_GET_SIZE"(PyObject* body) noexcept
    void hold "Py_INCREF"(PyObject* value) noexcept
    void let_go "Py_DECREF"(PyObject* value) noexcept

cdef enum:
    FIRST_SLOTS = 32

# Outcome's values (leveret.message), without a Python object for each message.
cdef enum:
    PENDING = 0
    RETURNED = 2
    NACKED = 3
    NOT_SENT = 4
    UNKNOWN = 5
    # None of them: written without confirms, so that nothing more will be known.
    WRITTEN = 6


cdef bint _same_properties(PublishTemplate template, Message message) except -1:
    cdef bytes theirs = message.raw_properties
    cdef Py_ssize_t value_at
    try:
        if template.sent_at:
            theirs = with_sent_at(theirs, &value_at)  # without its time, as in the template
        return (template.raw_properties == theirs
                or decode_properties(template.raw_properties) == decode_properties(theirs))
    except LeveretError:
        return False


# Whether a publishing is open, was written once and not returned: one look at what lies beside each other.
cdef inline bint is_ordinary(Slot* slot) noexcept:
    cdef uint32_t both
    memcpy(&both, &slot.state, sizeof(both))
    return both == 0x00010001  # OPEN and 1, in any order of bytes


@cython.final
cdef class ConfirmWindow:
    """The publishings of a producer that the broker has not settled yet.

    It keeps them whole, so that those which a lost channel left without an outcome can be sent again: see `renumber`.
    While there is no channel it also holds new ones (`PublishBatch.hold`), which have higher tags than all others.
    Delivery tags count the producer's publishings from 1. On its first channel they are the broker's too.

    Attributes:
        first: The lowest delivery tag without an outcome.
        next_delivery_tag: The tag that the next publishing will get.
        outstanding: How many publishings have no outcome.
        outstanding_bytes: Their bodies' bytes, and those of their frames where these are large.
        held: How many of them were not written yet.
        confirmed: How many were confirmed so far.
        nacked: How many were refused so far.
        returned: How many were returned so far.
        unknown: How many ended unknown so far.
        not_sent: How many ended so far without having been written.
        ignored: Confirms that named a tag with an outcome already, or one that was never given.
        resend_at: After `renumber`: the first publishing that `PublishBatch.resend` has not come to.
        confirm_time: Nanoseconds from the call that published to its confirm, of those that were confirmed. The clock
            is read once for publishings that are written together, at the first of them, and once for the confirms of
            one read: what is counted is at most one turn of the event loop too long.
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
        self.times = ConfirmTimes()

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.slots is not NULL:
            for i in range(self.mask + 1):
                if self.slots[i].state != FREE:
                    let_go(self.slots[i].template)
                    let_go(self.slots[i].body)
        free(self.slots)

    # Makes sure of a slot for the next tag, in a loop: growing may collect garbage, whose finalizers may publish.
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

    # Notes that publishings from the next tag on are handed over now.
    cdef int mark(self) except -1:
        return self.times.handed_over(self.next_delivery_tag, self.first)

    # Nanoseconds since this publishing was handed over.
    cdef int64_t age_of(self, uint64_t tag) except? -1:
        self.times.begin()
        self.times.seek(tag, self.first)
        return self.times.now - self.times.mark.time

    # Confirms every open publishing up to this one.
    cdef int confirm_through(self, uint64_t tag) except -1:
        cdef uint64_t confirmed
        cdef uint64_t last
        while self.first <= tag:
            if self.first >= self.times.end or self.first < self.times.mark.tag:
                self.times.seek(self.first, self.first)
            confirmed = self.confirmed
            last = min(tag, self.times.end - 1)
            while self.first <= last:
                if self.confirm_run(last) == 0:
                    if self.slots[self.first & self.mask].state != FREE:
                        self.end(self.first, CONFIRMED, None)
                    self.first += 1
            self.times.count += self.confirmed - confirmed
        return 0

    # Confirms publishings up to this one, as long as they are open, were written once and not returned, and have the
    # ticket of the first of them, or none. Returns how many. No code of others runs before all counts are right.
    cdef uint64_t confirm_run(self, uint64_t tag) except? 0:
        cdef list tickets = self.tickets
        cdef Ticket ticket = <Ticket>tickets[self.first & self.mask]
        cdef uint64_t first = self.first
        cdef Py_ssize_t size = 0
        cdef uint64_t at, count
        cdef Slot* slot
        while self.first <= tag:
            at = self.first & self.mask
            slot = &self.slots[at]
            if not is_ordinary(slot) or item(tickets, at) is not <PyObject*>ticket:
                break
            slot.state = FREE
            let_go(slot.template)
            let_go(slot.body)
            size += slot.size
            if ticket is not None:
                let_go(<PyObject*>ticket)
                hold(<PyObject*>None)
                set_item(tickets, at, <PyObject*>None)
            self.first += 1
        count = self.first - first
        self.outstanding -= count
        self.outstanding_bytes -= size
        self.confirmed += count
        if ticket is not None and count:
            ticket.pending -= <uint32_t>count
            ticket.confirmed += <uint32_t>count
            if ticket.pending == 0:
                self.hand_out(ticket)
        return count

    # Confirms one publishing if it is open; returns whether it was.
    cdef bint confirm_one(self, uint64_t tag) except -1:
        cdef uint64_t confirmed = self.confirmed
        if not self.end_one(tag, CONFIRMED, None):
            return False
        if self.confirmed != confirmed:
            if tag >= self.times.end or tag < self.times.mark.tag:
                self.times.seek(tag, self.first)
            self.times.count += 1
        return True

    cdef uint64_t open(self, Ticket ticket, Py_ssize_t index, PublishTemplate template, bytes body,
                       Py_ssize_t size) except 0:
        cdef uint64_t tag
        cdef Slot* slot
        self.make_room()
        tag = self.next_delivery_tag
        slot = &self.slots[tag & self.mask]
        slot.state = OPEN
        slot.sends = 1
        slot.index = index
        slot.size = size
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

    # How many publishings have a slot without growing.
    cdef inline Py_ssize_t free_slots(self) noexcept:
        return self.mask + 1 - <Py_ssize_t>(self.next_delivery_tag - self.first)

    # Opens publishings with tags and indexes that follow each other, with these of the bodies, which are bytes. They
    # have free slots, and were written with no code of others running since.
    cdef void open_run(self, Ticket ticket, Py_ssize_t index, PublishTemplate template, list bodies, Py_ssize_t start,
                       Py_ssize_t count) noexcept:
        cdef list tickets = self.tickets
        cdef uint64_t tag = self.next_delivery_tag
        cdef Py_ssize_t total = 0
        cdef Py_ssize_t i
        cdef uint64_t at
        cdef Slot* slot
        for i in range(count):
            at = (tag + <uint64_t>i) & self.mask
            slot = &self.slots[at]
            slot.state = OPEN
            slot.sends = 1
            slot.index = index + i
            slot.template = <PyObject*>template
            slot.body = item(bodies, start + i)
            slot.size = size_of(slot.body)
            hold(slot.template)
            hold(slot.body)
            total += slot.size
            if ticket is not None:
                let_go(<PyObject*>None)
                hold(<PyObject*>ticket)
                set_item(tickets, at, <PyObject*>ticket)
        if ticket is not None:
            if ticket.count == 0:
                ticket.delivery_tag = tag
            ticket.count += <uint32_t>count
            ticket.pending += <uint32_t>count
        self.next_delivery_tag = tag + <uint64_t>count
        self.outstanding += count
        self.outstanding_bytes += total

    # Gives an open publishing its outcome, and its ticket the reason. The caller advances `first`.
    cdef int end(self, uint64_t tag, int outcome, object reason) except -1:
        cdef Slot* slot = &self.slots[tag & self.mask]
        cdef Ticket ticket = <Ticket>self.tickets[tag & self.mask]
        if not is_ordinary(slot):
            if slot.state == OPEN_RETURNED:
                outcome = RETURNED  # basic.return said so, and nothing that comes or does not come after changes that
            if slot.sends != 1:
                outcome = self.end_unusual(tag, slot, ticket, outcome)
        slot.state = FREE
        let_go(slot.template)
        let_go(slot.body)
        self.outstanding -= 1
        self.outstanding_bytes -= slot.size
        if outcome == CONFIRMED:
            self.confirmed += 1
        elif outcome == RETURNED:
            self.returned += 1
        elif outcome == NACKED:
            self.nacked += 1
        elif outcome == UNKNOWN:
            self.unknown += 1
        elif outcome == NOT_SENT:
            self.not_sent += 1
            reason = self.unsent
        if ticket is not None:
            self.tickets[tag & self.mask] = None
            ticket.pending -= 1
            if outcome == CONFIRMED:
                ticket.confirmed += 1
            elif outcome != RETURNED and outcome != WRITTEN:
                ticket.fail(slot.index, outcome if reason is None else reason)
            if ticket.pending == 0:
                self.hand_out(ticket)
        return 0

    # Keeps a ticket with nothing pending for `take_finished`, when a caller waits for it or it failed unobserved.
    cdef inline int hand_out(self, Ticket ticket) except -1:
        if ticket.future is not None or (ticket.failures is not None and not ticket.observed):
            self.finished.append(ticket)
        return 0

    # Of a publishing that was not written once, or has large frames. Returns its outcome.
    cdef int end_unusual(self, uint64_t tag, Slot* slot, Ticket ticket, int outcome) except -1:
        cdef Py_ssize_t sends = slot.sends & SENDS
        if slot.sends & HEAVY:
            self.outstanding_bytes -= self.heavy.pop(tag)
        if sends == 0:
            self.held -= 1
            if outcome == UNKNOWN:
                outcome = NOT_SENT
        elif sends > 1 and ticket is not None:
            if ticket.sends is None:
                ticket.sends = {}
            ticket.sends[slot.index] = sends
        return outcome

    # Counts the frames of an open publishing among the bytes that are kept. Keeps the slot's count of writes.
    cdef int weigh(self, uint64_t tag, Py_ssize_t size) except -1:
        cdef Slot* slot = &self.slots[tag & self.mask]
        if self.heavy is None:
            self.heavy = {}
        self.outstanding_bytes += size - <Py_ssize_t>self.heavy.get(tag, 0)
        self.heavy[tag] = size
        slot.sends |= HEAVY
        return 0

    cdef int end_through(self, uint64_t tag, int outcome, object reason) except -1:
        while self.first <= tag:
            if self.slots[self.first & self.mask].state != FREE:
                self.end(self.first, outcome, reason)
            self.first += 1
        return 0

    # Ends one publishing if it is open; returns whether it was.
    cdef bint end_one(self, uint64_t tag, int outcome, object reason) except -1:
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

    def settle(self, SettlementRun run not None, list told=None):
        """Applies the broker's confirms.

        Args:
            run: basic.ack and basic.nack methods in the order they came.
            told: (delivery tag, multiple, nack) is appended for each confirm, with the tags that the publishings have
                here. The confirm of several that were sent again on another channel is told for each of them.

        Returns:
            None, or the tickets that are finished now and have a future, or that failed unobserved.
        """
        cdef Py_ssize_t i
        cdef uint64_t tag
        cdef int outcome
        cdef bint multiple
        self.times.begin()
        for i in range(run.count):
            tag = run.tags[i]
            outcome = NACKED if run.flags[i] & SETTLE_NACK else CONFIRMED
            multiple = run.flags[i] & SETTLE_MULTIPLE
            if self.resent is not None and self.settle_resent(tag, multiple, outcome, told):
                continue
            if multiple and tag == 0:
                tag = self.next_delivery_tag - 1  # all of them (AMQP 0-9-1 section 1.8.3.13)
            elif tag + self.offset - 1 < self.next_delivery_tag - 1:  # without a sign, so that 0 is refused as well
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
                if outcome == CONFIRMED:
                    self.confirm_through(tag)
                else:
                    self.end_through(tag, outcome, None)
            elif not (self.confirm_one(tag) if outcome == CONFIRMED else self.end_one(tag, outcome, None)):
                self.ignored += 1
                continue
            self.advance()
        self.times.finish()
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
                if outcome == CONFIRMED:
                    known = self.confirm_one(again) or known
                else:
                    known = self.end_one(again, outcome, None) or known
        if multiple and <Py_ssize_t>tag > self.resent_from:
            self.resent_from = <Py_ssize_t>tag
        if not known:
            self.ignored += 1
        self.advance()
        return True

    def begin_at(self, uint64_t published):
        """Counts from 1 on a channel where the broker has counted so many publishings before."""
        self.offset = 0 - published

    @property
    def published(self):
        """The last tag by the broker's count; None when confirms may still come, or the broker refused something.

        After a loss of a queue's leader a channel may refuse everything, where another one works (RabbitMQ).
        """
        if self.outstanding or self.unknown or self.nacked or self.resending:
            return None
        return self.next_delivery_tag - 1 - self.offset

    @property
    def confirm_time(self):
        return self.times.histogram

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

        The broker returns messages in the order of publishing, and before their confirms. So this takes the first
        mandatory publishing with the same bytes behind the last returned one; publishings with the same bytes cannot be
        told apart. Brokers may pack the properties anew: RabbitMQ sorts headers (4.0) and takes BCC out. So it accepts
        properties with other bytes and the same values, and any properties when there are none like that.

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
        cdef Py_ssize_t size = 0 if message.body is None else PyBytes_GET_SIZE(body_of(message))
        while tag < end:
            slot = &self.slots[tag & self.mask]
            if slot.state == OPEN and slot.size == size and slot.sends & SENDS:
                template = <PublishTemplate>slot.template
                if (template.mandatory and template.routing_key == message.routing_key
                        and template.exchange == message.exchange and <bytes>slot.body == message.body
                        and (any_properties or _same_properties(template, message))):
                    return tag
            tag += 1
        return 0

    def expire(self, uint64_t delivery_tag, reason=None, unsent=None):
        """Ends every open publishing up to this one as unknown, or as not sent if it was not written yet.

        Args:
            delivery_tag: The last of them.
            reason: What the tickets of unknown ones say; the outcome by default.
            unsent: What the tickets of those say that were not written; the outcome by default.

        Returns:
            As `settle`.
        """
        self.unsent = unsent
        self.end_through(min(delivery_tag, self.next_delivery_tag - 1), UNKNOWN, reason)
        self.advance()
        return self.take_finished()

    def give_up(self, uint64_t delivery_tag, reason=None, unsent=None):
        """Ends one open publishing as `expire` does; its confirm may still come and is ignored then."""
        self.unsent = unsent
        self.end_one(delivery_tag, UNKNOWN, reason)
        self.advance()
        return self.take_finished()

    def in_flight(self, Py_ssize_t most):
        """Returns the tags and message ids (None for none) of up to `most` open publishings that were written."""
        cdef list found = []
        cdef uint64_t tag = self.first
        cdef Slot* slot
        while tag < self.next_delivery_tag and PyList_GET_SIZE(found) < most:
            slot = &self.slots[tag & self.mask]
            if slot.state != FREE and slot.sends & SENDS:
                found.append((tag, decode_properties((<PublishTemplate>slot.template).raw_properties).message_id))
            tag += 1
        return found

    def is_deserted(self):
        """Returns whether publishings are open, and every caller that published one of them was cancelled."""
        cdef uint64_t tag = self.first
        cdef Ticket ticket
        while tag < self.next_delivery_tag:
            if self.slots[tag & self.mask].state != FREE:
                ticket = <Ticket>self.tickets[tag & self.mask]
                if (ticket is None or type(ticket.future) is not Publishing
                        or not (<Publishing>ticket.future).is_cancelled()):
                    return False
            tag += 1
        return self.outstanding > 0

    def exchanges(self):
        """Returns the set of the exchanges that open publishings were written to."""
        cdef set names = set()
        cdef uint64_t tag = self.first
        cdef Slot* slot
        while tag < self.next_delivery_tag:
            slot = &self.slots[tag & self.mask]
            if slot.state != FREE and slot.sends & SENDS:
                names.add((<PublishTemplate>slot.template).exchange)
            tag += 1
        return names

    def give_up_written(self, reason, str exchange=None, Py_ssize_t larger_than=-1):
        """Ends open publishings that were written as unknown; those that were not written yet stay.

        Args:
            reason: What their tickets say.
            exchange: Only those to this exchange.
            larger_than: Only those whose bodies have more bytes.

        Returns:
            As `settle`.
        """
        cdef uint64_t tag = self.first
        cdef Slot* slot
        while tag < self.next_delivery_tag:
            slot = &self.slots[tag & self.mask]
            if (slot.state != FREE and slot.sends & SENDS and slot.size > larger_than
                    and (exchange is None or (<PublishTemplate>slot.template).exchange == exchange)):
                self.end(tag, UNKNOWN, reason)
            tag += 1
        self.advance()
        return self.take_finished()

    def renumber(self):
        """A new channel takes over: prepares `PublishBatch.resend` of what has no outcome.

        The new channel counts from 1. Publishings keep their tags here, and confirms are translated.

        Returns:
            As `settle`: publishings that the broker returned end, with the outcome RETURNED.
        """
        cdef uint64_t tag = self.first
        cdef Slot* slot
        while tag < self.next_delivery_tag:
            slot = &self.slots[tag & self.mask]
            if slot.state == OPEN_RETURNED:
                self.end(tag, UNKNOWN, None)
            tag += 1
        self.advance()
        self.resent = []
        self.resent_from = 0
        self.resending = True
        self.resend_at = self.first
        self.return_at = self.first
        return self.take_finished()
