from libc.stdint cimport uint8_t


cdef class PublishTemplate:
    cdef readonly str exchange
    cdef readonly str routing_key
    cdef readonly bint mandatory
    cdef readonly bytes raw_properties
    cdef bytes prefix
    cdef uint8_t* data
    cdef Py_ssize_t size
    cdef Py_ssize_t header_at
