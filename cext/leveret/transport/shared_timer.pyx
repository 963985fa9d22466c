"""One timer of the event loop for many that wait equally long: a thousand consumers, each with one acknowledgement."""
cimport cython


cdef class Timed:
    """Something that a `SharedTimer` calls."""

    cdef int due(self) except -1:
        return 0


@cython.final
cdef class SharedTimer:
    """Calls what was added when a delay is over, all of it together.

    The first that is added starts the timer, and what comes before it fires goes along: it waits less than the delay.
    A timer for each would cost more than the work that it starts.

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
