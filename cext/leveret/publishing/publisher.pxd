from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from leveret.publishing.builder cimport MessagePublisher
from leveret.publishing.confirms cimport ConfirmWindow, Ticket
from leveret.publishing.packing cimport Packer
from leveret.publishing.publishing cimport Publishing
from leveret.publishing.template cimport PublishTemplate
from leveret.transport.waiting cimport Waiters
from leveret.wire.buffers cimport SendBuffer


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


cdef class CompiledPublisher(MessagePublisher):
    cdef public ConfirmWindow _window
    cdef public PublishBatch _batch
    cdef public object _encoder
    cdef public object _encode
    cdef public object _loop
    cdef public object _timer
    cdef public object _waiting
    cdef public object _flushing
    # The policies, or None, and the circuit breaker among them.
    cdef public object _guard
    cdef public object _breaker
    cdef public double _publish_timeout
    # Confirms concern more than their tickets: listeners, a window that adapts, a policy.
    cdef public bint _watched
    cdef public object _last_key
    cdef public PublishTemplate _last_template
    cdef public Packer _packer
    cdef public Py_ssize_t _limit
    cdef public Py_ssize_t _max_buffered
    cdef public Py_ssize_t _max_bytes
    cdef public uint64_t _max_span
    cdef public bint _ready
    cdef public bint _alive
    cdef public bint _confirms
    # The callers that wait for a confirm or for room.
    cdef public Waiters _waiters
    # The thread and process that made it.
    cdef unsigned long thread
    cdef int forks
    cdef public object _transport

    cdef int keep(self, Publishing publishing, Ticket ticket) except -1
    cdef object encode(self, value)
    cdef object encode_given(self, value, str misfit)
    cdef bint at_home(self) except -1
    cdef Ticket send(self, value, routing_key, dict options)
    cdef Ticket put(self, value, routing_key, Py_ssize_t limit, dict options, bint waits)
    cdef PublishTemplate frames_of(self, routing_key, dict options)
    cdef bint has_room(self, ConfirmWindow window, Py_ssize_t limit, bint waits) noexcept
