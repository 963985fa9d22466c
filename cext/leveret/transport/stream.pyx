"""What a transport does for each read and each write, without a Python frame."""
from cpython.list cimport PyList_GET_SIZE

from leveret.wire.numbers cimport BASIC_DELIVER
from leveret.wire.reader cimport FrameReader
from leveret.wire.runs cimport ContentRun, SettlementRun


cdef class Stream:
    """What a transport does for each read and each write; `FrameTransport` has the rest.

    Args:
        session: Is told of events.
        reader: Parses what is received.

    Attributes:
        reader: As given.
        out: Where frames are appended, with `_schedule_flush` and `flush` for its calls; set by the subclass.
        closed: Nothing is written any more.
        channels: By number, those whose deliveries and confirms go to their owners without a look by the session, when
            they are all that a read brought. A channel has `consumers` by their tags, and a `publisher` or None.
    """

    def __cinit__(self, session, FrameReader reader not None, *args, **kwargs):
        self.session = session
        self.reader = reader
        self.channels = {}

    def buffer_updated(self, Py_ssize_t nbytes):
        """The reader's buffer holds `nbytes` more."""
        cdef list events = self.reader.received(nbytes)
        if PyList_GET_SIZE(events):
            # What this read brings about leaves in one write at its end, without another turn of the loop.
            self.out.attended = True
            try:
                if not (PyList_GET_SIZE(events) == 1 and self.handed_over(events[0])):
                    self.session.events_received(events)
            finally:
                self.out.attended = False
                self.flush()
        if self.reader.error is not None and not self.closed:
            self.session.stream_failed(self.reader.error)

    cdef bint handed_over(self, event) except -1:
        try:
            if type(event) is ContentRun:
                if (<ContentRun>event).method_id != BASIC_DELIVER:
                    return False
                channel = self.channels.get((<ContentRun>event).channel)
                owner = None if channel is None else channel.consumers.get((<ContentRun>event).consumer_tag)
                if owner is None:
                    return False
                owner.delivered(event)
            elif type(event) is SettlementRun:
                channel = self.channels.get((<SettlementRun>event).channel)
                owner = None if channel is None else channel.publisher
                if owner is None:
                    return False
                owner.settled(event)
            else:
                return False
        except Exception as error:
            self.session.event_failed(error)
        return True

    def flush(self):
        """Writes what was appended so far."""
        if self.out.in_pieces:
            pieces = self.out.take_pieces()
            if not self.closed and self._transport is not None:
                self._transport.writelines(pieces)
        elif self.out.used:
            block = self.out.take()
            if not self.closed and self._transport is not None:
                self._transport.write(block)

    def _schedule_flush(self):
        if not self.flush_scheduled:
            self.flush_scheduled = True
            self._loop.call_soon(self._flush_turn)

    def _flush_turn(self):
        self.flush_scheduled = False
        self.flush()
