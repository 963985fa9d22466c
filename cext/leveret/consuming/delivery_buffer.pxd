from libc.stdint cimport int64_t, uint64_t

from leveret.consuming.channel_deliveries cimport Acknowledger, ChannelDeliveries
from leveret.consuming.read_collector cimport ReadCollector
from leveret.monitoring.histogram cimport Count, Histogram
from leveret.transport.waiting cimport Waiter, Waiters
from leveret.wire.message cimport Message
from leveret.wire.runs cimport ContentRun


cdef class DeliveryBuffer:
    # What each read and each message looks at comes first and lies together in memory, for many consumers' sake.
    #
    # What was delivered; the messages before the head were taken.
    cdef list buffer
    cdef Py_ssize_t head
    # The waits of workers that have nothing to do.
    cdef list idle
    cdef Acknowledger acks
    cdef Waiters waiters
    # The `HandlerThreads` that messages are handed on to, or None. They count those by themselves.
    cdef object ahead
    cdef object ordered_by
    cdef public ReadCollector _collector
    cdef public Py_ssize_t _prefetch
    # How many messages are being worked on.
    cdef Py_ssize_t running
    # When the last deliveries came, or None.
    cdef readonly object _delivered_at
    # The meter's: how many deliveries came.
    cdef Count delivered_count
    # Nothing has to be settled.
    cdef bint no_ack
    # `_delivered` is called for each read.
    cdef public bint _watched
    # The buffer is too full: `_taken` is called for each message that is taken.
    cdef public bint _pressed
    # No more deliveries will come; workers end when the buffer is empty.
    cdef bint over
    # Workers end after the message that they are at.
    cdef bint stopping
    # Load and idle times are measured, for an automatic prefetch.
    cdef bint measured
    # The meter's: nanoseconds from the read that brought a message to its handler, in handlers, and from the read to
    # the settlement.
    cdef Histogram waiting_time
    cdef Histogram handler_time
    cdef Histogram settled_time
    # Handlers that take more nanoseconds are reported.
    cdef int64_t slow_after
    # The packed properties that were looked at last, and the time in their header.
    cdef bytes looked_at
    cdef int64_t sent_at
    # Microseconds from the publishing to the read, of messages with the header `x-leveret-sent-at`.
    cdef Histogram transit_time
    cdef object failures
    cdef public object meter
    # `_next` may take messages.
    cdef public bint _iterates
    # The fewest messages that no worker had begun with at a read, and the most deliveries that the broker waited for
    # the settlement of, since `_take_extremes`.
    cdef Py_ssize_t lowest
    cdef Py_ssize_t highest
    # The nanoseconds that workers waited for messages, together: less the times at which waits began, plus those at
    # which they ended; and how many wait now.
    cdef int64_t idle_time
    cdef Py_ssize_t waiting
    # By key: None while one of its messages is being worked on, or the list of those that wait for that one.
    cdef dict active
    # (message, key) whose turn has come.
    cdef object runnable
    # The key of the message that `take` returned last, with `ordered_by`.
    cdef object taken_key

    cdef int note_load(self, ChannelDeliveries deliveries, Py_ssize_t count) except -1
    cdef int64_t look_at(self, bytes raw_properties) noexcept
    cdef int count_transit(self, ContentRun run) except -1
    cdef int add_transit(self, int64_t sent_at, int64_t now, uint64_t count) except -1
    cdef Message pop(self)
    cdef Message take(self)
    cdef int taken(self) except -1
    cdef int release(self, object key) except -1
    cdef Waiter next_idle(self)
    cdef int wake(self, Py_ssize_t count) except -1
    cdef int wake_more(self) except -1
    cdef Waiter wait(self)
    cdef int wait_with(self, Waiter waiter) except -1
    cdef int idle_begins(self) except -1
    cdef int idle_ends(self) except -1
