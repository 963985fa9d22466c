from libc.stdint cimport int64_t, uint8_t

cdef enum:
    # The bytes of an id.
    ID_SIZE = 36


cdef class MessageIds:
    # The last id, and where its bytes are.
    cdef bytearray kept
    cdef uint8_t* text
    # Milliseconds since 1970, and how many ids had this time before.
    cdef int64_t time
    cdef int count

    cdef void write(self, uint8_t* p) noexcept
    cdef void write_time(self) noexcept
