from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    /* The clock of time.monotonic, without a Python object. */
    static inline int64_t lv_monotonic(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    /* The clock of time.time. */
    static inline double lv_wall_clock(void) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        return (double)now.tv_sec + now.tv_nsec * 1e-9;
    }
    """
    # Nanoseconds of a clock that never goes back.
    int64_t monotonic "lv_monotonic"() noexcept
    # Seconds since 1970; it may be set.
    double wall_clock "lv_wall_clock"() noexcept


cdef class Histogram:
    cdef uint64_t* counts
    cdef readonly uint64_t count
    cdef readonly uint64_t total
    cdef readonly uint64_t highest

    cdef int allocate(self) except -1
    cdef int add(self, int64_t value, uint64_t count) except -1
