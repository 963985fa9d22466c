from libc.stdint cimport int64_t, uint64_t

from leveret.monitoring.histogram cimport Histogram


# Publishings with this tag or a higher one, up to the next mark, were handed over at this time.
cdef struct Mark:
    uint64_t tag
    int64_t time


cdef class ConfirmTimes:
    cdef readonly Histogram histogram
    # Times of publishing, oldest first, in a ring: of each run of publishings that are written together.
    cdef Mark* marks
    cdef Py_ssize_t mask
    cdef uint64_t first
    cdef uint64_t next
    # When the read came whose confirms are being applied.
    cdef int64_t now
    # The mark whose publishings are being confirmed, the tag of the next one, and how many of them were.
    cdef Mark mark
    cdef uint64_t end
    cdef uint64_t count

    cdef int handed_over(self, uint64_t tag, uint64_t oldest) except -1
    cdef void drop(self, uint64_t oldest) noexcept
    cdef void begin(self) noexcept
    cdef int seek(self, uint64_t tag, uint64_t oldest) except -1
    cdef int finish(self) except -1
