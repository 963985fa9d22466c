"""Memory of a connection: the buffer that the kernel reads into, and the blocks that frames are appended to.

No parsing, no I/O, no clock.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.list cimport PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

cdef enum:
    # A read into less free space than this costs a system call for too few bytes; compact first.
    MIN_READ = 65536
    # The first block of an idle connection: heartbeats and acknowledgements fit.
    MIN_BLOCK = 512
    # Room for the message that fills a block: a body that is not sent as a piece of its own, and its other frames.
    SLACK = 16384
    # Blocks that are kept for later, more than a mebibyte: what may wait for the socket by default.
    MOST_SPARES = 16
    # The pool looks at each of its blocks for every body.
    MOST_BODY_BLOCKS = 4096
    # Bodies after which a block that is still held counts as kept for good: far more than wait for a handler.
    GIVEN_UP_AFTER = 4096


@cython.final
cdef class RecvBuffer:
    """One contiguous receive buffer, so that a frame is always in one piece.

    Args:
        capacity: Bytes to start with. It grows only when one frame needs more, so it is bounded by the
            reader's frame limit plus one read.
    """

    def __init__(self, Py_ssize_t capacity=262144):
        if capacity < MIN_READ:
            capacity = MIN_READ
        self.allocate(capacity)
        self.start = self.end = 0

    cdef int allocate(self, Py_ssize_t capacity) except -1:
        # Not zeroed: that would touch all of its pages, and only what was received is ever read.
        self.store = PyByteArray_FromStringAndSize(NULL, capacity)
        self.view = memoryview(self.store)
        self.data = <uint8_t*>PyByteArray_AS_STRING(self.store)
        self.capacity = capacity
        return 0

    def __len__(self):
        return self.end - self.start

    # Afterwards at least n bytes are free behind `end`. The store is never resized in place: a transport may
    # still hold a view of it, so growing means a new store.
    cdef int make_room(self, Py_ssize_t n) except -1:
        cdef Py_ssize_t pending = self.end - self.start
        cdef object _kept  # holds the old store until it is copied
        cdef uint8_t* old_data
        if pending == 0:
            self.start = self.end = 0
        if self.capacity - self.end >= n:
            return 0
        if self.capacity - pending >= n:
            memmove(self.data, self.data + self.start, pending)
        else:
            _kept = self.store
            old_data = self.data + self.start
            self.allocate(max(2 * self.capacity, pending + n))
            memcpy(self.data, old_data, pending)
        self.start = 0
        self.end = pending
        return 0

    def get_buffer(self, Py_ssize_t sizehint):
        """Returns writable memory for the next read (`asyncio.BufferedProtocol.get_buffer`).

        Args:
            sizehint: Ignored when smaller than 64 KiB: the buffer offers all that it has.

        Returns:
            A memoryview of at least 64 KiB. It is valid until the next call.
        """
        self.make_room(max(MIN_READ, sizehint))
        return self.view if self.end == 0 else self.view[self.end:]

    def written(self, Py_ssize_t n):
        """Tells the buffer that `n` bytes were read into the memory of `get_buffer`.

        Raises:
            ValueError: `n` is negative or more than was offered.
        """
        if n < 0 or n > self.capacity - self.end:
            raise ValueError(f"{n} bytes do not fit the {self.capacity - self.end} that were offered")
        self.end += n
        self.received_bytes += <uint64_t>n

    def feed(self, const uint8_t[::1] data not None):
        """Copies `data` behind what is there, as a read would."""
        cdef Py_ssize_t n = data.shape[0]
        if n:
            self.make_room(n)
            memcpy(self.data + self.end, &data[0], n)
            self.written(n)


@cython.final
cdef class SendBuffer:
    """What the next write will send: a block of frames, and large bodies between blocks, which are not copied.

    Frames are built inside a bytes object that nobody else holds, so handing it to the transport copies nothing. A
    block that was handed over is touched again only when the transport and everybody else have let go of it: it is
    used for later frames then, because fresh memory costs more than the copying (a page fault for each 4 KiB).

    Args:
        on_data: Called without arguments when the first byte of a new block is appended: schedule a flush.
        on_full: Called without arguments when `flush_bytes` or more wait: call `take` or `take_pieces` and write.
            Neither may raise: what was appended stays in the block, and its delivery tag is taken.
        flush_bytes: When `on_full` is called, in bytes.

    Attributes:
        flush_bytes: As given.
        sent_bytes: Bytes taken so far.
        in_pieces: There is more than one piece to write: call `take_pieces`, because `take` would have to join them.
        paused: The socket is full: publishings are to wait. Whoever writes the blocks sets it.
        blocked: The broker blocks publishers (RabbitMQ: connection.blocked): likewise.
    """

    def __init__(self, on_data, on_full, Py_ssize_t flush_bytes=65536):
        if flush_bytes < 1:
            raise ValueError("flush_bytes must be at least 1")
        self.on_data = on_data
        self.on_full = on_full
        self.flush_bytes = flush_bytes
        self.full_room = flush_bytes + SLACK
        self.block = None
        self.spares = []
        self.hint = MIN_BLOCK

    def __len__(self):
        return self.used + self.piece_bytes

    # A block of `room` bytes that nobody else holds.
    cdef object start_block(self, Py_ssize_t room):
        cdef Py_ssize_t last = PyList_GET_SIZE(self.spares) - 1
        cdef Py_ssize_t i
        cdef object block
        if room == self.full_room and last >= 0:
            # The latest is still in the processor's cache. When the transport holds that one, the socket is full, and
            # the oldest is the first that it lets go of.
            i = last if _is_free(self.spares, last) else 0
            if _is_free(self.spares, i):
                block = self.spares.pop(i)
                set_bytes_size(block, room)
                return block
        return PyBytes_FromStringAndSize(NULL, room)

    # Ends the block: a bytes object of what was appended to it.
    cdef object end_block(self):
        cdef PyObject* raw
        cdef Py_ssize_t used = self.used
        cdef Py_ssize_t room = self.room
        cdef object block = self.block
        self.block = None
        self.base = NULL
        self.used = self.room = 0
        # The next block is likely to be as large as this one was.
        self.hint = self.full_room if 2 * used >= self.full_room else max(MIN_BLOCK, used + (used >> 2))
        if room == self.full_room and 2 * used >= room and Py_REFCNT(<PyObject*>block) == 1:
            set_bytes_size(block, used)
            self.spares.append(block)
            if PyList_GET_SIZE(self.spares) > MOST_SPARES:
                del self.spares[0]
            return block
        if PyList_GET_SIZE(self.spares):
            # A quiet connection gives its memory back, block by block.
            del self.spares[0]
        Py_INCREF(block)
        raw = <PyObject*>block
        block = None
        return resize_bytes(raw, used, used)

    cdef int grow(self, Py_ssize_t n) except -1:
        cdef Py_ssize_t room = max(self.used + n, min(2 * self.room, self.full_room))
        cdef PyObject* raw
        if self.block is None:
            room = max(self.hint, n)
            self.block = self.start_block(room)
        else:
            raw = <PyObject*>self.block
            Py_INCREF(self.block)
            self.block = None
            self.base = NULL
            try:
                self.block = resize_bytes(raw, self.used, room)
            except BaseException:
                self.used = self.room = 0
                raise
        self.base = <uint8_t*>PyBytes_AS_STRING(self.block)
        self.room = room
        return 0

    # Memory for n bytes at the end of the block; nothing is appended until commit().
    cdef uint8_t* reserve(self, Py_ssize_t n) except NULL:
        if n > self.room - self.used:
            self.grow(n)
        return self.base + self.used

    # The caller has filled n of the bytes that reserve() gave.
    cdef int commit(self, Py_ssize_t n) except -1:
        cdef bint first = self.used == 0
        self.used += n
        if first and not self.attended:
            self.on_data()
        if self.used >= self.flush_bytes:
            self.on_full()
        return 0

    # Moves the block to the pieces, so that more pieces can follow. Returns the pieces, which splice() replaces.
    cdef list seal(self):
        if self.pieces is None:
            self.pieces = []
            self.in_pieces = True
        if self.used:
            self.piece_bytes += self.used
            self.pieces.append(self.end_block())
        return self.pieces

    # Replaces what seal() returned by a list that begins with the same bytes and has n more. Cannot fail before that.
    cdef int splice(self, list pieces, Py_ssize_t n) except -1:
        cdef bint first = self.piece_bytes == 0
        self.pieces = pieces
        self.piece_bytes += n
        if first:
            self.on_data()
        if self.piece_bytes >= self.flush_bytes:
            self.on_full()
        return 0

    def append(self, const uint8_t[::1] data not None):
        """Appends ready-made frames; `data` is copied."""
        cdef Py_ssize_t n = data.shape[0]
        if n:
            memcpy(self.reserve(n), &data[0], n)
            self.commit(n)

    def take(self):
        """Returns what was appended as bytes and starts anew; empty bytes when nothing was appended."""
        if self.in_pieces:
            return b"".join(self.take_pieces())
        if self.used == 0:
            return b""
        self.sent_bytes += <uint64_t>self.used
        return self.end_block()

    def take_pieces(self):
        """Returns what was appended as a list of bytes and of memoryviews of bytes, and starts anew.

        Large bodies are in it as they were given, which holds them until the list is gone.
        """
        cdef list pieces = self.seal()
        self.sent_bytes += <uint64_t>self.piece_bytes
        self.pieces = None
        self.piece_bytes = 0
        self.in_pieces = False
        return pieces


# Nobody but the list holds this block.
cdef inline bint _is_free(list blocks, Py_ssize_t i) noexcept:
    return Py_REFCNT(PyList_GET_ITEM(blocks, i)) == 1


@cython.final
cdef class BodyPool:
    """Memory for large bodies, which is used again when nobody holds the body any more.

    Blocks are bytes objects. One of which the pool alone has a reference is free: a memoryview holds the object that it
    shows, and a slice of the view does, and so does whoever took the bytes out of it. So nothing is given back, and
    nothing can be given back too early. A body for which no free block fits gets fresh memory, which the pool keeps
    if it has room. Free blocks that were not used for longest make room for others, and so do blocks that somebody has
    held for thousands of bodies: the pool lets go of them, their holders do not notice.

    Where Python runs without a GIL a count of references proves nothing, and no block is used again.

    Args:
        max_blocks: How many blocks it keeps, 0 to 4096, held ones included.
        max_bytes: How large they may be together.

    Attributes:
        max_blocks: As given.
        max_bytes: As given.
        pooled_bytes: How large the blocks in the pool are together, held ones included.
        hits: Bodies that got a block of the pool.
        misses: Bodies that got fresh memory.
    """

    def __cinit__(self, Py_ssize_t max_blocks=32, Py_ssize_t max_bytes=33554432):
        if not 0 <= max_blocks <= MOST_BODY_BLOCKS:
            raise ValueError(f"max_blocks is 0 to {MOST_BODY_BLOCKS}, not {max_blocks}")
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative: {max_bytes}")
        self.max_blocks = max_blocks
        self.max_bytes = max_bytes
        self.count = 0
        self.blocks = <BodyBlock*>malloc(max(1, max_blocks) * sizeof(BodyBlock))
        if self.blocks is NULL:
            raise MemoryError()

    def __dealloc__(self):
        while self.count:
            self.drop(self.count - 1)
        free(self.blocks)

    def __len__(self):
        return self.count

    @property
    def held_blocks(self):
        """How many of its blocks hold a body that somebody has."""
        cdef Py_ssize_t i
        cdef Py_ssize_t held = 0
        for i in range(self.count):
            held += Py_REFCNT(self.blocks[i].bytes) > 1
        return held

    def clear(self):
        """Lets go of all blocks. Bodies in them stay what they are for as long as somebody holds them."""
        while self.count:
            self.drop(self.count - 1)

    # How large a block for a body of this size should be, so that others of about its size fit: eight sizes between a
    # power of two and the next, so at most an eighth is more than the body needs. What would not be kept is exact.
    cdef uint64_t room_for(self, uint64_t size) noexcept:
        cdef uint64_t step = 512
        cdef uint64_t room
        while step <= size >> 4:
            step <<= 1
        room = (size + step - 1) & ~(step - 1)
        return room if room <= <uint64_t>self.max_bytes else size

    # A free block that is as large as `size`, or None. At most half of it is more than that: a small body would hold on
    # to a large block. The block is in use while its caller, or who it is passed on to, holds the reference.
    cdef object take(self, uint64_t size):
        cdef Py_ssize_t i
        cdef BodyBlock* block
        cdef BodyBlock* best = NULL
        for i in range(self.count):
            block = &self.blocks[i]
            if <uint64_t>block.room < size or <uint64_t>block.room >> 1 > size:
                continue
            # The smallest that fits; of several the one that was used last may still be in the processor's cache.
            if best is not NULL and (block.room > best.room or (block.room == best.room and block.turn < best.turn)):
                continue
            if Py_REFCNT(block.bytes) == 1:
                best = block
        if best is NULL:
            self.misses += 1
            return None
        self.hits += 1
        best.turn = self.hits + self.misses
        set_bytes_size(<object>best.bytes, <Py_ssize_t>size)
        return <object>best.bytes

    # Takes a block that a body is in, for the body after it. `room` is what it was made with; only its caller has it.
    cdef int keep(self, object block, Py_ssize_t room) except -1:
        cdef Py_ssize_t i, oldest
        cdef Py_ssize_t left = self.count
        cdef Py_ssize_t left_bytes = self.pooled_bytes
        if not POOLS_BODIES:
            return 0
        if self.count == self.max_blocks or self.pooled_bytes > self.max_bytes - room:
            for i in range(self.count):
                if self.droppable(&self.blocks[i]):
                    left -= 1
                    left_bytes -= self.blocks[i].room
            if left == self.max_blocks or left_bytes > self.max_bytes - room:
                # It is too large, or what is held leaves no room. That will be free soon, and letting go of it now
                # would bring the same miss again.
                return 0
            while self.count == self.max_blocks or self.pooled_bytes > self.max_bytes - room:
                oldest = -1
                for i in range(self.count):
                    if self.droppable(&self.blocks[i]) and (
                            oldest < 0 or self.blocks[i].turn < self.blocks[oldest].turn):
                        oldest = i
                self.drop(oldest)
        Py_INCREF(block)
        self.blocks[self.count].bytes = <PyObject*>block
        self.blocks[self.count].room = room
        self.blocks[self.count].turn = self.hits + self.misses
        self.count += 1
        self.pooled_bytes += room
        return 0

    cdef bint droppable(self, BodyBlock* block) noexcept:
        return Py_REFCNT(block.bytes) == 1 or self.hits + self.misses - block.turn > GIVEN_UP_AFTER

    # Their order says nothing, so the last one takes the place.
    cdef int drop(self, Py_ssize_t i) noexcept:
        cdef PyObject* block = self.blocks[i].bytes
        self.pooled_bytes -= self.blocks[i].room
        self.count -= 1
        self.blocks[i] = self.blocks[self.count]
        _drop(block)
        return 0
