from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from leveret.wire.buffers cimport RecvBuffer


cdef enum:
    FRAME_METHOD = 1
    FRAME_HEADER = 2
    FRAME_BODY = 3
    FRAME_HEARTBEAT = 8
    FRAME_END = 0xCE
    # type, channel, size; and the end octet (AMQP 0-9-1 section 4.2.3)
    FRAME_OVERHEAD = 8

cdef enum:
    BASIC = 60
    BASIC_PUBLISH = 40
    BASIC_RETURN = 50
    BASIC_DELIVER = 60
    BASIC_GET_OK = 71
    BASIC_ACK = 80
    BASIC_REJECT = 90
    BASIC_NACK = 120

cdef enum:
    SETTLE_MULTIPLE = 1
    SETTLE_NACK = 2
    SETTLE_REQUEUE = 4


cdef class Writer:
    cdef uint8_t* data
    cdef Py_ssize_t used
    cdef Py_ssize_t capacity

    cdef uint8_t* reserve(self, Py_ssize_t n) except NULL
    cdef int put8(self, uint8_t value) except -1
    cdef int put16(self, uint16_t value) except -1
    cdef int put32(self, uint32_t value) except -1
    cdef int put64(self, uint64_t value) except -1
    cdef int put_raw(self, const uint8_t* data, Py_ssize_t n) except -1
    cdef bint put_short_ascii(self, object value) except -1
    cdef int put_shortstr(self, object value, str name) except -1
    cdef int put_longstr(self, object value, str name) except -1
    cdef int put_table(self, str name, object table, int depth) except -1
    cdef int put_array(self, str name, object values, int depth) except -1
    cdef int put_text(self, str name, object value) except -1
    cdef int put_value(self, str name, object value, int depth) except -1
    cdef int put_typed(self, str name, uint8_t kind, object value, int depth) except -1
    cdef int put_decimal(self, object value) except -1
    cdef bytes take(self)


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


cdef class Message:
    cdef readonly uint64_t delivery_tag
    cdef readonly uint64_t body_size
    cdef readonly object body
    cdef readonly str exchange
    cdef readonly str routing_key
    cdef readonly str consumer_tag
    cdef readonly str reply_text
    cdef readonly bytes raw_properties
    cdef readonly uint32_t message_count
    cdef readonly uint16_t channel
    cdef readonly uint16_t method_id
    cdef readonly uint16_t reply_code
    cdef readonly bint redelivered
    cdef readonly bint mandatory
    cdef readonly bint immediate
    # The body's memory may be used again when the message is gone.
    cdef bint spare_body
    cdef uint16_t max_table_depth
    cdef uint32_t max_table_entries
    cdef Properties decoded
    cdef object owner
    cdef object decoded_value
    cdef readonly double received_at

    cdef object settle(self, str verb)


cdef class ContentRun:
    cdef readonly uint16_t channel
    cdef readonly uint16_t method_id
    cdef readonly str consumer_tag
    cdef readonly str exchange
    cdef readonly str routing_key
    cdef readonly bint mandatory
    cdef readonly bint immediate
    cdef readonly bytes common_properties
    cdef readonly list messages


cdef class SettlementRun:
    cdef readonly uint16_t channel
    cdef uint64_t* tags
    cdef uint8_t* flags
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity

    cdef int add(self, uint64_t tag, uint8_t flags) except -1


cdef class MethodFrame:
    cdef readonly uint16_t channel
    cdef readonly uint16_t class_id
    cdef readonly uint16_t method_id
    cdef readonly bytes payload
