"""The buffer of deliveries that no worker has begun with, and the waits of workers that have none."""
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_SET_ITEM
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, int64_t, uint64_t

from leveret.consuming.channel_deliveries cimport Acknowledger, ChannelDeliveries
from leveret.monitoring.histogram cimport monotonic, wall_clock
from leveret.transport.waiting cimport PENDING as WAIT_PENDING, Waiter, Waiters
from leveret.wire.message cimport Message
from leveret.wire.own_headers cimport sent_at_of
from leveret.wire.runs cimport ContentRun

from collections import deque

cdef enum:
    # The buffer moves when this many of its places, and half of all, are free.
    COMPACT = 1024
    # So many messages may be on their way when basic.cancel is sent. RabbitMQ sends 200 ahead of a channel's writer.
    SENT_AHEAD = 1024

# Microseconds, 400 days: the times of older messages are taken for wrong.
cdef int64_t LONGEST_TRANSIT = <int64_t>400 * 86400 * 1000000


cdef class DeliveryBuffer:
    """The compiled base of `Consumer`: buffers delivered messages, and hands them to the workers that wait for them.

    `Consumer` derives from it, so that no Python function runs for an ordinary delivery, and has the rest: what happens
    once, at a read with unusual settings, or when something fails. The names with an underscore are for `Consumer`.

    Args:
        acks: Acknowledges messages.
        failures: Its `without_key` settles a message that has no key.
        meter: Counts the deliveries, and has the histograms of their times.
        waiters: Makes what workers wait for.
        ordered_by: Returns the key of a message, or None when messages may overtake each other.
        no_ack: Deliveries are not acknowledged.
        watched: Call `_delivered` for each read.
        measured: Measure how long workers wait for messages.
    """

    def __cinit__(self, *args, **kwargs):
        self.buffer = []
        self.runnable = deque()
        self.idle = []
        self.active = {}

    def __init__(self, Acknowledger acks not None, failures, meter, Waiters waiters not None, ordered_by,
                 bint no_ack, bint watched, bint measured):
        self.acks = acks
        self.failures = failures
        self.meter = meter
        self.delivered_count = self.meter.delivered
        self.waiting_time = self.meter.waiting_time
        self.handler_time = self.meter.handler_time
        self.settled_time = self.meter.settled_time
        self.transit_time = self.meter.transit_time
        self.slow_after = INT64_MAX
        self.waiters = waiters
        self.ordered_by = ordered_by
        self.no_ack = no_ack
        self._watched = watched
        self.measured = measured

    # ------------------------------------------------------------------ the buffer

    # Takes the next message of the buffer, or None.
    cdef Message pop(self):
        cdef Message message
        cdef Py_ssize_t head = self.head
        if head == PyList_GET_SIZE(self.buffer):
            if head:
                self.buffer.clear()
                self.head = 0
            return None
        message = <Message>PyList_GET_ITEM(self.buffer, head)
        # The list drops its reference here, and the place itself when many are free.
        Py_INCREF(None)
        Py_DECREF(message)
        PyList_SET_ITEM(self.buffer, head, None)
        self.head = head + 1
        if self.head >= COMPACT and 2 * self.head >= PyList_GET_SIZE(self.buffer):
            del self.buffer[:self.head]
            self.head = 0
        return message

    def delivered(self, ContentRun run not None):
        """Takes the deliveries of one read; the channel calls this."""
        cdef ChannelDeliveries deliveries = self.acks.current
        cdef double now
        cdef Py_ssize_t held = 0
        cdef Waiter waiter
        if deliveries is None or not deliveries.alive:
            return  # they were on their way when the channel was closed, and go back to the queue
        now = monotonic() * 1e-9
        self._delivered_at = now
        deliveries.adopt(run, now)
        if run.common_properties is None or self.look_at(run.common_properties):
            self.count_transit(run)
        if not self.no_ack:
            held = deliveries.acks.unsettled
            deliveries.track(run)
        elif self._pressed:
            # The server should have stopped: see `Unlimited`.
            deliveries.add_surplus(run.messages, PyList_GET_SIZE(run.messages), SENT_AHEAD)
        else:
            deliveries.surplus = deliveries.surplus_bytes = 0
        self.delivered_count.value += <uint64_t>PyList_GET_SIZE(run.messages)
        if self.head and self.head == PyList_GET_SIZE(self.buffer):
            self.buffer.clear()
            self.head = 0
        self.buffer += run.messages
        if self.measured:
            self.note_load(deliveries, PyList_GET_SIZE(run.messages))
        if self._collector is not None:
            self._collector.read(PyList_GET_SIZE(run.messages), self._prefetch - held)
        if self._watched:
            self._delivered(run)
        if self.ahead is not None:
            self.ahead.fill()
        elif self.idle:
            # One worker is enough, unless its handler has to wait: then it wakes the others. It resumes before the
            # event loop looks at its sockets again.
            waiter = self.next_idle()
            if waiter is not None:
                self.waiters.wake(waiter)

    # The time in the header `x-leveret-sent-at`; 0 for none. Messages of one write have the same, as one object.
    cdef inline int64_t look_at(self, bytes raw_properties) noexcept:
        if raw_properties is not self.looked_at:
            self.looked_at = raw_properties
            self.sent_at = sent_at_of(raw_properties)
        return self.sent_at

    # Counts how long messages were on their way, up to this read: those with one time together. Messages that were
    # delivered before do not count.
    cdef int count_transit(self, ContentRun run) except -1:
        cdef int64_t now = wall_clock()
        cdef int64_t last = 0
        cdef int64_t sent_at
        cdef uint64_t count = 0
        cdef Message message
        for message in run.messages:
            sent_at = 0 if message.redelivered else self.look_at(message.raw_properties)
            if sent_at != last:
                self.add_transit(last, now, count)
                last, count = sent_at, 0
            count += 1
        return self.add_transit(last, now, count)

    cdef int add_transit(self, int64_t sent_at, int64_t now, uint64_t count) except -1:
        if sent_at > 0 and now - sent_at <= LONGEST_TRANSIT:
            self.transit_time.add(now - sent_at, count)  # counts as 0 when the publisher's clock is ahead of this one
        return 0

    def report_slow(self, seconds):
        """Has handlers that take more seconds reported in the log; None for no more. See `Client.report`."""
        self.slow_after = INT64_MAX if seconds is None else <int64_t>(<double>seconds * 1e9)

    def _pop(self):
        """Takes the next message of the buffer, or None."""
        cdef Message message = self.pop()
        if message is not None:
            self.taken()
        return message

    def _next(self):
        """Takes the next message for `async for`, or None when there is more to do than that."""
        cdef Message message
        if not self._iterates or self.stopping:
            return None
        message = self.pop()
        if message is not None:
            self.taken()
            if self.idle:
                self.wake_more()
        return message

    def _put_back(self, list messages not None):
        """Puts messages back that were taken last, but for those that the broker delivers again."""
        self.buffer[:self.head] = self._kept(messages)
        self.head = 0

    def _kept(self, list messages not None):
        """Returns the messages that the broker does not deliver again.

        When a channel is gone, the broker delivers again what it waits for the settlement of. What it sent without
        acknowledgements, or has got the acknowledgement of, is lost unless it is handled here.
        """
        cdef Message message
        return [message for message in messages if (<ChannelDeliveries>message.owner).alive
                or not (<ChannelDeliveries>message.owner).acks.is_pending(message.delivery_tag)]

    def _take_unstarted(self):
        """Takes the messages that no worker has begun with, in the order in which they came."""
        cdef list messages = [message for message, _ in self.runnable]
        for key, waiting in self.active.items():
            if waiting is not None:
                messages += waiting
                self.active[key] = None
        for _, key in self.runnable:
            del self.active[key]
        self.runnable.clear()
        messages += self.buffer[self.head:]
        self.buffer.clear()
        self.head = 0
        if self.ahead is not None:
            messages += self.ahead.take_back()
        messages.sort(key=_arrival)
        return messages

    @property
    def _buffered(self):
        """How many messages are in the buffer."""
        return PyList_GET_SIZE(self.buffer) - self.head

    @property
    def _unstarted(self):
        """How many messages no worker has begun with: in the buffer, handed on, or waiting for another's key."""
        cdef Py_ssize_t count = PyList_GET_SIZE(self.buffer) - self.head + len(self.runnable)
        for waiting in self.active.values():
            if waiting is not None:
                count += len(waiting)
        return count if self.ahead is None else count + self.ahead.counts()[0]

    @property
    def _over(self):
        """No more deliveries will come."""
        return self.over

    @property
    def _stopping(self):
        """No more messages will be handled."""
        return self.stopping

    @property
    def _idle_count(self):
        """How many tasks wait for a message."""
        return len(self.idle)

    @property
    def _running(self):
        """How many messages are being worked on."""
        return self.running if self.ahead is None else self.running + self.ahead.counts()[1]

    # Tells the consumer that a message was taken from a buffer that was too full.
    cdef int taken(self) except -1:
        if self._pressed:
            self._taken()
        return 0

    # ------------------------------------------------------------------ order by key

    # Takes the next message that may be worked on, or None.
    cdef Message take(self):
        cdef Message message
        cdef object key
        if self.ordered_by is None:
            return self.pop()
        if self.runnable:
            message, self.taken_key = self.runnable.popleft()
            return message
        while (message := self.pop()) is not None:
            try:
                key = self.ordered_by(message)
                if key not in self.active:
                    self.active[key] = None
                    self.taken_key = key
                    return message
                waiting = self.active[key]
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                self.failures.without_key(message, error)
                continue
            if waiting is None:
                self.active[key] = [message]
            else:
                waiting.append(message)
        return None

    # Lets the next message with this key be worked on.
    cdef int release(self, object key) except -1:
        cdef list waiting = self.active[key]
        if waiting is None:
            del self.active[key]
            return 0
        # It goes before anything in the buffer, because it came before.
        self.runnable.append((waiting.pop(0), key))
        if not waiting:
            self.active[key] = None
        if self.idle:
            self.wake_more()
        return 0

    # ------------------------------------------------------------------ workers that wait

    # Returns something to wait for; it is done when there may be a message.
    cdef Waiter wait(self):
        cdef Waiter waiter = self.waiters.new()
        self.wait_with(waiter)
        return waiter

    # As `wait`, with a waiter that the caller has made.
    cdef int wait_with(self, Waiter waiter) except -1:
        self.idle.append(waiter)
        return 0

    # Removes and returns the newest pending waiter of `idle`; None when there is none. Its worker ran last, so its
    # memory is in the processor's cache. Waiters that are done belong to cancelled tasks, and are dropped.
    cdef Waiter next_idle(self):
        cdef Waiter waiter
        while self.idle:
            waiter = self.idle.pop()
            if waiter.state == WAIT_PENDING:
                return waiter
        return None

    # Wakes this many workers.
    cdef int wake(self, Py_ssize_t count) except -1:
        cdef Waiter waiter
        while count > 0 and (waiter := self.next_idle()) is not None:
            waiter.set_result(None)
            count -= 1
        return 0

    # Wakes workers for the messages that are left, because a handler takes its time.
    cdef int wake_more(self) except -1:
        cdef Py_ssize_t count
        if self.ahead is not None:
            self.ahead.wake()
        elif self.idle:
            count = PyList_GET_SIZE(self.buffer) - self.head + len(self.runnable)
            if count:
                self.wake(count)
        return 0

    cdef int idle_begins(self) except -1:
        if self.measured:
            self.idle_time -= monotonic()
            self.waiting += 1
        return 0

    cdef int idle_ends(self) except -1:
        if self.measured:
            self.idle_time += monotonic()
            self.waiting -= 1
        return 0

    def _watch(self):
        """Has `_delivered` called for the next read."""
        self._watched = True

    def _wait(self):
        """Returns something to await; it is done when there may be a message, or there will be none."""
        return self.wait()

    def _give_up_waiting(self, waiter):
        """Notes that a task was cancelled while it waited: it may have been its turn, which passes to the next."""
        if waiter in self.idle:
            self.idle.remove(waiter)
        self.wake_more()

    def _idle_begins(self):
        """Notes that a task has nothing to do until a message comes."""
        self.idle_begins()

    def _idle_ends(self):
        """Notes that its wait has ended."""
        self.idle_ends()

    def _wake_more(self):
        """Wakes workers for the messages that are left."""
        self.wake_more()

    def _wake_all(self):
        """Wakes all workers that wait."""
        self.wake(len(self.idle))
        if self.ahead is not None:
            self.ahead.wake()

    def _idle_seconds(self):
        """The seconds that all workers together waited until now; counted for an automatic prefetch only."""
        if self.ahead is not None:
            return self.ahead.idle_seconds()
        return (self.idle_time + self.waiting * monotonic()) * 1e-9

    def _take_extremes(self):
        """Returns the fewest messages that no worker had begun with, and the most unsettled deliveries, up to now.

        They are those since the last call; counted for an automatic prefetch only.
        """
        cdef ChannelDeliveries deliveries = self.acks.current
        cdef Py_ssize_t lowest = self.lowest, highest = self.highest
        self.lowest, self.highest = self._unstarted, 0
        if deliveries is not None:
            self.highest = deliveries.acks.unsettled + deliveries.acks.ready
        return min(lowest, self.lowest), highest

    # Notes the load after a read.
    cdef int note_load(self, ChannelDeliveries deliveries, Py_ssize_t count) except -1:
        cdef Py_ssize_t unstarted = self._unstarted - count
        cdef Py_ssize_t unsettled = deliveries.acks.unsettled + deliveries.acks.ready
        if unstarted < self.lowest:
            self.lowest = unstarted
        if unsettled > self.highest:
            self.highest = unsettled
        return 0

    @property
    def _waiting(self):
        """How many workers wait for a message; counted as `_idle_seconds`."""
        return self.waiting if self.ahead is None else self.ahead.waiting()

    def _note_end(self, *, bint over, bint stopping):
        """Notes when workers end, and wakes them if they do.

        Args:
            over: When the buffer is empty, because no more deliveries will come.
            stopping: After the message that they are at.
        """
        self.over = over
        self.stopping = stopping
        if not over and not stopping:
            return
        self.wake(len(self.idle))
        if self.ahead is not None:
            self.ahead.end(stopping)


def _arrival(Message message):
    # Delivery tags begin anew on each channel.
    return message.received_at, message.delivery_tag
