"""Memory of a connection: the buffer that the kernel reads into, the blocks that frames are appended to, pooled bodies.

This module does not parse, does no input or output, and reads no clock.
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
    # What a receive buffer offers for a read at first, in bytes. Most connections never need more.
    FIRST_READ = 8192
    # A buffer that has grown is made small again after so many reads in a row that needed no more than that.
    CALM_READS = 256
    # The first block of an idle connection. Heartbeats and acknowledgements fit.
    MIN_BLOCK = 512
    # Extra room of a full block for its last message: a body that is copied, and its method and header frames.
    SLACK = 16384
    # Kept blocks. Together they are more than a mebibyte, which is what may wait for the socket by default.
    MOST_SPARES = 16
    # The limit of `max_blocks`: the pool looks at each block for every body.
    MOST_BODY_BLOCKS = 4096
    # A block that is still held after this many bodies counts as kept for good. Far fewer wait for a handler.
    GIVEN_UP_AFTER = 4096


@cython.final
cdef class RecvBuffer:
    """A contiguous receive buffer: each frame lies in one piece.

    It has no memory until the first read, which gets 8 KiB. It grows up to `most` when a read fills what it offered. It
    grows further for a frame that needs more, so the reader's frame limit plus one read bounds it. It is small again
    after 256 reads that would have fitted.

    Args:
        most: The most bytes that it offers for a read.
    """

    def __init__(self, Py_ssize_t most=262144):
        self.most = max(most, FIRST_READ)

    cdef int allocate(self, Py_ssize_t capacity) except -1:
        # The memory is not zeroed, which would touch all of its pages. Only received bytes are ever read.
        self.store = PyByteArray_FromStringAndSize(NULL, capacity)
        self.view = memoryview(self.store)
        self.data = <uint8_t*>PyByteArray_AS_STRING(self.store)
        self.capacity = capacity
        return 0

    # Drops what was read, and gives the memory back.
    cdef int release(self) except -1:
        self.store = self.view = None
        self.data = NULL
        self.capacity = self.start = self.end = self.calm = 0
        self.filled = False
        return 0

    def __len__(self):
        return self.end - self.start

    # Makes at least n bytes free behind `end`. A transport may still hold a view of the store, so growing makes a new
    # store and never resizes the old one.
    cdef int make_room(self, Py_ssize_t n) except -1:
        cdef Py_ssize_t pending = self.end - self.start
        cdef object _kept  # a reference to the old store until it is copied
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
            self.allocate(max(2 * self.capacity, pending + n, FIRST_READ))
            if pending:
                memcpy(self.data, old_data, pending)
        self.start = 0
        self.end = pending
        return 0

    def get_buffer(self, Py_ssize_t sizehint):
        """Returns writable memory for the next read (`asyncio.BufferedProtocol.get_buffer`).

        Args:
            sizehint: Not used: uvloop always says 64 KiB, and -1 is asyncio's.

        Returns:
            A memoryview of at least 2 KiB: all that is free. It is valid until the next call.
        """
        if self.start == self.end:
            self.start = self.end = 0
            if self.filled and self.capacity < self.most:
                self.allocate(min(4 * self.capacity, self.most))
            elif self.capacity == 0:
                self.allocate(FIRST_READ)
            elif self.calm >= CALM_READS and self.capacity > FIRST_READ:
                self.allocate(FIRST_READ)
                self.calm = 0
            self.filled = False
            return self.view
        if self.filled and self.capacity < self.most:
            # `make_room` doubles it at least.
            self.make_room(self.capacity)
        else:
            self.make_room(self.capacity // 4)
        self.filled = False
        return self.view if self.end == 0 else self.view[self.end:]

    def written(self, Py_ssize_t n):
        """Tells the buffer that `n` bytes were read into the memory of `get_buffer`.

        Raises:
            ValueError: `n` is negative or more than was offered.
        """
        if n < 0 or n > self.capacity - self.end:
            raise ValueError(f"{n} bytes do not fit the {self.capacity - self.end} that were offered")
        self.filled = n > 0 and n == self.capacity - self.end
        self.calm = self.calm + 1 if self.end - self.start + n <= FIRST_READ // 2 else 0
        self.end += n
        self.received_bytes += <uint64_t>n

    def feed(self, const uint8_t[::1] data not None):
        """Appends a copy of `data`, as a read would."""
        cdef Py_ssize_t n = data.shape[0]
        if n:
            self.make_room(n)
            memcpy(self.data + self.end, &data[0], n)
            self.written(n)


@cython.final
cdef class SendBuffer:
    """The frames of the next write: blocks of frames, and between them large bodies, which are not copied.

    Frames are built inside a bytes object that only the buffer holds, so handing it to the transport copies nothing.
    The buffer uses a block again for later frames once no other reference to it is left. Fresh memory would cost more
    than the copying (a page fault for each 4 KiB).

    Args:
        on_data: Called without arguments when the first byte of a new block is appended. It schedules a flush.
        on_full: Called without arguments when `flush_bytes` or more wait. It calls `take` or `take_pieces`, and writes.
            Neither callback may raise: the frames stay in the block, and the delivery tag of a publishing is taken.
        flush_bytes: The number of waiting bytes from which `on_full` is called.

    Attributes:
        flush_bytes: As given.
        sent_bytes: Bytes taken so far.
        in_pieces: True when there is more than one piece to write. `take` joins them; `take_pieces` does not.
        paused: True while the socket is full. Publishers wait. The transport sets it.
        blocked: True while the broker blocks publishers (RabbitMQ: connection.blocked). Publishers wait.
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

    # Returns a block of `room` bytes, and the only reference to it.
    cdef object start_block(self, Py_ssize_t room):
        cdef Py_ssize_t last = PyList_GET_SIZE(self.spares) - 1
        cdef Py_ssize_t i
        cdef object block
        if room == self.full_room and last >= 0:
            # Take the newest spare block, which is still in the processor's cache. When the transport holds it, the
            # socket is full; then try the oldest, which the transport releases first.
            i = last if _is_free(self.spares, last) else 0
            if _is_free(self.spares, i):
                block = self.spares.pop(i)
                set_bytes_size(block, room)
                return block
        return PyBytes_FromStringAndSize(NULL, room)

    # Ends the block. Returns its frames as a bytes object.
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

    # Returns memory for n bytes at the end of the block. The bytes count only after commit().
    cdef uint8_t* reserve(self, Py_ssize_t n) except NULL:
        if n > self.room - self.used:
            self.grow(n)
        return self.base + self.used

    # Appends the first n bytes of the memory that reserve() returned, which the caller has filled.
    cdef int commit(self, Py_ssize_t n) except -1:
        cdef bint first = self.used == 0
        self.used += n
        if first and not self.attended:
            self.call(self.on_data)
        if self.used >= self.flush_bytes:
            self.call(self.on_full)
        return 0

    # A closed buffer has no callbacks, and drops what was appended.
    cdef int call(self, callback) except -1:
        if callback is None:
            self.take_pieces()
        else:
            callback()
        return 0

    # Moves the block to the list of pieces. Returns that list, which splice() replaces.
    cdef list seal(self):
        if self.pieces is None:
            self.pieces = []
            self.in_pieces = True
        if self.used:
            self.piece_bytes += self.used
            self.pieces.append(self.end_block())
        return self.pieces

    # Replaces the list of seal() by one with the same bytes and n more behind them. Cannot fail before it has done so.
    cdef int splice(self, list pieces, Py_ssize_t n) except -1:
        cdef bint first = self.piece_bytes == 0
        self.pieces = pieces
        self.piece_bytes += n
        if first:
            self.call(self.on_data)
        if self.piece_bytes >= self.flush_bytes:
            self.call(self.on_full)
        return 0

    def append(self, const uint8_t[::1] data not None):
        """Appends a copy of `data`, which holds whole frames."""
        cdef Py_ssize_t n = data.shape[0]
        if n:
            memcpy(self.reserve(n), &data[0], n)
            self.commit(n)

    def take(self):
        """Returns the appended frames as bytes, and starts anew. Returns empty bytes when there are none."""
        if self.in_pieces:
            return b"".join(self.take_pieces())
        if self.used == 0:
            return b""
        self.sent_bytes += <uint64_t>self.used
        return self.end_block()

    def take_pieces(self):
        """Returns the appended frames as a list of bytes and memoryviews of bytes, and starts anew.

        The list refers to large bodies themselves, and keeps them alive.
        """
        cdef list pieces = self.seal()
        self.sent_bytes += <uint64_t>self.piece_bytes
        self.pieces = None
        self.piece_bytes = 0
        self.in_pieces = False
        return pieces

    def close(self):
        """Frees the memory, and drops what waits and all that is appended later. Neither callback is called again."""
        self.on_data = self.on_full = None
        self.attended = False
        self.take_pieces()
        self.spares.clear()


# True when the list holds the only reference to its block.
cdef inline bint _is_free(list blocks, Py_ssize_t i) noexcept:
    return Py_REFCNT(PyList_GET_ITEM(blocks, i)) == 1


@cython.final
cdef class BodyPool:
    """Memory for large bodies, which the pool uses again when no reference to a body is left.

    Blocks are bytes objects. A block is free when the pool holds the only reference to it. A memoryview of a body holds
    the block, and so does a slice of the view and the bytes object itself. So handlers give nothing back, and cannot
    give it back too early. A body that no free block fits gets fresh memory, and the pool keeps that if it has room.
    To make room it drops the free blocks that were unused for longest, and blocks that a handler has held for thousands
    of bodies. A dropped block stays valid for its holder.

    Without a GIL a reference count proves nothing, so no block is used again.

    Args:
        max_blocks: The number of blocks it keeps, 0 to 4096, held blocks included.
        max_bytes: The limit of their sizes together, in bytes.

    Attributes:
        max_blocks: As given.
        max_bytes: As given.
        pooled_bytes: The sizes of all blocks together, held blocks included.
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
        """The number of blocks that are not free: a handler still holds their body."""
        cdef Py_ssize_t i
        cdef Py_ssize_t held = 0
        for i in range(self.count):
            held += Py_REFCNT(self.blocks[i].bytes) > 1
        return held

    def clear(self):
        """Drops all blocks. Bodies in them stay valid for as long as they are referenced."""
        while self.count:
            self.drop(self.count - 1)

    # Returns the size of a block for a body, with room for other bodies of about this size. There are eight sizes
    # between a power of two and the next, so at most an eighth is unused. A block too large to be kept has no extra
    # room.
    cdef uint64_t room_for(self, uint64_t size) noexcept:
        cdef uint64_t step = 512
        cdef uint64_t room
        while step <= size >> 4:
            step <<= 1
        room = (size + step - 1) & ~(step - 1)
        return room if room <= <uint64_t>self.max_bytes else size

    # Returns a free block of at least `size` bytes, or None. Blocks over twice the size do not count: a small body
    # would keep a large block alive. The returned reference marks the block as held.
    cdef object take(self, uint64_t size):
        cdef Py_ssize_t i
        cdef BodyBlock* block
        cdef BodyBlock* best = NULL
        for i in range(self.count):
            block = &self.blocks[i]
            if <uint64_t>block.room < size or <uint64_t>block.room >> 1 > size:
                continue
            # Prefer the smallest, and of equal ones the last used, which may still be in the processor's cache.
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

    # Adds the block of a received body to the pool. `room` is the size that it was made with. The caller holds the only
    # reference.
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
                # The block is too large, or held blocks leave no room. Those are free soon; to drop them now would
                # bring the same miss again.
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

    # The order of blocks has no meaning, so the last one takes the dropped one's place.
    cdef int drop(self, Py_ssize_t i) noexcept:
        cdef PyObject* block = self.blocks[i].bytes
        self.pooled_bytes -= self.blocks[i].room
        self.count -= 1
        self.blocks[i] = self.blocks[self.count]
        _drop(block)
        return 0
