from libc.stdint cimport int64_t, uint16_t

from leveret.consuming.acks cimport AckWindow
from leveret.monitoring.histogram cimport Histogram
from leveret.transport.stream cimport Stream
from leveret.transport.waiting cimport SharedTimer, Timed, Waiters
from leveret.wire.buffers cimport SendBuffer
from leveret.wire.message cimport Message
from leveret.wire.runs cimport ContentRun


cdef class ChannelDeliveries:
    cdef readonly AckWindow acks
    cdef readonly SendBuffer out
    cdef readonly uint16_t channel
    cdef readonly object queue
    cdef readonly bint alive
    cdef readonly object decode
    cdef object settler
    # Acknowledges one message, in the ordinary case.
    cdef Acknowledger acknowledger
    # Finds the function below.
    cdef object find_plain
    # Decodes bodies of messages with these packed properties, when nothing else has to be done.
    cdef bytes plain_properties
    cdef object plain_decode
    # How many deliveries may be unsettled, by what `credit` said when it had changed so often.
    cdef object credit
    cdef Py_ssize_t most
    cdef Py_ssize_t changes
    # What came beyond that, and is unsettled.
    cdef Py_ssize_t surplus
    cdef int64_t surplus_bytes

    cpdef int adopt(self, ContentRun run, double received_at) except -1
    cdef int track(self, ContentRun run) except -1
    cdef int exceed(self, ContentRun run, Py_ssize_t held) except -1
    cdef int add_surplus(self, list messages, Py_ssize_t count, Py_ssize_t spare) except -1
    cdef object value_of(self, Message message)


cdef class Acknowledger(Timed):
    cdef readonly ChannelDeliveries current
    cdef public Py_ssize_t write_at
    cdef object meter
    # What `ack` of a message returns when it is acknowledged here; None when the settler has to do it.
    cdef public object settled
    # The meter's, from the read to the settlement.
    cdef Histogram settled_time
    # The connection that `current` belongs to, and its timer for `delay`.
    cdef Stream stream
    cdef SharedTimer timer
    # It was added to the timer, which has not called it yet.
    cdef bint timed
    cdef Waiters waiters
    cdef double delay
    cdef bint each

    cdef bint ack(self, ChannelDeliveries deliveries, Message message) except -1
    cdef bint finish(self, Message message) except -1
    cpdef int write_in_time(self) except -1
    cdef int run_dry(self) except -1
