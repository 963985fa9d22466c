"""Frames of a publishing that are packed once, and the template that users hold."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyObject_Free, PyObject_Malloc
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from leveret.wire.encoding cimport Writer
from leveret.wire.endian cimport lv_put16, lv_put32, lv_put64
from leveret.wire.numbers cimport BASIC, BASIC_PUBLISH, FRAME_END, FRAME_HEADER, FRAME_METHOD, FRAME_OVERHEAD
from leveret.wire.own_headers cimport with_resent, with_sent_at

from leveret.errors import EncodeFailed


@cython.final
@cython.freelist(256)
cdef class PublishTemplate:
    """The frames of a publishing, packed once: all but its channel, its body and its body's size.

    Args:
        exchange: The exchange; empty for the default exchange.
        routing_key: The routing key.
        raw_properties: What `Properties.encode` returns.
        mandatory: Ask the broker to return the message when no queue takes it.
        frame_max: The negotiated limit; the properties must fit one frame (AMQP 0-9-1 section 4.2.6.1).
        misfit: What `BodyEncoder.misfit` returned: None, unless the caller gives the content type or encoding.
        timed: Add the header `x-leveret-sent-at`; each write fills in its time.

    Raises:
        EncodeFailed: A name is longer than 255 bytes, or the properties do not fit one frame.
    """

    def __init__(self, str exchange not None, str routing_key not None, bytes raw_properties not None=b"\x00\x00", *,
                 bint mandatory=False, uint32_t frame_max=131072, str misfit=None, bint timed=False):
        cdef Writer w = Writer()
        cdef Py_ssize_t header_at, value_at
        if self.data is not NULL:
            raise TypeError("a template does not change")
        if timed:
            raw_properties = with_sent_at(raw_properties, &value_at)
        put_method(w, exchange, routing_key, mandatory)
        header_at = begin_header(w)
        if timed:
            self.sent_at = w.used + value_at
        w.put_raw(<const uint8_t*>PyBytes_AS_STRING(raw_properties), PyBytes_GET_SIZE(raw_properties))
        end_header(w, header_at, frame_max)
        self.exchange = exchange
        self.routing_key = routing_key
        self.mandatory = mandatory
        self.misfit = misfit
        self.header_at = header_at
        self.keep(w.data, w.used)

    def __dealloc__(self):
        PyObject_Free(self.data)

    cdef int keep(self, const uint8_t* data, Py_ssize_t size) except -1:
        self.data = <uint8_t*>PyObject_Malloc(size)
        if self.data is NULL:
            raise MemoryError()
        memcpy(self.data, data, size)
        self.size = size
        return 0

    @property
    def raw_properties(self):
        """The packed properties, as `Properties.encode` returns them."""
        cdef Py_ssize_t at = self.header_at + BEFORE_PROPERTIES
        if self.data is NULL:
            raise TypeError("this template was never packed")
        return PyBytes_FromStringAndSize(<char*>self.data + at, self.size - at - 1)

    cpdef PublishTemplate marked(self, uint32_t resent):
        """Returns these frames with the header `x-leveret-resent`, for a message that was written before.

        Args:
            resent: How often it was written before. An earlier value of the header is replaced.

        Returns:
            Frames that may be too large for the connection; `PublishBatch` finds out.

        Raises:
            EncodeFailed: The properties are malformed.
        """
        return PublishTemplate(self.exchange, self.routing_key, with_resent(self.raw_properties, resent),
                               mandatory=self.mandatory, frame_max=0xFFFFFFFF, timed=self.sent_at != 0)

    # The same frames, to be changed.
    cdef PublishTemplate copied(self):
        cdef PublishTemplate made = PublishTemplate.__new__(PublishTemplate)
        made.exchange = self.exchange
        made.routing_key = self.routing_key
        made.mandatory = self.mandatory
        made.misfit = self.misfit
        made.header_at = self.header_at
        made.sent_at = self.sent_at
        made.keep(self.data, self.size)
        return made


# Writes the method frame, without its channel (AMQP 0-9-1 section 1.8.3.7).
cdef int put_method(Writer w, str exchange, str routing_key, bint mandatory) except -1:
    cdef uint8_t* p = w.reserve(13)
    cdef Py_ssize_t at = w.used - 13
    p[0] = FRAME_METHOD
    lv_put16(p + 1, 0)
    lv_put16(p + 7, BASIC)
    lv_put16(p + 9, BASIC_PUBLISH)
    lv_put16(p + 11, 0)
    w.put_shortstr(exchange, "exchange")
    w.put_shortstr(routing_key, "routing_key")
    p = w.reserve(2)
    p[0] = mandatory
    p[1] = FRAME_END
    lv_put32(w.data + at + 3, <uint32_t>(w.used - at - 8))
    return 0


# Writes what comes before the properties in a content header frame, and returns where the frame begins.
cdef Py_ssize_t begin_header(Writer w) except -1:
    cdef uint8_t* p = w.reserve(BEFORE_PROPERTIES)
    p[0] = FRAME_HEADER
    lv_put16(p + 1, 0)
    lv_put32(p + 3, 0)
    lv_put16(p + 7, BASIC)
    lv_put16(p + 9, 0)
    lv_put64(p + 11, 0)
    return w.used - BEFORE_PROPERTIES


cdef int end_header(Writer w, Py_ssize_t header_at, uint32_t frame_max) except -1:
    cdef Py_ssize_t size = w.used - header_at - 7
    if size + FRAME_OVERHEAD > <Py_ssize_t>frame_max:
        raise EncodeFailed(f"the properties and headers take {size + FRAME_OVERHEAD} bytes; the negotiated "
                           f"frame_max is {frame_max}")
    lv_put32(w.data + header_at + 3, <uint32_t>size)
    return w.put8(FRAME_END)


# A template of the frames that `w` holds from its beginning.
cdef PublishTemplate new_template(Writer w, Py_ssize_t header_at, str exchange, str routing_key, bint mandatory,
                                  str misfit):
    cdef PublishTemplate made = PublishTemplate.__new__(PublishTemplate)
    made.exchange = exchange
    made.routing_key = routing_key
    made.mandatory = mandatory
    made.misfit = misfit
    made.header_at = header_at
    made.keep(w.data, w.used)
    return made


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
