from libc.stdint cimport uint8_t, uint32_t


cdef class PublishTemplate:
    cdef readonly str exchange
    cdef readonly str routing_key
    cdef readonly bint mandatory
    cdef readonly bytes raw_properties
    cdef readonly str misfit
    cdef bytes prefix
    cdef uint8_t* data
    cdef Py_ssize_t size
    cdef Py_ssize_t header_at
    # Where the time of the header `x-leveret-sent-at` is to be written; 0 without the header.
    cdef Py_ssize_t sent_at

    cpdef PublishTemplate marked(self, uint32_t resent)


cdef class Template:
    cdef readonly object routing_key
    cdef readonly dict options
    # The producer's encoder: by it a producer knows its own templates.
    cdef object encoder
    cdef PublishTemplate frames
