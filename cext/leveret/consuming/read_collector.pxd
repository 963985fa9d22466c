from libc.stdint cimport int64_t, uint64_t


cdef class ReadCollector:
    cdef object loop
    cdef object collect
    cdef object reader
    cdef object timer
    cdef double delay
    # Since the last look: messages, reads, when it was (nanoseconds), and the bytes received before it.
    cdef Py_ssize_t count
    cdef Py_ssize_t reads
    cdef int64_t began
    cdef uint64_t bytes
    # How many more messages the broker may send before it has to wait for acknowledgements.
    cdef Py_ssize_t may_come
    # The bytes that the kernel was told to wait for; 1 for none.
    cdef Py_ssize_t least

    cdef int read(self, Py_ssize_t count, Py_ssize_t may_come) except -1
    cdef int begin(self) except -1
    cdef int look_at_rate(self) except -1
    cdef int look_later(self) except -1
    cdef int wait_for(self, Py_ssize_t messages) except -1
    cdef int tell(self, Py_ssize_t least) except -1
