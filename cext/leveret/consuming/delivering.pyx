"""Deliveries, from the read that brought them to the acknowledgement that ends them, driven without a task for each.

A consumer has a fixed number of workers. Each is one asyncio task that awaits a `Worker`, which runs the handler's
coroutines one after the other: a handler that waits for nothing costs no turn of the event loop.
"""
cimport cython
from cpython.bytes cimport PyBytes_CheckExact
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_SET_ITEM
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.stdint cimport uint16_t

from leveret.consuming.acks cimport AckWindow
from leveret.wire.buffers cimport SendBuffer
from leveret.wire.message cimport Message
from leveret.wire.runs cimport ContentRun
from leveret.transport.waiting cimport Waiter

from collections import deque

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    PySendResult PyIter_Send(object iterator, object value, PyObject** result) except PYGEN_ERROR
    bint PyCoro_CheckExact(object o)

# What a worker waits for.
cdef enum:
    NOTHING = 0
    IDLE = 1  # a message
    HANDLER = 2  # the handler
    FAILURE = 3  # what the consumer does about a message that its handler failed on

cdef enum:
    # A worker lets others run after this many messages without a pause.
    TURN = 256
    # So many reads since the last look at the pace do not wait for the next.
    MANY_READS = 8
    # So many deliveries are worth a wait in the kernel. With 8 and a small prefetch the workers ran dry meanwhile.
    WORTH_COLLECTING = 16
    # So many places of the buffer may be free before it moves.
    COMPACT = 1024

# The most that one read waits for of what the broker may send; the rest is on its way meanwhile. With half of it or
# more the embedded broker, which is faster than RabbitMQ, stood still so often that a third less came.
cdef double READ_SHARE = 0.4

# Not any message's key.
cdef object NO_KEY = object()


@cython.final
cdef class Generation:
    """The deliveries of one channel of a consumer.

    A consumer that goes on with another channel has another generation. Its messages refer to theirs, so that an
    acknowledgement that comes too late is told from a new one: delivery tags begin anew on each channel.

    Args:
        consumer: Decodes and settles the messages.
        channel: The channel's number.
        out: The connection's send buffer.

    Attributes:
        acks: The deliveries that are not settled.
        alive: False when the channel is gone, and its deliveries with it.
        decode: The consumer's function that decodes a message.
    """

    def __cinit__(self, consumer, uint16_t channel, SendBuffer out not None):
        self.consumer = consumer
        self.decode = consumer.decode
        self.channel = channel
        self.out = out
        self.acks = AckWindow(channel)
        self.alive = True

    @property
    def queue(self):
        """The queue."""
        return self.consumer.queue

    def end(self):
        """The channel is gone."""
        self.alive = False

    def is_open(self, Message message not None):
        """Whether one of its messages can be settled."""
        return self.alive and self.acks.is_open(message.delivery_tag)

    def settle(self, Message message not None, verb):
        """What the verbs of `Message` do."""
        return self.consumer._settle(self, message, verb)

    def adopt_one(self, Message message not None, double received_at):
        """As `adopt`, for a single message."""
        message.owner = self
        message.received_at = received_at
        return message

    cpdef int adopt(self, ContentRun run, double received_at) except -1:
        """Makes these messages its own.

        Args:
            run: What one read brought.
            received_at: When, in seconds of the event loop's clock.
        """
        cdef Message message
        for message in run.messages:
            message.owner = self
            message.received_at = received_at
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
                pass  # the long way has the words for it
        value = self.decode(message)
        self.plain_decode = self.consumer.plain_decoder(message)
        self.plain_properties = None if self.plain_decode is None else message.raw_properties
        return value

    def flush(self, *, bint stragglers=False):
        """Writes the acknowledgements that are ready; see `AckWindow.flush`."""
        if self.alive:
            self.acks.write_ready(self.out, stragglers)


@cython.final
cdef class Pace:
    """Has the kernel collect deliveries that come fast, so that one read brings many.

    Reads and wake-ups cost more than the messages that they bring when the broker sends one or two at a time, as
    RabbitMQ does. So what comes in `delay` is waited for, but less than what the broker may send before it has to wait
    for acknowledgements. When it does not come in that time, the next look takes it back.

    Args:
        loop: The event loop.
        collect: `FrameTransport.collect`.
        reader: Counts the bytes that were received.
        delay: Seconds between two looks.
    """

    def __cinit__(self, loop not None, collect not None, reader not None, double delay):
        self.loop = loop
        self.collect = collect
        self.reader = reader
        self.delay = delay
        self.least = 1

    # One read brought `count` messages, when so many more than those in its hands might come.
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
            self.set(1)

    cdef int wait_for(self, Py_ssize_t messages) except -1:
        cdef Py_ssize_t size = <Py_ssize_t>(<uint64_t>self.reader.received_bytes - self.bytes)
        messages = min(messages, <Py_ssize_t>(self.may_come * READ_SHARE))
        return self.set(size // self.count * messages if messages >= WORTH_COLLECTING else 1)

    cdef int set(self, Py_ssize_t least) except -1:
        # A system call for a few bytes more or less would be too much.
        if least != self.least and (least == 1 or abs(least - self.least) > self.least // 4):
            self.least = least
            self.collect(least)
        return 0

    def stop(self):
        """Reads at once from now on."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.set(1)


cdef class Intake:
    """What a consumer does for each message: the buffer of what was delivered, and who works on it.

    `Consumer` fills the attributes and has the rest: what happens once, for each read, or when something fails.
    The attributes are its own.
    """

    def __cinit__(self, *args, **kwargs):
        self.buffer = []
        self._runnable = deque()
        self._idle = deque()
        self._active = {}

    # The next message of the buffer, or None.
    cdef Message pop(self):
        cdef Message message
        cdef Py_ssize_t head = self.head
        if head == PyList_GET_SIZE(self.buffer):
            if head:
                self.buffer.clear()
                self.head = 0
            return None
        message = <Message>PyList_GET_ITEM(self.buffer, head)
        # The list lets go of it here, and of its place when many are free.
        Py_INCREF(None)
        Py_DECREF(message)
        PyList_SET_ITEM(self.buffer, head, None)
        self.head = head + 1
        if self.head >= COMPACT and 2 * self.head >= PyList_GET_SIZE(self.buffer):
            del self.buffer[:self.head]
            self.head = 0
        return message

    def _pop(self):
        """Takes the next message of the buffer, or None."""
        return self.pop()

    def delivered(self, ContentRun run not None):
        """Takes the deliveries of one read."""
        cdef Generation generation = self._generation
        cdef object now
        cdef Py_ssize_t held = 0
        if generation is None or not generation.alive:
            return  # what was on its way when the channel was closed; it goes back
        now = self._loop.time()
        self._delivered_at = now
        generation.adopt(run, now)
        if not self._no_ack:
            held = generation.acks.unsettled
            generation.acks.delivered(run)
        self.meter.delivered += PyList_GET_SIZE(run.messages)
        if self.head and self.head == PyList_GET_SIZE(self.buffer):
            self.buffer.clear()
            self.head = 0
        self.buffer += run.messages
        if self._pace is not None:
            self._pace.read(PyList_GET_SIZE(run.messages), self._prefetch - held)
        if self._watchful:
            self._delivered(run)
        if self._idle:
            # One is enough, unless its handler has to wait: then it wakes the others. It goes on before the next look
            # at the sockets.
            self._waiters.hold()
            try:
                self._wake(1)
            finally:
                self._waiters.release()

    cpdef Waiter _wait(self):
        """What is done when there may be a message."""
        cdef Waiter waiter = self._waiters.new()
        self._idle.append(waiter)
        return waiter

    cpdef int _wake(self, Py_ssize_t count) except -1:
        """Wakes so many of those who wait for a message."""
        cdef Waiter waiter
        while self._idle and count > 0:
            waiter = self._idle.popleft()
            # One that is done belongs to somebody who was cancelled, and takes nothing.
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
        return 0

    def _put_back(self, list messages not None):
        """Puts messages back that were taken last, but for those whose channel is gone."""
        cdef Message message
        self.buffer[:self.head] = [message for message in messages if (<Generation>message.owner).alive]
        self.head = 0

    @property
    def _buffered(self):
        """How many messages are in the buffer."""
        return PyList_GET_SIZE(self.buffer) - self.head

    # The next message that may be worked on, or None.
    cdef Message take(self, Worker worker):
        cdef Message message
        cdef object key
        if self._ordered_by is None:
            return self.pop()
        if self._runnable:
            message, worker.key = self._runnable.popleft()
            return message
        while (message := self.pop()) is not None:
            try:
                key = self._ordered_by(message)
                if key not in self._active:
                    self._active[key] = None
                    worker.key = key
                    return message
                waiting = self._active[key]
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                self._failures.without_key(message, error)
                continue
            if waiting is None:
                self._active[key] = [message]
            else:
                waiting.append(message)
        return None

    # Another message of this key may be worked on.
    cdef int release(self, object key) except -1:
        cdef list waiting = self._active[key]
        if waiting is None:
            del self._active[key]
            return 0
        # Before anything in the buffer: it came before.
        self._runnable.append((waiting.pop(0), key))
        if not waiting:
            self._active[key] = None
        return 0

    cpdef int _idle_begins(self) except -1:
        """Somebody waits for a message."""
        if self._measured:
            self.idle_seconds -= <double>self._loop.time()
            self._waiting += 1
        return 0

    cpdef int _idle_ends(self) except -1:
        """Somebody does not wait any more."""
        if self._measured:
            self.idle_seconds += <double>self._loop.time()
            self._waiting -= 1
        return 0

    def _idle_seconds(self, double now):
        """How many seconds all of them waited until now, together."""
        return self.idle_seconds + self._waiting * now

    def _waiting_for_keys(self):
        """How many deliveries wait for another one with their key."""
        cdef Py_ssize_t count = len(self._runnable)
        for waiting in self._active.values():
            if waiting is not None:
                count += len(waiting)
        return count

    def _take_unstarted(self):
        """Takes the messages that no worker has begun with, in the order in which they came."""
        cdef list messages = [message for message, _ in self._runnable]
        for key, waiting in self._active.items():
            if waiting is not None:
                messages += waiting
                self._active[key] = None
        for _, key in self._runnable:
            del self._active[key]
        self._runnable.clear()
        messages += self.buffer[self.head:]
        self.buffer.clear()
        self.head = 0
        messages.sort(key=_tag)
        return messages

    # Acknowledges a message whose handler has returned.
    cdef int finish(self, Message message) except -1:
        cdef Generation generation = <Generation>message.owner
        if not generation.alive:
            self._too_late()
        elif not self._ack_each:
            # Written when the worker lets others run: nothing can be sent before that. It is nothing when the handler
            # settled its message itself.
            generation.acks.finish(message.delivery_tag)
        elif generation.acks.finish_alone(message.delivery_tag):
            generation.acks.write_alone(generation.out, message.delivery_tag)
        return 0

    # Writes the acknowledgements when there are enough of them, or sees to it that they are not forgotten.
    cdef int acknowledge(self) except -1:
        cdef Generation generation = self._generation
        if generation is None or not generation.alive or not generation.acks.ready:
            return 0
        if generation.acks.ready >= self._ack_at:
            generation.acks.write_ready(generation.out, False)
        if generation.acks.ready and self._timer is None:
            self._start_timer()
        return 0

    # There is nothing to do until more is read: what waits to be sent need not wait for a turn of the loop.
    cdef int run_dry(self) except -1:
        cdef Generation generation = self._generation
        cdef bint attended
        if generation is None:
            return 0
        attended = generation.out.attended  # then it is written at the end of the read's work
        generation.out.attended = True
        try:
            self.acknowledge()
        finally:
            generation.out.attended = attended
        if generation.out.used and not attended:
            self._written()
        return 0

    # Handlers take their time: the messages that are left are for others.
    cdef int wake_more(self) except -1:
        cdef Py_ssize_t count
        if self._idle:
            count = PyList_GET_SIZE(self.buffer) - self.head + len(self._runnable)
            if count:
                self._wake(count)
        return 0


def _tag(Message message):
    return message.delivery_tag


@cython.final
cdef class Worker:
    """Runs a handler for one message after the other until the consumer ends; to be awaited by a task of its own.

    Args:
        intake: Where messages come from.
        handler: Returns a coroutine for a value and its message.
        task: The task that awaits this, for `time_out`.

    Attributes:
        sequence: How many messages it has begun with.
        message: The message that is being worked on, or None.
    """

    def __cinit__(self, Intake intake not None, handler, task):
        self.intake = intake
        self.handler = handler
        self.task = task
        self.key = NO_KEY

    @property
    def is_handling(self):
        """Whether a handler is at work."""
        return self.kind == HANDLER and self.message is not None

    def time_out(self):
        """Cancels the handler that is at work; the consumer is told that it failed, with None for the error."""
        self.timed_out = True
        self.task.cancel()

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.step(None)

    def send(self, value):
        """Goes on. What was waited for gives no value to a worker itself."""
        return self.step(None)

    def throw(self, kind, value=None, traceback=None):
        """Raises this where the worker waits."""
        if value is None:
            value = kind() if isinstance(kind, type) else kind
        return self.step(value)

    def close(self):
        """Ends what it waits for."""
        current, self.current = self.current, None
        if hasattr(current, "close"):
            current.close()

    # Goes on until there is something to wait for, and returns that. Raises StopIteration at the end.
    cdef object step(self, object error):
        cdef PyObject* raw
        cdef object result
        cdef bint waits
        while True:
            if self.current is None:
                if error is not None:
                    raise error
                if self.cancelled:
                    # A handler that kept its cancellation to itself does not keep its consumer from ending.
                    self.cancelled = False
                    if self.intake.ends(self.task):
                        raise self.intake._waiters.cancelled_error()
                if self.turn >= TURN:
                    self.turn = 0
                    self.intake.acknowledge()
                    return None  # a turn of the event loop
                if not self.begin():
                    raise StopIteration
                continue
            try:
                if error is None:
                    raw = NULL
                    waits = PyIter_Send(self.current, None, &raw) == PYGEN_NEXT
                    result = <object>raw
                    Py_XDECREF(raw)
                else:
                    thrown, error = error, None
                    self.note_cancellation(thrown)
                    if not hasattr(self.current, "throw"):
                        raise thrown  # an iterator that cannot be told, as `yield from` has it
                    try:
                        result = self.current.throw(thrown)
                        waits = True
                    except StopIteration as stop:
                        result = stop.value
                        waits = False
            except BaseException as raised:
                self.current = None
                self.failed(raised)
                continue
            if waits:
                self.turn = 0
                if self.kind != IDLE:
                    self.intake.wake_more()
                    self.intake.acknowledge()
                return result
            self.current = None
            self.done(result)

    # Begins with the next message or waits for it; false when there will be none.
    cdef bint begin(self) except -1:
        cdef Intake intake = self.intake
        cdef Message message
        if intake._stopping:
            return False
        message = intake.take(self)
        if message is None:
            if intake._pressed:
                intake._taken()
            if intake._over:
                return False
            self.turn = 0
            intake.run_dry()
            self.wait_for(intake._wait(), IDLE)
            intake._idle_begins()
            return True
        self.turn += 1
        self.sequence += 1
        self.message = message
        intake._running += 1
        if intake._pressed:
            intake._taken()
        try:
            value = (<Generation>message.owner).value_of(message)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self.wait_for(intake._failures.undecodable(message, error), FAILURE)
            return True
        self.kind = HANDLER
        try:
            coroutine = self.handler(value, message)
            self.current = coroutine if PyCoro_CheckExact(coroutine) else coroutine.__await__()
        except BaseException as error:
            self.failed(error)
        return True

    # Has the worker wait for something, or for nothing when that is None.
    cdef int wait_for(self, object awaitable, int kind) except -1:
        self.kind = kind
        if awaitable is not None:
            self.current = awaitable if PyCoro_CheckExact(awaitable) else awaitable.__await__()
        elif kind == FAILURE:
            self.end_message()
        return 0

    # What the worker waited for has come.
    cdef int done(self, object result) except -1:
        cdef Intake intake = self.intake
        if self.kind == HANDLER:
            if not intake._results_settle:
                pass
            elif result is None or result is True:
                intake.finish(self.message)
            elif result is False:
                intake._failures.refused(self.message)
            else:
                self.wait_for(intake._failures.nonsense(self.message, result), FAILURE)
                return 0
            self.end_message()
        elif self.kind == FAILURE:
            self.end_message()
        elif self.kind == IDLE:
            intake._idle_ends()
        self.kind = NOTHING
        self.late = False
        return 0

    # What is thrown may be the end of the worker, or that of its handler, or an affair of the handler's own.
    cdef int note_cancellation(self, object error) except -1:
        if isinstance(error, self.intake._waiters.cancelled_error):
            self.cancelled = True
            if self.timed_out:
                self.timed_out = False
                self.late = True
                self.task.uncancel()
        return 0

    # What the worker waited for raised this.
    cdef int failed(self, object error) except -1:
        cdef Intake intake = self.intake
        cdef int kind = self.kind
        cdef bint late = self.late
        self.kind = NOTHING
        self.late = False
        if isinstance(error, intake._waiters.cancelled_error):
            if kind != HANDLER or intake.ends(self.task):
                if kind == IDLE:
                    intake._idle_ends()
                    # It may have been this one's turn, which passes to the next.
                    intake.wake_more()
                self.end_message()
                raise error
            if late:
                error = None
            # Otherwise the handler cancelled itself; its worker goes on.
        elif not isinstance(error, Exception) or kind != HANDLER:
            self.end_message()
            raise error
        self.wait_for(intake._failed(self.message, error), FAILURE)
        return 0

    cdef int end_message(self) except -1:
        cdef object key = self.key
        if self.message is None:
            return 0
        self.message = None
        self.intake._running -= 1
        if key is not NO_KEY:
            self.key = NO_KEY
            self.intake.release(key)
            if self.intake._idle and self.intake._runnable:
                self.intake.wake_more()
        return 0
