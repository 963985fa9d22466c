"""Contents that are not complete yet: one for each channel, and one limit for the memory of all of them."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy

from leveret.wire.buffers cimport resize_bytes, set_bytes_size

from leveret.errors import RemoteProtocolError

cdef extern from "Python.h":
    object PyMemoryView_FromObject(object exporter)

cdef enum:
    # The first memory of a body has room for so many frames like its first one: most bodies are not moved then.
    FIRST_FRAMES = 16
    # The most memory, for all channels together, that nothing was received for yet.
    MOST_SPARE = 4194304
    # A body that has to grow grows by this share at least, or a peer could make each byte move it.
    LEAST_GROWTH = 16


@cython.final
cdef class Assembly:
    """The content of one channel that is not complete yet."""

    cdef bint has_views(self) noexcept:
        return 0 < self.known_below < UINT64_MAX


@cython.final
cdef class Assemblies:
    """The channels on which content may come, and the memory of what is incomplete.

    Attributes:
        counted_bytes: The properties and received bodies of all incomplete contents.
    """

    def __cinit__(self):
        self.by_channel = {}

    def __len__(self):
        return len(self.by_channel)

    # Returns the assembly of a channel, or None when content may not come on it.
    cdef Assembly get(self, uint16_t channel):
        return self.by_channel.get(channel)

    # Lets content come on a channel.
    cdef Assembly add(self, uint16_t channel):
        cdef Assembly a = self.by_channel.get(channel)
        if a is None:
            a = Assembly.__new__(Assembly)
            self.by_channel[channel] = a
        a.dropped = False
        a.known_below = UINT64_MAX
        return a

    # Drops what is incomplete, and all content that still comes on the channel.
    cdef int drop(self, uint16_t channel) except -1:
        cdef Assembly a = self.by_channel.get(channel)
        if a is None:
            return 0
        self.finish(a)
        a.body = None
        a.discard = a.dropped = True
        if a.has_views():
            a.known_below = 0
            self.end_views()
        a.known_below = 0
        return 0

    # No content may come on the channel. Returns whether it might before.
    cdef bint remove(self, uint16_t channel) except -1:
        cdef Assembly a = self.by_channel.pop(channel, None)
        if a is None:
            return False
        self.finish(a)
        if a.has_views():
            self.end_views()
        return True

    cdef int clear(self) except -1:
        self.by_channel.clear()
        self.counted_bytes = 0
        self.spare_bytes = 0
        if self.pool is not None:
            self.pool.clear()
        return 0

    # Counts n more bytes of an incomplete content.
    cdef int count(self, Assembly a, uint64_t n, uint64_t limit) except -1:
        a.counted += n
        self.counted_bytes += n
        if self.counted_bytes > limit:
            raise RemoteProtocolError(
                f"the incomplete messages of {len(self.by_channel)} channels together have {self.counted_bytes} bytes, "
                f"more than the limit of {limit} (the largest body and frame)", reply_code=506)
        return 0

    # Appends a frame to the body. Memory grows with the received bytes, so a header with a false size allocates
    # nothing. A free block of the pool exists already, and is taken whole.
    cdef int append(self, Assembly a, const uint8_t* p, Py_ssize_t size) except -1:
        cdef uint64_t total = a.message.body_size
        cdef Py_ssize_t have = <Py_ssize_t>a.received
        cdef Py_ssize_t used = have + size
        cdef Py_ssize_t wish, room
        cdef PyObject* raw
        if a.viewed:
            if a.body is None:
                a.body = self.pool.take(total)
                a.pooled = a.body is not None
            total = self.pool.room_for(total)
        if a.pooled:
            memcpy(PyBytes_AS_STRING(a.body) + have, p, size)
            return 0
        if a.body is None or used > a.room:
            wish = FIRST_FRAMES * size if a.body is None else 2 * used
            wish = min(wish, used + MOST_SPARE - self.spare_bytes)
            room = <Py_ssize_t>min(total, <uint64_t>max(wish, used + have // LEAST_GROWTH))
            if a.body is None:
                a.body = PyBytes_FromStringAndSize(NULL, room)
            else:
                raw = <PyObject*>a.body
                Py_INCREF(a.body)
                a.body = None
                self.spare_bytes -= a.room - have
                a.room = have
                a.body = resize_bytes(raw, have, room)
            self.spare_bytes += room - a.room
            a.room = room
        memcpy(PyBytes_AS_STRING(a.body) + have, p, size)
        self.spare_bytes -= size
        return 0

    # The content is complete, or is dropped: it counts no more.
    cdef int finish(self, Assembly a) noexcept:
        self.counted_bytes -= a.counted
        a.counted = 0
        a.pooled = False
        if a.room:
            self.spare_bytes -= a.room - <Py_ssize_t>a.received
            a.room = 0
        return 0

    # Returns a view of the whole body. The object behind it is as long as the body, so that callers may use it as well.
    cdef object view(self, Assembly a):
        cdef object block = a.body
        if not a.pooled:
            set_bytes_size(block, <Py_ssize_t>a.received)
            self.pool.keep(block, a.room)
        return PyMemoryView_FromObject(block)

    # Frees the pool's memory when no channel has views any more.
    cdef int end_views(self) except -1:
        cdef Assembly a
        for a in self.by_channel.values():
            if a.has_views():
                return 0
        self.pool.clear()
        return 0
