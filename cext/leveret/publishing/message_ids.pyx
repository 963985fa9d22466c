"""Message ids of a producer: unique, and sorted as they were made."""
cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from leveret.monitoring.histogram cimport wall_clock

import os

cdef enum:
    # How many ids one millisecond has (12 bits).
    MOST = 4096

cdef const char* DIGITS = "0123456789abcdef"


# An id of the time 0.
cdef bytes _first_id():
    drawn = bytearray(os.urandom(8))
    drawn[0] = 0x80 | drawn[0] & 0x3F  # the variant of RFC 9562, section 4.1
    digits = drawn.hex()
    return f"00000000-0000-7000-{digits[:4]}-{digits[4:]}".encode()


@cython.final
cdef class MessageIds:
    """Makes UUIDs of version 7 (RFC 9562) in text: the time in milliseconds, a counter and 62 random bits.

    The random bits are drawn once, for all ids of this object: two objects have the same ones with a probability of
    2**-62, in whatever processes they are. Each id is greater than the one before, as text and as a number, also when
    the clock is set back; then, and beyond 4,096 ids in a millisecond, the times in ids are ahead of the clock.
    """

    def __cinit__(self):
        self.kept = bytearray(_first_id())
        self.text = <uint8_t*>PyByteArray_AS_STRING(self.kept)

    def __iter__(self):
        return self

    def __next__(self):
        cdef bytes made = PyBytes_FromStringAndSize(NULL, ID_SIZE)
        self.write(<uint8_t*>PyBytes_AS_STRING(made))
        return made.decode("ascii")

    # Writes the next id.
    cdef void write(self, uint8_t* p) noexcept:
        cdef int64_t now = wall_clock() // 1000
        self.count += 1
        if now > self.time:
            self.time = now
            self.count = 0
            self.write_time()
        elif self.count == MOST:
            self.time += 1
            self.count = 0
            self.write_time()
        self.text[15] = DIGITS[self.count >> 8]
        self.text[16] = DIGITS[self.count >> 4 & 15]
        self.text[17] = DIGITS[self.count & 15]
        memcpy(p, self.text, ID_SIZE)

    # Puts the time into the text: 8 digits, a hyphen and 4 digits.
    cdef void write_time(self) noexcept:
        cdef int64_t left = self.time
        cdef int at
        for at in range(12, -1, -1):
            if at != 8:
                self.text[at] = DIGITS[left & 15]
                left >>= 4
