"""Handlers that are plain functions: the event loop's part of what the threads do that run them."""
cimport cython
from cpython.pythread cimport PyThread_release_lock
from libc.stdint cimport int64_t

from leveret.consuming.channel_deliveries cimport Acknowledger, ChannelDeliveries
from leveret.consuming.delivery_buffer cimport DeliveryBuffer
from leveret.consuming.hand_over cimport (
    AWAY,
    BACK,
    CALLED,
    DONE,
    ENDED,
    FREE,
    HANDLING,
    HandOver,
    LATE,
    NOTHING,
    OVERDUE,
    RAISED,
    RESTING,
    ThreadWorker,
    TIMED,
    UNREAD,
    WOKEN,
)
from leveret.monitoring.histogram cimport monotonic
from leveret.wire.message cimport Message

from collections import deque

cdef enum:
    # So many messages, or bytes of bodies, are handed on at most: enough for the time that the event loop takes to come
    # back, and what was decoded takes memory.
    MOST_QUEUED = 256
    MOST_QUEUED_BYTES = 1048576

# Seconds.
cdef double LOOK = 0.001


@cython.final
cdef class HandlerThreads(HandOver):
    """Has threads run a handler, and settles its messages. Each of its workers has a task:

        worker = threads.worker()
        while await threads.report(worker):
            ...  # await threads.action(worker), unless that is None
            threads.go_on(worker)
        threads.leave(worker)

    Args:
        handler: A function of a value and its message.
        submit: Called as `submit(function, ...)` to have a thread call it; raises RuntimeError when the program ends.
        results_count: False and wrong results have a meaning.
        results_settle: None and True acknowledge the message.
        buffer: Where messages come from.
        acks: Acknowledges them.
        failures: Carries out the error policy for messages that were not handled.
        owner: Does the same when a handler raised or is late.
        loop: The event loop.
    """

    def __init__(self, handler, submit, bint results_count, bint results_settle, DeliveryBuffer buffer not None,
                 Acknowledger acks not None, failures, owner, loop):
        super().__init__(handler, submit, results_count)
        self.results_settle = results_settle
        self.buffer = buffer
        self.acks = acks
        self.failures = failures
        self.owner = owner
        self.loop = loop
        self.workers = []
        self.keys = {}
        buffer.ahead = self

    cdef int call_loop(self) except -1:
        try:
            self.loop.call_soon_threadsafe(self.collect)
        except RuntimeError:
            pass  # the loop is closed, and its consumers with it
        return 0

    cdef int64_t slow_after(self) noexcept:
        return self.buffer.slow_after

    # ------------------------------------------------------------------ messages to the threads, and back

    def fill(self):
        """Hands messages on to the threads, and wakes one if there are any."""
        cdef DeliveryBuffer buffer = self.buffer
        cdef Message message
        cdef list messages = []
        cdef list unread = []
        cdef Py_ssize_t room, bytes_left
        self.lock()
        room = 0 if self.stopped else MOST_QUEUED - len(self.queue)
        bytes_left = MOST_QUEUED_BYTES - self.queued_bytes
        self.unlock()
        try:
            while room > 0 and bytes_left > 0 and (message := buffer.take()) is not None:
                room -= 1
                bytes_left -= <Py_ssize_t>message.body_size
                messages.append(message)
                if buffer.ordered_by is not None:
                    self.keys[message] = buffer.taken_key
                if not self.prepare(message):
                    unread.append(message)
        finally:
            self.hand_on(messages, unread)
        if buffer._pressed:
            buffer.taken()

    # Decodes a message, whose `value` a thread can read then. Returns whether it is an ordinary one.
    cdef bint prepare(self, Message message) except -1:
        if message.redelivered and self.failures.nears_limit(message):
            return False
        if message.is_decoded:
            return True
        try:
            message.decoded_value = (<ChannelDeliveries>message.owner).value_of(message)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            return False
        message.is_decoded = True
        return True

    cdef int hand_on(self, list messages, list unread) except -1:
        cdef Message message
        cdef ThreadWorker woken
        cdef bint timed
        self.lock()
        for message in messages:
            self.queued_bytes += <Py_ssize_t>message.body_size
        self.queue.extend(messages)
        if unread:
            self.unread.update(unread)
        woken = self.wake_next()
        timed = self.attention == AWAY and len(self.queue) > 1
        if timed:
            self.attention = TIMED
        self.unlock()
        if timed and self.timer is None:
            self.timer = self.loop.call_later(LOOK, self._look)
        if woken is not None:
            self.start(woken)
        return 0

    def _look(self):
        self.timer = None
        self.collect()

    def collect(self):
        """Takes the results of the threads, and hands messages on."""
        cdef bint active = self.settle()
        self.fill()
        self.end_if_over()
        self.watch(active)

    # Acknowledges the messages whose handlers did well, and tells the tasks of the workers that report something else.
    # Returns whether there was one.
    cdef bint settle(self) except -1:
        cdef ThreadWorker worker
        cdef Message message
        cdef int64_t now = monotonic()
        cdef list done = []
        cdef list reports = []
        self.lock()
        done, self.done = self.done, done
        reports, self.reports = self.reports, reports
        self.attention = CALLED
        self.unlock()
        for message in done:
            self.handled(message, now)
            if self.results_settle and self.acks.finish(message):
                self.buffer.settled_time.add(now - <int64_t>(message.received_at * 1e9), 1)
            self.end_message(message)
        for worker in reports:
            # Its task may have found the report by itself.
            if worker.waiter is not None and worker.reported != NOTHING:
                worker.waiter.set_result(True)
        if done:
            self.lock()
            self.taken -= len(done)
            self.unlock()
            self.acks.run_dry()
        return bool(done) or bool(reports)

    # A handler has ended.
    cdef int handled(self, Message message, int64_t now) except -1:
        self.buffer.waiting_time.add(message.handler_began - <int64_t>(message.received_at * 1e9), 1)
        self.buffer.handler_time.add(message.handler_took, 1)
        if message.handler_took > self.buffer.slow_after:
            self.failures.slow(message, message.handler_took * 1e-9)
        return 0

    cdef int end_message(self, Message message) except -1:
        if self.buffer.ordered_by is not None:
            self.buffer.release(self.keys.pop(message))
        return 0

    # Has the results that will come taken: in time, if there were some just now.
    cdef int watch(self, bint active) except -1:
        cdef bint again, timed = False
        self.lock()
        again = bool(self.done) or bool(self.reports)
        if not again:
            # A thread that finds no message calls at once.
            timed = len(self.queue) > 1 and (active or self.timer is not None)
            self.attention = TIMED if timed else AWAY
        self.unlock()
        if again:
            self.loop.call_soon(self.collect)
        elif timed and self.timer is None:
            self.timer = self.loop.call_later(LOOK, self._look)
        return 0

    # Tells the tasks of all workers when there is no more to do.
    cdef int end_if_over(self) except -1:
        cdef DeliveryBuffer buffer = self.buffer
        cdef ThreadWorker worker
        cdef bint at_work
        self.lock()
        at_work = self.taken > 0
        self.unlock()
        if not at_work and (buffer.stopping or (buffer.over and not buffer._unstarted)):
            for worker in self.workers:
                if worker.waiter is not None:
                    worker.waiter.set_result(False)
        return 0

    # ------------------------------------------------------------------ the task of a worker calls these

    def worker(self):
        """Makes a worker. A task awaits its reports until there are no more, and then has it `leave`."""
        cdef ThreadWorker worker = ThreadWorker.__new__(ThreadWorker, self)
        self.workers.append(worker)
        self.lock()
        self.idle.append(worker)
        self.idle_time -= monotonic()
        self.idle_count += 1
        self.unlock()
        self.fill()
        return worker

    def report(self, ThreadWorker worker not None):
        """Returns what its task awaits: true when there is something to do, which `action` says; false at the end."""
        cdef bint ready
        worker.waiter = self.buffer.waiters.new()
        self.lock()
        ready = worker.reported != NOTHING
        self.unlock()
        if ready:
            worker.waiter.set_result(True)
        else:
            self.end_if_over()
        return worker.waiter

    def action(self, ThreadWorker worker not None):
        """Begins with what is to be done about its message. Returns a coroutine to await before `go_on`, or None."""
        cdef Message message = worker.message
        cdef object detail
        cdef int64_t now = monotonic()
        worker.waiter = None
        self.lock()
        worker.case, worker.reported = worker.reported, NOTHING
        detail, worker.detail = worker.detail, None
        self.unlock()
        if worker.case == UNREAD:
            return self.read(worker)
        if worker.case == BACK:
            return None
        if worker.case == OVERDUE:
            message.handler_took = now - message.handler_began
        self.handled(message, now)
        if worker.case == OVERDUE:
            return self.owner.failed(message, None)
        if worker.case == RAISED:
            if isinstance(detail, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                self.failures.abandoned(message)
                raise detail
            return self.owner.failed(message, detail)
        if detail is False:
            return self.failures.refused(message)
        return self.failures.nonsense(message, detail)

    # Reads a message that is not an ordinary one. Returns as `action`.
    cdef object read(self, ThreadWorker worker):
        cdef Message message = worker.message
        cdef object action
        action = self.failures.redelivered(message) if message.redelivered else None
        if action is not None:
            worker.case = DONE
            return action
        try:
            message.decoded_value = (<ChannelDeliveries>message.owner).value_of(message)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            worker.case = DONE
            return self.failures.undecodable(message, error)
        message.is_decoded = True
        return None

    def go_on(self, ThreadWorker worker not None):
        """Goes on when what `action` began is done."""
        cdef Message message = worker.message
        cdef int64_t now = monotonic()
        cdef bint handles = worker.case == UNREAD, waits = False
        self.lock()
        if handles:
            worker.state_now = HANDLING
            worker.begun = message.handler_began = now
        elif worker.state_now == LATE or worker.reported != NOTHING:
            waits = True  # for the thread of a handler that is late
        else:
            worker.state_now = FREE
            worker.message = None
            self.taken -= 1
            self.idle.append(worker)
            self.idle_time -= now
            self.idle_count += 1
        self.unlock()
        if handles:
            self.submit(self.run, worker, message)
        elif not waits:
            self.end_message(message)
            self.acks.run_dry()
            self.wake()

    def leave(self, ThreadWorker worker not None, *, bint stops):
        """Notes that the task of a worker ends. Its thread, if a handler is at work in it, runs on by itself.

        Args:
            worker: The worker.
            stops: No thread is to take another message.
        """
        cdef Message message
        cdef int state, reported
        if stops:
            self.stop()
        self.settle()
        self.lock()
        state, reported = worker.state_now, worker.reported
        message, worker.message = worker.message, None
        worker.state_now = ENDED
        if state == FREE or state == RESTING:
            self.idle.remove(worker)
        elif state == WOKEN:
            self.woken -= 1
        if state <= RESTING:
            self.idle_time += monotonic()
            self.idle_count -= 1
        else:
            self.taken -= 1
        if state == RESTING:
            PyThread_release_lock(worker.bell)
        self.unlock()
        self.workers.remove(worker)
        if message is not None:
            if state == HANDLING or reported != NOTHING:
                self.failures.abandoned(message)
            self.end_message(message)
        if self.workers:
            self.watch(False)
        else:
            messages = self.buffer._take_unstarted()
            self.buffer.ahead = None
            self.buffer._put_back(messages)

    def stop(self):
        """Keeps threads from taking another message."""
        self.lock()
        self.stopped = True
        self.unlock()

    # ------------------------------------------------------------------ the buffer calls these

    def wake(self):
        """Looks in the next turn of the event loop for messages to hand on, and whether there will be any."""
        self.loop.call_soon(self.collect)

    def take_back(self):
        """Returns the messages that no thread has taken."""
        cdef object queue = deque()
        cdef set unread = set()
        self.lock()
        queue, self.queue = self.queue, queue
        unread, self.unread = self.unread, unread
        self.queued_bytes = 0
        self.unlock()
        messages = list(queue)
        if self.buffer.ordered_by is not None:
            for message in messages:
                del self.buffer.active[self.keys.pop(message)]
        return messages

    def counts(self):
        """Returns how many messages no thread has taken, and how many are being worked on."""
        self.lock()
        queued, taken = len(self.queue), self.taken
        self.unlock()
        return queued, taken

    def waiting(self):
        """Returns how many workers wait for a message."""
        self.lock()
        count = self.idle_count
        self.unlock()
        return count

    def idle_seconds(self):
        """Returns the seconds that all workers together waited until now."""
        cdef int64_t time, now = monotonic()
        self.lock()
        time = self.idle_time + self.idle_count * now
        self.unlock()
        return time * 1e-9

    def end(self, bint stopping):
        """Ends when there is no message left, or after those that are being worked on."""
        if stopping:
            self.stop()
        self.wake()
