from libc.stdint cimport uint8_t, uint16_t, uint64_t

from leveret.wire.buffers cimport SendBuffer
from leveret.wire.runs cimport ContentRun


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
    cpdef bint is_pending(self, uint64_t delivery_tag) noexcept
    cpdef Py_ssize_t finish(self, uint64_t delivery_tag) noexcept
    cdef bint finish_alone(self, uint64_t delivery_tag) noexcept
    cdef int write_alone(self, SendBuffer out, uint64_t delivery_tag) except -1
    cdef Py_ssize_t write_ready(self, SendBuffer out, bint stragglers) except -1
    cdef void advance(self) noexcept
