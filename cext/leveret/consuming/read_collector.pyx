"""Fewer and longer reads: the kernel collects deliveries that come fast before it wakes the event loop."""
cimport cython
from libc.stdint cimport uint64_t

cdef enum:
    # After this many reads since the last look the collector does not wait for the next look.
    MANY_READS = 8
    # Fewer deliveries are not worth a wait in the kernel. With 8 and a small prefetch the workers ran dry meanwhile.
    WORTH_COLLECTING = 16

# A read waits for at most this share of what the broker may send; the rest is on its way meanwhile. With half of it or
# more the embedded broker, which is faster than RabbitMQ, stood still so often that a third less came.
cdef double READ_SHARE = 0.4


@cython.final
cdef class ReadCollector:
    """Has the kernel collect deliveries that come fast, so that one read brings many.

    Reads and wake-ups cost more than the messages that they bring when the broker sends one or two at a time, as
    RabbitMQ does. So a read waits until as many deliveries are readable as arrived during the last `delay`, but for
    less than the broker may send before it has to wait for acknowledgements. When they do not arrive in that time, the
    next look takes it back.

    Args:
        loop: The event loop.
        collect: `FrameTransport.collect`.
        reader: Counts the received bytes as `received_bytes`.
        delay: Seconds between two looks.
    """

    def __cinit__(self, loop not None, collect not None, reader not None, double delay):
        self.loop = loop
        self.collect = collect
        self.reader = reader
        self.delay = delay
        self.least = 1

    # Notes a read that brought `count` messages. `may_come`: the remaining prefetch credit before it.
    cdef int read(self, Py_ssize_t count, Py_ssize_t may_come) except -1:
        self.count += count
        self.may_come = may_come
        self.reads += 1
        if self.timer is None:
            self.begin()
        elif self.reads == MANY_READS:
            # The next look would be late.
            self.wait_for(may_come)
        return 0

    cdef int begin(self) except -1:
        self.count = self.reads = 0
        self.bytes = self.reader.received_bytes
        self.timer = self.loop.call_later(self.delay, self._look)
        return 0

    def _look(self):
        self.timer = None
        if self.count:
            self.wait_for(self.count)
            self.begin()
        else:
            self.tell(1)

    # Has the next read wait for this many messages, by their average size.
    cdef int wait_for(self, Py_ssize_t messages) except -1:
        cdef Py_ssize_t size = <Py_ssize_t>(<uint64_t>self.reader.received_bytes - self.bytes)
        messages = min(messages, <Py_ssize_t>(self.may_come * READ_SHARE))
        return self.tell(size // self.count * messages if messages >= WORTH_COLLECTING else 1)

    cdef int tell(self, Py_ssize_t least) except -1:
        # A system call for a few bytes more or less would cost more than it saves.
        if least != self.least and (least == 1 or abs(least - self.least) > self.least // 4):
            self.least = least
            self.collect(least)
        return 0

    def stop(self):
        """Reads at once from now on."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.tell(1)
