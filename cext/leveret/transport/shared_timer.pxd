cdef class Timed:
    cdef int due(self) except -1


cdef class SharedTimer:
    cdef object loop
    cdef double delay
    # In their order.
    cdef dict waiting
    cdef object handle

    cdef int add(self, Timed one) except -1
    cdef int remove(self, Timed one) except -1
