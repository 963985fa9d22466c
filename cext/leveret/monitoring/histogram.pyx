"""Log-linear histograms: how often values of each size came, in fixed memory; and plain counts."""
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free


cdef class Count:
    """A count that compiled code adds to.

    Attributes:
        value: The sum of what was added.
    """

    def add(self, uint64_t count=1):
        """Adds to the value."""
        self.value += count


cdef class Histogram:
    """Counts whole numbers from 0 on by their size, to a sixteenth of it.

    It takes 5.3 KiB from its first value on, however many values come. `leveret.plugins.distributions` says what its
    buckets are.

    Attributes:
        count: How many values came.
        total: Their sum.
        highest: The highest of them.
    """

    def __dealloc__(self):
        free(self.counts)

    cdef int allocate(self) except -1:
        self.counts = <uint64_t*>calloc(BUCKETS, sizeof(uint64_t))
        if self.counts is NULL:
            raise MemoryError()
        return 0

    def record(self, int64_t value, uint64_t count=1):
        """Counts a value `count` times; a negative value counts as 0."""
        self.add(value, count)

    def record_since(self, double start):
        """Counts the nanoseconds since `start`, which is in seconds of `time.monotonic`."""
        self.add(monotonic() - <int64_t>(start * 1e9), 1)

    def read(self, double scale=1e-9):
        """Returns the `Distribution` of what came so far.

        Args:
            scale: What the values are to be multiplied with; by default they are nanoseconds, and become seconds.
        """
        from leveret.plugins.distributions import Distribution  # here, because importing this module has to be cheap
        cdef Py_ssize_t i
        cdef dict buckets = {}
        if self.counts is not NULL:
            for i in range(BUCKETS):
                if self.counts[i]:
                    buckets[i] = self.counts[i]
        return Distribution(self.count, self.total * scale, self.highest * scale, buckets, scale)
