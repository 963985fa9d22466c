cimport cython
from libc.stdint cimport uint8_t


cdef enum:
    PENDING = 0
    ENDED = 1
    CANCELLED = 2


@cython.final
cdef class Waiters:
    cdef readonly object loop
    cdef readonly object cancelled_error
    cdef readonly object early_error
    # Waiters that have ended and whose tasks were not woken yet.
    cdef list ended
    # True between `hold` and `release`.
    cdef bint held
    # Where they were made.
    cdef unsigned long thread
    cdef int forks

    cdef bint at_home(self) except -1
    cpdef Waiter new(self)
    cdef void hold(self) noexcept
    cpdef int release(self) except -1
    cdef int wake(self, Waiter waiter) except -1
    cdef int finish(self, Waiter waiter) except -1
    cdef int tell(self, Waiter waiter, object callback, object context) except -1


cdef class Waiter:
    cdef Waiters owner
    # What is called when it is done, and in which context; most have one.
    cdef object callback
    cdef object context
    cdef list others
    cdef object cancel_message
    cdef object value
    cdef uint8_t state
    # asyncio recognizes a future by it, and a task checks that the future was awaited.
    cdef public bint _asyncio_future_blocking

    # Does what its task would do now. False where the task has to be woken.
    cdef bint go_on(self) except -1
    cpdef bint done(self) noexcept
    cdef int end_cancelled(self, object msg) except -1
    cdef object cancelled_error(self)
    cpdef int set_result(self, object result) except -1
    cdef int call(self) except -1


cdef class Timed:
    cdef int due(self) except -1


@cython.final
cdef class SharedTimer:
    cdef object loop
    cdef double delay
    # Those to be called, in the order in which they were added; the values mean nothing.
    cdef dict waiting
    cdef object handle

    cdef int add(self, Timed one) except -1
    cdef int remove(self, Timed one) except -1
