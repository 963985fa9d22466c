cimport cython
from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <time.h>

    #define LV_BUCKETS 672

    /* The bucket of a value: the first 32 have a value each, and then 16 of equal width share each power of two. The
       exponent of a double and four bits of its mantissa tell it. The last bucket takes everything from 2**45 on,
       which is ten hours in nanoseconds. */
    static inline int lv_bucket(uint64_t value) {
        double rounded;
        uint64_t bits;
        if (value < 16) return (int)value;
        if (value >= ((uint64_t)1 << 45)) return LV_BUCKETS - 1;
        rounded = (double)(int64_t)value;
        memcpy(&bits, &rounded, sizeof bits);
        return (int)(bits >> 48) - ((1023 + 3) << 4);
    }

    /* The clock of time.monotonic, without a Python object. */
    static inline int64_t lv_monotonic(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }

    /* The clock of time.time. */
    static inline int64_t lv_wall_clock(void) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
    }
    """
    # Nanoseconds of a clock that never goes back.
    int64_t monotonic "lv_monotonic"() noexcept
    # Microseconds since 1970, of a clock that may be set.
    int64_t wall_clock "lv_wall_clock"() noexcept
    int bucket_of "lv_bucket"(uint64_t value) noexcept
    enum: BUCKETS "LV_BUCKETS"


@cython.final
cdef class Count:
    cdef readonly uint64_t value


@cython.final
cdef class Histogram:
    cdef uint64_t* counts
    cdef readonly uint64_t count
    cdef readonly uint64_t total
    cdef readonly uint64_t highest

    cdef int allocate(self) except -1

    # Counts a value `count` times; a negative value counts as 0. Here, because it is called for each message.
    cdef inline int add(self, int64_t value, uint64_t count) except -1:
        cdef uint64_t size = <uint64_t>value if value > 0 else 0
        if self.counts is NULL:
            self.allocate()
        self.counts[bucket_of(size)] += count
        self.count += count
        self.total += size * count
        if size > self.highest:
            self.highest = size
        return 0
