"""Encodes and decodes the properties of a message (AMQP 0-9-1 sections 1.8.1 and 4.2.6.1)."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.long cimport PyLong_Check
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from leveret.wire.decoding cimport Cursor, cursor_over, need, read_shortstr, read_table
from leveret.wire.encoding cimport Writer, shown, to_timestamp
from leveret.wire.endian cimport lv_get16, lv_get64, lv_put32
from leveret.wire.limits cimport DEFAULT_TABLE_DEPTH, DEFAULT_TABLE_ENTRIES

from leveret.errors import EncodeFailed, TableSyntaxError

cdef extern from *:
    """
    /* The number of the property with the highest flag. */
    static inline int lv_first_flag(uint16_t flags) { return __builtin_clz((unsigned)flags << 16); }
    """
    int lv_first_flag(uint16_t flags) noexcept

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1
    PyObject* PyTuple_GET_ITEM(object values, Py_ssize_t i)


cdef tuple _NAMES = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id")
#: By their flags, the highest first, which is their order on the wire.
PROPERTY_NAMES = _NAMES


@cython.final
cdef class Properties:
    """The properties of a message (AMQP 0-9-1 section 1.8.1), each None when absent.

    Args:
        content_type: MIME type of the body, for example `application/json`.
        content_encoding: For example `gzip`.
        headers: A mapping; see `encode_table` for the values.
        delivery_mode: 1 transient, 2 persistent.
        priority: 0 to 255.
        correlation_id: The id of the message that this one answers.
        reply_to: The queue for an answer.
        expiration: Milliseconds as decimal digits, as on the wire.
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
        # Without the values, which may be secrets.
        names = [n for n in _NAMES if getattr(self, n) is not None]
        return f"Properties({', '.join(names)})"

    def encode(self):
        """Encodes the properties that are not None.

        Returns:
            Flags and values: the bytes behind the body size in a content header frame (AMQP 0-9-1 section 4.2.6.1).

        Raises:
            EncodeFailed: A value does not fit; the text names the property.
        """
        cdef Writer w = Writer()
        cdef tuple values = self._tuple()
        cdef PyObject* given[PROPERTIES]
        cdef Py_ssize_t places[PROPERTIES]
        cdef uint16_t flags = 0
        cdef int i
        for i in range(PROPERTIES):
            given[i] = PyTuple_GET_ITEM(values, i)
            if values[i] is not None:
                flags |= flag_of(i)
        w.put16(flags)
        put_values(w, given, flags, places, None)
        return w.take()


# Writes the values of the properties with these flags, in their order.
#
# `places` tells where each of them begins. `entries` are packed entries that go behind those of the headers, or None;
# with them there is the flag of the headers, whose value may be NULL. The values have to live until it returns,
# although it may run code of others.
cdef int put_values(Writer w, PyObject** values, uint16_t flags, Py_ssize_t* places, bytes entries) except -1:
    cdef uint16_t left = flags
    cdef int i
    while left:
        i = lv_first_flag(left)
        left &= <uint16_t>~flag_of(i)
        places[i] = w.used
        if i == HEADERS:
            if values[i] is NULL:
                w.put32(0)
            else:
                w.put_table("headers", <object>values[i], 1)
            if entries is not None:
                w.put_raw(<const uint8_t*>PyBytes_AS_STRING(entries), PyBytes_GET_SIZE(entries))
                lv_put32(w.data + places[i], <uint32_t>(w.used - places[i] - 4))
        elif i == DELIVERY_MODE:
            w.put8(_delivery_mode(<object>values[i]))
        elif i == PRIORITY:
            w.put8(_priority(<object>values[i]))
        elif i == TIMESTAMP:
            w.put64(_timestamp(<object>values[i]))
        else:
            w.put_shortstr(<object>values[i], <str>_NAMES[i])
    return 0


cdef uint8_t _delivery_mode(object value) except 0:
    cdef int number = _octet(value)
    if not 1 <= number <= 2:
        raise EncodeFailed(f"delivery_mode is 1 (transient) or 2 (persistent), not {shown(value)}")
    return <uint8_t>number


cdef uint8_t _priority(object value) except? 0:
    cdef int number = _octet(value)
    if number < 0:
        raise EncodeFailed(f"priority is 0 to 255, not {shown(value)}")
    return <uint8_t>number


# The value of a whole number from 0 to 255; -1 for anything else.
cdef int _octet(object value) except -2:
    cdef int overflow = 0
    cdef long long number
    if not PyLong_Check(value):
        return -1
    number = PyLong_AsLongLongAndOverflow(value, &overflow)
    return <int>number if overflow == 0 and 0 <= number <= 255 else -1


cdef uint64_t _timestamp(object value) except? 1:
    try:
        return to_timestamp(value, "timestamp")
    except (OverflowError, TypeError):
        raise EncodeFailed("timestamp is whole seconds since 1970, 0 to 2^64-1, or a datetime") from None


def decode_properties(bytes raw not None, *, Py_ssize_t max_depth=DEFAULT_TABLE_DEPTH,
                      Py_ssize_t max_entries=DEFAULT_TABLE_ENTRIES):
    """Decodes packed properties, as `Properties.encode` returns them.

    Args:
        raw: Flags and values.
        max_depth: As for `decode_table`.
        max_entries: As for `decode_table`.

    Returns:
        The `Properties`. `timestamp` is an int.

    Raises:
        TableSyntaxError: The bytes are malformed or over a limit.
    """
    cdef Cursor c = cursor_over(<uint8_t*>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), max_depth, max_entries)
    cdef Properties p = Properties.__new__(Properties)
    cdef uint16_t flags
    need(&c, 2, "the property flags")
    flags = lv_get16(c.at)
    c.at += 2
    if flags & 3:
        # Bit 0 announces more flags and bit 1 is no property; basic has 14 properties.
        raise TableSyntaxError(f"property flags 0x{flags:04x} name properties that the basic class does not have")
    if flags & 0x8000:
        p.content_type = read_shortstr(&c, "content_type")
    if flags & 0x4000:
        p.content_encoding = read_shortstr(&c, "content_encoding")
    if flags & 0x2000:
        p.headers = read_table(&c)
    if flags & 0x1000:
        need(&c, 1, "delivery_mode")
        p.delivery_mode = c.at[0]
        c.at += 1
    if flags & 0x0800:
        need(&c, 1, "priority")
        p.priority = c.at[0]
        c.at += 1
    if flags & 0x0400:
        p.correlation_id = read_shortstr(&c, "correlation_id")
    if flags & 0x0200:
        p.reply_to = read_shortstr(&c, "reply_to")
    if flags & 0x0100:
        p.expiration = read_shortstr(&c, "expiration")
    if flags & 0x0080:
        p.message_id = read_shortstr(&c, "message_id")
    if flags & 0x0040:
        need(&c, 8, "timestamp")
        p.timestamp = lv_get64(c.at)
        c.at += 8
    if flags & 0x0020:
        p.type = read_shortstr(&c, "type")
    if flags & 0x0010:
        p.user_id = read_shortstr(&c, "user_id")
    if flags & 0x0008:
        p.app_id = read_shortstr(&c, "app_id")
    if flags & 0x0004:
        p.cluster_id = read_shortstr(&c, "cluster_id")
    if c.at != c.end:
        raise TableSyntaxError(f"{c.end - c.at} bytes follow the properties")
    return p
