from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from leveret.wire.assembly cimport Assemblies, Assembly
from leveret.wire.buffers cimport BodyPool, RecvBuffer
from leveret.wire.decoding cimport Cursor
from leveret.wire.message cimport Message
from leveret.wire.runs cimport ContentRun, SettlementRun


cdef class FrameReader:
    cdef RecvBuffer buffer
    cdef readonly bint server
    cdef bint header_due
    # Content may come only on channels that were opened.
    cdef bint channels_open
    cdef readonly bint in_handshake
    cdef Py_ssize_t capacity
    cdef Py_ssize_t most_channels
    cdef uint32_t _frame_max
    cdef readonly uint64_t max_body_size
    cdef readonly uint16_t max_table_depth
    cdef readonly uint32_t max_table_entries
    cdef readonly object error
    cdef readonly uint64_t received_frames
    cdef readonly BodyPool body_pool
    cdef Assemblies assemblies
    cdef Assembly last
    cdef int last_channel
    cdef list strings
    cdef bytes last_properties
    cdef ContentRun content_run
    cdef SettlementRun settlement_run
    cdef list events

    cpdef list received(self, Py_ssize_t n)
    cdef list _parse(self)
    cdef int _frames(self) except -1
    cdef bint _known_content(self, const uint8_t* p, Py_ssize_t left) except -1
    cdef int _know(self, Assembly a, Message m, const uint8_t* arguments, Py_ssize_t size,
                   Py_ssize_t tag_at) except -1
    cdef bint _protocol_header(self) except -1
    cdef int _refuse_first_octet(self, const uint8_t* p, Py_ssize_t left) except -1
    cdef Assembly _assembly(self, uint16_t channel)
    cdef int _open(self, uint16_t channel, Assembly a) except -1
    cdef int _end(self) except -1
    cdef str _name(self, Cursor* c, str what)
    cdef int _method(self, uint16_t channel, const uint8_t* p, Py_ssize_t size) except -1
    cdef int _event(self, object event) except -1
    cdef int _settlement(self, uint16_t channel, uint16_t method_id, const uint8_t* p, Py_ssize_t size) except -1
    cdef Message _message(self, uint16_t channel, uint16_t method_id)
    cdef int _content(self, Assembly a, uint16_t channel, uint16_t method_id, const uint8_t* p,
                      Py_ssize_t size) except -1
    cdef bytes _properties(self, const uint8_t* p, Py_ssize_t size)
    cdef int _header(self, uint16_t channel, const uint8_t* p, Py_ssize_t size) except -1
    cdef int _body(self, uint16_t channel, const uint8_t* p, Py_ssize_t size) except -1
    cdef int _finish(self, Assembly a) except -1
    cdef int _complete(self, Assembly a) except -1
