from leveret.monitoring.histogram cimport Histogram
from leveret.transport.waiting cimport SharedTimer
from leveret.wire.buffers cimport SendBuffer
from leveret.wire.reader cimport FrameReader


cdef class Stream:
    cdef readonly FrameReader reader
    cdef public SendBuffer out
    cdef public bint closed
    cdef public dict channels
    cdef public object session
    cdef public object _transport
    cdef public object _loop
    cdef public Histogram write_sizes
    cdef bint flush_scheduled
    # The shared timers by their delay in seconds.
    cdef dict timers

    cdef SharedTimer timer_of(self, double delay)
    cdef int hand_over(self, list events) except -1
    cdef int handed_over(self, event) except -1
