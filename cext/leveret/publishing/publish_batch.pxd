from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from leveret.publishing.confirms cimport ConfirmWindow
from leveret.publishing.publishing cimport Ticket
from leveret.publishing.template cimport PublishTemplate
from leveret.wire.buffers cimport SendBuffer

cdef enum:
    # Frames without their body of more bytes than this count among the bytes that are kept.
    LARGE_FRAMES = 1024


cdef class PublishBatch:
    cdef SendBuffer out
    cdef ConfirmWindow window
    # The same with confirms. Without them, what waits for its first channel.
    cdef ConfirmWindow held
    cdef readonly uint16_t channel
    cdef readonly uint32_t frame_max
    cdef readonly Py_ssize_t max_body_size
    cdef Py_ssize_t copied_size
    cdef readonly uint64_t published
    cdef readonly uint64_t published_bytes
    # `out.sent_bytes` when the window noted the time: what is appended until that changes leaves in the same write.
    cdef uint64_t marked
    # What the header `x-leveret-sent-at` tells of messages in that write; 0 before the first one that has it.
    cdef int64_t sent_at

    cdef int mark(self) except -1
    cdef uint64_t put(self, PublishTemplate template, bytes body, Ticket ticket, Py_ssize_t index) except? 0
    cpdef Py_ssize_t add_run(self, PublishTemplate template, list values, Py_ssize_t start, Ticket ticket,
                             Py_ssize_t index, Py_ssize_t max_bytes) except -1
    cdef uint64_t put_large(self, PublishTemplate template, bytes body, Ticket ticket, Py_ssize_t index) except? 0
    cdef Py_ssize_t total(self, PublishTemplate template, Py_ssize_t size) except -1
    cdef list large_pieces(self, list before, PublishTemplate template, bytes body)
    cdef void write_prefix(self, uint8_t* p, PublishTemplate template, Py_ssize_t size) noexcept
    cdef void write_time(self, uint8_t* p, PublishTemplate template) noexcept
    cdef uint8_t* write(self, uint8_t* p, PublishTemplate template, const uint8_t* body, Py_ssize_t size) noexcept
    cdef int note_write(self, uint64_t tag, PublishTemplate template, Py_ssize_t sends) except -1
