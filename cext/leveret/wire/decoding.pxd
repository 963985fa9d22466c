from libc.stdint cimport uint8_t, uint64_t


# A bounded read: `at` is the next byte, `end` the first that must not be read.
cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end
    Py_ssize_t depth
    Py_ssize_t entries
    Py_ssize_t max_depth
    Py_ssize_t max_entries


cdef int need(Cursor* c, uint64_t n, str what) except -1
cdef str text_of(const uint8_t* data, Py_ssize_t n)
cdef str read_shortstr(Cursor* c, str what)
cdef dict read_table(Cursor* c)
cdef dict headers_of(bytes raw, Py_ssize_t max_depth, Py_ssize_t max_entries)
cdef Cursor cursor_over(const uint8_t* data, Py_ssize_t n, Py_ssize_t depth, Py_ssize_t entries) noexcept
