"""Frames of a publishing that are packed once, and the template that users hold."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

from leveret.wire.encoding cimport Writer
from leveret.wire.endian cimport lv_get16, lv_get32, lv_put16, lv_put32
from leveret.wire.numbers cimport BASIC, BASIC_PUBLISH, FRAME_END, FRAME_HEADER, FRAME_METHOD, FRAME_OVERHEAD

from leveret.errors import EncodeFailed

cdef enum:
    # Flags of the properties (AMQP 0-9-1 section 4.2.6.1), and the flag of a further word of flags.
    HAS_CONTENT_TYPE = 0x8000
    HAS_CONTENT_ENCODING = 0x4000
    HAS_HEADERS = 0x2000
    HAS_MORE_FLAGS = 0x0001

# The entry that `marked` writes, without its value: a short string and the type of a signed 32-bit integer.
cdef bytes RESENT_ENTRY = b"\x10x-leveret-resentI"
# The entry's bytes with its value.
cdef enum:
    RESENT_SIZE = 22


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


# Where the entry of `marked` begins in a table, or the table's end when it has none; -1 when the table is malformed.
cdef Py_ssize_t _resent_at(const uint8_t* data, Py_ssize_t at, Py_ssize_t end, Py_ssize_t* size) noexcept:
    cdef Py_ssize_t value, start
    while at < end:
        start = at
        at += 1 + data[at]
        if at >= end:
            return -1
        value = _value_size(data[at], data + at + 1, end - at - 1)
        if value < 0 or value > end - at - 1:
            return -1
        at += 1 + value
        if data[start] == 16 and memcmp(data + start, PyBytes_AS_STRING(RESENT_ENTRY), 17) == 0:
            size[0] = at - start
            return start
    size[0] = 0
    return end


# Properties with the header `x-leveret-resent` of this value. All other bytes stay as they are: decoding and encoding
# them again could choose other types for the values.
cdef bytes _with_resent(bytes raw, uint32_t resent):
    cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(raw)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(raw)
    cdef Py_ssize_t at = 2
    cdef Py_ssize_t start, end, entry
    cdef Py_ssize_t entry_size = 0
    cdef uint16_t flags, word
    cdef Writer w = Writer()
    if size < 2:
        raise EncodeFailed("the properties are malformed")
    flags = word = lv_get16(data)
    while word & HAS_MORE_FLAGS and at + 2 <= size:
        word = lv_get16(data + at)
        at += 2
    if flags & HAS_CONTENT_TYPE and at < size:
        at += 1 + data[at]
    if flags & HAS_CONTENT_ENCODING and at < size:
        at += 1 + data[at]
    start = end = at
    if flags & HAS_HEADERS and at + 4 <= size:
        start = at + 4
        end = start + <Py_ssize_t>lv_get32(data + at)
    entry = -1 if at > size or end > size else _resent_at(data, start, end, &entry_size)
    if entry < 0:
        raise EncodeFailed("the properties are malformed")
    w.put_raw(data, at)
    lv_put16(w.data, flags | HAS_HEADERS)
    w.put32(<uint32_t>(end - start - entry_size + RESENT_SIZE))
    w.put_raw(data + start, entry - start)
    w.put_raw(<const uint8_t*>PyBytes_AS_STRING(RESENT_ENTRY), RESENT_SIZE - 4)
    w.put32(resent)
    w.put_raw(data + entry + entry_size, size - entry - entry_size)
    return w.take()


@cython.final
cdef class PublishTemplate:
    """The frames of a publishing, packed once: all but its channel, its body and its body's size.

    Args:
        exchange: The exchange; empty for the default exchange.
        routing_key: The routing key.
        raw_properties: What `Properties.encode` returns.
        mandatory: Ask the broker to return the message when no queue takes it.
        frame_max: The negotiated limit; the properties must fit one frame (AMQP 0-9-1 section 4.2.6.1).
        misfit: What `BodyEncoder.misfit` returned: None, unless the caller gives the content type or encoding.

    Raises:
        EncodeFailed: A name is longer than 255 bytes, or the properties do not fit one frame.
    """

    def __cinit__(self, str exchange not None, str routing_key not None, bytes raw_properties not None=b"\x00\x00", *,
                  bint mandatory=False, uint32_t frame_max=131072, str misfit=None):
        cdef Writer w = Writer()
        cdef Py_ssize_t header = 12 + PyBytes_GET_SIZE(raw_properties)
        if header + FRAME_OVERHEAD > frame_max:
            raise EncodeFailed(f"the properties and headers take {header + FRAME_OVERHEAD} bytes; the negotiated "
                               f"frame_max is {frame_max}")
        self.exchange = exchange
        self.routing_key = routing_key
        self.raw_properties = raw_properties
        self.mandatory = mandatory
        self.misfit = misfit
        w.put8(FRAME_METHOD)
        w.put16(0)
        w.put32(0)
        w.put16(BASIC)
        w.put16(BASIC_PUBLISH)
        w.put16(0)
        w.put_shortstr(exchange, "exchange")
        w.put_shortstr(routing_key, "routing_key")
        w.put8(1 if mandatory else 0)
        lv_put32(w.data + 3, <uint32_t>(w.used - 7))
        w.put8(FRAME_END)
        self.header_at = w.used
        w.put8(FRAME_HEADER)
        w.put16(0)
        w.put32(<uint32_t>header)
        w.put16(BASIC)
        w.put16(0)
        w.put64(0)
        w.put_raw(<uint8_t*>PyBytes_AS_STRING(raw_properties), PyBytes_GET_SIZE(raw_properties))
        w.put8(FRAME_END)
        self.prefix = w.take()
        self.data = <uint8_t*>PyBytes_AS_STRING(self.prefix)
        self.size = PyBytes_GET_SIZE(self.prefix)

    cpdef PublishTemplate marked(self, uint32_t resent):
        """Returns these frames with the header `x-leveret-resent`, for a message that was written before.

        Args:
            resent: How often it was written before. An earlier value of the header is replaced.

        Returns:
            Frames that may be too large for the connection; `PublishBatch` finds out.

        Raises:
            EncodeFailed: The properties are malformed.
        """
        return PublishTemplate(self.exchange, self.routing_key, _with_resent(self.raw_properties, resent),
                               mandatory=self.mandatory, frame_max=0xFFFFFFFF)


@cython.final
cdef class Template:
    """A routing key with options, packed once by its producer; see `Producer.template`.

    Args:
        routing_key: The routing key.
        options: As the publish methods take them.

    Attributes:
        routing_key: The routing key.
        options: The options.
    """

    def __cinit__(self, routing_key, dict options not None):
        self.routing_key = routing_key
        self.options = options

    def pack(self, encoder not None, PublishTemplate frames not None):
        """Keeps the frames for the producer with this encoder; `frames_for` and the compiled way find them."""
        self.encoder = encoder
        self.frames = frames

    def frames_for(self, encoder):
        """Returns the frames that the producer with this encoder packed, or None."""
        return self.frames if self.encoder is encoder else None

    def __repr__(self):
        return f"<Template routing_key={self.routing_key!r} options={sorted(self.options)}>"
