"""What is waited for: a cheap future that tasks await in `publish` and between messages, and a timer for many.

The future has the part of asyncio.Future that tasks use.
An asyncio.Future costs a handle of the event loop and another turn of it, with another look at all sockets. Tasks whose
waiters end during one read resume together here, before the read returns.
"""
cimport cython

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    object PyContext_CopyCurrent()
    unsigned long PyThread_get_thread_ident()

import os

# How many forks lie between the first process and this one. In a child the parent's loop still looks as if it ran.
cdef int _forks = 0


def _forked():
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _raise(error):
    raise error


@cython.final
cdef class Waiters:
    """The waiters of one producer or consumer. Those that end during one read wake their tasks together.

    Args:
        loop: The event loop.
        cancelled_error: The error of a cancelled waiter, asyncio.CancelledError.
        early_error: The error of asking for a result before there is one, asyncio.InvalidStateError.
    """

    def __cinit__(self, loop not None, cancelled_error not None, early_error not None):
        self.loop = loop
        self.cancelled_error = cancelled_error
        self.early_error = early_error
        self.ended = []
        self.thread = PyThread_get_thread_ident()
        self.forks = _forks

    # Whether this is called in the event loop, in whose thread and process these were made. False only means that the
    # caller has to find out: asyncio.get_running_loop makes a system call each time in Python 3.11.
    cdef bint at_home(self) except -1:
        return (PyThread_get_thread_ident() == self.thread and self.forks == _forks
                and self.loop.is_running() is True)

    cpdef Waiter new(self):
        """Returns a new waiter."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.owner = self
        return waiter

    # Until `release`, waiters that end do not wake their tasks.
    cdef void hold(self) noexcept:
        self.held = True

    cpdef int release(self) except -1:
        """Wakes the tasks of the waiters that have ended, in this turn of the loop.

        The next turn would come only after a look at all sockets.
        """
        cdef list ended = self.ended
        cdef Waiter waiter
        self.held = False
        if not ended:
            return 0
        self.ended = []
        for waiter in ended:
            self.finish(waiter)
        return 0

    # Ends one waiter that is not done, and wakes its task as `release` does.
    cdef int wake(self, Waiter waiter) except -1:
        waiter.state = ENDED
        return self.finish(waiter)

    # Lets the tasks and functions that wait for an ended waiter go on.
    cdef int finish(self, Waiter waiter) except -1:
        cdef list others
        cdef object callback, context
        if waiter.state == ENDED and waiter.go_on():
            return 0
        callback, context = waiter.callback, waiter.context
        waiter.callback = waiter.context = None
        if callback is not None:
            self.tell(waiter, callback, context)
        if waiter.others is not None:
            others, waiter.others = waiter.others, None
            for callback, context in others:
                self.tell(waiter, callback, context)
        return 0

    # Calls what waits for a waiter.
    cdef int tell(self, Waiter waiter, object callback, object context) except -1:
        PyContext_Enter(context)
        try:
            callback(waiter)
        except Exception as error:
            if hasattr(getattr(callback, "__self__", None), "_asyncio_future_blocking"):
                # A task is running, and asyncio does not resume another inside it: wake it in the next turn. An error
                # of the task itself does not come here.
                self.loop.call_soon(callback, waiter, context=context)
            else:
                self.loop.call_exception_handler(
                    {"message": f"a callback of {waiter!r} failed", "exception": error, "future": waiter}
                )
        except BaseException as error:
            # The program is being ended (KeyboardInterrupt). The other tasks wake all the same.
            self.loop.call_soon(_raise, error)
        finally:
            PyContext_Exit(context)
        return 0


@cython.freelist(512)
cdef class Waiter:
    """A future that tasks await. It is done after `set_result` or `cancel`."""

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if self.state == PENDING:
            self._asyncio_future_blocking = True
            return self
        if self.state == CANCELLED:
            raise self.cancelled_error()
        if self.value is None:
            raise StopIteration  # without a value no exception is made
        raise StopIteration(self.value)

    def get_loop(self):
        """The event loop."""
        return self.owner.loop

    def add_done_callback(self, callback, *, context=None):
        """Registers what is called when it is done: a task that awaits it, or a function."""
        if context is None:
            context = PyContext_CopyCurrent()
        if self.callback is None:
            self.callback = callback
            self.context = context
        else:
            if self.others is None:
                self.others = []
            self.others.append((callback, context))
        if self.state != PENDING:
            self.call()

    def remove_done_callback(self, callback):
        """Removes a callback; returns how often it was registered."""
        cdef Py_ssize_t removed = 0
        cdef list left
        if self.callback is not None and self.callback == callback:
            self.callback = self.context = None
            removed = 1
        if self.others is not None:
            left = [entry for entry in self.others if entry[0] != callback]
            removed += len(self.others) - len(left)
            self.others = left or None
        return removed

    cpdef bint done(self) noexcept:
        """Returns true after `set_result` or `cancel`."""
        return self.state != PENDING

    def cancelled(self):
        """Returns true after `cancel`."""
        return self.state == CANCELLED

    def cancel(self, msg=None):
        """Cancels the waiter; returns False when it was done already."""
        if self.state != PENDING:
            return False
        self.end_cancelled(msg)
        return True

    cdef int end_cancelled(self, object msg) except -1:
        self.state = CANCELLED
        self.cancel_message = msg
        return self.call()

    cpdef int set_result(self, object result) except -1:
        """Ends the waiter with a result, unless it is done already."""
        if self.state == PENDING:
            self.state = ENDED
            self.value = result
            self.call()
        return 0

    def result(self):
        """Returns the result; raises the cancelled error after `cancel`, and the early error before it is done."""
        if self.state == CANCELLED:
            raise self.cancelled_error()
        if self.state == PENDING:
            raise self.owner.early_error("this is not done")
        return self.value

    cdef object cancelled_error(self):
        if self.cancel_message is None:
            return self.owner.cancelled_error()
        return self.owner.cancelled_error(self.cancel_message)

    def exception(self):
        """Returns None; raises as `result`."""
        self.result()

    cdef bint go_on(self) except -1:
        return False

    # Wakes the task: at `release` while `hold` is in force, otherwise in the next turn of the loop.
    cdef int call(self) except -1:
        if self.callback is not None or self.others is not None:
            if not self.owner.ended and not self.owner.held:
                self.owner.loop.call_soon(self.owner.release)
            self.owner.ended.append(self)
        return 0


cdef class Timed:
    """Something that a `SharedTimer` calls."""

    cdef int due(self) except -1:
        return 0


@cython.final
cdef class SharedTimer:
    """One timer of the event loop for many that wait equally long: a thousand consumers with one acknowledgement each.

    The first that is added starts the timer. Those that are added before it fires are called together with the first,
    and wait less than the delay. A timer for each would cost more than the work that it starts.

    Args:
        loop: The event loop.
        delay: Seconds from the first.
    """

    def __cinit__(self, loop not None, double delay):
        self.loop = loop
        self.delay = delay
        self.waiting = {}

    cdef int add(self, Timed one) except -1:
        if self.handle is None:
            self.handle = self.loop.call_later(self.delay, self._fire)
        self.waiting[one] = None
        return 0

    # Does not call it any more.
    cdef int remove(self, Timed one) except -1:
        self.waiting.pop(one, None)
        return 0

    def _fire(self):
        cdef dict waiting = self.waiting
        cdef Timed one
        self.waiting = {}
        self.handle = None
        for one in waiting:
            try:
                one.due()
            except Exception as error:
                # The others are due all the same.
                self.loop.call_exception_handler({"message": f"a timer of {one!r} failed", "exception": error})

    def stop(self):
        """Calls none of what was added."""
        if self.handle is not None:
            self.handle.cancel()
            self.handle = None
        self.waiting.clear()
