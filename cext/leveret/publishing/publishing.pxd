cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from leveret.publishing.template cimport PublishTemplate
from leveret.transport.waiting cimport Waiter, Waiters

# An outcome's value (leveret.message).
cdef enum:
    CONFIRMED = 1

# What awaiting it gives.
cdef enum:
    RECEIPT = 0
    TICKET = 1


cdef class Receipt:
    cdef readonly uint64_t delivery_tag
    cdef uint32_t repeats
    cdef uint8_t ended


cdef class Ticket:
    cdef readonly uint64_t delivery_tag
    # Of 32 bits, because a publish of one message makes one: a larger object costs more to clear.
    cdef readonly uint32_t count
    cdef readonly uint32_t pending
    cdef readonly uint32_t confirmed
    cdef public object failures
    cdef public object future
    cdef public bint observed
    # How often publishings were written, by index; None when each was written once.
    cdef dict sends
    cdef object owner


@cython.final
cdef class Publishing(Waiter):
    # The producer, which makes errors and keeps failures that nobody asks for.
    cdef object producer
    cdef uint8_t gives
    # Its outcome, once it is written.
    cdef readonly Ticket ticket
    cdef object error
    cdef object traceback
    # A failure that `flush` will report unless it is asked for before.
    cdef bint kept
    # What goes on with it when it needs more than one step; None for most.
    cdef object task
    # While it waits for room, and when there is a policy that may have it tried again.
    cdef readonly PublishTemplate template
    cdef readonly bytes body
    # By the loop's clock, when there is a policy.
    cdef readonly double deadline

    cdef bint is_cancelled(self) noexcept
    cdef bint may_go_on(self) noexcept
    cdef object outcome(self)
    cdef int take(self) except -1
    cdef int expect(self, Ticket ticket) except -1
    cdef int finish(self) except -1
    cdef int give(self, object value) except -1
    cdef int keep(self) except -1


# Functions of the module that has the classes: from another module Cython makes objects in a slower way.
cdef Publishing new_publishing(object producer, Waiters waiters, uint8_t gives)
cdef Ticket new_ticket(object owner)
cdef Receipt new_receipt(uint64_t delivery_tag)
