"""What the event loop and the threads of a consumer hand to each other: messages one way, and results the other.

Neither side waits for the other after each message. The event loop hands on what a read brought, and wakes one thread;
that one wakes the next while messages are left. The threads collect the messages whose handlers did well, and have the
event loop called once for many of them. docs/decisions/0043 has the reasons.
"""
cimport cython
from cpython.pythread cimport (
    NOWAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
    WAIT_LOCK,
)
from libc.stdint cimport INT64_MAX, int64_t

from leveret.monitoring.histogram cimport monotonic
from leveret.wire.message cimport Message

from collections import deque

cdef extern from "pythread.h":
    ctypedef enum PyLockStatus:
        PY_LOCK_ACQUIRED
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int interrupted) nogil

cdef enum:
    # Microseconds that a thread waits for a message before it goes back to its pool: a program that ends without having
    # closed its consumers waits for it.
    REST = 100000


cdef class HandOver:
    """The part of `HandlerThreads` that threads run. Everything that both sides change is under one lock.

    Args:
        handler: A function of a value and its message.
        submit: Called as `submit(function, ...)` to have a thread call it; raises RuntimeError when the program ends.
        results_count: False and wrong results have a meaning.
    """

    def __cinit__(self, *args, **kwargs):
        self.guard = PyThread_allocate_lock()
        if self.guard is NULL:
            raise MemoryError()
        self.queue = deque()
        self.unread = set()
        self.done = []
        self.reports = []
        self.idle = []

    def __init__(self, handler, submit, bint results_count):
        self.handler = handler
        self.submit = submit
        self.results_count = results_count

    def __dealloc__(self):
        if self.guard is not NULL:
            PyThread_free_lock(self.guard)

    # Has the event loop take what is there; called in any thread.
    cdef int call_loop(self) except -1:
        raise NotImplementedError

    # From so many nanoseconds on, a handler is reported.
    cdef int64_t slow_after(self) noexcept:
        return INT64_MAX

    cdef void lock(self) noexcept:
        if not PyThread_acquire_lock(self.guard, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self.guard, WAIT_LOCK)

    cdef void unlock(self) noexcept:
        PyThread_release_lock(self.guard)

    # ------------------------------------------------------------------ threads do this

    def run(self, ThreadWorker worker not None, Message message=None):
        """Handles messages until none comes for a while.

        Args:
            worker: The worker that a thread runs now.
            message: What it begins with.
        """
        cdef object result, error
        cdef int64_t now
        cdef bint rests
        while True:
            if message is None:
                message = self.rest(worker)
                if message is None:
                    return
            error = None
            try:
                result = self.handler(message.decoded_value, message)
            except StopIteration as raised:
                # It cannot be raised where it would be taken for a result. A coroutine makes the same of it.
                result, error = None, RuntimeError("the handler raised StopIteration")
                error.__cause__ = raised
            except BaseException as raised:
                result, error = None, raised
            now = monotonic()
            message.handler_took = now - worker.begun
            if error is not None:
                self.report_of(worker, RAISED, error)
                return
            if self.results_count and result is not None and result is not True:
                self.report_of(worker, RETURNED, result)
                return
            result = None  # nothing is kept while it rests
            message = self.turn(worker, message, now, &rests)
            if message is None and not rests:
                return

    # Under the lock: takes the next message for a worker, or None. The worker is REPORTING then if the event loop has
    # to look at a message first.
    cdef Message take(self, ThreadWorker worker, int64_t now):
        cdef Message message
        if self.stopped or not self.queue:
            return None
        message = self.queue.popleft()
        self.queued_bytes -= <Py_ssize_t>message.body_size
        self.taken += 1
        worker.sequence += 1
        worker.message = message
        if self.unread and message in self.unread:
            self.unread.discard(message)
            worker.state_now = REPORTING
            worker.reported = UNREAD
            self.reports.append(worker)
            return None
        worker.state_now = HANDLING
        worker.begun = message.handler_began = now
        return message

    # The handler did well: takes the next message for a worker. Without one its thread is to rest, or else to leave.
    cdef Message turn(self, ThreadWorker worker, Message message, int64_t now, bint* rests):
        cdef Message following = None
        cdef ThreadWorker woken = None
        cdef bint call
        rests[0] = False
        self.lock()
        if worker.state_now != HANDLING:
            self.unlock()
            self.report_of(worker, NOTHING, None)
            return None
        worker.message = None
        self.done.append(message)
        following = self.take(worker, now)
        if following is None and worker.state_now == HANDLING:
            rests[0] = True
            worker.state_now = WOKEN
            self.woken += 1
            self.idle_time -= now
            self.idle_count += 1
        else:
            woken = self.wake_next()
        call = self.is_to_call(following is None)
        self.unlock()
        if woken is not None:
            self.start(woken)
        if call:
            self.call_loop()
        return following

    # Waits until there is a message for a worker, and takes it. None when its thread is to leave.
    cdef Message rest(self, ThreadWorker worker):
        cdef Message message
        cdef ThreadWorker woken
        cdef bint call, leave, rung
        cdef int64_t now
        while True:
            woken = None
            call = False
            now = monotonic()
            self.lock()
            leave = worker.state_now != WOKEN
            message = None
            if not leave:
                self.woken -= 1
                message = self.take(worker, now)
                if worker.state_now == WOKEN:
                    leave = self.stopped
                    worker.state_now = FREE if leave else RESTING
                    self.idle.append(worker)
                else:
                    self.idle_time += now
                    self.idle_count -= 1
                    woken = self.wake_next()
                    leave = message is None
                    call = leave and self.is_to_call(True)
            self.unlock()
            if woken is not None:
                self.start(woken)
            if call:
                self.call_loop()
            if leave or message is not None:
                return message
            with nogil:
                rung = PyThread_acquire_lock_timed(worker.bell, REST, 0) == PY_LOCK_ACQUIRED
            if rung:
                continue
            self.lock()
            leave = worker.state_now == RESTING
            if leave:
                worker.state_now = FREE
            self.unlock()
            if leave:
                return None
            with nogil:
                PyThread_acquire_lock(worker.bell, WAIT_LOCK)  # it is rung just now

    # Has the event loop look at a worker, whose thread leaves.
    cdef int report_of(self, ThreadWorker worker, int what, object detail) except -1:
        cdef bint call = False
        self.lock()
        if worker.state_now == HANDLING or worker.state_now == LATE:
            if worker.state_now == LATE:
                what, detail = BACK, None  # what the handler raised or returned is too late
            worker.state_now = REPORTING
            # The event loop may not have looked at OVERDUE: it will find that it is over.
            if worker.reported != OVERDUE:
                worker.reported = what
                self.reports.append(worker)
            worker.detail = detail
            call = self.is_to_call(True)
        self.unlock()
        if call:
            self.call_loop()
        return 0

    # ------------------------------------------------------------------ both do this

    # Under the lock: whether the event loop is to be called for what there is now.
    cdef bint is_to_call(self, bint at_once) noexcept:
        if self.attention == AWAY or (at_once and self.attention == TIMED):
            self.attention = CALLED
            return True
        return False

    # Under the lock: wakes a worker if there is a message for it, unless another is about to look. Returns it when it
    # needs a thread: `start` gets it one.
    cdef ThreadWorker wake_next(self):
        cdef ThreadWorker worker
        if self.woken or self.stopped or not self.queue or not self.idle:
            return None
        worker = self.idle.pop()
        self.woken += 1
        if worker.state_now == RESTING:
            worker.state_now = WOKEN
            PyThread_release_lock(worker.bell)
            return None
        worker.state_now = WOKEN
        return worker

    cdef int start(self, ThreadWorker worker) except -1:
        try:
            self.submit(self.run, worker)
        except RuntimeError:  # the program ends
            self.lock()
            if worker.state_now == WOKEN:
                self.woken -= 1
                worker.state_now = FREE
                self.idle.append(worker)
            self.unlock()
        return 0


@cython.final
cdef class ThreadWorker:
    """One of the workers of `HandlerThreads`: at most one thread at a time runs it. Made by `HandlerThreads.worker`.

    Attributes:
        sequence: How many messages it has begun with.
        message: The message that is being worked on, or None.
    """

    def __cinit__(self, HandOver threads not None):
        self.bell = PyThread_allocate_lock()
        if self.bell is NULL:
            raise MemoryError()
        PyThread_acquire_lock(self.bell, NOWAIT_LOCK)
        self.threads = threads

    def __dealloc__(self):
        if self.bell is not NULL:
            PyThread_free_lock(self.bell)

    @property
    def state(self):
        """The `ThreadWorkerState` that it is in."""
        from leveret.consuming.states import ThreadWorkerState  # here, because importing this module has to be cheap
        return ThreadWorkerState(self.state_now)

    @property
    def is_handling(self):
        """True while a handler is at work that is not late."""
        return self.state_now == HANDLING

    def overdue(self):
        """Returns for how many seconds the handler has been at work, if those exceed `slow_handler`; 0.0 if not."""
        cdef int64_t passed
        self.threads.lock()
        passed = monotonic() - self.begun if self.state_now == HANDLING else 0
        self.threads.unlock()
        return passed * 1e-9 if passed > self.threads.slow_after() else 0.0

    def time_out(self, sequence=None):
        """Takes the message from the handler that is at work, unless it is at another than the one of a `sequence`."""
        cdef bint late
        self.threads.lock()
        late = self.state_now == HANDLING and (sequence is None or self.sequence == sequence)
        if late:
            self.state_now = LATE
            self.reported = OVERDUE
        self.threads.unlock()
        if late and self.waiter is not None:
            self.waiter.set_result(True)
