from libc.stdint cimport uint8_t, uint16_t, uint64_t

from leveret.wire.buffers cimport BodyPool
from leveret.wire.message cimport Message


cdef class Assembly:
    # The content that is not complete; None between two contents.
    cdef Message message
    cdef object body          # bytes under construction; this is the only reference
    cdef uint64_t received
    cdef Py_ssize_t room
    cdef uint64_t counted     # of properties and body, for the limit
    cdef bint header_due
    cdef bint discard         # the body is not kept
    cdef bint dropped         # the channel is closed: its contents make no events
    # Bodies of this size and more are not read by `FrameReader._known_content`: views, or all that is dropped.
    cdef uint64_t known_below
    cdef bint viewed          # the current body becomes a view
    cdef bint pooled          # `body` is a block of the pool
    # The last method frame that announced a content, for `FrameReader._known_content`, or None: nobody else refers to
    # it. And its delivery tag's place (0 for basic.publish, which has none), its method, and its names.
    cdef bytes known
    cdef Py_ssize_t known_tag_at
    cdef uint16_t known_method_id
    cdef str known_consumer_tag
    cdef str known_exchange
    cdef str known_routing_key

    cdef bint has_views(self) noexcept


cdef class Assemblies:
    cdef dict by_channel
    cdef BodyPool pool
    cdef readonly uint64_t counted_bytes
    # Memory of bodies that nothing was received for yet.
    cdef Py_ssize_t spare_bytes

    cdef Assembly get(self, uint16_t channel)
    cdef Assembly add(self, uint16_t channel)
    cdef int drop(self, uint16_t channel) except -1
    cdef bint remove(self, uint16_t channel) except -1
    cdef int clear(self) except -1
    cdef int count(self, Assembly a, uint64_t n, uint64_t limit) except -1
    cdef int append(self, Assembly a, const uint8_t* p, Py_ssize_t size) except -1
    cdef int finish(self, Assembly a) noexcept
    cdef object view(self, Assembly a)
    cdef int end_views(self) except -1
