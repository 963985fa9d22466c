"""Workers: each drives one handler after the other in its task, without a task for each message.

A consumer has a fixed number of workers. Each is one asyncio task that awaits a `Worker`, which runs the handler's
coroutines one after the other: a handler that waits for nothing costs no turn of the event loop.

A worker that has run dry goes on inside the read that brings the next messages, as its task, and asyncio hears of it
only when a handler has something to wait for.
"""
cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.stdint cimport int64_t

from leveret.consuming.channel_deliveries cimport Acknowledger, ChannelDeliveries
from leveret.consuming.delivery_buffer cimport DeliveryBuffer
from leveret.monitoring.histogram cimport monotonic
from leveret.transport.waiting cimport ENDED as WAIT_ENDED, PENDING as WAIT_PENDING, Waiter
from leveret.wire.message cimport Message

from asyncio.tasks import _enter_task, _leave_task

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    PySendResult PyIter_Send(object iterator, object value, PyObject** result) except PYGEN_ERROR
    bint PyCoro_CheckExact(object o)
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1

# The states of a worker:
#
#     from      when                                                     to
#     READY     a message was taken                                      HANDLING
#     READY     ... and its body cannot be decoded                       ACTING, or READY when nothing is to be awaited
#     READY     the buffer is empty                                      IDLE
#     READY     the consumer stops, or the buffer is empty for good      ENDED
#     READY     it is cancelled to end while others run                  ENDED, with the cancellation
#     IDLE      a delivery or the consumer's end wakes it                READY
#     IDLE      it is cancelled to end                                   ENDED, with the cancellation
#     IDLE      a cancellation came that is not meant to end it          READY
#     HANDLING  the handler returned True, False or None                 READY
#     HANDLING  the handler raised, returned something else or is late   ACTING, or READY
#     HANDLING  it is cancelled to end, or the program ends              ENDED, with the error
#     ACTING    the action is done                                       READY
#     ACTING    it is cancelled or failed                                ENDED, with the error
#
# docs/states.md and `WorkerState` have the same.
cdef enum State:
    READY = 0
    IDLE = 1  # waits for a message
    HANDLING = 2  # runs the handler
    ACTING = 3  # carries out what the error policy decided
    ENDED = 4

# Why its task was cancelled:
#
#     from        when                                                                  to
#     (any)       `time_out` cancels the task                                           TIMING_OUT
#     NONE        a cancellation is thrown into what is awaited                         CANCELLED
#     TIMING_OUT  the same; the task is uncancelled                                     LATE
#     LATE        the handler has ended; it counts as failed if it let that pass        CANCELLED
#     CANCELLED   the worker is READY, and its owner says that it is not to end         NONE
cdef enum Cancellation:
    NONE = 0
    TIMING_OUT = 1
    LATE = 2
    CANCELLED = 3

cdef enum:
    # A worker lets others run after this many messages without a pause.
    TURN = 256


@cython.final
cdef class WorkerWait(Waiter):
    """A future that the task of a worker awaits while there is no message.

    The read that brings a message has the worker go on. The task keeps awaiting this future until a handler waits.
    """

    def cancel(self, msg=None):
        """Cancels the future; returns False when it was done already.

        It is done while the worker goes on without its task. A handler that cancels the task then gets what it would
        get in a step of the task: the task keeps the cancellation, and delivers it where the handler next waits.
        """
        if self.state == WAIT_PENDING:
            self.end_cancelled(msg)
            return True
        self.cancelled_late = True
        return False

    cdef bint go_on(self) except -1:
        return (self.worker is not None and not self.cancelled_late and self.callback is not None
                and self.others is None and self.worker.resume())


@cython.final
cdef class Worker:
    """Runs a handler for one message after the other until the consumer ends; to be awaited by a task of its own.

    Args:
        buffer: Where messages come from.
        acks: Acknowledges them.
        failures: Carries out the error policy for messages that were not handled.
        owner: Says whether a cancellation ends the worker, and does the same when a handler raised or is late.
        handler: Returns a coroutine for a value and its message.
        task: The task that awaits this, for `time_out`.
        results_settle: None and True acknowledge the message.
        results_count: False and wrong results have a meaning.

    Attributes:
        sequence: How many messages it has begun with.
        message: The message that is being worked on, or None.
    """

    def __cinit__(self, DeliveryBuffer buffer not None, Acknowledger acks not None, failures, owner, handler, task,
                  bint results_settle, bint results_count):
        self.buffer = buffer
        self.acks = acks
        self.failures = failures
        self.owner = owner
        self.handler = handler
        self.task = task
        self.results_settle = results_settle
        self.results_count = results_count

    @property
    def state(self):
        """The `WorkerState` that it is in."""
        from leveret.consuming.states import WorkerState  # here, because importing this module has to be cheap
        return WorkerState(self.state_now)

    @property
    def cancellation(self):
        """The `WorkerCancellation` that it knows of."""
        from leveret.consuming.states import WorkerCancellation
        return WorkerCancellation(self.cancellation_now)

    @property
    def is_handling(self):
        """True while a handler is at work."""
        return self.state_now == HANDLING

    def overdue(self):
        """Returns for how many seconds the handler has been at work, if those exceed `slow_handler`; 0.0 if not."""
        cdef int64_t passed
        if self.state_now != HANDLING:
            return 0.0
        passed = monotonic() - self.begun
        return passed * 1e-9 if passed > self.buffer.slow_after else 0.0

    def time_out(self, sequence=None):
        """Cancels the handler that is at work; the owner is told that it failed, with None for the error.

        Nothing happens when it is at another message than the one of a `sequence`.
        """
        if sequence is not None and sequence != self.sequence:
            return
        self.cancellation_now = TIMING_OUT
        self.task.cancel()

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.step(None)

    def send(self, value):
        """Goes on. The value is not used: nothing that a worker awaits has one."""
        return self.step(None)

    def throw(self, kind, value=None, traceback=None):
        """Raises this where the worker waits."""
        if value is None:
            value = kind() if isinstance(kind, type) else kind
        return self.step(value)

    def close(self):
        """Ends what it waits for, and itself."""
        current, self.current = self.current, None
        self.state_now = ENDED
        self.outcome = None
        if self.idle_wait is not None:
            self.idle_wait.worker = None
        if hasattr(current, "close"):
            current.close()

    # `resume` is at work: the task still awaits the future of IDLE.
    cdef bint runs_without_task(self) noexcept:
        return self.idle_wait is not None and self.idle_wait.callback is not None

    # In IDLE: goes on in place of its task, which keeps waiting. False where the task has to be woken; if handlers have
    # run before that, `take_outcome` tells the task what it has to wait for, or which error has ended them.
    #
    # `_enter_task` makes the task the current one, as asyncio does for each of its steps. asyncio has it for this (in
    # its documentation: "Extending", Task lifetime support).
    cdef bint resume(self) except -1:
        cdef WorkerWait wait = self.idle_wait
        cdef object context = wait.context
        cdef object loop = wait.owner.loop
        cdef object awaited = None
        cdef object error = None
        if self.state_now != IDLE or self.current is not wait:
            return False
        try:
            _enter_task(loop, self.task)
        except RuntimeError:
            return False  # inside another task
        try:
            PyContext_Enter(context)
        except RuntimeError:
            _leave_task(loop, self.task)
            return False  # inside the same context
        self.current = None
        self.state_now = READY
        try:
            self.idle_ends()
            awaited = self.step(None)
        except BaseException as raised:
            error = raised
        finally:
            PyContext_Exit(context)
            _leave_task(loop, self.task)
        if self.state_now != IDLE:
            self.outcome = (awaited, error)
        elif not wait.cancelled_late:
            wait.state = WAIT_PENDING
            return True
        return False

    # Tells the task how `resume` ended. An error is thrown in when a handler has cancelled its own task. What it waits
    # for is cancelled then, as in asyncio, and that brings the cancellation.
    cdef object take_outcome(self, object error):
        awaited, raised = self.outcome
        self.outcome = None
        if raised is not None:
            if error is not None and isinstance(raised, StopIteration):
                raise error  # a task that ends with a cancellation to come is cancelled
            raise raised
        if error is None:
            return awaited
        if (isinstance(error, self.buffer.waiters.cancelled_error) and hasattr(awaited, "cancel")
                and awaited.cancel(*error.args)):
            return awaited
        return self.step(error)

    # Goes on until there is something to wait for, and returns that. Raises StopIteration at the end.
    cdef object step(self, object error):
        cdef PyObject* raw
        cdef object result
        cdef bint waits
        if self.outcome is not None:
            return self.take_outcome(error)
        while True:
            if self.current is None:
                if error is not None and self.is_stray(error):
                    error = None
                if error is not None:
                    self.state_now = ENDED
                    self.buffer.wake_more()  # what it would have done next passes to another
                    raise error
                if self.cancellation_now == CANCELLED:
                    # A handler that does not let its cancellation pass does not keep its consumer from ending.
                    self.cancellation_now = NONE
                    if self.owner.ends(self.task):
                        self.state_now = ENDED
                        raise self.buffer.waiters.cancelled_error()
                if self.turn >= TURN:
                    self.turn = 0
                    self.now = 0
                    self.acks.write_in_time()
                    return None  # a turn of the event loop
                if self.state_now == ENDED or not self.begin():
                    self.state_now = ENDED
                    raise StopIteration
                if self.state_now == IDLE and self.runs_without_task():
                    return None
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
                        raise thrown  # an iterator without `throw`, as `yield from` does it
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
                self.now = 0
                if self.state_now != IDLE:
                    self.buffer.wake_more()
                    self.acks.write_in_time()
                return result
            self.current = None
            self.done(result)

    # In READY: begins with the next message or waits for it; false when there will be none.
    cdef bint begin(self) except -1:
        cdef DeliveryBuffer buffer = self.buffer
        cdef Message message
        if buffer.stopping:
            return False
        message = buffer.take()
        if message is None:
            buffer.taken()  # `take` may have passed over messages
            if buffer.over:
                return False
            self.turn = 0
            self.now = 0
            self.acks.run_dry()
            self.wait()
            return True
        self.turn += 1
        self.sequence += 1
        self.message = message
        buffer.running += 1
        if buffer.ordered_by is not None:
            self.key = buffer.taken_key
        if buffer._pressed:
            buffer.taken()
        if message.redelivered:
            action = self.failures.redelivered(message)
            if action is not None:
                self.act(action)
                return True
        try:
            value = (<ChannelDeliveries>message.owner).value_of(message)
            self.state_now = HANDLING
            # A handler that begins when the one before ended shares the reading of the clock.
            self.begun = message.handler_began = self.now or monotonic()
            buffer.waiting_time.add(self.begun - <int64_t>(message.received_at * 1e9), 1)
            coroutine = self.handler(value, message)
            self.current = coroutine if PyCoro_CheckExact(coroutine) else coroutine.__await__()
        except BaseException as error:
            if self.state_now == HANDLING:
                self.failed(error)
            elif isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            else:
                self.act(self.failures.undecodable(message, error))
        return True

    # In READY: waits for a message.
    cdef int wait(self) except -1:
        cdef WorkerWait wait = self.idle_wait
        if not self.runs_without_task():
            if wait is None or wait.state != WAIT_ENDED or wait.cancelled_late:
                self.idle_wait = wait = WorkerWait.__new__(WorkerWait)
                wait.owner = self.buffer.waiters
            wait.state = WAIT_PENDING
        wait.worker = self
        self.state_now = IDLE
        self.current = wait
        self.buffer.wait_with(wait)
        self.buffer.idle_begins()
        return 0

    cdef int idle_ends(self) except -1:
        self.idle_wait.worker = None  # or the two would keep each other alive
        return self.buffer.idle_ends()

    # The waiter, the handler or the action returned this.
    cdef int done(self, object result) except -1:
        cdef int state = self.state_now
        if self.cancellation_now == LATE:
            self.cancellation_now = CANCELLED
        self.state_now = READY
        if state == HANDLING:
            self.handled()
            if result is None or result is True:
                if self.results_settle and self.acks.finish(self.message):
                    self.buffer.settled_time.add(self.now - <int64_t>(self.message.received_at * 1e9), 1)
            elif not self.results_count:
                pass
            elif result is False:
                return self.act(self.failures.refused(self.message))
            else:
                return self.act(self.failures.nonsense(self.message, result))
            self.end_message()
        elif state == ACTING:
            self.end_message()
        else:
            self.idle_ends()
        return 0

    # The waiter, the handler or the action raised this.
    cdef int failed(self, object error) except -1:
        cdef int state = self.state_now
        cdef bint late = self.cancellation_now == LATE
        if late:
            self.cancellation_now = CANCELLED
        if isinstance(error, self.buffer.waiters.cancelled_error):
            if state == IDLE:
                self.idle_ends()
                if self.is_stray(error):
                    self.state_now = READY
                    return 0
                # It may have been this worker's turn, which passes to the next.
                self.buffer.wake_more()
            if state != HANDLING or self.owner.ends(self.task):
                self.state_now = ENDED
                if state == HANDLING:
                    self.failures.abandoned(self.message)
                self.end_message()
                raise error
            if late:
                error = None
            # Otherwise the handler cancelled itself; its worker goes on.
        elif state != HANDLING or isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            self.state_now = ENDED
            if state == HANDLING:
                self.failures.abandoned(self.message)
            self.end_message()
            raise error
        self.handled()
        return self.act(self.owner.failed(self.message, error))

    # True for a cancellation that is not to end the worker, which has no handler at work: a handler that waited for
    # nothing has cancelled the task, and that comes only now.
    cdef bint is_stray(self, object error) except -1:
        return isinstance(error, self.buffer.waiters.cancelled_error) and not self.owner.ends(self.task)

    # A handler has ended.
    cdef inline int handled(self) except -1:
        cdef int64_t now = monotonic()
        cdef int64_t took = now - self.begun
        self.now = now
        self.buffer.handler_time.add(took, 1)
        if took > self.buffer.slow_after:
            self.failures.slow(self.message, took * 1e-9)
        return 0

    # Awaits an action of the error policy, or goes on at once when that is None.
    cdef int act(self, object action) except -1:
        self.now = 0
        if action is None:
            self.state_now = READY
            return self.end_message()
        self.state_now = ACTING
        self.current = action if PyCoro_CheckExact(action) else action.__await__()
        return 0

    cdef int end_message(self) except -1:
        cdef object key
        if self.message is None:
            return 0
        self.message = None
        self.buffer.running -= 1
        if self.buffer.ordered_by is not None:
            key, self.key = self.key, None
            self.buffer.release(key)
        return 0

    # A cancellation that is thrown in may be meant for the worker or its handler, or be an affair of the handler's own.
    cdef int note_cancellation(self, object error) except -1:
        if not isinstance(error, self.buffer.waiters.cancelled_error):
            return 0
        if self.cancellation_now == TIMING_OUT:
            self.cancellation_now = LATE
            self.task.uncancel()
        elif self.cancellation_now == NONE:
            self.cancellation_now = CANCELLED
        return 0
