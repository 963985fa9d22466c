"""Decodes arguments and field tables into Python values (AMQP 0-9-1 section 4.2.5).

Each read checks the length first, with a `Cursor` that holds the end of its bytes.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from leveret.wire.buffers cimport POOLS_BODIES
from leveret.wire.endian cimport lv_get16, lv_get32, lv_get64
from leveret.wire.limits cimport DEFAULT_TABLE_DEPTH, DEFAULT_TABLE_ENTRIES

import datetime
import decimal

from leveret.errors import TableSyntaxError

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object o)
    Py_ssize_t PyUnicode_GET_LENGTH(object o)
    void* PyUnicode_DATA(object o)

cdef enum:
    MOST_KEYS = 256

# Keys of tables that were read last: messages have the same ones again and again, and a str knows its hash. Each place
# is for one length and two of the bytes. Without a GIL there are none.
cdef PyObject* _keys[MOST_KEYS]

cdef object _UTC = datetime.timezone.utc
cdef object _EPOCH = datetime.datetime(1970, 1, 1, tzinfo=_UTC)
cdef object _timedelta = datetime.timedelta
cdef object _Decimal = decimal.Decimal

# Raises unless n bytes are left. n is unsigned and has 64 bits, so a length from the wire is never negative, also where
# pointers have 32 bits.
cdef int need(Cursor* c, uint64_t n, str what) except -1:
    if n > <uint64_t>(c.end - c.at):
        raise TableSyntaxError(f"{what} needs {n} bytes where {c.end - c.at} are left")
    return 0


cdef str text_of(const uint8_t* data, Py_ssize_t n):
    return PyUnicode_DecodeUTF8(<char*>data, n, "surrogateescape")


cdef str read_shortstr(Cursor* c, str what):
    cdef Py_ssize_t n
    need(c, 1, what)
    n = c.at[0]
    c.at += 1
    need(c, n, what)
    c.at += n
    return text_of(c.at - n, n)


cdef str _read_key(Cursor* c):
    cdef Py_ssize_t n, place
    cdef const uint8_t* data
    cdef object key
    if not POOLS_BODIES:
        return read_shortstr(c, "a table key")
    need(c, 1, "a table key")
    n = c.at[0]
    c.at += 1
    need(c, n, "a table key")
    data = c.at
    c.at += n
    if n == 0:
        return ""
    place = (n * 37 + data[n - 1] * 5 + data[n >> 1]) & (MOST_KEYS - 1)
    if _keys[place] is not NULL:
        key = <object>_keys[place]
        if PyUnicode_GET_LENGTH(key) == n and memcmp(PyUnicode_DATA(key), data, n) == 0:
            return key
    key = text_of(data, n)
    if PyUnicode_IS_COMPACT_ASCII(key):
        Py_INCREF(key)
        Py_XDECREF(_keys[place])
        _keys[place] = <PyObject*>key
    return key


cdef const uint8_t* _read_long(Cursor* c, Py_ssize_t* size, str what) except NULL:
    cdef uint32_t n
    need(c, 4, what)
    n = lv_get32(c.at)
    c.at += 4
    need(c, n, what)
    c.at += n
    size[0] = <Py_ssize_t>n
    return c.at - n


cdef dict read_table(Cursor* c):
    cdef Py_ssize_t n = 0
    cdef const uint8_t* outer = c.end
    cdef dict table = {}
    cdef str key
    if c.depth <= 0:
        raise TableSyntaxError(f"a table is nested deeper than the limit of {c.max_depth}")
    _read_long(c, &n, "a table")
    c.at -= n
    c.end = c.at + n
    c.depth -= 1
    while c.at < c.end:
        key = _read_key(c)
        table[key] = _read_value(c)
    c.end = outer
    c.depth += 1
    return table


cdef list _read_array(Cursor* c):
    cdef Py_ssize_t n = 0
    cdef const uint8_t* outer = c.end
    cdef list values = []
    if c.depth <= 0:
        raise TableSyntaxError(f"an array is nested deeper than the limit of {c.max_depth}")
    _read_long(c, &n, "an array")
    c.at -= n
    c.end = c.at + n
    c.depth -= 1
    while c.at < c.end:
        values.append(_read_value(c))
    c.end = outer
    c.depth += 1
    return values


cdef object _read_value(Cursor* c):
    cdef uint8_t kind
    cdef const uint8_t* p
    cdef Py_ssize_t n = 0
    cdef float single
    cdef double real
    cdef uint32_t word
    cdef uint64_t long_word
    if c.entries <= 0:
        raise TableSyntaxError(f"a table has more entries than the limit of {c.max_entries}")
    c.entries -= 1
    need(c, 1, "a field type")
    kind = c.at[0]
    c.at += 1
    p = c.at
    if kind == b"S":
        p = _read_long(c, &n, "a long string")
        return text_of(p, n)
    elif kind == b"I":
        need(c, 4, "a field value")
        c.at += 4
        return <int32_t>lv_get32(p)
    elif kind == b"l" or kind == b"L":
        # `L` is signed as well: RabbitMQ and most clients read it so.
        need(c, 8, "a field value")
        c.at += 8
        return <int64_t>lv_get64(p)
    elif kind == b"t":
        need(c, 1, "a field value")
        c.at += 1
        return p[0] != 0
    elif kind == b"F":
        return read_table(c)
    elif kind == b"A":
        return _read_array(c)
    elif kind == b"V":
        return None
    elif kind == b"x":
        p = _read_long(c, &n, "a byte array")
        return PyBytes_FromStringAndSize(<char*>p, n)
    elif kind == b"T":
        need(c, 8, "a field value")
        c.at += 8
        return _from_timestamp(lv_get64(p))
    elif kind == b"d":
        need(c, 8, "a field value")
        c.at += 8
        long_word = lv_get64(p)
        memcpy(&real, &long_word, 8)
        return real
    elif kind == b"f":
        need(c, 4, "a field value")
        c.at += 4
        word = lv_get32(p)
        memcpy(&single, &word, 4)
        return <double>single
    elif kind == b"b":
        need(c, 1, "a field value")
        c.at += 1
        return <int8_t>p[0]
    elif kind == b"B":
        need(c, 1, "a field value")
        c.at += 1
        return p[0]
    elif kind == b"s":
        need(c, 2, "a field value")
        c.at += 2
        return <int16_t>lv_get16(p)
    elif kind == b"u":
        need(c, 2, "a field value")
        c.at += 2
        return lv_get16(p)
    elif kind == b"i":
        need(c, 4, "a field value")
        c.at += 4
        return lv_get32(p)
    elif kind == b"D":
        need(c, 5, "a field value")
        c.at += 5
        word = lv_get32(p + 1)
        # From the parts: no rounding by a decimal context, whatever the scale.
        return _decimal_from(<int32_t>word, p[0])
    raise TableSyntaxError(f"unknown field type 0x{kind:02x}")


cdef object _decimal_from(int64_t unscaled, int scale):
    return _Decimal((1 if unscaled < 0 else 0, tuple([int(d) for d in str(abs(unscaled))]), -scale))


# Returns a datetime, or the number itself past the year 9999, so that one strange message cannot stop a consumer.
cdef object _from_timestamp(uint64_t seconds):
    if seconds > 253402300799:
        return seconds
    return _EPOCH + _timedelta(seconds=seconds)


cdef Cursor cursor_over(const uint8_t* data, Py_ssize_t n, Py_ssize_t depth, Py_ssize_t entries) noexcept:
    cdef Cursor c
    c.at = data
    c.end = data + n
    c.depth = c.max_depth = depth
    c.entries = c.max_entries = entries
    return c


cdef int _skip(Cursor* c, uint64_t n, str what) except -1:
    need(c, n, what)
    c.at += n
    return 0


cdef int _skip_shortstr(Cursor* c, str what) except -1:
    cdef uint64_t n
    need(c, 1, what)
    n = c.at[0]
    c.at += 1
    return _skip(c, n, what)


# The headers among packed properties, an empty dict without them. The others are checked, and not decoded: whatever is
# malformed is an error as in `decode_properties`.
cdef dict headers_of(bytes raw, Py_ssize_t max_depth, Py_ssize_t max_entries):
    cdef Cursor c = cursor_over(<uint8_t*>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), max_depth, max_entries)
    cdef dict headers
    cdef uint32_t flags
    need(&c, 2, "the property flags")
    flags = lv_get16(c.at)
    c.at += 2
    if flags & 3:
        raise TableSyntaxError(f"property flags 0x{flags:04x} name properties that the basic class does not have")
    if flags & 0x8000:
        _skip_shortstr(&c, "content_type")
    if flags & 0x4000:
        _skip_shortstr(&c, "content_encoding")
    headers = read_table(&c) if flags & 0x2000 else {}
    if flags & 0x1000:
        _skip(&c, 1, "delivery_mode")
    if flags & 0x0800:
        _skip(&c, 1, "priority")
    if flags & 0x0400:
        _skip_shortstr(&c, "correlation_id")
    if flags & 0x0200:
        _skip_shortstr(&c, "reply_to")
    if flags & 0x0100:
        _skip_shortstr(&c, "expiration")
    if flags & 0x0080:
        _skip_shortstr(&c, "message_id")
    if flags & 0x0040:
        _skip(&c, 8, "timestamp")
    if flags & 0x0020:
        _skip_shortstr(&c, "type")
    if flags & 0x0010:
        _skip_shortstr(&c, "user_id")
    if flags & 0x0008:
        _skip_shortstr(&c, "app_id")
    if flags & 0x0004:
        _skip_shortstr(&c, "cluster_id")
    if c.at != c.end:
        raise TableSyntaxError(f"{c.end - c.at} bytes follow the properties")
    return headers


def decode_table(bytes data not None, *, Py_ssize_t max_depth=DEFAULT_TABLE_DEPTH,
                 Py_ssize_t max_entries=DEFAULT_TABLE_ENTRIES):
    """Decodes one field table that fills `data`.

    Args:
        data: The table with its length in front.
        max_depth: The deepest nesting of tables and arrays.
        max_entries: The most values in all of them together.

    Returns:
        The table as a dict. Strings that are not UTF-8 keep their bytes as surrogate escapes. A timestamp past the year
        9999 stays an int.

    Raises:
        TableSyntaxError: The table is malformed or over a limit.
    """
    cdef Cursor c = cursor_over(<uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), max_depth, max_entries)
    table = read_table(&c)
    if c.at != c.end:
        raise TableSyntaxError(f"{c.end - c.at} bytes follow the table")
    return table


def decode_arguments(str types not None, bytes payload not None, *, Py_ssize_t max_depth=DEFAULT_TABLE_DEPTH,
                     Py_ssize_t max_entries=DEFAULT_TABLE_ENTRIES):
    """Decodes the arguments of a method frame.

    Args:
        types: As for `encode_method`.
        payload: The frame's payload behind class and method.
        max_depth: The deepest nesting of tables and arrays.
        max_entries: The most values in all tables together.

    Returns:
        A tuple of the arguments.

    Raises:
        TableSyntaxError: The payload is too short, too long, or over a limit.
    """
    cdef Cursor c = cursor_over(<uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), max_depth, max_entries)
    cdef list values = []
    cdef Py_UCS4 kind
    cdef int bit = 0
    cdef uint8_t octet = 0
    cdef const uint8_t* p
    cdef Py_ssize_t n = 0
    for kind in types:
        if kind == u"t":
            if bit == 0:
                need(&c, 1, "a bit argument")
                octet = c.at[0]
                c.at += 1
            values.append((octet >> bit) & 1 == 1)
            bit = (bit + 1) & 7
            continue
        bit = 0
        if kind == u"s":
            values.append(read_shortstr(&c, "a short string argument"))
        elif kind == u"o":
            need(&c, 1, "an octet argument")
            values.append(c.at[0])
            c.at += 1
        elif kind == u"h":
            need(&c, 2, "a short argument")
            values.append(lv_get16(c.at))
            c.at += 2
        elif kind == u"l":
            need(&c, 4, "a long argument")
            values.append(lv_get32(c.at))
            c.at += 4
        elif kind == u"q":
            need(&c, 8, "a longlong argument")
            values.append(lv_get64(c.at))
            c.at += 8
        elif kind == u"S":
            p = _read_long(&c, &n, "a long string argument")
            values.append(PyBytes_FromStringAndSize(<char*>p, n))
        elif kind == u"T":
            values.append(read_table(&c))
        else:
            raise ValueError(f"unknown argument type {kind!r}")
    if c.at != c.end:
        raise TableSyntaxError(f"{c.end - c.at} bytes follow the arguments")
    return tuple(values)
