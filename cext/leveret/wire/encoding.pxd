cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from leveret.wire.endian cimport lv_put16, lv_put32, lv_put64


@cython.final
cdef class Writer:
    cdef uint8_t* data
    cdef Py_ssize_t used
    cdef Py_ssize_t capacity
    cdef Py_ssize_t entries

    # Returns memory for n more bytes, which count as used.
    cdef inline uint8_t* reserve(self, Py_ssize_t n) except NULL:
        if n > self.capacity - self.used:
            self.grow(n)
        self.used += n
        return self.data + self.used - n

    cdef inline int put8(self, uint8_t value) except -1:
        self.reserve(1)[0] = value
        return 0

    cdef inline int put16(self, uint16_t value) except -1:
        lv_put16(self.reserve(2), value)
        return 0

    cdef inline int put32(self, uint32_t value) except -1:
        lv_put32(self.reserve(4), value)
        return 0

    cdef inline int put64(self, uint64_t value) except -1:
        lv_put64(self.reserve(8), value)
        return 0

    cdef inline int put_raw(self, const uint8_t* data, Py_ssize_t n) except -1:
        if n:
            memcpy(self.reserve(n), data, n)
        return 0

    cdef int grow(self, Py_ssize_t n) except -1
    cdef bint put_short_ascii(self, object value) except -1
    cdef int put_shortstr(self, object value, str name) except -1
    cdef int put_longstr(self, object value, str name) except -1
    cdef int put_table(self, str name, object table, int depth) except -1
    cdef int put_text(self, str name, object value) except -1
    cdef bint put_plain_table(self, dict table) except -1
    cdef bint put_plain(self, object value) except -1
    cdef int put_array(self, str name, object values, int depth) except -1
    cdef int count(self, str name) except -1
    cdef int put_value(self, str name, object value, int depth) except -1
    cdef int put_typed(self, str name, uint8_t kind, object value, int depth) except -1
    cdef int put_decimal(self, object value) except -1
    cdef bytes take(self)


cdef uint64_t to_timestamp(object value, str name) except? 1
cdef str shown(object value)
