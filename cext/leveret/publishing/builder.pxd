# What publishes the messages of builders without keyword arguments in between: the base of `CompiledPublisher`. The
# options are of this call alone.
cdef class MessagePublisher:
    cdef object publish_message(self, object value, object routing_key, dict options)
    cdef object publish_nowait_message(self, object value, object routing_key, dict options)
    cdef object enqueue_message(self, object value, object routing_key, dict options)


cdef class MessageBuilder:
    cdef public object value
    cdef public object key
    cdef public dict options
    cdef object publisher
    # What the options have as headers, when that is a mapping of its own, which no caller changes.
    cdef dict own_headers

    cdef int check_bound(self) except -1
