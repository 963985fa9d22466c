"""The events of a frame reader: runs of messages, runs of settlements, and single methods."""
cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, realloc

from leveret.wire.numbers cimport SETTLE_MULTIPLE, SETTLE_NACK, SETTLE_REQUEUE


@cython.final
@cython.freelist(64)
cdef class ContentRun:
    """Consecutive messages of one channel, to one consumer or with one exchange and routing key.

    Attributes:
        channel: The channel number.
        method_id: 60 deliver, 71 get-ok, 50 return, 40 publish.
        consumer_tag: The consumer of all deliveries; empty for other methods.
        exchange: The exchange of the first message. All messages of a basic.publish run have the same.
        routing_key: The routing key of the first message. All messages of a basic.publish run have the same.
        mandatory: The mandatory bit of all messages of a basic.publish run.
        immediate: The immediate bit of all messages of a basic.publish run.
        common_properties: The packed properties of all messages, as one object. None when they differ, or when a body
            was too large to be kept.
        messages: At least one `Message`.
    """

    def __repr__(self):
        return f"<ContentRun channel={self.channel} method={self.method_id} of {len(self.messages)}>"


@cython.final
@cython.freelist(64)
cdef class SettlementRun:
    """Consecutive acknowledgements of one channel: basic.ack, basic.nack and basic.reject.

    Iterating yields `(delivery_tag, multiple, nack, requeue)` for each.

    Attributes:
        channel: The channel number.
    """

    def __cinit__(self):
        self.tags = NULL
        self.flags = NULL
        self.count = self.capacity = 0

    def __dealloc__(self):
        free(self.tags)
        free(self.flags)

    cdef int add(self, uint64_t tag, uint8_t flags) except -1:
        cdef Py_ssize_t capacity
        cdef void* memory
        if self.count == self.capacity:
            capacity = max(8, self.capacity * 2)
            memory = realloc(self.tags, capacity * sizeof(uint64_t))
            if memory is NULL:
                raise MemoryError()
            self.tags = <uint64_t*>memory
            memory = realloc(self.flags, capacity)
            if memory is NULL:
                raise MemoryError()
            self.flags = <uint8_t*>memory
            self.capacity = capacity
        self.tags[self.count] = tag
        self.flags[self.count] = flags
        self.count += 1
        return 0

    @staticmethod
    def of(uint16_t channel, entries):
        """Makes a run from `(delivery_tag, multiple, nack, requeue)` tuples."""
        cdef SettlementRun run = SettlementRun.__new__(SettlementRun)
        run.channel = channel
        for tag, multiple, nack, requeue in entries:
            run.add(tag, (SETTLE_MULTIPLE if multiple else 0) | (SETTLE_NACK if nack else 0)
                    | (SETTLE_REQUEUE if requeue else 0))
        return run

    def __len__(self):
        return self.count

    def __iter__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            yield (self.tags[i], self.flags[i] & SETTLE_MULTIPLE != 0, self.flags[i] & SETTLE_NACK != 0,
                   self.flags[i] & SETTLE_REQUEUE != 0)

    def __repr__(self):
        return f"<SettlementRun channel={self.channel} of {self.count}>"


@cython.final
@cython.freelist(16)
cdef class MethodFrame:
    """A method frame with packed arguments.

    Attributes:
        channel: The channel number.
        class_id: The class, for example 50 for queue.
        method_id: The method, for example 10 for declare.
        payload: The packed arguments, for `decode_arguments`.
    """

    def __repr__(self):
        return f"<MethodFrame channel={self.channel} {self.class_id}.{self.method_id} of {len(self.payload)} bytes>"
