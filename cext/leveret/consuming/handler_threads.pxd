from libc.stdint cimport int64_t

from leveret.consuming.channel_deliveries cimport Acknowledger
from leveret.consuming.delivery_buffer cimport DeliveryBuffer
from leveret.consuming.hand_over cimport HandOver, ThreadWorker
from leveret.wire.message cimport Message


cdef class HandlerThreads(HandOver):
    cdef DeliveryBuffer buffer
    cdef Acknowledger acks
    cdef object failures
    cdef object owner
    cdef object loop
    # The handler's result acknowledges its message.
    cdef bint results_settle
    cdef list workers
    # The keys of the messages that were handed on, with `ordered_by`.
    cdef dict keys
    # Calls `collect` within a millisecond, or None.
    cdef object timer

    cdef bint prepare(self, Message message) except -1
    cdef int hand_on(self, list messages, list unread) except -1
    cdef bint settle(self) except -1
    cdef int handled(self, Message message, int64_t now) except -1
    cdef int end_message(self, Message message) except -1
    cdef int watch(self, bint active) except -1
    cdef int end_if_over(self) except -1
    cdef object read(self, ThreadWorker worker)
