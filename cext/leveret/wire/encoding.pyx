"""Encodes Python values as arguments, field tables and method frames (AMQP 0-9-1 section 4.2.5).

`Writer` is the growing block of memory for them. A value that does not fit raises `EncodeFailed`.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_CheckExact, PyDict_Next
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from leveret.wire.endian cimport lv_put32, lv_put64
from leveret.wire.limits cimport DEFAULT_TABLE_DEPTH, DEFAULT_TABLE_ENTRIES
from leveret.wire.numbers cimport FRAME_END, FRAME_METHOD

import datetime
import decimal

from leveret.errors import EncodeFailed

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    const char* PyUnicode_1BYTE_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    bint PyBool_Check(object value)

cdef extern from "math.h":
    bint isfinite(double) noexcept nogil

cdef object _UTC = datetime.timezone.utc
cdef object _EPOCH = datetime.datetime(1970, 1, 1, tzinfo=_UTC)
cdef object _datetime = datetime.datetime
cdef object _timedelta = datetime.timedelta
cdef object _Decimal = decimal.Decimal


class FieldValue:
    """A field-table value with an explicit wire type, for Python types that fit several.

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
        # Not of the value, which may be unhashable.
        return hash(self.type)


@cython.final
cdef class Writer:
    """A growing block of memory for arguments, properties and tables."""

    def __cinit__(self):
        self.capacity = 256
        self.used = 0
        self.entries = 0
        self.data = <uint8_t*>malloc(self.capacity)
        if self.data is NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.data)

    # Makes room for n more bytes.
    cdef int grow(self, Py_ssize_t n) except -1:
        cdef Py_ssize_t capacity
        cdef uint8_t* data
        if n > 0xFFFFFFFF - self.used:
            # In a longer block the 32-bit lengths would wrap, and the peer would read its rest as frames.
            raise EncodeFailed(f"{self.used + n} bytes of arguments; a frame or table holds less than 4294967296")
        capacity = max(self.capacity * 2, self.used + n)
        data = <uint8_t*>realloc(self.data, capacity)
        if data is NULL:
            raise MemoryError()
        self.data = data
        self.capacity = capacity
        return 0

    # Writes an ASCII string of at most 255 bytes without making a bytes object. Returns false, and writes nothing, for
    # any other value.
    cdef bint put_short_ascii(self, object value) except -1:
        cdef Py_ssize_t n
        cdef uint8_t* p
        if not PyUnicode_CheckExact(value) or not PyUnicode_IS_COMPACT_ASCII(value):
            return False
        n = PyUnicode_GET_LENGTH(value)
        if n > 255:
            return False
        p = self.reserve(1 + n)
        p[0] = <uint8_t>n
        memcpy(p + 1, PyUnicode_1BYTE_DATA(value), n)
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
        cdef Py_ssize_t entries = self.entries
        cdef dict items
        if depth > DEFAULT_TABLE_DEPTH:
            raise EncodeFailed(f"{name} is nested deeper than the limit of {DEFAULT_TABLE_DEPTH}")
        self.put32(0)
        if table is not None and not (PyDict_CheckExact(table) and self.put_plain_table(<dict>table)):
            self.used, self.entries = at + 4, entries
            # Copy first: iterating over a foreign Mapping runs its code.
            try:
                items = dict(table)
            except (TypeError, ValueError):
                raise EncodeFailed(f"{name} is a mapping of strings to values, not a {type(table).__name__}") from None
            for key, value in items.items():
                if not isinstance(key, str):
                    raise EncodeFailed(f"{name} has a key that is a {type(key).__name__}, not a string")
                key = str.__str__(key)  # a member of a StrEnum is text as well
                # The label for errors costs more than writing the key, so it is made only when an error is possible.
                if not self.put_short_ascii(key):
                    self.put_shortstr(key, f"table key {key[:40]!r}")
                self.put_value(key, value, depth)
        lv_put32(self.data + at, <uint32_t>(self.used - at - 4))
        return 0

    # Writes the entries of a table whose keys and values are plain. Returns false, and has written some of them, for
    # any other table: no code of others runs here, so nothing changes the table meanwhile.
    cdef bint put_plain_table(self, dict table) except -1:
        cdef PyObject* key
        cdef PyObject* value
        cdef Py_ssize_t place = 0
        while PyDict_Next(table, &place, &key, &value):
            self.entries += 1
            if (self.entries > DEFAULT_TABLE_ENTRIES or not self.put_short_ascii(<object>key)
                    or not self.put_plain(<object>value)):
                return False
        return True

    # Writes a value of one of the usual types, with its wire type. Returns false, and writes nothing, for any other.
    cdef bint put_plain(self, object value) except -1:
        cdef uint8_t* p
        cdef Py_ssize_t n
        cdef int64_t number
        cdef double real
        cdef uint64_t word
        cdef int overflow = 0
        if PyUnicode_CheckExact(value):
            if not PyUnicode_IS_COMPACT_ASCII(value):
                return False
            n = PyUnicode_GET_LENGTH(value)
            if n > 0xFFFFFFFF:
                return False
            p = self.reserve(5 + n)
            p[0] = b"S"
            lv_put32(p + 1, <uint32_t>n)
            memcpy(p + 5, PyUnicode_1BYTE_DATA(value), n)
        elif PyLong_CheckExact(value):
            number = PyLong_AsLongLongAndOverflow(value, &overflow)
            if overflow:
                return False
            # RabbitMQ reads both signed widths everywhere. Only old clients send other widths.
            if -0x80000000 <= number <= 0x7FFFFFFF:
                p = self.reserve(5)
                p[0] = b"I"
                lv_put32(p + 1, <uint32_t><int32_t>number)
            else:
                p = self.reserve(9)
                p[0] = b"l"
                lv_put64(p + 1, <uint64_t>number)
        elif value is None:
            self.put8(b"V")
        elif PyBool_Check(value):
            p = self.reserve(2)
            p[0] = b"t"
            p[1] = value is True
        elif PyFloat_CheckExact(value):
            real = PyFloat_AS_DOUBLE(value)
            if not isfinite(real):
                return False
            memcpy(&word, &real, 8)
            p = self.reserve(9)
            p[0] = b"d"
            lv_put64(p + 1, word)
        else:
            return False
        return True

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

    # Counts a value of a table.
    cdef int count(self, str name) except -1:
        self.entries += 1
        if self.entries > DEFAULT_TABLE_ENTRIES:
            raise EncodeFailed(f"table key {name[:40]!r} is beyond the limit of {DEFAULT_TABLE_ENTRIES} values in one "
                               "table and all tables in it, which consumers have by default (max_table_entries)")
        return 0

    # Writes a value with the wire type of its Python type, or of its FieldValue.
    cdef int put_value(self, str name, object value, int depth) except -1:
        self.count(name)
        if self.put_plain(value):
            return 0
        if isinstance(value, int):
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
            elif kind == b"l" or kind == b"L":
                # RabbitMQ and most clients read both as signed (rabbit_binary_parser), whatever their specifications
                # say: above 2**63 - 1 an `L` would arrive as another number.
                return self.put64(<uint64_t>_signed(value))
            elif kind == b"f":
                real = finite(name, value)
                single = <float>real
                if not isfinite(single):
                    raise OverflowError("out of range")
                memcpy(&word, &single, 4)
                return self.put32(word)
            elif kind == b"d":
                real = finite(name, value)
                memcpy(&long_word, &real, 8)
                return self.put64(long_word)
            elif kind == b"D":
                return self.put_decimal(value)
            elif kind == b"T":
                return self.put64(to_timestamp(value, f"table key {name[:40]!r}"))
            elif kind == b"S" or kind == b"x":
                return self.put_text(name, value)
            elif kind == b"A":
                return self.put_array(name, value, depth + 1)
            elif kind == b"F":
                return self.put_table(f"table value {name[:40]!r}", value, depth + 1)
            else:  # V carries no value
                return 0
        except (OverflowError, TypeError, ValueError, AttributeError) as error:
            # The text does not show the value: a header may be a secret.
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


# RabbitMQ's parser has no pattern for infinities and NaN: it ends the connection of a client that sends one.
cdef double finite(str name, object value) except? -1.0:
    cdef double real = <double>value
    if not isfinite(real):
        raise EncodeFailed(f"table key {name[:40]!r}: a float that is infinite or NaN; RabbitMQ ends a connection on "
                           "which such a value comes")
    return real


cdef int64_t _ranged(object value, int64_t low, int64_t high) except? -1:
    if not isinstance(value, int):
        raise TypeError("not an integer")
    if not low <= value <= high:
        raise OverflowError("out of range")
    return value


# Refuses a float, which would lose its fraction without an error.
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
        # surrogateescape restores received bytes that are not UTF-8.
        try:
            return (<str>value).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise EncodeFailed(f"{name} holds characters that UTF-8 cannot encode") from None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise EncodeFailed(f"{name} must be a string, not {type(value).__name__}")


cdef uint64_t to_timestamp(object value, str name) except? 1:
    if isinstance(value, _datetime):
        if value.utcoffset() is None:
            raise EncodeFailed(f"{name} is a datetime without a time zone; a timestamp needs one")
        # Timestamps have whole seconds (AMQP 0-9-1 section 4.2.5.4).
        value = (value - _EPOCH) // _timedelta(seconds=1)
    return _unsigned(value)


# Returns the text of a value for an error: a small number as it is, and only the type of any other value.
cdef str shown(object value):
    return str(value) if isinstance(value, int) and -0x80000000 <= value <= 0x7FFFFFFF else f"a {type(value).__name__}"


def encode_table(table):
    """Encodes a field table.

    Args:
        table: A mapping of strings to bool, int, finite float, str, bytes, Decimal, datetime, None, lists, mappings
            or `FieldValue`.

    Returns:
        The table, with its length in front (AMQP 0-9-1 section 4.2.5.5, with RabbitMQ's types).

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
