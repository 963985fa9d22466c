"""Appends frames of content, as a broker sends them, and of acknowledgements to a send buffer."""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from leveret.wire.buffers cimport SendBuffer
from leveret.wire.encoding cimport Writer
from leveret.wire.endian cimport lv_put16, lv_put32, lv_put64
from leveret.wire.message cimport Message
from leveret.wire.numbers cimport (
    BASIC, BASIC_DELIVER, FRAME_END, FRAME_HEADER, FRAME_METHOD, FRAME_OVERHEAD)

# Appends basic.ack, basic.nack or basic.reject. All have the same arguments: a delivery tag and an octet of bits.
cdef int put_settlement(SendBuffer out, uint16_t channel, uint16_t method_id, uint64_t tag, uint8_t bits) except -1:
    cdef uint8_t* p = out.reserve(21)
    p[0] = FRAME_METHOD
    lv_put16(p + 1, channel)
    lv_put32(p + 3, 13)
    lv_put16(p + 7, BASIC)
    lv_put16(p + 9, method_id)
    lv_put64(p + 11, tag)
    p[19] = bits
    p[20] = FRAME_END
    return out.commit(21)


def append_settlement(SendBuffer out not None, uint16_t channel, uint16_t method_id, uint64_t delivery_tag,
                      uint8_t bits=0):
    """Appends basic.ack (80), basic.nack (120) or basic.reject (90).

    Args:
        out: The connection's send buffer.
        channel: The channel number.
        method_id: The method.
        delivery_tag: The delivery or publishing that is settled.
        bits: ack: 1 multiple; nack: 1 multiple, 2 requeue; reject: 1 requeue.
    """
    put_settlement(out, channel, method_id, delivery_tag, bits)


def append_deliveries(SendBuffer out not None, uint16_t channel, str consumer_tag not None,
                      uint64_t first_delivery_tag, list messages not None, *, uint32_t frame_max=131072):
    """Appends messages as basic.deliver, as a broker sends them.

    Args:
        out: The connection's send buffer.
        channel: The channel number.
        consumer_tag: The consumer.
        first_delivery_tag: The tag of the first message. The tags of the others follow it.
        messages: `Message` objects with bodies.
        frame_max: The negotiated limit.

    Raises:
        ValueError: A message has no body. The messages before it were appended.
        TypeError: The body of a message is a view (`FrameReader.view_bodies`). The messages before it were appended.
    """
    cdef Message m
    # The message whose frames are in the writer. For one with the same names and properties only the tag, the
    # redelivered bit and the body size are written over.
    cdef Message like = None
    cdef Writer w = Writer()
    cdef Py_ssize_t chunk = <Py_ssize_t>frame_max - FRAME_OVERHEAD
    cdef Py_ssize_t size, total, tag_at, size_at = 0
    cdef uint64_t tag = first_delivery_tag
    cdef bytes tag_bytes = consumer_tag.encode("utf-8", "surrogateescape")
    cdef uint8_t* p
    check_frame_max(frame_max)
    w.put8(FRAME_METHOD)
    w.put16(channel)
    w.put32(0)
    w.put16(BASIC)
    w.put16(BASIC_DELIVER)
    w.put_shortstr(tag_bytes, "consumer_tag")
    tag_at = w.used
    for m in messages:
        if m is None or m.body is None:
            raise ValueError("a message without its body cannot be delivered")
        size = PyBytes_GET_SIZE(body_of(m))
        if (like is None or m.exchange is not like.exchange or m.routing_key is not like.routing_key
                or m.raw_properties is not like.raw_properties):
            w.used = tag_at
            w.put64(0)
            w.put8(0)
            w.put_shortstr(m.exchange, "exchange")
            w.put_shortstr(m.routing_key, "routing_key")
            lv_put32(w.data + 3, <uint32_t>(w.used - 7))
            w.put8(FRAME_END)
            # The body size stands behind the header frame's type, channel, size, class and weight.
            size_at = w.used + 11
            _put_header(w, channel, m.raw_properties, 0)
            like = m
        lv_put64(w.data + tag_at, tag)
        w.data[tag_at + 8] = 1 if m.redelivered else 0
        lv_put64(w.data + size_at, <uint64_t>size)
        total = w.used + size + FRAME_OVERHEAD * body_frames(size, chunk)
        p = out.reserve(total)
        memcpy(p, w.data, w.used)
        put_body(p + w.used, channel, <const uint8_t*>PyBytes_AS_STRING(m.body), size, chunk)
        out.commit(total)
        tag += 1


cdef int _put_header(Writer w, uint16_t channel, bytes raw_properties, Py_ssize_t size) except -1:
    w.put8(FRAME_HEADER)
    w.put16(channel)
    w.put32(<uint32_t>(12 + PyBytes_GET_SIZE(raw_properties)))
    w.put16(BASIC)
    w.put16(0)
    w.put64(<uint64_t>size)
    w.put_raw(<uint8_t*>PyBytes_AS_STRING(raw_properties), PyBytes_GET_SIZE(raw_properties))
    return w.put8(FRAME_END)


def append_content(SendBuffer out not None, bytes method_frame not None, Message message not None, *,
                   uint16_t channel, uint32_t frame_max=131072):
    """Appends a ready method frame and the content of `message`, for example basic.return or basic.get-ok.

    Raises:
        ValueError: The message has no body. Nothing was appended.
        TypeError: Its body is a view (`FrameReader.view_bodies`). Nothing was appended.
    """
    cdef Writer w = Writer()
    cdef Py_ssize_t chunk = <Py_ssize_t>frame_max - FRAME_OVERHEAD
    cdef Py_ssize_t size, total
    cdef uint8_t* p
    check_frame_max(frame_max)
    if message.body is None:
        raise ValueError("a message without its body cannot be sent")
    size = PyBytes_GET_SIZE(body_of(message))
    w.put_raw(<uint8_t*>PyBytes_AS_STRING(method_frame), PyBytes_GET_SIZE(method_frame))
    _put_header(w, channel, message.raw_properties, size)
    total = w.used + size + FRAME_OVERHEAD * body_frames(size, chunk)
    p = out.reserve(total)
    memcpy(p, w.data, w.used)
    put_body(p + w.used, channel, <const uint8_t*>PyBytes_AS_STRING(message.body), size, chunk)
    out.commit(total)
