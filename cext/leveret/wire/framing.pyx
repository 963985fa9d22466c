"""Frames, properties and field tables, to and from objects (AMQP 0-9-1 section 4.2).

`FrameReader` turns the bytes of one read into one list of events. Messages that follow each other on one channel
share an event, and so do acknowledgements, so the caller's work per read does not grow with the messages in it.
Every read is length-checked first. Incomplete input waits for more; corrupt input raises, and the two never mix.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_Append, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy

from leveret.wire.buffers cimport (
    BodyPool, POOLS_BODIES, Py_REFCNT, RecvBuffer, SendBuffer, _drop, resize_bytes, set_bytes_size)
from leveret.wire.endian cimport lv_get16, lv_get32, lv_get64, lv_put16, lv_put32, lv_put64

import datetime
import decimal

from leveret.errors import (
    EncodeFailed, FrameError, IncompatibleProtocol, LocalProtocolError, RemoteProtocolError, TableSyntaxError)

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    bint PyObject_GC_IsTracked(object o)
    void PyObject_GC_UnTrack(void* object) noexcept
    object PyMemoryView_FromObject(object exporter)

cdef extern from "math.h":
    bint isinf(double) noexcept nogil

#: Limits that a caller may change, with the reason for each default.
DEFAULT_FRAME_MAX_BEFORE_TUNE = 4096
DEFAULT_MAX_BODY_SIZE = 64 * 1024 * 1024
DEFAULT_TABLE_DEPTH = 32
DEFAULT_TABLE_ENTRIES = 16384

cdef enum:
    # A body is allocated as it arrives, never from its declared size alone.
    FIRST_BODY_BLOCK = 1048576
    STRING_CACHE = 256
    # The longest basic.deliver or basic.publish: three names of 255 bytes, a tag, and what is around them.
    MAX_METHOD = 800
    # Bodies of which sizes leave their memory to others, and of how many it is kept: less than a MiB in all.
    LEAST_SPARE_BODY = 480
    MOST_SPARE_BODY = 8192
    MOST_SPARE_BODIES = 96

cdef object _UTC = datetime.timezone.utc
cdef object _EPOCH = datetime.datetime(1970, 1, 1, tzinfo=_UTC)
cdef object _datetime = datetime.datetime
cdef object _timedelta = datetime.timedelta
cdef object _Decimal = decimal.Decimal


class FieldValue:
    """A field-table value with the wire type spelled out, for values whose Python type does not tell.

    Args:
        type: One of RabbitMQ's field types `t b B s u I i l L f d D S A T F V x`.
        value: The Python value.
    """

    __slots__ = ("type", "value")

    def __init__(self, type, value):
        if not isinstance(type, str) or len(type) != 1 or type not in "tbBsuIilLfdDSATFVx":
            raise EncodeFailed(f"unknown field type {type!r}; use one of t b B s u I i l L f d D S A T F V x")
        self.type = type
        self.value = value

    def __repr__(self):
        return f"FieldValue({self.type!r}, {self.value!r})"

    def __eq__(self, other):
        if not isinstance(other, FieldValue):
            return NotImplemented
        return self.type == other.type and self.value == other.value

    def __hash__(self):
        # The value may be unhashable, and equal values need not print alike (1 and True).
        return hash(self.type)


# ---------------------------------------------------------------------------------------------- writing

@cython.final
cdef class Writer:
    """A growing block of memory that arguments, properties and tables are packed into."""

    def __cinit__(self):
        self.capacity = 256
        self.used = 0
        self.data = <uint8_t*>malloc(self.capacity)
        if self.data is NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.data)

    # Memory for n more bytes, already counted as used.
    cdef uint8_t* reserve(self, Py_ssize_t n) except NULL:
        cdef Py_ssize_t capacity
        cdef uint8_t* data
        if n > self.capacity - self.used:
            if n > 0xFFFFFFFF - self.used:
                # A longer block would wrap the 32-bit lengths in it, and its rest would be read as frames.
                raise EncodeFailed(f"{self.used + n} bytes of arguments; a frame or table holds less than 4294967296")
            capacity = max(self.capacity * 2, self.used + n)
            data = <uint8_t*>realloc(self.data, capacity)
            if data is NULL:
                raise MemoryError()
            self.data = data
            self.capacity = capacity
        self.used += n
        return self.data + self.used - n

    cdef int put8(self, uint8_t value) except -1:
        self.reserve(1)[0] = value
        return 0

    cdef int put16(self, uint16_t value) except -1:
        lv_put16(self.reserve(2), value)
        return 0

    cdef int put32(self, uint32_t value) except -1:
        lv_put32(self.reserve(4), value)
        return 0

    cdef int put64(self, uint64_t value) except -1:
        lv_put64(self.reserve(8), value)
        return 0

    cdef int put_raw(self, const uint8_t* data, Py_ssize_t n) except -1:
        if n:
            memcpy(self.reserve(n), data, n)
        return 0

    # True when value was such a short string, and is written: nearly all are, and need no bytes object.
    cdef bint put_short_ascii(self, object value) except -1:
        cdef Py_ssize_t n = 0
        cdef const char* raw
        if not isinstance(value, str) or not PyUnicode_IS_ASCII(value):
            return False
        raw = PyUnicode_AsUTF8AndSize(value, &n)
        if n > 255:
            return False
        self.put8(<uint8_t>n)
        self.put_raw(<const uint8_t*>raw, n)
        return True

    cdef int put_shortstr(self, object value, str name) except -1:
        cdef bytes raw
        cdef Py_ssize_t n
        if self.put_short_ascii(value):
            return 0
        raw = _to_bytes(value, name)
        n = PyBytes_GET_SIZE(raw)
        if n > 255:
            raise EncodeFailed(f"{name} is {n} bytes of UTF-8; a short string holds at most 255")
        self.put8(<uint8_t>n)
        return self.put_raw(<uint8_t*>PyBytes_AS_STRING(raw), n)

    cdef int put_longstr(self, object value, str name) except -1:
        cdef bytes raw = _to_bytes(value, name)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(raw)
        if n > 0xFFFFFFFF:
            raise EncodeFailed(f"{name} is {n} bytes; a long string holds at most 4294967295")
        self.put32(<uint32_t>n)
        return self.put_raw(<uint8_t*>PyBytes_AS_STRING(raw), n)

    cdef int put_table(self, str name, object table, int depth) except -1:
        cdef Py_ssize_t at = self.used
        cdef dict items
        if depth > DEFAULT_TABLE_DEPTH:
            raise EncodeFailed(f"{name} is nested deeper than the limit of {DEFAULT_TABLE_DEPTH}")
        self.put32(0)
        if table is not None:
            # Copying first: the values may be any Mapping, whose iteration runs foreign code.
            try:
                items = dict(table)
            except (TypeError, ValueError):
                raise EncodeFailed(f"{name} is a mapping of strings to values, not a {type(table).__name__}") from None
            for key, value in items.items():
                if not isinstance(key, str):
                    raise EncodeFailed(f"{name} has a key that is no string but a {type(key).__name__}")
                # A label for errors costs more than the key itself, so it is made when there may be one.
                if not self.put_short_ascii(key):
                    self.put_shortstr(key, f"table key {key[:40]!r}")
                self.put_value(key, value, depth)
        lv_put32(self.data + at, <uint32_t>(self.used - at - 4))
        return 0

    cdef int put_text(self, str name, object value) except -1:
        cdef Py_ssize_t n = 0
        cdef const char* raw
        if isinstance(value, str) and PyUnicode_IS_ASCII(value):
            raw = PyUnicode_AsUTF8AndSize(value, &n)
            if n <= 0xFFFFFFFF:
                self.put32(<uint32_t>n)
                return self.put_raw(<const uint8_t*>raw, n)
        return self.put_longstr(value, f"table value {name[:40]!r}")

    cdef int put_array(self, str name, object values, int depth) except -1:
        cdef Py_ssize_t at = self.used
        if depth > DEFAULT_TABLE_DEPTH:
            raise EncodeFailed(f"table value {name[:40]!r} is nested deeper than the limit of {DEFAULT_TABLE_DEPTH}")
        self.put32(0)
        for value in values:
            self.put_value(name, value, depth)
        lv_put32(self.data + at, <uint32_t>(self.used - at - 4))
        return 0

    # The Python type chooses the wire type; FieldValue overrides it.
    cdef int put_value(self, str name, object value, int depth) except -1:
        if value is None:
            return self.put8(b"V")
        if isinstance(value, bool):
            return self.put_typed(name, b"t", value, depth)
        if isinstance(value, int):
            # RabbitMQ reads both signed forms everywhere; other widths only old clients send.
            return self.put_typed(name, b"I" if -0x80000000 <= value <= 0x7FFFFFFF else b"l", value, depth)
        if isinstance(value, str):
            return self.put_typed(name, b"S", value, depth)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return self.put_typed(name, b"x", value, depth)
        if isinstance(value, float):
            return self.put_typed(name, b"d", value, depth)
        if isinstance(value, FieldValue):
            return self.put_typed(name, ord(value.type), value.value, depth)
        if isinstance(value, _datetime):
            return self.put_typed(name, b"T", value, depth)
        if isinstance(value, _Decimal):
            return self.put_typed(name, b"D", value, depth)
        if isinstance(value, (list, tuple)):
            return self.put_typed(name, b"A", value, depth)
        if hasattr(value, "items"):
            return self.put_typed(name, b"F", value, depth)
        raise EncodeFailed(f"table key {name[:40]!r}: {type(value).__name__} has no AMQP field type")

    cdef int put_typed(self, str name, uint8_t kind, object value, int depth) except -1:
        cdef double real
        cdef float single
        cdef uint32_t word
        cdef uint64_t long_word
        self.put8(kind)
        try:
            if kind == b"t":
                return self.put8(1 if value else 0)
            elif kind == b"b":
                return self.put8(<uint8_t><int8_t>_ranged(value, -0x80, 0x7F))
            elif kind == b"B":
                return self.put8(<uint8_t>_ranged(value, 0, 0xFF))
            elif kind == b"s":
                return self.put16(<uint16_t><int16_t>_ranged(value, -0x8000, 0x7FFF))
            elif kind == b"u":
                return self.put16(<uint16_t>_ranged(value, 0, 0xFFFF))
            elif kind == b"I":
                return self.put32(<uint32_t><int32_t>_ranged(value, -0x80000000, 0x7FFFFFFF))
            elif kind == b"i":
                return self.put32(<uint32_t>_ranged(value, 0, 0xFFFFFFFF))
            elif kind == b"l":
                return self.put64(<uint64_t>_signed(value))
            elif kind == b"L":
                return self.put64(_unsigned(value))
            elif kind == b"f":
                real = <double>value
                single = <float>real
                if isinf(single) and not isinf(real):
                    raise OverflowError("out of range")
                memcpy(&word, &single, 4)
                return self.put32(word)
            elif kind == b"d":
                real = <double>value
                memcpy(&long_word, &real, 8)
                return self.put64(long_word)
            elif kind == b"D":
                return self.put_decimal(value)
            elif kind == b"T":
                return self.put64(_to_timestamp(value, f"table key {name[:40]!r}"))
            elif kind == b"S" or kind == b"x":
                return self.put_text(name, value)
            elif kind == b"A":
                return self.put_array(name, value, depth + 1)
            elif kind == b"F":
                return self.put_table(f"table value {name[:40]!r}", value, depth + 1)
            else:  # V carries no value
                return 0
        except (OverflowError, TypeError, ValueError, AttributeError) as error:
            # No value in the text: a header may be a secret.
            raise EncodeFailed(
                f"table key {name[:40]!r}: a {type(value).__name__} of this value does not fit field type {chr(kind)!r}"
            ) from error

    # Scale and unscaled value (AMQP 0-9-1 section 4.2.5.5): an octet and a signed 32-bit integer.
    cdef int put_decimal(self, object value) except -1:
        sign, digits, exponent = value.as_tuple()
        if not isinstance(exponent, int):
            raise ValueError("not a finite number")
        if len(digits) > 10:
            raise OverflowError("more digits than 32 bits hold")
        unscaled = 0
        for digit in digits:
            unscaled = unscaled * 10 + digit
        if exponent > 0:
            # An exponent this large cannot fit in 32 bits; do not compute it.
            unscaled = unscaled * 10 ** exponent if exponent <= 10 else (1 << 40 if unscaled else 0)
            exponent = 0
        if exponent < -255:
            raise OverflowError("scale over 255")
        if sign:
            unscaled = -unscaled
        unscaled = _ranged(unscaled, -0x80000000, 0x7FFFFFFF)
        self.put8(<uint8_t>(-exponent))
        return self.put32(<uint32_t><int32_t>unscaled)

    cdef bytes take(self):
        return PyBytes_FromStringAndSize(<char*>self.data, self.used)


cdef int64_t _ranged(object value, int64_t low, int64_t high) except? -1:
    if not isinstance(value, int):
        raise TypeError("not an integer")
    if not low <= value <= high:
        raise OverflowError("out of range")
    return value


# Without the check a float would lose its fraction in silence.
cdef int64_t _signed(object value) except? -1:
    if not isinstance(value, int):
        raise TypeError("not an integer")
    return <int64_t>value


cdef uint64_t _unsigned(object value) except? 1:
    if not isinstance(value, int):
        raise TypeError("not an integer")
    return <uint64_t>value


cdef bytes _to_bytes(object value, str name):
    if isinstance(value, str):
        # surrogateescape: bytes that came in as invalid UTF-8 go out as they came.
        try:
            return (<str>value).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise EncodeFailed(f"{name} holds characters that UTF-8 cannot encode") from None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise EncodeFailed(f"{name} must be a string, not {type(value).__name__}")


cdef uint64_t _to_timestamp(object value, str name) except? 1:
    if isinstance(value, _datetime):
        if value.utcoffset() is None:
            raise EncodeFailed(f"{name} is a datetime without a time zone; a timestamp needs one")
        # Whole seconds, as section 4.2.5.4 has them.
        value = (value - _EPOCH) // _timedelta(seconds=1)
    return _unsigned(value)


# A value that may stand in an error's text: a small number, or else only its type.
cdef str _shown(object value):
    return str(value) if isinstance(value, int) and -0x80000000 <= value <= 0x7FFFFFFF else f"a {type(value).__name__}"


def encode_table(table):
    """Encodes a field table.

    Args:
        table: A mapping of strings to bool, int, float, str, bytes, Decimal, datetime, None, lists, mappings
            or `FieldValue`.

    Returns:
        The table with its length in front (AMQP 0-9-1 section 4.2.5.5, with RabbitMQ's types).

    Raises:
        EncodeFailed: A key or value does not fit; the text names the key, never the value.
    """
    cdef Writer writer = Writer()
    writer.put_table("the table", table, 1)
    return writer.take()


def encode_method(uint16_t channel, uint16_t class_id, uint16_t method_id, str types not None, tuple values not None,
                  str name not None="", tuple fields not None=()):
    """Encodes a method frame.

    Args:
        channel: The channel number.
        class_id: The class, for example 50 for queue.
        method_id: The method, for example 10 for declare.
        types: One letter for each value: `o` octet, `h` short, `l` long, `q` longlong, `s` shortstr, `S` longstr,
            `t` bit, `T` table.
        values: The arguments.
        name: The method's name, for errors.
        fields: The arguments' names, for errors.

    Returns:
        The whole frame.

    Raises:
        EncodeFailed: An argument does not fit its type; the text names it.
    """
    cdef Writer writer = Writer()
    cdef Py_ssize_t i
    cdef int bit = 0
    cdef Py_UCS4 kind
    cdef Py_ssize_t bit_at = 0
    cdef str label
    if len(types) != len(values):
        raise ValueError(f"{len(values)} values for {len(types)} types")
    writer.put8(FRAME_METHOD)
    writer.put16(channel)
    writer.put32(0)
    writer.put16(class_id)
    writer.put16(method_id)
    for i in range(len(values)):
        kind = types[i]
        value = values[i]
        label = f"{name} {fields[i]}" if i < len(fields) else f"argument {i}"
        if kind == u"t":
            # Consecutive bits share octets, lowest bit first (AMQP 0-9-1 section 4.2.5.2).
            if bit == 0:
                bit_at = writer.used
                writer.put8(0)
            if value:
                writer.data[bit_at] |= <uint8_t>(1 << bit)
            bit = (bit + 1) & 7
            continue
        bit = 0
        try:
            if kind == u"o":
                writer.put8(<uint8_t>_ranged(value, 0, 0xFF))
            elif kind == u"h":
                writer.put16(<uint16_t>_ranged(value, 0, 0xFFFF))
            elif kind == u"l":
                writer.put32(<uint32_t>_ranged(value, 0, 0xFFFFFFFF))
            elif kind == u"q":
                writer.put64(_unsigned(value))
            elif kind == u"s":
                writer.put_shortstr(value, label)
            elif kind == u"S":
                writer.put_longstr(value, label)
            elif kind == u"T":
                writer.put_table(label, value, 1)
            else:
                raise ValueError(f"unknown argument type {kind!r}")
        except (OverflowError, TypeError):
            raise EncodeFailed(f"{label} is out of range or of the wrong type ({type(value).__name__})") from None
    lv_put32(writer.data + 3, <uint32_t>(writer.used - 7))
    writer.put8(FRAME_END)
    return writer.take()


# ---------------------------------------------------------------------------------------------- reading

# Where a bounded read stands. `end` is the first byte that must not be read.
cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end
    Py_ssize_t depth
    Py_ssize_t entries
    Py_ssize_t max_depth
    Py_ssize_t max_entries


# n is unsigned and wide, so that a length from the wire is never negative, also where pointers have 32 bits.
cdef int _need(Cursor* c, uint64_t n, str what) except -1:
    if n > <uint64_t>(c.end - c.at):
        raise TableSyntaxError(f"{what} needs {n} bytes where {c.end - c.at} are left")
    return 0


cdef str _text(const uint8_t* data, Py_ssize_t n):
    return PyUnicode_DecodeUTF8(<char*>data, n, "surrogateescape")


cdef str _read_shortstr(Cursor* c, str what):
    cdef Py_ssize_t n
    _need(c, 1, what)
    n = c.at[0]
    c.at += 1
    _need(c, n, what)
    c.at += n
    return _text(c.at - n, n)


cdef const uint8_t* _read_long(Cursor* c, Py_ssize_t* size, str what) except NULL:
    cdef uint32_t n
    _need(c, 4, what)
    n = lv_get32(c.at)
    c.at += 4
    _need(c, n, what)
    c.at += n
    size[0] = <Py_ssize_t>n
    return c.at - n


cdef dict _read_table(Cursor* c):
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
        key = _read_shortstr(c, "a table key")
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
    _need(c, 1, "a field type")
    kind = c.at[0]
    c.at += 1
    p = c.at
    if kind == b"S":
        p = _read_long(c, &n, "a long string")
        return _text(p, n)
    elif kind == b"I":
        _need(c, 4, "a field value")
        c.at += 4
        return <int32_t>lv_get32(p)
    elif kind == b"l":
        _need(c, 8, "a field value")
        c.at += 8
        return <int64_t>lv_get64(p)
    elif kind == b"t":
        _need(c, 1, "a field value")
        c.at += 1
        return p[0] != 0
    elif kind == b"F":
        return _read_table(c)
    elif kind == b"A":
        return _read_array(c)
    elif kind == b"V":
        return None
    elif kind == b"x":
        p = _read_long(c, &n, "a byte array")
        return PyBytes_FromStringAndSize(<char*>p, n)
    elif kind == b"T":
        _need(c, 8, "a field value")
        c.at += 8
        return _from_timestamp(lv_get64(p))
    elif kind == b"d":
        _need(c, 8, "a field value")
        c.at += 8
        long_word = lv_get64(p)
        memcpy(&real, &long_word, 8)
        return real
    elif kind == b"f":
        _need(c, 4, "a field value")
        c.at += 4
        word = lv_get32(p)
        memcpy(&single, &word, 4)
        return <double>single
    elif kind == b"b":
        _need(c, 1, "a field value")
        c.at += 1
        return <int8_t>p[0]
    elif kind == b"B":
        _need(c, 1, "a field value")
        c.at += 1
        return p[0]
    elif kind == b"s":
        _need(c, 2, "a field value")
        c.at += 2
        return <int16_t>lv_get16(p)
    elif kind == b"u":
        _need(c, 2, "a field value")
        c.at += 2
        return lv_get16(p)
    elif kind == b"i":
        _need(c, 4, "a field value")
        c.at += 4
        return lv_get32(p)
    elif kind == b"L":
        _need(c, 8, "a field value")
        c.at += 8
        return lv_get64(p)
    elif kind == b"D":
        _need(c, 5, "a field value")
        c.at += 5
        word = lv_get32(p + 1)
        # From the parts: no rounding by a decimal context, whatever the scale.
        return _decimal_from(<int32_t>word, p[0])
    raise TableSyntaxError(f"unknown field type 0x{kind:02x}")


cdef object _decimal_from(int64_t unscaled, int scale):
    return _Decimal((1 if unscaled < 0 else 0, tuple([int(d) for d in str(abs(unscaled))]), -scale))


# A time that datetime cannot express stays a number: one strange message must not stop a consumer.
cdef object _from_timestamp(uint64_t seconds):
    if seconds > 253402300799:
        return seconds
    return _EPOCH + _timedelta(seconds=seconds)


cdef Cursor _cursor(const uint8_t* data, Py_ssize_t n, Py_ssize_t depth, Py_ssize_t entries) noexcept:
    cdef Cursor c
    c.at = data
    c.end = data + n
    c.depth = c.max_depth = depth
    c.entries = c.max_entries = entries
    return c


def decode_table(bytes data not None, *, Py_ssize_t max_depth=DEFAULT_TABLE_DEPTH,
                 Py_ssize_t max_entries=DEFAULT_TABLE_ENTRIES):
    """Decodes one field table that fills `data`.

    Args:
        data: The table with its length in front.
        max_depth: How many tables and arrays may stand in each other.
        max_entries: How many values all of them may hold together.

    Returns:
        The table as a dict. Strings that are not UTF-8 keep their bytes as surrogate escapes; a timestamp past
        the year 9999 stays an int.

    Raises:
        TableSyntaxError: The table is malformed or over a limit.
    """
    cdef Cursor c = _cursor(<uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), max_depth, max_entries)
    table = _read_table(&c)
    if c.at != c.end:
        raise TableSyntaxError(f"{c.end - c.at} bytes follow the table")
    return table


def decode_arguments(str types not None, bytes payload not None, *, Py_ssize_t max_depth=DEFAULT_TABLE_DEPTH,
                     Py_ssize_t max_entries=DEFAULT_TABLE_ENTRIES):
    """Decodes the arguments of a method frame.

    Args:
        types: As for `encode_method`.
        payload: The frame's payload behind class and method.
        max_depth: How many tables and arrays may stand in each other.
        max_entries: How many values all tables may hold together.

    Returns:
        A tuple of the arguments.

    Raises:
        TableSyntaxError: The payload is too short, too long, or over a limit.
    """
    cdef Cursor c = _cursor(<uint8_t*>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), max_depth, max_entries)
    cdef list values = []
    cdef Py_UCS4 kind
    cdef int bit = 0
    cdef uint8_t octet = 0
    cdef const uint8_t* p
    cdef Py_ssize_t n = 0
    for kind in types:
        if kind == u"t":
            if bit == 0:
                _need(&c, 1, "a bit argument")
                octet = c.at[0]
                c.at += 1
            values.append((octet >> bit) & 1 == 1)
            bit = (bit + 1) & 7
            continue
        bit = 0
        if kind == u"s":
            values.append(_read_shortstr(&c, "a short string argument"))
        elif kind == u"o":
            _need(&c, 1, "an octet argument")
            values.append(c.at[0])
            c.at += 1
        elif kind == u"h":
            _need(&c, 2, "a short argument")
            values.append(lv_get16(c.at))
            c.at += 2
        elif kind == u"l":
            _need(&c, 4, "a long argument")
            values.append(lv_get32(c.at))
            c.at += 4
        elif kind == u"q":
            _need(&c, 8, "a longlong argument")
            values.append(lv_get64(c.at))
            c.at += 8
        elif kind == u"S":
            p = _read_long(&c, &n, "a long string argument")
            values.append(PyBytes_FromStringAndSize(<char*>p, n))
        elif kind == u"T":
            values.append(_read_table(&c))
        else:
            raise ValueError(f"unknown argument type {kind!r}")
    if c.at != c.end:
        raise TableSyntaxError(f"{c.end - c.at} bytes follow the arguments")
    return tuple(values)


# ---------------------------------------------------------------------------------------------- properties

@cython.final
cdef class Properties:
    """The properties of a message (AMQP 0-9-1 section 1.8.1), each None when absent.

    Args:
        content_type: MIME type of the body, for example `application/json`.
        content_encoding: For example `gzip`.
        headers: A mapping; see `encode_table` for the values.
        delivery_mode: 1 transient, 2 persistent.
        priority: 0 to 255.
        correlation_id: The message this one answers.
        reply_to: Where an answer should go.
        expiration: The wire's form: milliseconds as decimal digits.
        message_id: The application's id.
        timestamp: Seconds since 1970, or a datetime with a time zone.
        type: The application's message type.
        user_id: Checked by the broker against the connection's user.
        app_id: The application's name.
        cluster_id: Deprecated by the specification.
    """

    def __cinit__(self, *, content_type=None, content_encoding=None, headers=None, delivery_mode=None, priority=None,
                  correlation_id=None, reply_to=None, expiration=None, message_id=None, timestamp=None, type=None,
                  user_id=None, app_id=None, cluster_id=None):
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.headers = headers
        self.delivery_mode = delivery_mode
        self.priority = priority
        self.correlation_id = correlation_id
        self.reply_to = reply_to
        self.expiration = expiration
        self.message_id = message_id
        self.timestamp = timestamp
        self.type = type
        self.user_id = user_id
        self.app_id = app_id
        self.cluster_id = cluster_id

    def _tuple(self):
        return (self.content_type, self.content_encoding, self.headers, self.delivery_mode, self.priority,
                self.correlation_id, self.reply_to, self.expiration, self.message_id, self.timestamp, self.type,
                self.user_id, self.app_id, self.cluster_id)

    def __eq__(self, other):
        if not isinstance(other, Properties):
            return NotImplemented
        return self._tuple() == other._tuple()

    __hash__ = None

    def __repr__(self):
        # Names only: values may be secrets.
        names = [n for n in _PROPERTY_NAMES if getattr(self, n) is not None]
        return f"Properties({', '.join(names)})"

    def encode(self):
        """Packs the flags and the values that are present.

        Returns:
            The bytes that follow the body size in a content header frame (AMQP 0-9-1 section 4.2.6.1).

        Raises:
            EncodeFailed: A value does not fit; the text names the property.
        """
        cdef Writer w = Writer()
        cdef uint16_t flags = 0
        w.put16(0)
        if self.content_type is not None:
            flags |= 0x8000
            w.put_shortstr(self.content_type, "content_type")
        if self.content_encoding is not None:
            flags |= 0x4000
            w.put_shortstr(self.content_encoding, "content_encoding")
        if self.headers is not None:
            flags |= 0x2000
            w.put_table("headers", self.headers, 1)
        if self.delivery_mode is not None:
            if not isinstance(self.delivery_mode, int) or not 1 <= self.delivery_mode <= 2:
                raise EncodeFailed(
                    f"delivery_mode is 1 (transient) or 2 (persistent), not {_shown(self.delivery_mode)}")
            flags |= 0x1000
            w.put8(self.delivery_mode)
        if self.priority is not None:
            if not isinstance(self.priority, int) or not 0 <= self.priority <= 255:
                raise EncodeFailed(f"priority is 0 to 255, not {_shown(self.priority)}")
            flags |= 0x0800
            w.put8(self.priority)
        if self.correlation_id is not None:
            flags |= 0x0400
            w.put_shortstr(self.correlation_id, "correlation_id")
        if self.reply_to is not None:
            flags |= 0x0200
            w.put_shortstr(self.reply_to, "reply_to")
        if self.expiration is not None:
            flags |= 0x0100
            w.put_shortstr(self.expiration, "expiration")
        if self.message_id is not None:
            flags |= 0x0080
            w.put_shortstr(self.message_id, "message_id")
        if self.timestamp is not None:
            flags |= 0x0040
            try:
                w.put64(_to_timestamp(self.timestamp, "timestamp"))
            except (OverflowError, TypeError):
                raise EncodeFailed("timestamp is whole seconds since 1970, 0 to 2^64-1, or a datetime") from None
        if self.type is not None:
            flags |= 0x0020
            w.put_shortstr(self.type, "type")
        if self.user_id is not None:
            flags |= 0x0010
            w.put_shortstr(self.user_id, "user_id")
        if self.app_id is not None:
            flags |= 0x0008
            w.put_shortstr(self.app_id, "app_id")
        if self.cluster_id is not None:
            flags |= 0x0004
            w.put_shortstr(self.cluster_id, "cluster_id")
        lv_put16(w.data, flags)
        return w.take()


cdef tuple _PROPERTY_NAMES = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id")


def decode_properties(bytes raw not None, *, Py_ssize_t max_depth=DEFAULT_TABLE_DEPTH,
                      Py_ssize_t max_entries=DEFAULT_TABLE_ENTRIES):
    """Decodes what `Properties.encode` makes.

    Args:
        raw: Flags and values.
        max_depth: As for `decode_table`.
        max_entries: As for `decode_table`.

    Returns:
        The `Properties`. `timestamp` stays an int, whatever its value.

    Raises:
        TableSyntaxError: The block is malformed or over a limit.
    """
    cdef Cursor c = _cursor(<uint8_t*>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), max_depth, max_entries)
    cdef Properties p = Properties.__new__(Properties)
    cdef uint16_t flags
    _need(&c, 2, "the property flags")
    flags = lv_get16(c.at)
    c.at += 2
    if flags & 3:
        # Bit 0 announces more flags and bit 1 is no property; basic has 14 properties.
        raise TableSyntaxError(f"property flags 0x{flags:04x} name properties that the basic class does not have")
    if flags & 0x8000:
        p.content_type = _read_shortstr(&c, "content_type")
    if flags & 0x4000:
        p.content_encoding = _read_shortstr(&c, "content_encoding")
    if flags & 0x2000:
        p.headers = _read_table(&c)
    if flags & 0x1000:
        _need(&c, 1, "delivery_mode")
        p.delivery_mode = c.at[0]
        c.at += 1
    if flags & 0x0800:
        _need(&c, 1, "priority")
        p.priority = c.at[0]
        c.at += 1
    if flags & 0x0400:
        p.correlation_id = _read_shortstr(&c, "correlation_id")
    if flags & 0x0200:
        p.reply_to = _read_shortstr(&c, "reply_to")
    if flags & 0x0100:
        p.expiration = _read_shortstr(&c, "expiration")
    if flags & 0x0080:
        p.message_id = _read_shortstr(&c, "message_id")
    if flags & 0x0040:
        _need(&c, 8, "timestamp")
        p.timestamp = lv_get64(c.at)
        c.at += 8
    if flags & 0x0020:
        p.type = _read_shortstr(&c, "type")
    if flags & 0x0010:
        p.user_id = _read_shortstr(&c, "user_id")
    if flags & 0x0008:
        p.app_id = _read_shortstr(&c, "app_id")
    if flags & 0x0004:
        p.cluster_id = _read_shortstr(&c, "cluster_id")
    if c.at != c.end:
        raise TableSyntaxError(f"{c.end - c.at} bytes follow the properties")
    return p


# ---------------------------------------------------------------------------------------------- events

cdef object _UNDECODED = object()


# Bodies whose messages are gone and that nobody else holds, for the messages that come next: what was just used is in
# the processor's cache, and the allocator is slow for sizes over half a KiB. Only those of `_spare_body` get here.
cdef PyObject* _spare_bodies[MOST_SPARE_BODIES]
cdef Py_ssize_t _spare_count = 0


# How much memory a body of this size gets: eight sizes between a power of two and the next.
cdef inline Py_ssize_t _spare_room(Py_ssize_t size) noexcept:
    cdef Py_ssize_t step = 64
    while step <= size >> 4:
        step <<= 1
    return (size + step - 1) & -step


cdef object _spare_body(const uint8_t* data, Py_ssize_t size):
    global _spare_count
    cdef Py_ssize_t room = _spare_room(size)
    cdef PyObject* raw
    cdef object body = None
    if _spare_count:
        _spare_count -= 1
        raw = _spare_bodies[_spare_count]
        if _spare_room(PyBytes_GET_SIZE(<object>raw)) == room:
            body = <object>raw
        # Ours is the only reference now. One of another size makes room for the sizes that come now.
        _drop(raw)
    if body is None:
        body = PyBytes_FromStringAndSize(NULL, room)
    set_bytes_size(body, size)
    memcpy(PyBytes_AS_STRING(body), data, size)
    return body


@cython.final
@cython.freelist(512)
cdef class Message:
    """A message from the broker.

    Its properties stay packed until one of them is asked for, and its value until `value` is.

    Attributes:
        body: The bytes as they came, or None when the message was larger than the reader's limit. A read-only
            memoryview of bytes where `FrameReader.view_bodies` asked for it: it stays valid and as it is for as long as
            it, or a slice of it, is held. Its `obj` is a bytes object with the same bytes.
        body_size: The size that the content header declared, in bytes.
        delivery_tag: Its number on the channel, for acknowledgements; 0 for returned messages.
        redelivered: The broker tried to deliver it before. False does not mean that it is new: a publisher
            that was not sure may have published it twice.
        exchange: Where it was published.
        routing_key: The routing key it was published with.
        consumer_tag: The consumer it was delivered to; empty for `get` and returns.
        raw_properties: The packed properties, as they came.
        message_count: For `get`: how many messages the queue still had.
        reply_code: For returned messages: why.
        reply_text: For returned messages: why.
        channel: The channel number.
        method_id: The basic method it came with: 60 deliver, 71 get-ok, 50 return, 40 publish.
        mandatory: For basic.publish: the mandatory bit.
        immediate: For basic.publish: the immediate bit.
        received_at: When a consumer took it from the socket, in seconds of the event loop's clock (`loop.time`).
    """

    def __dealloc__(self):
        global _spare_count
        cdef PyObject* raw = <PyObject*>self.body
        if self.spare_body and _spare_count < MOST_SPARE_BODIES and raw is not NULL and Py_REFCNT(raw) == 1:
            Py_INCREF(self.body)
            _spare_bodies[_spare_count] = raw
            _spare_count += 1

    @property
    def queue(self):
        """The queue of the consumer that took it, or None."""
        return None if self.owner is None else self.owner.queue

    @property
    def properties(self):
        """The decoded `Properties`.

        Raises:
            TableSyntaxError: They are malformed; the message itself is usable.
        """
        if self.decoded is None:
            self.decoded = decode_properties(self.raw_properties, max_depth=self.max_table_depth,
                                             max_entries=self.max_table_entries)
        return self.decoded

    @property
    def headers(self):
        """The message's headers as a dict, empty when it has none."""
        cdef Properties p = self.properties
        if p.headers is None:
            p.headers = {}
        return p.headers

    @property
    def content_type(self):
        """The MIME type of the body, or None."""
        return self.properties.content_type

    @property
    def content_encoding(self):
        """How the body is encoded, or None."""
        return self.properties.content_encoding

    @property
    def correlation_id(self):
        """The correlation id, or None."""
        return self.properties.correlation_id

    @property
    def reply_to(self):
        """Where an answer should go, or None."""
        return self.properties.reply_to

    @property
    def message_id(self):
        """The application's message id, or None."""
        return self.properties.message_id

    @property
    def timestamp(self):
        """Seconds since 1970 as the publisher set them, or None."""
        return self.properties.timestamp

    @property
    def type(self):
        """The application's message type, or None."""
        return self.properties.type

    @property
    def priority(self):
        """The priority, 0 to 255, or None."""
        return self.properties.priority

    @property
    def value(self):
        """The body decoded by its content type into the consumer's model; decoded once.

        Raises:
            DecodeFailed: The body is not what its content type or the model says.
            ContentTypeNotAccepted: No accepted serializer has this content type.
            BodyTooLarge: The body was larger than the reader's limit and was not kept.
        """
        if self.decoded_value is _UNDECODED:
            if self.owner is None:
                return self.body
            self.decoded_value = self.owner.decode(self)
        return self.decoded_value

    @property
    def is_settled(self):
        """False while it can be settled: neither was it, nor is the channel gone that it came on."""
        return self.owner is None or not self.owner.is_open(self)

    cdef object settle(self, str verb):
        if self.owner is None:
            raise LocalProtocolError("this message did not come from a consumer that acknowledges")
        return self.owner.settle(self, verb)

    def ack(self):
        """Acknowledges the message: the broker forgets it.

        The acknowledgement is appended to the next write. It may be await-ed, which does not wait for anything.

        Returns:
            An object that is true when this call settled the message, and false when it was settled before or its
            channel is gone.
        """
        return self.settle("ack")

    def retry(self):
        """Gives the message back as failed (basic.reject with requeue); counts towards a delivery limit."""
        return self.settle("retry")

    def release(self):
        """Gives the message back unprocessed (basic.nack with requeue)."""
        return self.settle("release")

    def dead_letter(self):
        """Refuses the message (basic.reject): it goes to the queue's dead-letter exchange, or is dropped."""
        return self.settle("dead_letter")

    def _copy(self, *, bint redelivered=False):
        """A copy that shares body and properties: for the same message in another queue."""
        cdef Message m = Message.__new__(Message)
        if not PyObject_GC_IsTracked(self):
            PyObject_GC_UnTrack(<void*>m)
        m.body = self.body
        m.body_size = self.body_size
        m.exchange = self.exchange
        m.routing_key = self.routing_key
        m.consumer_tag = self.consumer_tag
        m.reply_text = self.reply_text
        m.raw_properties = self.raw_properties
        m.channel = self.channel
        m.method_id = self.method_id
        m.mandatory = self.mandatory
        m.redelivered = redelivered
        m.max_table_depth = self.max_table_depth
        m.max_table_entries = self.max_table_entries
        m.decoded_value = _UNDECODED
        return m

    def __len__(self):
        return self.body_size

    def __bool__(self):
        return True

    def __repr__(self):
        return (f"<Message tag={self.delivery_tag} exchange={self.exchange[:80]!r} "
                f"routing_key={self.routing_key[:80]!r} size={self.body_size}>")


cdef inline Message _new_message():
    cdef Message m = Message.__new__(Message)
    m.decoded_value = _UNDECODED
    m.exchange = m.routing_key = m.consumer_tag = m.reply_text = ""
    return m


@cython.final
@cython.freelist(64)
cdef class ContentRun:
    """Messages that followed each other on one channel, to one consumer or with one exchange and routing key.

    Attributes:
        channel: The channel number.
        method_id: 60 deliver, 71 get-ok, 50 return, 40 publish.
        consumer_tag: For deliveries: of all of them.
        exchange: Of the first message; of all of them for basic.publish.
        routing_key: Of the first message; of all of them for basic.publish.
        mandatory: For basic.publish: of all of them.
        immediate: For basic.publish: of all of them.
        common_properties: The packed properties of all of them, one object; None when they differ or a body was
            too large to be kept.
        messages: At least one `Message`.
    """

    def __repr__(self):
        return f"<ContentRun channel={self.channel} method={self.method_id} of {len(self.messages)}>"


@cython.final
@cython.freelist(64)
cdef class SettlementRun:
    """Acknowledgements that followed each other on one channel: basic.ack, basic.nack and basic.reject.

    Iterating gives `(delivery_tag, multiple, nack, requeue)` for each.

    Attributes:
        channel: The channel number.
    """

    def __cinit__(self):
        self.tags = NULL
        self.flags = NULL
        self.count = self.capacity = 0

    def __dealloc__(self):
        free(self.tags)
        free(self.flags)

    cdef int add(self, uint64_t tag, uint8_t flags) except -1:
        cdef Py_ssize_t capacity
        cdef void* memory
        if self.count == self.capacity:
            capacity = max(8, self.capacity * 2)
            memory = realloc(self.tags, capacity * sizeof(uint64_t))
            if memory is NULL:
                raise MemoryError()
            self.tags = <uint64_t*>memory
            memory = realloc(self.flags, capacity)
            if memory is NULL:
                raise MemoryError()
            self.flags = <uint8_t*>memory
            self.capacity = capacity
        self.tags[self.count] = tag
        self.flags[self.count] = flags
        self.count += 1
        return 0

    @staticmethod
    def of(uint16_t channel, entries):
        """Makes a run from `(delivery_tag, multiple, nack, requeue)` tuples."""
        cdef SettlementRun run = SettlementRun.__new__(SettlementRun)
        run.channel = channel
        for tag, multiple, nack, requeue in entries:
            run.add(tag, (SETTLE_MULTIPLE if multiple else 0) | (SETTLE_NACK if nack else 0)
                    | (SETTLE_REQUEUE if requeue else 0))
        return run

    def __len__(self):
        return self.count

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            yield (self.tags[i], self.flags[i] & SETTLE_MULTIPLE != 0, self.flags[i] & SETTLE_NACK != 0,
                   self.flags[i] & SETTLE_REQUEUE != 0)

    def __repr__(self):
        return f"<SettlementRun channel={self.channel} of {self.count}>"


@cython.final
@cython.freelist(16)
cdef class MethodFrame:
    """A method frame of the control plane, its arguments still packed.

    Attributes:
        channel: The channel number.
        class_id: The class.
        method_id: The method.
        payload: The arguments, for `decode_arguments`.
    """

    def __repr__(self):
        return f"<MethodFrame channel={self.channel} {self.class_id}.{self.method_id} of {len(self.payload)} bytes>"


# ---------------------------------------------------------------------------------------------- the reader

# Strings come from the reader's cache, so equal ones are nearly always one object.
cdef inline bint _same(str a, str b) except -1:
    return a is b or a == b


# The content that a channel is in the middle of.
@cython.final
cdef class _Assembly:
    cdef Message message
    cdef object body          # bytes under construction; nobody else holds it
    cdef uint64_t received
    cdef Py_ssize_t room
    cdef bint header_due
    cdef bint discard
    cdef uint64_t view_size   # of the smallest body that is handed over as a view; 0 for none
    cdef bint viewed          # the body that is being read is one of them
    cdef bint pooled          # and `body` is a block of the pool


@cython.final
cdef class FrameReader:
    """Turns received bytes into events, all that are complete, in one call.

    An event is a `ContentRun`, a `SettlementRun`, a `MethodFrame`, or, once and only with
    `protocol_header=True`, the eight bytes with which a client begins. Heartbeats make no event: the
    `received_bytes` count says that the peer is alive.

    Args:
        server: Read as a server: basic.publish carries content. As a client deliver, return and get-ok do.
        protocol_header: Expect a client's protocol header first.
        frame_max: The largest frame accepted, in bytes with its 8 bytes of overhead. 4096 until tune, as
            AMQP 0-9-1 section 4.2.3 has it; set it to the negotiated value afterwards.
        max_body_size: Messages with a larger body are reported without it (`Message.body` is None); their
            frames are read and dropped.
        max_table_depth: How many tables may stand in each other in a message's headers.
        max_table_entries: How many values a message's headers may hold together.
        capacity: Bytes of the receive buffer to start with.
        body_pool: Where `view_bodies` takes memory from; None for a pool of its own. Several readers of one thread may
            share one.

    Attributes:
        body_pool: As given, or None until `view_bodies` is called.
        error: The error that ended the stream, set once; the events before it were returned.
    """

    cdef RecvBuffer buffer
    cdef readonly bint server
    cdef bint header_due
    cdef uint32_t _frame_max
    cdef readonly uint64_t max_body_size
    cdef readonly uint16_t max_table_depth
    cdef readonly uint32_t max_table_entries
    cdef readonly object error
    cdef readonly uint64_t received_frames
    cdef readonly BodyPool body_pool
    cdef dict assemblies
    cdef _Assembly last
    cdef int last_channel
    cdef list strings
    cdef bytes last_properties
    # The whole frame of the last basic.deliver, or as a server basic.publish, and the names in it.
    cdef uint8_t[MAX_METHOD] known
    cdef Py_ssize_t known_size
    cdef Py_ssize_t known_tag_at
    cdef uint16_t known_method_id
    cdef str known_consumer_tag
    cdef str known_exchange
    cdef str known_routing_key
    cdef ContentRun content_run
    cdef SettlementRun settlement_run
    cdef list events

    def __cinit__(self, *, bint server=False, bint protocol_header=False,
                  uint32_t frame_max=DEFAULT_FRAME_MAX_BEFORE_TUNE, uint64_t max_body_size=DEFAULT_MAX_BODY_SIZE,
                  uint16_t max_table_depth=DEFAULT_TABLE_DEPTH, uint32_t max_table_entries=DEFAULT_TABLE_ENTRIES,
                  Py_ssize_t capacity=262144, BodyPool body_pool=None):
        self.buffer = RecvBuffer(capacity)
        self.body_pool = body_pool
        self.server = server
        self.header_due = protocol_header
        self.max_body_size = max_body_size
        self.max_table_depth = max_table_depth
        self.max_table_entries = max_table_entries
        self.error = None
        self.assemblies = {}
        self.last = None
        self.last_channel = -1
        self.strings = [None] * STRING_CACHE
        self.last_properties = b"\x00\x00"
        self.known_size = 0
        self.frame_max = frame_max

    @property
    def frame_max(self):
        """The largest frame accepted, in bytes with its overhead."""
        return self._frame_max

    @frame_max.setter
    def frame_max(self, uint32_t value):
        if value < 4096:
            raise FrameError(f"frame_max {value} is below the protocol's minimum of 4096 bytes")
        self._frame_max = value

    @property
    def received_bytes(self):
        """All bytes read so far."""
        return self.buffer.received_bytes

    def get_buffer(self, Py_ssize_t sizehint):
        """Memory for the next read (`asyncio.BufferedProtocol.get_buffer`)."""
        return self.buffer.get_buffer(sizehint)

    cpdef list received(self, Py_ssize_t n):
        """Parses after `n` bytes were read into the memory of `get_buffer`.

        Returns:
            A list of events, often empty. When the stream turned out to be corrupt the events before that are
            returned and `error` is set.
        """
        self.buffer.written(n)
        return self._parse()

    def feed(self, data):
        """Parses after copying `data`, for callers without `get_buffer`. Returns what `received` returns."""
        self.buffer.feed(data)
        return self._parse()

    cdef list _parse(self):
        cdef list events = []
        if self.error is None:
            self.events = events
            try:
                self._frames()
            except RemoteProtocolError as error:
                self.error = error
            except BaseException:
                # Out of memory, with a frame half taken in: nothing that follows could be trusted.
                self.error = RemoteProtocolError("reading ended for lack of memory", reply_code=506)
                raise
            finally:
                self.events = None
                self.content_run = None
                self.settlement_run = None
        if self.error is not None:
            # The stream is over. What comes now is dropped, and what was half read let go.
            self.buffer.start = self.buffer.end = 0
            self.assemblies.clear()
            self.last = None
            self.last_channel = -1
            if self.body_pool is not None:
                self.body_pool.clear()
        return events

    # type(1) channel(2) size(4) payload(size) end(1), AMQP 0-9-1 section 4.2.3
    cdef int _frames(self) except -1:
        cdef RecvBuffer buf = self.buffer
        cdef const uint8_t* p
        cdef Py_ssize_t left, size
        cdef uint32_t declared
        cdef uint8_t kind
        cdef uint16_t channel
        if self.header_due and not self._protocol_header():
            return 0
        while True:
            left = buf.end - buf.start
            if left == 0:
                return 0
            p = buf.data + buf.start
            kind = p[0]
            if kind == FRAME_METHOD and self.known_size and self._known_content(p, left):
                continue
            if kind != FRAME_METHOD and kind != FRAME_HEADER and kind != FRAME_BODY and kind != FRAME_HEARTBEAT:
                self._refuse_first_octet(p, left)
                return 0
            if left < 7:
                return 0
            channel = lv_get16(p + 1)
            declared = lv_get32(p + 3)
            # Unsigned, so that no length is negative where pointers have 32 bits; frame_max is at least 4096.
            if declared > self._frame_max - FRAME_OVERHEAD:
                raise FrameError(f"a frame of {<uint64_t>declared + FRAME_OVERHEAD} bytes on channel {channel} is "
                                 f"larger than the limit of {self._frame_max}")
            size = <Py_ssize_t>declared
            if left < size + FRAME_OVERHEAD:
                buf.make_room(size + FRAME_OVERHEAD - left)
                return 0
            if p[7 + size] != FRAME_END:
                raise FrameError(f"a frame on channel {channel} ends with 0x{p[7 + size]:02x}, not 0xce")
            # Consumed before it is looked at: an error never leaves a frame to be parsed twice.
            buf.start += size + FRAME_OVERHEAD
            self.received_frames += 1
            p += 7
            if kind == FRAME_METHOD:
                self._method(channel, p, size)
            elif kind == FRAME_HEADER:
                self._header(channel, p, size)
            elif kind == FRAME_BODY:
                self._body(channel, p, size)
            elif channel != 0 or size != 0:
                raise FrameError(f"a heartbeat of {size} bytes on channel {channel}")

    # The usual delivery or publishing: its method frame is that of the one before, but for the delivery tag, and its
    # body is one frame that is here. Returns false, having done nothing, for every other; whatever is wrong is found on
    # the long way.
    cdef bint _known_content(self, const uint8_t* p, Py_ssize_t left) except -1:
        cdef _Assembly a
        cdef Message m
        cdef const uint8_t* header = p + self.known_size
        cdef const uint8_t* body
        cdef Py_ssize_t size
        cdef Py_ssize_t tag_at = self.known_tag_at
        cdef uint64_t body_size
        # Both frames, the header without any properties, and what is around the body.
        left -= self.known_size + 14 + 2 * FRAME_OVERHEAD
        if left < 0:
            return False
        if tag_at == 0:
            if memcmp(p, self.known, self.known_size) != 0:
                return False
        elif (memcmp(p, self.known, tag_at) != 0
              or memcmp(p + tag_at + 9, self.known + tag_at + 9, self.known_size - tag_at - 9) != 0):
            return False
        if (header[0] != FRAME_HEADER or memcmp(header + 1, p + 1, 2) != 0
                or lv_get32(header + 7) != <uint32_t>BASIC << 16):
            return False
        size = <Py_ssize_t>min(lv_get32(header + 3), <uint32_t>0x7FFFFFFF)
        left -= size - 14
        if size < 14 or left < 0 or <uint32_t>size > self._frame_max - FRAME_OVERHEAD:
            return False
        body = header + size + FRAME_OVERHEAD
        body_size = lv_get64(header + 11)
        if (body_size == 0 or body_size > <uint64_t>left or body_size > self.max_body_size
                or body_size > self._frame_max - FRAME_OVERHEAD or body[0] != FRAME_BODY
                or memcmp(body + 1, p + 1, 2) != 0 or lv_get32(body + 3) != body_size
                or body[7 + body_size] != FRAME_END or (body - 1)[0] != FRAME_END):
            return False
        a = self._assembly(lv_get16(p + 1))
        # Views are made on the long way, too.
        if a.message is not None or 0 < a.view_size <= body_size:
            return False
        m = self._message(lv_get16(p + 1), self.known_method_id)
        m.exchange = self.known_exchange
        m.routing_key = self.known_routing_key
        if tag_at:
            m.consumer_tag = self.known_consumer_tag
            m.delivery_tag = lv_get64(p + tag_at)
            m.redelivered = p[tag_at + 8] & 1
        else:
            m.mandatory = (header - 2)[0] & 1
            m.immediate = ((header - 2)[0] >> 1) & 1
        m.raw_properties = self._properties(header + 19, size - 12)
        m.body_size = body_size
        if POOLS_BODIES and LEAST_SPARE_BODY <= body_size <= MOST_SPARE_BODY and not self.server:
            m.body = _spare_body(body + 7, <Py_ssize_t>body_size)
            m.spare_body = True
        else:
            m.body = PyBytes_FromStringAndSize(<char*>body + 7, <Py_ssize_t>body_size)
        self.buffer.start += self.known_size + size + 2 * FRAME_OVERHEAD + <Py_ssize_t>body_size
        self.received_frames += 3
        a.message = m
        self._complete(a)
        return True

    # Keeps the method frame around these arguments, 11 bytes before them and one behind, for the next message.
    cdef void _know(self, Message m, const uint8_t* arguments, Py_ssize_t size, Py_ssize_t tag_at) noexcept:
        self.known_size = size + 12
        self.known_tag_at = tag_at
        self.known_method_id = m.method_id
        self.known_consumer_tag = m.consumer_tag
        self.known_exchange = m.exchange
        self.known_routing_key = m.routing_key
        memcpy(self.known, arguments - 11, self.known_size)

    cdef bint _protocol_header(self) except -1:
        cdef RecvBuffer buf = self.buffer
        cdef Py_ssize_t left = buf.end - buf.start
        cdef Py_ssize_t n = min(left, 4)
        if memcmp(buf.data + buf.start, b"AMQP", n) != 0:
            raise IncompatibleProtocol("the client did not begin with an AMQP protocol header")
        if left < 8:
            return False
        self.events.append(PyBytes_FromStringAndSize(<char*>buf.data + buf.start, 8))
        buf.start += 8
        self.header_due = False
        return True

    # The peer is no AMQP server, or one that answers a version it does not speak with its own header.
    cdef int _refuse_first_octet(self, const uint8_t* p, Py_ssize_t left) except -1:
        cdef bytes start = PyBytes_FromStringAndSize(<char*>p, min(left, 8))
        if self.received_frames == 0 and b"AMQP".startswith(start[:4]):
            if left < 8:
                return 0
            raise IncompatibleProtocol(f"the server speaks AMQP {start[5]}-{start[6]}-{start[7]} (protocol id "
                                       f"{start[4]}), not 0-9-1")
        if self.received_frames == 0:
            raise IncompatibleProtocol(f"the peer does not speak AMQP: it began with {start!r}")
        raise FrameError(f"unknown frame type {p[0]}")

    cdef _Assembly _assembly(self, uint16_t channel):
        cdef _Assembly a
        if self.last_channel == channel:
            return self.last
        a = self.assemblies.get(channel)
        if a is None:
            a = _Assembly.__new__(_Assembly)
            self.assemblies[channel] = a
        self.last = a
        self.last_channel = channel
        return a

    def forget(self, uint16_t channel):
        """Drops what is half read on a channel that was closed, and what `view_bodies` asked for it."""
        cdef _Assembly a = self.assemblies.pop(channel, None)
        if self.last_channel == channel:
            self.last = None
            self.last_channel = -1
        if a is not None and a.view_size:
            self._end_views()

    def view_bodies(self, uint16_t channel, uint64_t min_size):
        """Has large bodies of a channel handed over as memoryviews of pooled memory, from the next content header on.

        Returned messages keep bytes: they are compared with what was published.

        Args:
            channel: The channel number. `forget` ends it.
            min_size: Bodies of at least so many bytes are views; 0 ends it.

        Raises:
            ValueError: The reader is a server's. What a broker takes in it sends again, and it sends bytes objects.
        """
        cdef _Assembly a
        if self.server:
            raise ValueError("a server's reader hands bodies over as bytes")
        if self.body_pool is None:
            self.body_pool = BodyPool()
        a = self._assembly(channel)
        a.view_size = min_size
        if min_size == 0:
            self._end_views()

    # When the last channel that had views does no more, the pool's memory is of no use.
    cdef int _end_views(self) except -1:
        cdef _Assembly a
        for a in self.assemblies.values():
            if a.view_size:
                return 0
        self.body_pool.clear()
        return 0

    # Names repeat from message to message; equal bytes give the same str object.
    cdef str _name(self, Cursor* c, str what):
        cdef Py_ssize_t n, i
        cdef uint32_t h = 2166136261
        cdef uint32_t other
        cdef const uint8_t* p
        cdef object entry
        cdef bytes raw
        _need(c, 1, what)
        n = c.at[0]
        c.at += 1
        _need(c, n, what)
        p = c.at
        c.at += n
        if n == 0:
            return ""
        for i in range(n):
            h = (h ^ p[i]) * 16777619
        h = (h ^ (h >> 16)) & (STRING_CACHE - 1)
        # Each has two places: if names that alternate shared one, every message would make them anew.
        for other in range(2):
            entry = (<list>self.strings)[h ^ other]
            if entry is not None:
                raw = <bytes>(<tuple>entry)[0]
                if PyBytes_GET_SIZE(raw) == n and memcmp(PyBytes_AS_STRING(raw), p, n) == 0:
                    return <str>(<tuple>entry)[1]
        text = _text(p, n)
        (<list>self.strings)[h ^ 1] = (<list>self.strings)[h]
        (<list>self.strings)[h] = (PyBytes_FromStringAndSize(<char*>p, n), text)
        return text

    cdef int _method(self, uint16_t channel, const uint8_t* p, Py_ssize_t size) except -1:
        cdef uint16_t class_id, method_id
        cdef _Assembly a
        cdef MethodFrame frame
        if size < 4:
            raise FrameError(f"a method frame of {size} bytes on channel {channel}")
        if channel != 0:
            a = self._assembly(channel)
            if a.message is not None:
                raise RemoteProtocolError(f"a method frame inside the content of channel {channel}", reply_code=505)
        class_id = lv_get16(p)
        method_id = lv_get16(p + 2)
        if class_id == BASIC and channel != 0:
            if method_id == BASIC_ACK or method_id == BASIC_NACK or method_id == BASIC_REJECT:
                return self._settlement(channel, method_id, p + 4, size - 4)
            if self.server:
                if method_id == BASIC_PUBLISH:
                    return self._content(a, channel, method_id, p + 4, size - 4)
            elif method_id == BASIC_DELIVER or method_id == BASIC_GET_OK or method_id == BASIC_RETURN:
                return self._content(a, channel, method_id, p + 4, size - 4)
        frame = MethodFrame.__new__(MethodFrame)
        frame.channel = channel
        frame.class_id = class_id
        frame.method_id = method_id
        frame.payload = PyBytes_FromStringAndSize(<char*>p + 4, size - 4)
        self._event(frame)
        return 0

    cdef int _event(self, object event) except -1:
        self.content_run = None
        self.settlement_run = None
        PyList_Append(self.events, event)
        return 0

    # ack: tag, multiple; nack: tag, multiple | requeue << 1; reject: tag, requeue
    cdef int _settlement(self, uint16_t channel, uint16_t method_id, const uint8_t* p, Py_ssize_t size) except -1:
        cdef uint8_t flags
        cdef SettlementRun run = self.settlement_run
        if size != 9:
            raise TableSyntaxError(f"basic.{method_id} on channel {channel} has {size} bytes of arguments, not 9")
        if method_id == BASIC_ACK:
            flags = SETTLE_MULTIPLE if p[8] & 1 else 0
        elif method_id == BASIC_NACK:
            flags = SETTLE_NACK | (SETTLE_MULTIPLE if p[8] & 1 else 0) | (SETTLE_REQUEUE if p[8] & 2 else 0)
        else:
            flags = SETTLE_NACK | (SETTLE_REQUEUE if p[8] & 1 else 0)
        if run is None or run.channel != channel:
            run = SettlementRun.__new__(SettlementRun)
            run.channel = channel
            self._event(run)
            self.settlement_run = run
        return run.add(lv_get64(p), flags)

    cdef Message _message(self, uint16_t channel, uint16_t method_id):
        cdef Message m = _new_message()
        if self.server:
            # Nothing that a publishing refers to refers back to it, and a queue may hold a million of them, which the
            # garbage collector would walk through again and again.
            PyObject_GC_UnTrack(<void*>m)
        m.max_table_depth = self.max_table_depth
        m.max_table_entries = self.max_table_entries
        m.channel = channel
        m.method_id = method_id
        return m

    cdef int _content(self, _Assembly a, uint16_t channel, uint16_t method_id, const uint8_t* p,
                      Py_ssize_t size) except -1:
        cdef Cursor c = _cursor(p, size, 0, 0)
        cdef Message m = self._message(channel, method_id)
        if method_id == BASIC_DELIVER:
            m.consumer_tag = self._name(&c, "a consumer tag")
            _need(&c, 9, "basic.deliver")
            m.delivery_tag = lv_get64(c.at)
            m.redelivered = c.at[8] & 1
            c.at += 9
            m.exchange = self._name(&c, "an exchange name")
            m.routing_key = self._name(&c, "a routing key")
        elif method_id == BASIC_PUBLISH:
            _need(&c, 2, "basic.publish")
            c.at += 2
            m.exchange = self._name(&c, "an exchange name")
            m.routing_key = self._name(&c, "a routing key")
            _need(&c, 1, "basic.publish")
            m.mandatory = c.at[0] & 1
            m.immediate = (c.at[0] >> 1) & 1
            c.at += 1
        elif method_id == BASIC_RETURN:
            _need(&c, 2, "basic.return")
            m.reply_code = lv_get16(c.at)
            c.at += 2
            m.reply_text = self._name(&c, "a reply text")
            m.exchange = self._name(&c, "an exchange name")
            m.routing_key = self._name(&c, "a routing key")
        else:
            _need(&c, 9, "basic.get-ok")
            m.delivery_tag = lv_get64(c.at)
            m.redelivered = c.at[8] & 1
            c.at += 9
            m.exchange = self._name(&c, "an exchange name")
            m.routing_key = self._name(&c, "a routing key")
            _need(&c, 4, "basic.get-ok")
            m.message_count = lv_get32(c.at)
            c.at += 4
        if c.at != c.end:
            raise TableSyntaxError(f"{c.end - c.at} bytes follow the arguments of basic.{method_id}")
        if method_id == BASIC_PUBLISH:
            self._know(m, p, size, 0)
        elif method_id == BASIC_DELIVER:
            self._know(m, p, size, 12 + p[0])
        a.message = m
        a.header_due = True
        return 0

    # Properties repeat from message to message; equal bytes in a row give the same object.
    cdef bytes _properties(self, const uint8_t* p, Py_ssize_t size):
        if (size != PyBytes_GET_SIZE(self.last_properties)
                or memcmp(PyBytes_AS_STRING(self.last_properties), p, size) != 0):
            self.last_properties = PyBytes_FromStringAndSize(<char*>p, size)
        return self.last_properties

    # class(2) weight(2) body size(8) property flags(2) properties, AMQP 0-9-1 section 4.2.6.1
    cdef int _header(self, uint16_t channel, const uint8_t* p, Py_ssize_t size) except -1:
        cdef _Assembly a = self._assembly(channel)
        cdef Message m = a.message
        cdef uint64_t body_size
        if m is None or not a.header_due:
            raise RemoteProtocolError(f"a content header on channel {channel} that no method announced",
                                      reply_code=505)
        if size < 14:
            raise FrameError(f"a content header of {size} bytes on channel {channel}; the least is 14")
        if lv_get16(p) != BASIC:
            raise FrameError(f"a content header of class {lv_get16(p)} on channel {channel}, not {BASIC}")
        if lv_get16(p + 2) != 0:
            raise FrameError(f"a content header of weight {lv_get16(p + 2)} on channel {channel}, not 0")
        body_size = lv_get64(p + 4)
        if body_size >> 63:
            raise FrameError(f"a content header on channel {channel} declares {body_size} bytes")
        m.body_size = body_size
        m.raw_properties = self._properties(p + 12, size - 12)
        a.header_due = False
        a.received = 0
        a.body = None
        a.discard = body_size > self.max_body_size
        a.viewed = 0 < a.view_size <= body_size and m.method_id != BASIC_RETURN
        if body_size == 0:
            m.body = b""
            self._complete(a)
        return 0

    cdef int _body(self, uint16_t channel, const uint8_t* p, Py_ssize_t size) except -1:
        cdef _Assembly a = self._assembly(channel)
        cdef Message m = a.message
        if m is None or a.header_due:
            raise RemoteProtocolError(f"a content body on channel {channel} that no header announced", reply_code=505)
        if <uint64_t>size > m.body_size - a.received:
            raise FrameError(f"the content body on channel {channel} is longer than the {m.body_size} bytes its "
                             f"header declared")
        if size == 0:
            # Legal, says nothing, and must not count as the whole body.
            return 0
        if a.discard:
            pass
        elif <uint64_t>size == m.body_size and not a.viewed:
            m.body = PyBytes_FromStringAndSize(<char*>p, size)
        else:
            self._append(a, p, size)
        a.received += <uint64_t>size
        if a.received == m.body_size:
            if a.body is not None:
                m.body = self._view(a) if a.viewed else a.body
                a.body = None
            self._complete(a)
        return 0

    # The final bytes object grows with what arrives, so a header that lies costs its sender the bytes. A free block of
    # the pool is there anyway, and is taken whole.
    cdef int _append(self, _Assembly a, const uint8_t* p, Py_ssize_t size) except -1:
        cdef uint64_t total = a.message.body_size
        cdef Py_ssize_t have = <Py_ssize_t>a.received
        cdef Py_ssize_t room
        cdef PyObject* raw
        if a.viewed:
            if a.body is None:
                a.body = self.body_pool.take(total)
                a.pooled = a.body is not None
                if a.pooled:
                    a.room = <Py_ssize_t>total
            total = self.body_pool.room_for(total)
        if a.body is None:
            room = <Py_ssize_t>min(total, <uint64_t>max(FIRST_BODY_BLOCK, size))
            a.body = PyBytes_FromStringAndSize(NULL, room)
            a.room = room
        elif size > a.room - have:
            room = <Py_ssize_t>min(total, <uint64_t>max(2 * a.room, have + size))
            raw = <PyObject*>a.body
            Py_INCREF(a.body)
            a.body = None
            a.body = resize_bytes(raw, have, room)
            a.room = room
        memcpy(PyBytes_AS_STRING(a.body) + have, p, size)
        return 0

    # The whole of the body, as a view of an object that is as long as the body, so that the object may be used, too.
    cdef object _view(self, _Assembly a):
        cdef object block = a.body
        if not a.pooled:
            set_bytes_size(block, <Py_ssize_t>a.received)
            self.body_pool.keep(block, a.room)
        return PyMemoryView_FromObject(block)

    cdef int _complete(self, _Assembly a) except -1:
        cdef Message m = a.message
        cdef ContentRun run = self.content_run
        a.message = None
        if (run is not None and run.channel == m.channel and run.method_id == m.method_id
                and _same(run.consumer_tag, m.consumer_tag)
                and (m.method_id == BASIC_DELIVER
                     or (_same(run.exchange, m.exchange) and _same(run.routing_key, m.routing_key)
                         and run.mandatory == m.mandatory and run.immediate == m.immediate))):
            if run.common_properties is not m.raw_properties or m.body is None:
                run.common_properties = None
            PyList_Append(run.messages, m)
            return 0
        run = ContentRun.__new__(ContentRun)
        run.channel = m.channel
        run.method_id = m.method_id
        run.consumer_tag = m.consumer_tag
        run.exchange = m.exchange
        run.routing_key = m.routing_key
        run.mandatory = m.mandatory
        run.immediate = m.immediate
        run.common_properties = None if m.body is None else m.raw_properties
        run.messages = [m]
        self._event(run)
        self.content_run = run
        return 0


cdef class Stream:
    """What a transport does for each read and each write; `FrameTransport` has the rest.

    Args:
        session: Is told of events.
        reader: Parses what is received.

    Attributes:
        reader: As given.
        out: Where frames are appended, with `_schedule_flush` and `flush` for its calls; set by the subclass.
        closed: Nothing is written any more.
        channels: By number, those whose deliveries and confirms go to their owners without a look by the session, when
            they are all that a read brought. A channel has `consumers` by their tags, and a `publisher` or None.
    """

    cdef readonly FrameReader reader
    cdef public SendBuffer out
    cdef public bint closed
    cdef public dict channels
    cdef public object session
    cdef public object _transport
    cdef public object _loop
    cdef bint flush_scheduled

    def __cinit__(self, session, FrameReader reader not None, *args, **kwargs):
        self.session = session
        self.reader = reader
        self.channels = {}

    def buffer_updated(self, Py_ssize_t nbytes):
        """The reader's buffer holds `nbytes` more."""
        cdef list events = self.reader.received(nbytes)
        if PyList_GET_SIZE(events):
            # What this read brings about leaves in one write at its end, without another turn of the loop.
            self.out.attended = True
            try:
                if not (PyList_GET_SIZE(events) == 1 and self.handed_over(events[0])):
                    self.session.events_received(events)
            finally:
                self.out.attended = False
                self.flush()
        if self.reader.error is not None and not self.closed:
            self.session.stream_failed(self.reader.error)

    cdef bint handed_over(self, event) except -1:
        try:
            if type(event) is ContentRun:
                if (<ContentRun>event).method_id != BASIC_DELIVER:
                    return False
                channel = self.channels.get((<ContentRun>event).channel)
                owner = None if channel is None else channel.consumers.get((<ContentRun>event).consumer_tag)
                if owner is None:
                    return False
                owner.delivered(event)
            elif type(event) is SettlementRun:
                channel = self.channels.get((<SettlementRun>event).channel)
                owner = None if channel is None else channel.publisher
                if owner is None:
                    return False
                owner.settled(event)
            else:
                return False
        except Exception as error:
            self.session.event_failed(error)
        return True

    def flush(self):
        """Writes what was appended so far."""
        if self.out.in_pieces:
            pieces = self.out.take_pieces()
            if not self.closed and self._transport is not None:
                self._transport.writelines(pieces)
        elif self.out.used:
            block = self.out.take()
            if not self.closed and self._transport is not None:
                self._transport.write(block)

    def _schedule_flush(self):
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self._loop.call_soon(self._flush_turn)

    def _flush_turn(self):
        self.flush_scheduled = False
        self.flush()
