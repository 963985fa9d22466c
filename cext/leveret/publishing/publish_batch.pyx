"""Appends publishings to a connection's send buffer."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from leveret.monitoring.histogram cimport wall_clock
from leveret.publishing.confirms cimport FREE, HEAVY, SENDS, ConfirmWindow, Slot
from leveret.publishing.publishing cimport Ticket
from leveret.publishing.template cimport PublishTemplate
from leveret.wire.buffers cimport SendBuffer
from leveret.wire.content cimport body_frames, check_frame_max, put_body
from leveret.wire.endian cimport lv_put16, lv_put32, lv_put64
from leveret.wire.numbers cimport FRAME_BODY, FRAME_END, FRAME_OVERHEAD

cdef extern from "Python.h":
    # For objects that are only borrowed.
    PyObject* item "PyList_GET_ITEM"(list items, Py_ssize_t i) noexcept
    bint is_bytes "PyBytes_CheckExact"(PyObject* value) noexcept
    Py_ssize_t size_of "PyBytes_GET_SIZE"(PyObject* body) noexcept
    const uint8_t* data_of "(const uint8_t*)PyBytes_AS_STRING"(PyObject* body) noexcept

from leveret.errors import BodyTooLarge, EncodeFailed

cdef enum:
    # Larger bodies are not copied: a separate piece for the socket costs less from here on (make compare
    # ARGS="--sizes 4k,8k,16k --peers leveret" with other values). Copied bodies must fit SLACK of wire.buffers.
    LARGE = 8192

# No count of bytes that were sent.
cdef uint64_t NOT_MARKED = 0xFFFFFFFFFFFFFFFF

# An outcome's value (leveret.message), and that of `ConfirmWindow` for what is written without confirms.
cdef enum:
    UNKNOWN = 5
    WRITTEN = 6

# A frame's end (AMQP 0-9-1 section 4.2.3).
cdef bytes END = b"\xce"


@cython.final
cdef class PublishBatch:
    """Appends publishings to a connection's send buffer and takes their delivery tags, in one step.

    Args:
        out: The connection's send buffer.
        window: Where the publishings wait for their confirms; None without confirms.
        held: Without confirms, where publishings wait for their first channel.
        channel: The channel to publish on.
        frame_max: The negotiated limit; larger bodies are split.
        max_body_size: The largest body, in bytes.

    Attributes:
        published: How many messages were appended; one that was sent again counts once.
        published_bytes: Their bodies' bytes.
    """

    def __cinit__(self, SendBuffer out not None, ConfirmWindow window, *, ConfirmWindow held=None, uint16_t channel=1,
                  uint32_t frame_max=131072, Py_ssize_t max_body_size=16777216):
        self.window = window
        self.held = held if window is None else window
        self.max_body_size = max_body_size
        self.attach(out, channel, frame_max)

    def attach(self, SendBuffer out not None, uint16_t channel, uint32_t frame_max):
        """Goes over to another channel, maybe of another connection."""
        check_frame_max(frame_max)
        self.out = out
        self.marked = NOT_MARKED
        self.channel = channel
        self.frame_max = frame_max
        # Frames that are small themselves need no separate pieces.
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
        if self.marked != self.out.sent_bytes:
            self.mark()
        if self.window is not None:
            self.window.make_room()
        p = self.out.reserve(total)
        if self.window is not None:
            tag = self.window.open(ticket, index, template, body, size)
        self.write(p, template, <const uint8_t*>PyBytes_AS_STRING(body), size)
        self.published += 1
        self.published_bytes += <uint64_t>size
        self.out.commit(total)
        return tag

    cpdef Py_ssize_t add_run(self, PublishTemplate template, list values, Py_ssize_t start, Ticket ticket,
                             Py_ssize_t index, Py_ssize_t max_bytes) except -1:
        """Appends small bodies with the same frames, counted together; `add` takes what this leaves.

        It ends with the write that the socket is due, and where the block or the window's ring ends.

        Args:
            template: Exchange, routing key and properties, the same for all.
            values: Bodies, which are bytes; it ends before any other value, and before a large body.
            start: Where in `values` to begin.
            ticket: Told about the outcomes.
            index: The index of `values[start]` in the ticket.
            max_bytes: Ends when the bodies have so many bytes.

        Returns:
            How many were appended. They have delivery tags that follow each other.

        Raises:
            EncodeFailed: As `add`.
        """
        cdef ConfirmWindow window = self.window
        cdef Py_ssize_t overhead
        # Bodies of one frame, or of none.
        cdef Py_ssize_t largest = min(self.copied_size, <Py_ssize_t>self.frame_max - FRAME_OVERHEAD)
        cdef Py_ssize_t total = 0
        cdef Py_ssize_t i = start
        cdef Py_ssize_t end, size
        cdef uint8_t* p
        cdef uint8_t* base
        cdef uint8_t* full
        cdef uint8_t* limit
        cdef PyObject* value
        if template is None or values is None:
            raise TypeError("a template and a list of values are required")
        overhead = self.total(template, 0)
        if self.marked != self.out.sent_bytes:
            self.mark()
        if window is not None:
            window.make_room()  # it may run code of others
        # From here on nothing may run that appends to the block, publishes or changes the list.
        end = PyList_GET_SIZE(values)
        if i >= end or not is_bytes(item(values, i)) or size_of(item(values, i)) > largest:
            return 0
        if window is not None:
            end = min(end, i + window.free_slots())
        base = p = self.out.reserve(overhead + FRAME_OVERHEAD + size_of(item(values, i)))
        limit = base + (self.out.room - self.out.used)
        full = base + (self.out.flush_bytes - self.out.used)
        while i < end:
            value = item(values, i)
            if not is_bytes(value):
                break
            size = size_of(value)
            if size > largest or overhead + FRAME_OVERHEAD + size > limit - p:
                break
            p = self.write(p, template, data_of(value), size)
            total += size
            i += 1
            if p >= full or total >= max_bytes:
                break
        if window is not None:
            window.open_run(ticket, index, template, values, start, i - start)
        self.published += <uint64_t>(i - start)
        self.published_bytes += <uint64_t>total
        self.out.commit(p - base)
        return i - start

    # Notes the time: what was appended before has left.
    cdef int mark(self) except -1:
        if self.window is not None:
            self.window.mark()
        self.sent_at = 0
        self.marked = self.out.sent_bytes
        return 0

    # The bytes of a publishing's frames.
    cdef inline Py_ssize_t total(self, PublishTemplate template, Py_ssize_t size) except -1:
        if template.data is NULL:
            raise TypeError("this template was never packed")
        if template.size - template.header_at > <Py_ssize_t>self.frame_max:
            raise EncodeFailed(f"the properties and headers take {template.size - template.header_at} bytes; the "
                               f"negotiated frame_max is {self.frame_max}")
        return (template.size + size
                + FRAME_OVERHEAD * body_frames(size, <Py_ssize_t>self.frame_max - FRAME_OVERHEAD))

    # All but the body.
    cdef inline void write_prefix(self, uint8_t* p, PublishTemplate template, Py_ssize_t size) noexcept:
        memcpy(p, template.data, template.size)
        lv_put16(p + 1, self.channel)
        lv_put16(p + template.header_at + 1, self.channel)
        lv_put64(p + template.header_at + 11, <uint64_t>size)

    # Fills in the time of a publishing that has the header for it.
    cdef void write_time(self, uint8_t* p, PublishTemplate template) noexcept:
        if self.sent_at == 0:
            self.sent_at = wall_clock()
        lv_put64(p + template.sent_at, <uint64_t>self.sent_at)

    # Returns the end of the frames.
    cdef inline uint8_t* write(self, uint8_t* p, PublishTemplate template, const uint8_t* body,
                               Py_ssize_t size) noexcept:
        self.write_prefix(p, template, size)
        if template.sent_at:
            self.write_time(p, template)
        return put_body(p + template.size, self.channel, body, size, <Py_ssize_t>self.frame_max - FRAME_OVERHEAD)

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
        if template.sent_at:
            self.write_time(p, template)
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
            raise BodyTooLarge(f"a body of {size} bytes is larger than max_body_size of {self.max_body_size}")
        total = self.total(template, size)
        if self.marked != self.out.sent_bytes:
            self.mark()
        pieces = self.large_pieces(self.out.seal(), template, body)
        if self.window is not None:
            tag = self.window.open(ticket, index, template, body, size)
        self.published += 1
        self.published_bytes += <uint64_t>size
        self.out.splice(pieces, total)
        return tag

    def add(self, PublishTemplate template not None, body not None, Ticket ticket=None, Py_ssize_t index=0,
            Py_ssize_t sends=0):
        """Appends one publishing.

        Args:
            template: Exchange, routing key and properties.
            body: Any object with a contiguous buffer. Other types than bytes are copied, because they may change; bytes
                of more than 8 KiB are not copied at all, and go to the socket as they are.
            ticket: Told about the outcome.
            index: The publishing's index in the ticket.
            sends: How often the same message was written before; if at all, the header `x-leveret-resent` says so.

        Returns:
            The delivery tag; 0 without confirms.

        Raises:
            BodyTooLarge: Over the limit; nothing was appended and no tag taken.
            EncodeFailed: The properties do not fit the negotiated frame_max; likewise.
            TypeError: The body is not bytes-like.
        """
        cdef uint64_t tag
        if not PyBytes_CheckExact(body):
            body = memoryview(body).cast("B").tobytes()
        if sends:
            template = template.marked(<uint32_t>sends)
        tag = self.put(template, <bytes>body, ticket, index)
        if tag and (sends or template.size > LARGE_FRAMES) and self.window.is_open(tag):
            self.window.slots[tag & self.window.mask].sends = <uint16_t>min(sends + 1, SENDS)
            if template.size > LARGE_FRAMES:
                self.window.weigh(tag, template.size)
        return tag

    def hold(self, PublishTemplate template not None, body not None, Ticket ticket=None, Py_ssize_t index=0):
        """Keeps one publishing until there is a channel; `resend` writes it then.

        Args:
            template: As for `add`.
            body: As for `add`.
            ticket: As for `add`.
            index: As for `add`.

        Returns:
            The delivery tag.

        Raises:
            BodyTooLarge, EncodeFailed, TypeError: As `add`; by the frame_max of the last connection.
        """
        cdef Py_ssize_t size
        cdef uint64_t tag
        if not PyBytes_CheckExact(body):
            body = memoryview(body).cast("B").tobytes()
        size = PyBytes_GET_SIZE(<bytes>body)
        if size > self.max_body_size:
            raise BodyTooLarge(f"a body of {size} bytes is larger than max_body_size of {self.max_body_size}")
        self.total(template, size)
        self.held.mark()
        tag = self.held.open(ticket, index, template, <bytes>body, size)
        self.held.slots[tag & self.held.mask].sends = 0
        self.held.held += 1
        if template.size > LARGE_FRAMES:
            self.held.weigh(tag, template.size)
        return tag

    def resend(self, Py_ssize_t limit, *, bint finish=True):
        """Appends what has no outcome, oldest first; `ConfirmWindow.renumber` comes before the first call.

        What was written before gets the header `x-leveret-resent` with the number of times. What does not fit the new
        frame_max ends unknown, or not sent, with an `EncodeFailed`; its ticket is handed out by the next call of the
        window that hands out any. Without confirms there is only what was held, and all of it ends once it is appended.

        Args:
            limit: How many to append at the most.
            finish: False keeps new publishings away also when that was all: another call follows.

        Returns:
            True when that was all, and new publishings may follow.
        """
        cdef ConfirmWindow window = self.held
        cdef Slot* slot
        cdef PublishTemplate template
        cdef PublishTemplate last = None
        cdef PublishTemplate last_marked = None
        cdef bytes body
        cdef list pieces
        cdef Py_ssize_t total, size
        cdef Py_ssize_t sends
        cdef Py_ssize_t last_sends = 0
        cdef uint64_t tag
        cdef int64_t now
        cdef uint8_t* p
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
            size, sends = slot.size, slot.sends & SENDS
            if template.sent_at:
                # Sent again, it keeps the time of its call.
                now = wall_clock()
                self.sent_at = now - window.age_of(tag) // 1000
            # The slots may move from here on: making objects may collect garbage, whose finalizers may publish.
            try:
                if sends:
                    if template is not last or sends != last_sends:
                        last_marked = template.marked(<uint32_t>sends)
                        last, last_sends = template, sends
                    template = last_marked
                total = self.total(template, size)
            except EncodeFailed as error:
                window.unsent = error
                window.end(tag, UNKNOWN, error)
                continue
            if size > self.copied_size:
                pieces = self.large_pieces(self.out.seal(), template, body)
            else:
                pieces = None
                p = self.out.reserve(total)
                self.write(p, template, <const uint8_t*>PyBytes_AS_STRING(body), size)
            # Nothing below may fail before the frames are appended.
            self.note_write(tag, template, sends)
            window.resent.append(tag)
            if self.window is None:
                window.end(tag, WRITTEN, None)
            if sends == 0:
                self.published += 1
                self.published_bytes += <uint64_t>size
            if pieces is not None:
                self.out.splice(pieces, total)
            else:
                self.out.commit(total)
            limit -= 1
        if not finish:
            return False
        window.advance()
        window.resending = False
        if self.window is None:
            window.resent = None
            return True
        window.resent_last = window.next_delivery_tag - 1
        window.offset = window.next_delivery_tag - 1 - <uint64_t>PyList_GET_SIZE(window.resent)
        return True

    # Notes that an open publishing is written once more, with these frames. A broker that returns it returns their
    # properties, so they take the place of the ones before.
    cdef int note_write(self, uint64_t tag, PublishTemplate template, Py_ssize_t sends) except -1:
        cdef ConfirmWindow window = self.held
        cdef Slot* slot = &window.slots[tag & window.mask]
        cdef PyObject* before = slot.template
        if sends == 0:
            window.held -= 1
        slot.sends = <uint16_t>(min(sends + 1, SENDS) | (slot.sends & HEAVY))
        if before is not <PyObject*>template:
            Py_INCREF(template)
            slot.template = <PyObject*>template
            Py_DECREF(<PublishTemplate>before)
            if slot.sends & HEAVY:
                window.weigh(tag, template.size)
        return 0
