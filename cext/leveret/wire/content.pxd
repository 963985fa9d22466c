from cpython.bytes cimport PyBytes_CheckExact
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from leveret.wire.buffers cimport SendBuffer
from leveret.wire.endian cimport lv_put16, lv_put32
from leveret.wire.message cimport Message
from leveret.wire.numbers cimport FRAME_BODY, FRAME_END, FRAME_OVERHEAD


# Writes a body as frames with at most `chunk` bytes of it each. Returns the end of the last frame.
cdef inline uint8_t* put_body(uint8_t* p, uint16_t channel, const uint8_t* body, Py_ssize_t size,
                              Py_ssize_t chunk) noexcept nogil:
    cdef Py_ssize_t n
    while size > 0:
        n = size if size < chunk else chunk
        p[0] = FRAME_BODY
        lv_put16(p + 1, channel)
        lv_put32(p + 3, <uint32_t>n)
        memcpy(p + 7, body, n)
        p[7 + n] = FRAME_END
        p += n + FRAME_OVERHEAD
        body += n
        size -= n
    return p


# Refuses a frame_max below the protocol's minimum, with which chunks would be empty or negative.
cdef inline int check_frame_max(uint32_t frame_max) except -1:
    if frame_max < 4096:
        raise ValueError(f"frame_max {frame_max} is below the protocol's minimum of 4096 bytes")
    return 0


cdef inline Py_ssize_t body_frames(Py_ssize_t size, Py_ssize_t chunk) noexcept nogil:
    return (size + chunk - 1) // chunk


# Returns the body of a message, which must be bytes. A view (FrameReader.view_bodies) must not be read as a bytes
# object.
cdef inline object body_of(Message message):
    cdef object body = message.body
    if not PyBytes_CheckExact(body):
        raise TypeError(f"the body of the message must be bytes, not {type(body).__name__}")
    return body


cdef int put_settlement(SendBuffer out, uint16_t channel, uint16_t method_id, uint64_t tag, uint8_t bits) except -1
