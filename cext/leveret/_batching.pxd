from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from leveret._buffers cimport SendBuffer


cdef class PublishTemplate:
    cdef readonly uint16_t channel
    cdef readonly str exchange
    cdef readonly str routing_key
    cdef readonly bint mandatory
    cdef readonly bytes raw_properties
    cdef bytes prefix
    cdef uint8_t* data
    cdef Py_ssize_t size
    cdef Py_ssize_t size_at


cdef struct Slot:
    Py_ssize_t index
    Py_ssize_t size
    uint8_t state


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

    cdef uint64_t open(self, Ticket ticket, Py_ssize_t index, Py_ssize_t size) except 0
    cdef int grow(self) except -1
    cdef int end(self, uint64_t tag, int outcome) except -1
    cdef int end_through(self, uint64_t tag, int outcome) except -1
    cdef void advance(self) noexcept
    cdef list take_finished(self)


cdef class PublishBatch:
    cdef SendBuffer out
    cdef ConfirmWindow window
    cdef readonly uint32_t frame_max
    cdef readonly Py_ssize_t max_body_size
    cdef Py_ssize_t copied_size
    cdef readonly uint64_t published
    cdef readonly uint64_t published_bytes

    cdef uint64_t put(self, PublishTemplate template, bytes body, Ticket ticket, Py_ssize_t index) except? 0
    cdef uint64_t put_large(self, PublishTemplate template, bytes body, Ticket ticket, Py_ssize_t index) except? 0


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
    cpdef bint track(self, uint64_t delivery_tag) except -1
    cdef void advance(self) noexcept
