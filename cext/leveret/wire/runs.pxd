from libc.stdint cimport uint8_t, uint16_t, uint64_t


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
