"""Fewer and longer reads: the kernel collects deliveries that come fast before it wakes the event loop."""
cimport cython
from libc.stdint cimport uint64_t

from leveret.monitoring.histogram cimport monotonic

cdef enum:
    # The rate is looked at after so many reads.
    READS = 8
    # It is worth a wait when so many deliveries come during `delay`. Fewer cost little time, one by one.
    WORTH_A_WAIT = 25
    # For fewer deliveries than these no read waits. With 8 and a small prefetch the workers ran dry meanwhile.
    FEWEST = 16

# A read waits for at most this share of what the broker may send; the rest is on its way meanwhile. With half of it or
# more the embedded broker, which is faster than RabbitMQ, stood still so often that a third less came.
cdef double READ_SHARE = 0.4


@cython.final
cdef class ReadCollector:
    """Has the kernel collect deliveries that come fast, so that one read brings many.

    Reads and wake-ups cost more than the messages that they bring when the broker sends one or two at a time, as
    RabbitMQ does with a queue that is full. So when 25 or more arrive during `delay`, a read waits until as many are
    readable, but for less than the broker may send before it has to wait for acknowledgements. When they do not arrive
    in that time, the next look takes it back. At lower rates nothing waits, and no timer runs.

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
        self.reads += 1
        self.may_come = may_come
        if self.timer is not None:
            return 0
        if self.reads == 1:
            # Messages are counted behind it.
            self.begin()
            self.reads = 1
            self.began = monotonic()
        elif self.reads > READS:
            self.look_at_rate()
        return 0

    cdef int begin(self) except -1:
        self.count = self.reads = 0
        self.bytes = self.reader.received_bytes
        return 0

    cdef int look_at_rate(self) except -1:
        cdef double came = self.count * self.delay * 1e9 / max(1, monotonic() - self.began)
        self.reads = 0
        if came >= WORTH_A_WAIT:
            self.wait_for(<Py_ssize_t>min(came, self.may_come))
            self.look_later()
        return 0

    # While the kernel waits, a timer takes that back if less comes.
    cdef int look_later(self) except -1:
        if self.least > 1:
            self.begin()
            self.timer = self.loop.call_later(self.delay, self._look)
        return 0

    def _look(self):
        self.timer = None
        self.wait_for(self.count)
        self.look_later()
        self.reads = 0

    # Has the next read wait for this many messages, by their average size.
    cdef int wait_for(self, Py_ssize_t messages) except -1:
        cdef Py_ssize_t size = <Py_ssize_t>(<uint64_t>self.reader.received_bytes - self.bytes)
        messages = min(messages, <Py_ssize_t>(self.may_come * READ_SHARE))
        return self.tell(size // self.count * messages if messages >= FEWEST else 1)

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
