from libc.stdint cimport uint8_t, uint32_t

from leveret.wire.encoding cimport Writer


cdef enum:
    # The bytes of a content header frame before its properties.
    BEFORE_PROPERTIES = 19


cdef class PublishTemplate:
    cdef readonly str exchange
    cdef readonly str routing_key
    cdef readonly bint mandatory
    cdef readonly str misfit
    cdef uint8_t* data
    cdef Py_ssize_t size
    cdef Py_ssize_t header_at
    # Where the time of the header `x-leveret-sent-at` is to be written; 0 without the header.
    cdef Py_ssize_t sent_at
    # Where the message id is to be written, into a copy for each message; 0 unless the producer makes ids.
    cdef Py_ssize_t id_at

    cpdef PublishTemplate marked(self, uint32_t resent)
    cdef PublishTemplate copied(self)
    cdef int keep(self, const uint8_t* data, Py_ssize_t size) except -1


cdef class Template:
    cdef readonly object routing_key
    cdef readonly dict options
    # The producer's encoder: by it a producer knows its own templates.
    cdef object encoder
    cdef PublishTemplate frames


# The frames of a publishing are written in this order, with the properties behind `begin_header`.
cdef int put_method(Writer w, str exchange, str routing_key, bint mandatory) except -1
cdef Py_ssize_t begin_header(Writer w) except -1
cdef int end_header(Writer w, Py_ssize_t header_at, uint32_t frame_max) except -1
cdef PublishTemplate new_template(Writer w, Py_ssize_t header_at, str exchange, str routing_key, bint mandatory,
                                  str misfit)
