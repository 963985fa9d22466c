from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint16_t, uint64_t

from leveret.publishing.confirm_times cimport ConfirmTimes
from leveret.publishing.publishing cimport Ticket
from leveret.publishing.template cimport PublishTemplate
from leveret.wire.message cimport Message

# The state of a slot. OPEN_RETURNED: the broker returned the message, its confirm is still to come.
cdef enum:
    FREE = 0
    OPEN = 1
    OPEN_RETURNED = 2

# What `Slot.sends` is made of: how often the publishing was written, and whether `ConfirmWindow.heavy` has its frames'
# size. All that ordinary publishings have is 1.
cdef enum:
    SENDS = 0x7FFF
    HEAVY = 0x8000


cdef struct Slot:
    PyObject* template
    PyObject* body
    Py_ssize_t index
    Py_ssize_t size
    # Beside each other and of one type: together they are one store.
    uint16_t state
    uint16_t sends


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
    cdef readonly uint64_t not_sent
    cdef readonly uint64_t ignored
    cdef list finished
    # How many publishings wait for their first channel.
    cdef readonly Py_ssize_t held
    # Bytes of large frames, by tag; None when there never were any.
    cdef dict heavy
    # Why publishings that were never written end.
    cdef object unsent
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
    cdef readonly uint64_t resend_at
    cdef uint64_t offset
    cdef ConfirmTimes times

    cdef int mark(self) except -1
    cdef int64_t age_of(self, uint64_t tag) except? -1
    cdef int confirm_through(self, uint64_t tag) except -1
    cdef uint64_t confirm_run(self, uint64_t tag) except? 0
    cdef bint confirm_one(self, uint64_t tag) except -1
    cdef uint64_t open(self, Ticket ticket, Py_ssize_t index, PublishTemplate template, bytes body,
                       Py_ssize_t size) except 0
    cdef Py_ssize_t free_slots(self) noexcept
    cdef void open_run(self, Ticket ticket, Py_ssize_t index, PublishTemplate template, list bodies, Py_ssize_t start,
                       Py_ssize_t count) noexcept
    cdef int make_room(self) except -1
    cdef int grow(self) except -1
    cdef int end(self, uint64_t tag, int outcome, object reason) except -1
    cdef int hand_out(self, Ticket ticket) except -1
    cdef int end_unusual(self, uint64_t tag, Slot* slot, Ticket ticket, int outcome) except -1
    cdef int weigh(self, uint64_t tag, Py_ssize_t size) except -1
    cdef int end_through(self, uint64_t tag, int outcome, object reason) except -1
    cdef bint end_one(self, uint64_t tag, int outcome, object reason) except -1
    cdef bint settle_resent(self, uint64_t tag, bint multiple, int outcome, list told) except -1
    cdef uint64_t find_returned(self, Message message, uint64_t tag, uint64_t end, bint any_properties) except? 0
    cdef void advance(self) noexcept
    cdef list take_finished(self)
