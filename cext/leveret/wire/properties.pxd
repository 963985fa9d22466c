from cpython.object cimport PyObject
from libc.stdint cimport uint16_t

from leveret.wire.encoding cimport Writer

# The properties (AMQP 0-9-1 section 1.8.1) in the order of their flags and of their values on the wire.
cdef enum:
    CONTENT_TYPE = 0
    CONTENT_ENCODING
    HEADERS
    DELIVERY_MODE
    PRIORITY
    CORRELATION_ID
    REPLY_TO
    EXPIRATION
    MESSAGE_ID
    TIMESTAMP
    TYPE
    USER_ID
    APP_ID
    CLUSTER_ID
    PROPERTIES


# The flag of a property.
cdef inline uint16_t flag_of(int number) noexcept:
    return <uint16_t>(0x8000 >> number)


cdef class Properties:
    cdef public object content_type
    cdef public object content_encoding
    cdef public object headers
    cdef public object delivery_mode
    cdef public object priority
    cdef public object correlation_id
    cdef public object reply_to
    cdef public object expiration
    cdef public object message_id
    cdef public object timestamp
    cdef public object type
    cdef public object user_id
    cdef public object app_id
    cdef public object cluster_id


cdef int put_values(Writer w, PyObject** values, uint16_t flags, Py_ssize_t* places, bytes entries) except -1
