"""The base of a frame transport: its work for each read and each write, without a Python frame."""
from cpython.list cimport PyList_GET_SIZE
from libc.stdint cimport int64_t, uint64_t

from leveret.transport.waiting cimport SharedTimer
from leveret.wire.numbers cimport BASIC_DELIVER
from leveret.wire.reader cimport FrameReader
from leveret.wire.runs cimport ContentRun, SettlementRun

# What became of an event of a read.
cdef enum:
    FOR_THE_SESSION = 0
    HANDED_OVER = 1
    FAILED = 2


cdef class Stream:
    """Reads events for a session, and writes frames. `FrameTransport` is the subclass with the rest.

    Args:
        session: Receives the events (`StreamSession` in the stub).
        reader: Parses the received bytes.

    Attributes:
        reader: As given.
        out: The buffer that frames are appended to. The subclass makes it, with `_schedule_flush` and `flush` as its
            callbacks.
        closed: True when nothing is written any more.
        channels: Channels by number (`StreamChannel` in the stub). Runs of deliveries and of confirms go straight to
            the consumer or publisher of their channel, and not to the session.
        write_sizes: Counts the bytes of each write; None does not.
    """

    def __cinit__(self, session, FrameReader reader not None, *args, **kwargs):
        self.session = session
        self.reader = reader
        self.channels = {}
        self.timers = {}

    def buffer_updated(self, Py_ssize_t nbytes):
        """Handles `nbytes` that were read into the reader's buffer (`asyncio.BufferedProtocol.buffer_updated`)."""
        cdef list events = self.reader.received(nbytes)
        cdef bint one_by_one
        while PyList_GET_SIZE(events):
            # What the session makes of an event of the handshake decides how the next bytes are read.
            one_by_one = self.reader.in_handshake
            # Frames that this read causes leave in one write at its end, without another turn of the loop.
            self.out.attended = True
            try:
                self.hand_over(events)
            finally:
                self.out.attended = False
                self.flush()
            if not one_by_one or self.closed:
                break
            events = self.reader.received(0)
        if self.reader.error is not None and not self.closed:
            self.session.stream_failed(self.reader.error)

    # Passes runs on until one fails; from the first other event on the session handles the rest.
    cdef int hand_over(self, list events) except -1:
        cdef Py_ssize_t i
        cdef int end
        for i in range(PyList_GET_SIZE(events)):
            end = self.handed_over(events[i])
            if end == FOR_THE_SESSION:
                self.session.events_received(events[i:] if i else events)
            if end != HANDED_OVER:
                break
        return 0

    # Passes a run on to the consumer or publisher of its channel.
    cdef int handed_over(self, event) except -1:
        try:
            if type(event) is ContentRun:
                if (<ContentRun>event).method_id != BASIC_DELIVER:
                    return FOR_THE_SESSION
                channel = self.channels.get((<ContentRun>event).channel)
                consumers = None if channel is None else channel.consumers
                consumer = None if consumers is None else (<dict?>consumers).get((<ContentRun>event).consumer_tag)
                if consumer is None:
                    return FOR_THE_SESSION
                consumer.delivered(event)
            elif type(event) is SettlementRun:
                channel = self.channels.get((<SettlementRun>event).channel)
                publisher = None if channel is None else channel.publisher
                if publisher is None:
                    return FOR_THE_SESSION
                publisher.settled(event)
            else:
                return FOR_THE_SESSION
        except Exception as error:
            self.session.event_failed(error)
            return FAILED
        return HANDED_OVER

    # Returns the timer that consumers share which wait this many seconds before they write acknowledgements.
    cdef SharedTimer timer_of(self, double delay):
        cdef SharedTimer timer = self.timers.get(delay)
        if timer is None:
            self.timers[delay] = timer = SharedTimer(self._loop, delay)
        return timer

    def _stop_timers(self):
        cdef SharedTimer timer
        for timer in self.timers.values():
            timer.stop()

    def flush(self):
        """Writes the appended frames."""
        cdef uint64_t before = self.out.sent_bytes
        if self.out.in_pieces:
            pieces = self.out.take_pieces()
            if not self.closed and self._transport is not None:
                self._transport.writelines(pieces)
        elif self.out.used:
            block = self.out.take()
            if not self.closed and self._transport is not None:
                self._transport.write(block)
        if self.write_sizes is not None and self.out.sent_bytes != before:
            self.write_sizes.add(<int64_t>(self.out.sent_bytes - before), 1)

    def _schedule_flush(self):
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self._loop.call_soon(self._flush_turn)

    def _flush_turn(self):
        self.flush_scheduled = False
        self.flush()
