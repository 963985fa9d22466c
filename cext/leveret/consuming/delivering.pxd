from libc.stdint cimport uint16_t, uint64_t

from leveret.consuming.acks cimport AckWindow
from leveret.wire.buffers cimport SendBuffer
from leveret.wire.message cimport Message
from leveret.wire.runs cimport ContentRun
from leveret.transport.waiting cimport Waiter, Waiters


cdef class Generation:
    cdef readonly AckWindow acks
    cdef readonly SendBuffer out
    cdef readonly uint16_t channel
    cdef readonly object consumer
    cdef readonly bint alive
    cdef readonly object decode
    # What decodes bodies of messages with these packed properties, when nothing else has to be done.
    cdef bytes plain_properties
    cdef object plain_decode

    cpdef int adopt(self, ContentRun run, double received_at) except -1
    cdef object value_of(self, Message message)


cdef class Pace:
    cdef object loop
    cdef object collect
    cdef object reader
    cdef object timer
    cdef double delay
    # Since the last look: messages, reads, and the bytes received before it.
    cdef Py_ssize_t count
    cdef Py_ssize_t reads
    cdef uint64_t bytes
    cdef Py_ssize_t may_come
    # What is waited for.
    cdef Py_ssize_t least

    cdef int read(self, Py_ssize_t count, Py_ssize_t may_come) except -1
    cdef int begin(self) except -1
    cdef int wait_for(self, Py_ssize_t messages) except -1
    cdef int set(self, Py_ssize_t least) except -1


cdef class Intake:
    # What was delivered; those before the head were taken.
    cdef list buffer
    cdef Py_ssize_t head
    # Those who wait for a message.
    cdef public object _idle
    cdef public Waiters _waiters
    cdef public Generation _generation
    cdef public object _ordered_by
    cdef public object _loop
    cdef public object _timer
    cdef public object meter
    # What becomes of messages that could not be handled.
    cdef public object _failures
    # When the last deliveries came, or None.
    cdef public object _delivered_at
    # How reads wait for more, or None.
    cdef public Pace _pace
    cdef public Py_ssize_t _prefetch
    # Nothing has to be settled.
    cdef public bint _no_ack
    # `_delivered` wants to know of each read.
    cdef public bint _watchful
    cdef public Py_ssize_t _ack_at
    cdef public bint _results_settle
    cdef public bint _ack_each
    cdef public bint _stopping
    cdef public bint _over
    # A full buffer: `_taken` wants to know when a message was taken from it.
    cdef public bint _pressed
    cdef readonly Py_ssize_t _running
    # How long workers waited for messages: with the times at which they began to wait taken away, and those added at
    # which they ended; and how many wait.
    cdef public bint _measured
    cdef double idle_seconds
    cdef readonly Py_ssize_t _waiting
    # By key: None while one of its messages is being worked on, or the list of those that wait for it.
    cdef dict _active
    # (message, key) whose turn has come.
    cdef object _runnable

    cdef Message pop(self)
    cdef Message take(self, Worker worker)
    cdef int finish(self, Message message) except -1
    cdef int acknowledge(self) except -1
    cdef int run_dry(self) except -1
    cdef int release(self, object key) except -1
    cdef int wake_more(self) except -1
    cpdef Waiter _wait(self)
    cpdef int _wake(self, Py_ssize_t count) except -1
    cpdef int _idle_begins(self) except -1
    cpdef int _idle_ends(self) except -1


cdef class Worker:
    cdef Intake intake
    cdef object handler
    cdef object current
    cdef object key
    cdef object task
    cdef readonly Message message
    cdef readonly uint64_t sequence
    cdef bint timed_out
    cdef bint late
    cdef bint cancelled
    cdef int kind
    cdef int turn

    cdef object step(self, object error)
    cdef bint begin(self) except -1
    cdef int done(self, object result) except -1
    cdef int failed(self, object error) except -1
    cdef int wait_for(self, object awaitable, int kind) except -1
    cdef int end_message(self) except -1
    cdef int note_cancellation(self, object error) except -1
