"""How long confirms take: when publishings were handed over, and the histogram of the times until their confirms."""
cimport cython
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.stdlib cimport calloc, free

from leveret.monitoring.histogram cimport Histogram, monotonic

cdef enum:
    FIRST_MARKS = 16


@cython.final
cdef class ConfirmTimes:
    """The times of a window's publishings, one for each run of them that leaves in one write.

    Attributes:
        histogram: Nanoseconds from the call that published to the read that brought the confirm.
    """

    def __cinit__(self):
        self.marks = <Mark*>calloc(FIRST_MARKS, sizeof(Mark))
        if self.marks is NULL:
            raise MemoryError()
        self.mask = FIRST_MARKS - 1
        self.histogram = Histogram()

    def __dealloc__(self):
        free(self.marks)

    # Notes that publishings from this tag on are handed over now. `oldest` is the first without an outcome.
    cdef int handed_over(self, uint64_t tag, uint64_t oldest) except -1:
        cdef Mark* marks
        cdef Mark* last
        cdef uint64_t i
        self.drop(oldest)
        if self.next - self.first > <uint64_t>self.mask:
            marks = <Mark*>calloc(2 * (self.mask + 1), sizeof(Mark))
            if marks is NULL:
                raise MemoryError()
            for i in range(self.first, self.next):
                marks[i & (2 * self.mask + 1)] = self.marks[i & self.mask]
            free(self.marks)
            self.marks = marks
            self.mask = 2 * self.mask + 1
        last = &self.marks[(self.next - 1) & self.mask]
        if self.next == self.first or last.tag != tag:  # or else that publishing failed
            last = &self.marks[self.next & self.mask]
            self.next += 1
        last.tag = tag
        last.time = monotonic()
        return 0

    # Leaves out marks that no open publishing is behind. There are at most as many others as publishings in the window.
    cdef void drop(self, uint64_t oldest) noexcept:
        while self.next - self.first > 1 and self.marks[(self.first + 1) & self.mask].tag <= oldest:
            self.first += 1

    # The confirms of a read follow, which share one reading of the clock.
    cdef void begin(self) noexcept:
        self.now = monotonic()
        self.mark.tag = self.end = self.count = 0

    # Goes over to the mark of this publishing, from `mark.tag` to `end`: `count` is how many of these were confirmed.
    # Confirms mostly come in the order of publishing, so the first mark is likely.
    cdef int seek(self, uint64_t tag, uint64_t oldest) except -1:
        cdef uint64_t low, high, middle
        self.finish()
        self.drop(oldest)
        low, high = self.first, self.next
        if high - low > 1 and tag < self.marks[(low + 1) & self.mask].tag:
            high = low + 1
        while high - low > 1:
            middle = (low + high) >> 1
            if self.marks[middle & self.mask].tag <= tag:
                low = middle
            else:
                high = middle
        self.mark = self.marks[low & self.mask]
        self.end = UINT64_MAX if low + 1 >= self.next else self.marks[(low + 1) & self.mask].tag
        return 0

    # Counts those that were confirmed: they were handed over at one time, and their confirms came in one read.
    cdef int finish(self) except -1:
        if self.count:
            self.histogram.add(self.now - self.mark.time, self.count)
            self.count = 0
        return 0
