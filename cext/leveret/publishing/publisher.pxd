from libc.stdint cimport uint64_t

from leveret.publishing.builder cimport MessagePublisher
from leveret.publishing.confirms cimport ConfirmWindow
from leveret.publishing.packing cimport Packer
from leveret.publishing.publish_batch cimport PublishBatch
from leveret.publishing.publishing cimport Publishing, Ticket
from leveret.publishing.template cimport PublishTemplate
from leveret.transport.waiting cimport Waiters


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
    cdef public object _transport

    cdef int keep(self, Publishing publishing, Ticket ticket) except -1
    cdef object encode(self, value)
    cdef object encode_given(self, value, str misfit)
    cdef Ticket send(self, value, routing_key, dict options)
    cdef Ticket put(self, value, routing_key, Py_ssize_t limit, dict options, bint waits)
    cdef PublishTemplate frames_of(self, routing_key, dict options)
    cdef bint has_room(self, ConfirmWindow window, Py_ssize_t limit, bint waits) noexcept
