"""The deliveries of one channel: how their bodies are decoded, and when their acknowledgements are written."""
cimport cython
from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint16_t

from leveret.consuming.acks cimport AckWindow
from leveret.monitoring.histogram cimport monotonic, wall_clock
from leveret.transport.stream cimport Stream
from leveret.wire.buffers cimport SendBuffer
from leveret.wire.message cimport Message
from leveret.wire.runs cimport ContentRun

from leveret.errors import RemoteProtocolError

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef enum:
    # What a message takes beside its body and properties, in bytes.
    MESSAGE_COST = 512


@cython.final
cdef class ChannelDeliveries:
    """The deliveries that one channel brought to a consumer.

    A consumer that goes on with another channel has another object of this class. Each message refers to the one of its
    own channel, so a settlement that comes too late is told from one for the new channel: delivery tags begin anew on
    each channel.

    Args:
        queue: The queue.
        channel: The channel's number.
        out: The connection's send buffer.
        decoder: Its `decode` decodes a message. Its `plain` returns the function that decodes the bodies of all
            messages with the same properties, or None.
        settle: Called as `settle(deliveries, message, verb, detail)` by the verbs of `Message`.
        credit: How many deliveries may be unsettled (`connection.credit.Credit`); None for no limit.

    Attributes:
        acks: The deliveries that are not settled.
        alive: False when the channel is gone, and its deliveries with it.
        decode: Decodes a message.
    """

    def __cinit__(self, queue, uint16_t channel, SendBuffer out not None, decoder not None, settle not None,
                  credit=None):
        self.queue = queue
        self.channel = channel
        self.out = out
        self.decode = decoder.decode
        self.find_plain = decoder.plain
        self.settler = settle
        self.acks = AckWindow(channel)
        self.credit = credit
        self.most = PY_SSIZE_T_MAX if credit is None else 0
        self.alive = True

    def end(self):
        """Notes that the channel is gone."""
        self.alive = False

    def is_open(self, Message message not None):
        """True while one of its messages can be settled."""
        return self.alive and self.acks.is_open(message.delivery_tag)

    def now(self):
        """Returns the time, in seconds of `time.monotonic`."""
        return monotonic() * 1e-9

    def wall_time(self, double at):
        """Returns the wall-clock time at a time of `now`, in seconds since 1970, by what the wall clock says now."""
        return wall_clock() * 1e-6 - (monotonic() * 1e-9 - at)

    def settle(self, Message message not None, verb, detail):
        """Settles one of its messages; see the verbs of `Message`."""
        if verb == "ack" and self.acknowledger is not None and self.acknowledger.ack(self, message):
            return self.acknowledger.settled
        return self.settler(self, message, verb, detail)

    def adopt_one(self, Message message not None, double received_at):
        """Takes over one message, as `adopt` does for the messages of a run."""
        message.owner = self
        message.received_at = received_at
        return message

    cpdef int adopt(self, ContentRun run, double received_at) except -1:
        """Becomes the owner of messages.

        Args:
            run: What one read brought.
            received_at: When, in seconds of `time.monotonic`.
        """
        cdef Message message
        for message in run.messages:
            message.owner = self
            message.received_at = received_at
        return 0

    # Notes deliveries that have to be settled, and holds the server to the prefetch.
    cdef int track(self, ContentRun run) except -1:
        cdef Py_ssize_t held = self.acks.unsettled
        if not self.acks.delivered(run):
            raise RemoteProtocolError(f"a delivery tag on channel {self.channel} is not higher than the one before it")
        if self.acks.unsettled > self.most:
            self.exceed(run, held)
        return 0

    # More deliveries are unsettled than the limit knows of. `held` of them were before these.
    cdef int exceed(self, ContentRun run, Py_ssize_t held) except -1:
        if self.changes != self.credit.changes:
            # Those of consumers that have ended, and all that the others asked for.
            self.changes = self.credit.changes
            self.most = PY_SSIZE_T_MAX if self.credit.total is None else held + <Py_ssize_t>self.credit.total
        if held <= self.most:
            self.surplus = self.surplus_bytes = 0
        if self.acks.unsettled > self.most:
            self.add_surplus(run.messages, self.acks.unsettled - max(held, self.most), 0)
        return 0

    # Refuses what a server sends beyond the limit, when the last `count` messages make it too much: more than
    # `spare_bytes`, and more than `spare` messages.
    cdef int add_surplus(self, list messages, Py_ssize_t count, Py_ssize_t spare) except -1:
        cdef Message message
        if self.credit is None:
            return 0
        for message in messages[len(messages) - count:]:
            self.surplus_bytes += MESSAGE_COST + PyBytes_GET_SIZE(message.raw_properties)
            if message.body is not None:
                self.surplus_bytes += <int64_t>message.body_size
        self.surplus += count
        if self.surplus_bytes > <int64_t>self.credit.spare_bytes and self.surplus > spare:
            raise RemoteProtocolError(
                f"the server sent {self.surplus} deliveries of {self.surplus_bytes} bytes on channel {self.channel} "
                f"beyond {'basic.cancel' if spare else 'its prefetch'}; the limit is {self.credit.spare_bytes} "
                "bytes (max_body_size)", reply_code=506)
        return 0

    cdef object value_of(self, Message message):
        if message.raw_properties is self.plain_properties and PyBytes_CheckExact(message.body):
            if self.plain_decode is bytes:
                return message.body
            try:
                return self.plain_decode(message.body)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                pass  # `decode` raises an error that says more
        value = self.decode(message)
        self.plain_decode = self.find_plain(message)
        self.plain_properties = None if self.plain_decode is None else message.raw_properties
        return value

    def flush(self, *, bint stragglers=False):
        """Writes the acknowledgements that are ready; see `AckWindow.flush`."""
        if self.alive:
            self.acks.write_ready(self.out, stragglers)


def reserve(Message message not None):
    """Keeps a message from being settled until `restore`.

    Returns:
        False when it is settled or reserved already, or its channel is gone.
    """
    cdef ChannelDeliveries deliveries = message.owner
    return deliveries is not None and deliveries.alive and deliveries.acks.reserve(message.delivery_tag)


def restore(Message message not None):
    """Lets a message be settled again. Returns False when it was not reserved, or its channel is gone."""
    cdef ChannelDeliveries deliveries = message.owner
    return deliveries is not None and deliveries.alive and deliveries.acks.restore(message.delivery_tag)


@cython.final
cdef class Acknowledger:
    """Writes a consumer's acknowledgements: many at once, and none later than `delay` seconds.

    Args:
        waiters: Those of the consumer, which know its event loop.
        meter: Counts as `stale` messages that were finished when their channel was gone; has the times to settlement.
        delay: Seconds that an acknowledgement waits for others at most.
        each: Write each acknowledgement by itself, at once.

    Attributes:
        current: The deliveries of the consumer's channel, or None before it has one.
        settled: What `ack` of a message returns when it is done here; None when the settler has to do it.
        write_at: When this many acknowledgements are ready they are written without waiting.
    """

    def __cinit__(self, Waiters waiters not None, meter not None, double delay, bint each):
        self.waiters = waiters
        self.meter = meter
        self.settled_time = self.meter.settled_time
        self.delay = delay
        self.each = each
        self.write_at = 1

    def begin(self, ChannelDeliveries deliveries not None, Stream stream not None):
        """Goes on with the deliveries of another channel.

        Args:
            deliveries: They become `current`.
            stream: The connection's.
        """
        self.current = deliveries
        deliveries.acknowledger = self
        self.stop()
        self.stream = stream
        self.timer = stream.timer_of(self.delay)

    # Acknowledges a message that its user has handled. False in any other than the ordinary case, of which it is the
    # settler to say what it is.
    cdef bint ack(self, ChannelDeliveries deliveries, Message message) except -1:
        if self.settled is None or not deliveries.alive or not self.waiters.at_home():
            return False
        if not deliveries.acks.finish(message.delivery_tag):
            return False
        self.settled_time.add(monotonic() - <int64_t>(message.received_at * 1e9), 1)
        self.write_in_time()
        return True

    # Acknowledges a message whose handler has returned, unless it is settled. Returns whether it did.
    cdef bint finish(self, Message message) except -1:
        cdef ChannelDeliveries deliveries = <ChannelDeliveries>message.owner
        if not deliveries.alive:
            self.meter.stale += 1
            return False
        if not self.each:
            # `write_in_time` writes it when the worker lets others run: nothing can be sent before that.
            return deliveries.acks.finish(message.delivery_tag) > 0
        if not deliveries.acks.finish_alone(message.delivery_tag):
            return False
        deliveries.acks.write_alone(deliveries.out, message.delivery_tag)
        return True

    cpdef int write_in_time(self) except -1:
        """Writes the acknowledgements when enough of them are ready, or starts the timer that writes them."""
        cdef ChannelDeliveries deliveries = self.current
        if deliveries is None or not deliveries.alive or not deliveries.acks.ready:
            return 0
        if deliveries.acks.ready >= self.write_at:
            deliveries.acks.write_ready(deliveries.out, False)
        if deliveries.acks.ready and not self.timed:
            self.timed = True
            self.timer.add(self)
        return 0

    # A worker has nothing to do until more is read: what waits in the send buffer need not wait for a turn of the loop.
    cdef int run_dry(self) except -1:
        cdef ChannelDeliveries deliveries = self.current
        cdef bint attended
        if deliveries is None:
            return 0
        attended = deliveries.out.attended  # then it is written at the end of the read's work
        deliveries.out.attended = True
        try:
            self.write_in_time()
        finally:
            deliveries.out.attended = attended
        if deliveries.out.used and not attended:
            self.stream.flush()
        return 0

    cdef int due(self) except -1:
        if self.timed:
            self.timed = False
            if self.current.alive:
                self.current.acks.write_ready(self.current.out, True)
        return 0

    def flush(self, *, bint stragglers=False):
        """Writes the acknowledgements that are ready; see `AckWindow.flush`."""
        if self.current is not None:
            self.current.flush(stragglers=stragglers)

    def stop(self):
        """Leaves the timer; what is ready waits for `flush`."""
        if self.timed:
            self.timed = False
            self.timer.remove(self)
