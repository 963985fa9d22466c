from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from leveret.wire.properties cimport Properties


cdef enum:
    # Bodies of these sizes, in bytes, pass their memory on to later bodies.
    LEAST_SPARE_BODY = 480
    MOST_SPARE_BODY = 65536


cdef class Message:
    cdef readonly uint64_t delivery_tag
    cdef readonly uint64_t body_size
    cdef readonly object body
    cdef readonly str exchange
    cdef readonly str routing_key
    cdef readonly str consumer_tag
    cdef readonly str reply_text
    cdef readonly bytes raw_properties
    # These are in an order that leaves no holes.
    cdef readonly uint32_t message_count
    cdef readonly uint16_t channel
    cdef readonly uint16_t method_id
    cdef readonly uint16_t reply_code
    cdef uint16_t max_table_depth
    cdef uint32_t max_table_entries
    cdef public uint32_t failed_here
    cdef readonly bint redelivered
    cdef readonly bint mandatory
    cdef readonly bint immediate
    # The body's memory may serve another body when the message is gone.
    cdef bint spare_body
    # `decoded_value` is valid.
    cdef bint is_decoded
    cdef Properties decoded
    # The headers, once they were read.
    cdef dict header_table
    cdef object owner
    # The result of `owner.decode`.
    cdef object decoded_value
    cdef readonly double received_at
    # When its handler began, in nanoseconds of `monotonic`; 0 before.
    cdef int64_t handler_began
    # How many nanoseconds the handler took, when it ran in a thread.
    cdef int64_t handler_took
    # `received_time` in seconds since 1970; 0 before it is first read.
    cdef double wall_time

    cdef object settle(self, str verb, object detail)


cdef Message new_message()
cdef object spare_body_of(const uint8_t* data, Py_ssize_t size)
