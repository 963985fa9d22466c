from cpython.pythread cimport PyThread_type_lock
from libc.stdint cimport int64_t, uint64_t

from leveret.transport.waiting cimport Waiter
from leveret.wire.message cimport Message

# The states of a worker; `ThreadWorkerState` and docs/states.md have the same.
cdef enum State:
    FREE = 0
    WOKEN = 1
    RESTING = 2
    HANDLING = 3
    REPORTING = 4
    LATE = 5
    ENDED = 6

# What a worker has the event loop look at.
cdef enum Report:
    NOTHING = 0
    UNREAD = 1  # its message cannot be decoded, or may have been delivered too often
    RAISED = 2
    RETURNED = 3  # something that does not acknowledge the message
    OVERDUE = 4  # the handler has taken longer than `processing_timeout`
    BACK = 5  # ... and has ended now
    DONE = 6  # the error policy takes care of the message

# When the event loop will take the results that are there:
cdef enum Attention:
    AWAY = 0  # when a thread calls it: the next one that has a result
    TIMED = 1  # within a millisecond; a thread that has nothing left to do calls it
    CALLED = 2  # in its next turn


cdef class HandOver:
    cdef object handler
    # Has one of the threads call a function.
    cdef object submit
    # The handler's result is looked at.
    cdef bint results_count

    # What follows is read and written under this lock only. Nothing that may run other Python code is done under it.
    cdef PyThread_type_lock guard
    # Messages that no thread has taken, and the bytes of their bodies.
    cdef object queue
    cdef Py_ssize_t queued_bytes
    # Those of them that the event loop has to look at before their handler is called.
    cdef set unread
    # Messages whose handlers did well, and workers that have something else to report.
    cdef list done
    cdef list reports
    # Workers that can be woken: FREE or RESTING; and how many are WOKEN.
    cdef list idle
    cdef Py_ssize_t woken
    # Messages that threads have taken, until the event loop is done with them.
    cdef Py_ssize_t taken
    # An Attention.
    cdef int attention
    # Threads take no more messages.
    cdef bint stopped
    # As those of DeliveryBuffer.
    cdef int64_t idle_time
    cdef Py_ssize_t idle_count

    cdef void lock(self) noexcept
    cdef void unlock(self) noexcept
    cdef Message take(self, ThreadWorker worker, int64_t now)
    cdef Message turn(self, ThreadWorker worker, Message message, int64_t now, bint* rests)
    cdef Message rest(self, ThreadWorker worker)
    cdef int report_of(self, ThreadWorker worker, int what, object detail) except -1
    cdef bint is_to_call(self, bint at_once) noexcept
    cdef ThreadWorker wake_next(self)
    cdef int start(self, ThreadWorker worker) except -1
    cdef int call_loop(self) except -1
    cdef int64_t slow_after(self) noexcept


cdef class ThreadWorker:
    cdef HandOver threads
    # Its thread waits for this while it rests.
    cdef PyThread_type_lock bell
    # A State, a Report that its task has not looked at, and what was raised or returned.
    cdef int state_now
    cdef int reported
    cdef object detail
    # The report that its task is at.
    cdef int case
    cdef readonly Message message
    cdef readonly uint64_t sequence
    # When its handler began, in nanoseconds.
    cdef int64_t begun
    # What its task awaits.
    cdef Waiter waiter
