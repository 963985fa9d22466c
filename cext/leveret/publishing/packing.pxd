from libc.stdint cimport uint32_t

from leveret.publishing.message_ids cimport MessageIds
from leveret.publishing.template cimport PublishTemplate
from leveret.wire.encoding cimport Writer


cdef class Packer:
    cdef public uint32_t frame_max
    # All bodies have one content type, and none is compressed.
    cdef readonly bint one_form
    cdef object content_type
    cdef object encoder
    cdef object encode
    cdef str exchange
    cdef object mandatory
    cdef object delivery_mode
    cdef bint timed
    cdef readonly MessageIds ids
    # What messages are packed in; None while one is.
    cdef Writer scratch
    # The frames of routing keys alone, each at the place that the hash of its key chooses; None before the first.
    cdef list kept

    cdef PublishTemplate pattern(self, object routing_key)
    cdef PublishTemplate frames(self, object routing_key, dict options)
    cdef PublishTemplate identified(self, PublishTemplate pattern)
    cdef tuple packed(self, object value, object routing_key, dict options)
    cdef PublishTemplate make(self, object routing_key, dict options, object content_type, object content_encoding,
                              Py_ssize_t original_size)
    cdef PublishTemplate write(self, Writer w, object routing_key, dict options, object content_type,
                               object content_encoding, Py_ssize_t original_size)
    cdef object misfit(self, dict options)
    cdef object without_own(self, object headers, Py_ssize_t original_size)
