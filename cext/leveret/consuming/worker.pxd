from libc.stdint cimport int64_t, uint64_t

from leveret.consuming.channel_deliveries cimport Acknowledger
from leveret.consuming.delivery_buffer cimport DeliveryBuffer
from leveret.transport.waiting cimport Waiter
from leveret.wire.message cimport Message


cdef class WorkerWait(Waiter):
    cdef Worker worker
    # Its task was cancelled after this had ended: only the task knows what is to become of the cancellation.
    cdef bint cancelled_late


cdef class Worker:
    cdef DeliveryBuffer buffer
    cdef Acknowledger acks
    cdef object failures
    cdef object owner
    cdef object handler
    cdef object task
    # The handler's result acknowledges its message; and it is looked at.
    cdef bint results_settle
    cdef bint results_count
    # The iterator that is driven now: of the waiter, the handler or the action; None in READY and ENDED.
    cdef object current
    # What its task awaits in IDLE; None before it was idle.
    cdef WorkerWait idle_wait
    # What `resume` leaves to the task: (something to await, None) or (None, an error). Usually None.
    cdef tuple outcome
    # The key of the message, with `ordered_by`.
    cdef object key
    cdef readonly Message message
    cdef readonly uint64_t sequence
    # A State and a Cancellation.
    cdef int state_now
    cdef int cancellation_now
    # Messages since others were let run.
    cdef int turn
    # When the handler of this message began, and when the last one ended, in nanoseconds; 0 once others were let run.
    cdef int64_t begun
    cdef int64_t now

    cdef bint runs_without_task(self) noexcept
    cdef bint resume(self) except -1
    cdef object take_outcome(self, object error)
    cdef int wait(self) except -1
    cdef int idle_ends(self) except -1
    cdef object step(self, object error)
    cdef bint begin(self) except -1
    cdef int done(self, object result) except -1
    cdef int failed(self, object error) except -1
    cdef int act(self, object action) except -1
    cdef int end_message(self) except -1
    cdef int handled(self) except -1
    cdef bint is_stray(self, object error) except -1
    cdef int note_cancellation(self, object error) except -1
