"""Frames of a publishing that are packed once, and the template that users hold."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t

from leveret.wire.encoding cimport Writer
from leveret.wire.endian cimport lv_put32
from leveret.wire.numbers cimport BASIC, BASIC_PUBLISH, FRAME_END, FRAME_HEADER, FRAME_METHOD, FRAME_OVERHEAD
from leveret.wire.own_headers cimport with_resent, with_sent_at

from leveret.errors import EncodeFailed


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
        timed: Add the header `x-leveret-sent-at`; each write fills in its time.

    Raises:
        EncodeFailed: A name is longer than 255 bytes, or the properties do not fit one frame.
    """

    def __cinit__(self, str exchange not None, str routing_key not None, bytes raw_properties not None=b"\x00\x00", *,
                  bint mandatory=False, uint32_t frame_max=131072, str misfit=None, bint timed=False):
        cdef Writer w = Writer()
        cdef Py_ssize_t header, value_at
        if timed:
            raw_properties = with_sent_at(raw_properties, &value_at)
        header = 12 + PyBytes_GET_SIZE(raw_properties)
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
        if timed:
            self.sent_at = w.used + value_at
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
        return PublishTemplate(self.exchange, self.routing_key, with_resent(self.raw_properties, resent),
                               mandatory=self.mandatory, frame_max=0xFFFFFFFF, timed=self.sent_at != 0)


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
