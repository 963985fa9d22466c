from libc.stdint cimport uint32_t

from leveret.codecs.compressing cimport BodyCompressor
from leveret.publishing.message_ids cimport MessageIds
from leveret.publishing.template cimport PublishTemplate
from leveret.wire.encoding cimport Writer


# A buffer for one message after another. What it begins with is written once for messages that begin alike.
cdef class Scratch:
    cdef Writer w
    cdef str exchange
    cdef str routing_key
    cdef bint mandatory
    cdef object content_type
    # Where the content header begins, and where the properties behind the content type do; 0 before the first message.
    cdef Py_ssize_t header_at
    cdef Py_ssize_t values_at

    cdef int begin(self, str exchange, str routing_key, bint mandatory, object content_type) except -1


cdef class Packer:
    cdef public uint32_t frame_max
    # All bodies have one content type, and none is compressed.
    cdef readonly bint one_form
    cdef object content_type
    cdef object encoder
    cdef object encode
    # The serializer's function and content type; None when a composite one chooses.
    cdef tuple part
    cdef BodyCompressor compressor
    cdef str exchange
    cdef bint mandatory
    cdef object delivery_mode
    cdef bint timed
    cdef readonly MessageIds ids
    # What messages are packed in; None while one is.
    cdef Scratch scratch
    # The frames of routing keys alone, their bytes, and those that found no room since it was full.
    cdef dict kept
    cdef Py_ssize_t kept_bytes
    cdef Py_ssize_t refused_bytes

    cdef PublishTemplate pattern(self, object routing_key)
    cdef int keep(self, str routing_key, PublishTemplate made) except -1
    cdef PublishTemplate frames(self, object routing_key, dict options)
    cdef PublishTemplate identified(self, PublishTemplate pattern)
    cdef tuple packed(self, object value, object routing_key, dict options)
    cdef PublishTemplate make(self, object routing_key, dict options, object content_type, object content_encoding,
                              Py_ssize_t original_size)
    cdef PublishTemplate write(self, Scratch scratch, object routing_key, dict options, object content_type,
                               object content_encoding, Py_ssize_t original_size)
    cdef object misfit(self, dict options)
    cdef object without_own(self, object headers, Py_ssize_t original_size)
