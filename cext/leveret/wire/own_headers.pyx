"""The headers that publishers of this library write, in packed properties.

All other bytes stay as they are: decoding and encoding them again could choose other types for the values.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from leveret.wire.encoding cimport Writer
from leveret.wire.endian cimport lv_get16, lv_get32, lv_get64, lv_put16, lv_put64

from leveret.errors import EncodeFailed

#: When a message was handed over to its producer, in microseconds since 1970.
SENT_AT_HEADER = "x-leveret-sent-at"
#: The size of a compressed body before compression, in bytes.
ORIGINAL_SIZE_HEADER = "original-size"

cdef enum:
    # Flags of the properties (AMQP 0-9-1 section 4.2.6.1), and the flag of a further word of flags.
    HAS_CONTENT_TYPE = 0x8000
    HAS_CONTENT_ENCODING = 0x4000
    HAS_HEADERS = 0x2000
    HAS_MORE_FLAGS = 0x0001

# Entries of a table without their values: a short string, and the type of the value, a signed integer of 32 or 64 bits.
cdef bytes RESENT = b"\x10x-leveret-resentI"
cdef bytes SENT_AT = b"\x11x-leveret-sent-atl"
cdef bytes ORIGINAL_SIZE = b"\x0doriginal-sizel"


# Where an entry is in packed properties.
cdef struct Place:
    # The table with its length in front, or where it would be.
    Py_ssize_t table
    # Its entries.
    Py_ssize_t start
    Py_ssize_t end
    # The entry, or the table's end when it has none.
    Py_ssize_t entry
    Py_ssize_t size


# The bytes of a field value behind its type (AMQP 0-9-1 section 4.2.5.3, with RabbitMQ's types); -1 for a type that
# there is not.
cdef Py_ssize_t _value_size(uint8_t kind, const uint8_t* p, Py_ssize_t left) noexcept:
    if kind == b"S" or kind == b"x" or kind == b"A" or kind == b"F":
        return -1 if left < 4 else 4 + <Py_ssize_t>lv_get32(p)
    if kind == b"V":
        return 0
    if kind == b"t" or kind == b"b" or kind == b"B":
        return 1
    if kind == b"s" or kind == b"u":
        return 2
    if kind == b"I" or kind == b"i" or kind == b"f":
        return 4
    if kind == b"D":
        return 5
    if kind == b"l" or kind == b"L" or kind == b"d" or kind == b"T":
        return 8
    return -1


# Finds the entry with this name. Returns false when the properties are malformed up to the end of their headers.
cdef bint _find(bytes raw, bytes name, Place* place) noexcept:
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(raw)
    cdef const uint8_t* wanted = <const uint8_t*>PyBytes_AS_STRING(name)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(raw)
    cdef Py_ssize_t at = 2
    cdef Py_ssize_t start, value
    cdef uint16_t flags, word
    if size < 2:
        return False
    flags = word = lv_get16(data)
    while word & HAS_MORE_FLAGS and at + 2 <= size:
        word = lv_get16(data + at)
        at += 2
    if flags & HAS_CONTENT_TYPE and at < size:
        at += 1 + data[at]
    if flags & HAS_CONTENT_ENCODING and at < size:
        at += 1 + data[at]
    place.table = place.start = place.end = at
    if flags & HAS_HEADERS and at + 4 <= size:
        place.start = at + 4
        place.end = place.start + <Py_ssize_t>lv_get32(data + at)
    if place.end > size:
        return False
    at = place.start
    while at < place.end:
        start = at
        at += 1 + data[at]
        if at >= place.end:
            return False
        value = _value_size(data[at], data + at + 1, place.end - at - 1)
        if value < 0 or value > place.end - at - 1:
            return False
        at += 1 + value
        if data[start] == wanted[0] and memcmp(data + start, wanted, 1 + wanted[0]) == 0:
            place.entry = start
            place.size = at - start
            return True
    place.entry = place.end
    place.size = 0
    return True


# Sets an entry, in the place of an earlier one or behind all others. `value_at` becomes the place of its value.
cdef bytes _with_entry(bytes raw, bytes entry, uint64_t value, Py_ssize_t size, Py_ssize_t* value_at):
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(raw)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(entry)
    cdef Place place
    cdef Py_ssize_t behind
    cdef Writer w = Writer()
    if not _find(raw, entry, &place):
        raise EncodeFailed("the properties are malformed")
    behind = place.entry + place.size
    w.put_raw(data, place.table)
    lv_put16(w.data, lv_get16(data) | HAS_HEADERS)
    w.put32(<uint32_t>(place.end - place.start - place.size + length + size))
    w.put_raw(data + place.start, place.entry - place.start)
    w.put_raw(<const uint8_t*>PyBytes_AS_STRING(entry), length)
    value_at[0] = w.used
    if size == 8:
        w.put64(value)
    else:
        w.put32(<uint32_t>value)
    w.put_raw(data + behind, PyBytes_GET_SIZE(raw) - behind)
    return w.take()


# Properties with the header `x-leveret-resent` of this value.
cdef bytes with_resent(bytes raw, uint32_t resent):
    cdef Py_ssize_t value_at
    return _with_entry(raw, RESENT, resent, 4, &value_at)


# Properties with the header `x-leveret-sent-at` of the value 0, which is to be overwritten at `value_at`.
cdef bytes with_sent_at(bytes raw, Py_ssize_t* value_at):
    return _with_entry(raw, SENT_AT, 0, 8, value_at)


# The value of the header `x-leveret-sent-at`; 0 when there is none, or one of another type.
cdef int64_t sent_at_of(bytes raw) noexcept:
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(raw)
    cdef Py_ssize_t length = PyBytes_GET_SIZE(SENT_AT)
    cdef Place place
    if PyBytes_GET_SIZE(raw) < 2 or not data[0] & (HAS_HEADERS >> 8) or not _find(raw, SENT_AT, &place):
        return 0
    if place.size != length + 8 or data[place.entry + length - 1] != b"l":
        return 0
    return <int64_t>lv_get64(data + place.entry + length)


# The entry of the header `x-leveret-sent-at` with the value 0, for a table that has no such header.
cdef bytes sent_at_entry():
    return SENT_AT + bytes(8)


# The entry of the header `original-size`, for a table that has no such header.
cdef bytes original_size_entry(int64_t size):
    cdef Py_ssize_t length = PyBytes_GET_SIZE(ORIGINAL_SIZE)
    cdef bytes entry = PyBytes_FromStringAndSize(NULL, length + 8)
    cdef uint8_t* p = <uint8_t*>PyBytes_AS_STRING(entry)
    memcpy(p, PyBytes_AS_STRING(ORIGINAL_SIZE), length)
    lv_put64(p + length, <uint64_t>size)
    return entry
