"""What tasks wait for in `publish` and between messages: as much of an asyncio future as a task uses of one.

An asyncio.Future costs its task a handle of the event loop and another turn of it, with another look at all sockets.
Those whose waits one read ends go on together here, at the end of that read's work.
"""
cimport cython

cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    object PyContext_CopyCurrent()

cdef enum:
    PENDING = 0
    ENDED = 1
    CANCELLED = 2


def _raise(error):
    raise error


@cython.final
cdef class Waiters:
    """The waits of one producer or consumer, which end together.

    Args:
        loop: The event loop.
        cancelled_error: What a cancelled wait raises, asyncio.CancelledError.
    """

    def __cinit__(self, loop not None, cancelled_error not None):
        self.loop = loop
        self.cancelled_error = cancelled_error
        self.ended = []

    cpdef Waiter new(self):
        """A wait that begins now."""
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.owner = self
        return waiter

    # What ends from now on is called by `release`.
    cdef void hold(self) noexcept:
        self.held = True

    cpdef int release(self) except -1:
        """Calls those whose waits have ended. In this turn: the next one comes after a look at all sockets."""
        cdef list ended = self.ended
        cdef Waiter waiter
        cdef object callback, context
        self.held = False
        if not ended:
            return 0
        self.ended = []
        for waiter in ended:
            callback, context = waiter.callback, waiter.context
            waiter.callback = waiter.context = None
            if callback is None:
                continue
            PyContext_Enter(context)
            try:
                callback(waiter)
            except Exception:
                # What was read was read by a task, and another cannot go on before that one lets others run. What a
                # task itself raises does not come here.
                self.loop.call_soon(callback, waiter, context=context)
            except BaseException as error:
                # Somebody ends the program (KeyboardInterrupt), which must not keep the others from waking.
                self.loop.call_soon(_raise, error)
            finally:
                PyContext_Exit(context)
        return 0


@cython.final
@cython.freelist(512)
cdef class Waiter:
    """What one task waits for. It is done when `set_result` was called or it was cancelled."""

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if self.state == PENDING:
            if self.callback is not None:
                raise RuntimeError("this is awaited by another task, or was not waited for")
            self._asyncio_future_blocking = True
            return self
        self.result()
        if self.value is None:
            raise StopIteration  # without a value no exception is made
        raise StopIteration(self.value)

    def get_loop(self):
        """The event loop."""
        return self.owner.loop

    def add_done_callback(self, callback, *, context=None):
        """Has the one task that waits called when it is done."""
        if self.callback is not None:
            raise RuntimeError("only one task can wait for this")
        self.callback = callback
        self.context = PyContext_CopyCurrent() if context is None else context
        if self.state != PENDING:
            self.call()

    def remove_done_callback(self, callback):
        """Takes that back; returns how many there were."""
        if self.callback is None or self.callback != callback:
            return 0
        self.callback = self.context = None
        return 1

    cpdef bint done(self) noexcept:
        """Whether there is nothing to wait for any more."""
        return self.state != PENDING

    def cancelled(self):
        """Whether it was cancelled."""
        return self.state == CANCELLED

    def cancel(self, msg=None):
        """Ends the wait; returns whether it was waited for."""
        if self.state != PENDING:
            return False
        self.state = CANCELLED
        self.cancel_message = msg
        self.call()
        return True

    cpdef int set_result(self, object result) except -1:
        """Ends the wait, unless it has ended."""
        if self.state == PENDING:
            self.state = ENDED
            self.value = result
            self.call()
        return 0

    cpdef object result(self):
        """What `set_result` was given; raises when it was cancelled."""
        if self.state == CANCELLED:
            if self.cancel_message is None:
                raise self.owner.cancelled_error()
            raise self.owner.cancelled_error(self.cancel_message)
        if self.state == PENDING:
            raise RuntimeError("this is not done")
        return self.value

    def exception(self):
        """None; raises when it was cancelled."""
        self.result()

    # Has the task called, at the end of the read's work or in the next turn of the loop.
    cdef int call(self) except -1:
        if self.callback is not None:
            if not self.owner.ended and not self.owner.held:
                self.owner.loop.call_soon(self.owner.release)
            self.owner.ended.append(self)
        return 0
