from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from leveret.wire.buffers cimport SendBuffer
from leveret.wire.framing cimport ContentRun, Message
from leveret.transport.waiting cimport Waiters


cdef class PublishTemplate:
    cdef readonly str exchange
    cdef readonly str routing_key
    cdef readonly bint mandatory
    cdef readonly bytes raw_properties
    cdef bytes prefix
    cdef uint8_t* data
    cdef Py_ssize_t size
    cdef Py_ssize_t header_at


cdef struct Slot:
    PyObject* template
    PyObject* body
    Py_ssize_t index
    Py_ssize_t size
    uint8_t state


cdef class Receipt:
    cdef readonly uint64_t delivery_tag
    cdef uint8_t ended


cdef class Ticket:
    cdef readonly uint64_t delivery_tag
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t pending
    cdef readonly Py_ssize_t confirmed
    cdef public object failures
    cdef public object future
    cdef public bint observed
    cdef object owner


cdef class ConfirmWindow:
    cdef Slot* slots
    cdef list tickets
    cdef Py_ssize_t mask
    cdef readonly uint64_t first
    cdef readonly uint64_t next_delivery_tag
    cdef readonly Py_ssize_t outstanding
    cdef readonly Py_ssize_t outstanding_bytes
    cdef readonly uint64_t confirmed
    cdef readonly uint64_t nacked
    cdef readonly uint64_t returned
    cdef readonly uint64_t unknown
    cdef readonly uint64_t ignored
    cdef list finished
    # Where the next return is looked for.
    cdef uint64_t return_at
    # Of a channel after the first: what was sent again there, by the broker's tag less one, and 0 for what it
    # confirmed; None when all of that has its outcome. What came behind it has the broker's tag plus the offset.
    cdef list resent
    # Below it everything is confirmed.
    cdef Py_ssize_t resent_from
    # The highest tag from before the channel.
    cdef uint64_t resent_last
    cdef bint resending
    cdef uint64_t resend_at
    cdef uint64_t offset

    cdef uint64_t open(self, Ticket ticket, Py_ssize_t index, PublishTemplate template, bytes body,
                       Py_ssize_t size) except 0
    cdef int make_room(self) except -1
    cdef int grow(self) except -1
    cdef int end(self, uint64_t tag, int outcome, reason=*) except -1
    cdef int end_through(self, uint64_t tag, int outcome, reason=*) except -1
    cdef bint end_one(self, uint64_t tag, int outcome, reason=*) except -1
    cdef bint settle_resent(self, uint64_t tag, bint multiple, int outcome, list told) except -1
    cdef uint64_t find_returned(self, Message message, uint64_t tag, uint64_t end, bint any_properties) except? 0
    cdef void advance(self) noexcept
    cdef list take_finished(self)


cdef class PublishBatch:
    cdef SendBuffer out
    cdef ConfirmWindow window
    cdef readonly uint16_t channel
    cdef readonly uint32_t frame_max
    cdef readonly Py_ssize_t max_body_size
    cdef Py_ssize_t copied_size
    cdef readonly uint64_t published
    cdef readonly uint64_t published_bytes

    cdef uint64_t put(self, PublishTemplate template, bytes body, Ticket ticket, Py_ssize_t index) except? 0
    cdef uint64_t put_large(self, PublishTemplate template, bytes body, Ticket ticket, Py_ssize_t index) except? 0
    cdef Py_ssize_t total(self, PublishTemplate template, Py_ssize_t size) except -1
    cdef list large_pieces(self, list before, PublishTemplate template, bytes body)
    cdef void write_prefix(self, uint8_t* p, PublishTemplate template, Py_ssize_t size) noexcept
    cdef void write(self, uint8_t* p, PublishTemplate template, bytes body, Py_ssize_t size) noexcept


cdef class Publisher:
    cdef public ConfirmWindow _window
    cdef public PublishBatch _batch
    cdef public object _encoder
    cdef public object _encode
    cdef public object _loop
    cdef public object _timer
    cdef public object _waiting
    cdef public object _flushing
    # Somebody else wants to know of confirms: listeners, a window that adapts, a policy.
    cdef public bint _watched
    cdef public object _last_key
    cdef public PublishTemplate _last_template
    cdef public dict _templates
    cdef public Py_ssize_t _limit
    cdef public Py_ssize_t _max_buffered
    cdef public Py_ssize_t _max_bytes
    cdef public bint _ready
    cdef public bint _plain
    cdef public bint _alive
    cdef public bint _confirms
    # Those who wait for a confirm or for room.
    cdef public Waiters _waiters
    # Where it was made.
    cdef unsigned long thread
    cdef int forks
    cdef public object _transport

    cdef object encode(self, value)
    cdef bint at_home(self) except -1
    cdef Ticket send(self, value, routing_key)
    cdef Ticket offer(self, value, routing_key, Py_ssize_t limit)
    cdef bint has_room(self, ConfirmWindow window, Py_ssize_t limit) noexcept


cdef class AckWindow:
    cdef uint8_t* states
    cdef Py_ssize_t mask
    cdef readonly uint16_t channel
    cdef readonly uint64_t first
    cdef readonly uint64_t next_delivery_tag
    cdef readonly Py_ssize_t unsettled
    cdef readonly Py_ssize_t ready
    cdef readonly uint64_t acked
    cdef readonly uint64_t rejected
    cdef readonly uint64_t ignored

    cdef int grow(self, uint64_t tag) except -1
    cpdef bint delivered(self, ContentRun run) except -1
    cpdef bint track(self, uint64_t delivery_tag) except -1
    cpdef Py_ssize_t finish(self, uint64_t delivery_tag) noexcept
    cdef bint finish_alone(self, uint64_t delivery_tag) noexcept
    cdef int write_alone(self, SendBuffer out, uint64_t delivery_tag) except -1
    cdef Py_ssize_t write_ready(self, SendBuffer out, bint stragglers) except -1
    cdef void advance(self) noexcept
