cdef class MessageBuilder:
    cdef public object value
    cdef public object key
    cdef public dict options
    cdef object publisher
    # What the options have as headers, when that is a mapping of its own, which no caller changes.
    cdef dict own_headers

    cdef int check_bound(self) except -1


cdef MessageBuilder new_message(object value, object publisher)
