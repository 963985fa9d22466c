"""Receipts, tickets and publishings: the producer returns them, and its user awaits or reads them.

A publishing takes the place of a coroutine with a task of its own: asyncio adds its callbacks to the publishing itself.
"""
cimport cython
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from leveret.publishing.template cimport PublishTemplate
from leveret.transport.waiting cimport CANCELLED, ENDED, PENDING, Waiter, Waiters

from collections.abc import Coroutine
from typing import TypeVar

cdef extern from *:
    """
    /* How a publishing is resumed. Cython's __next__ would make a traceback for each StopIteration with a value. */
    typedef int (*lv_step)(PyObject *self, PyObject **result);
    static lv_step lv_publishing_step;

    static PyObject *lv_publishing_next(PyObject *self) {
        PyObject *result = NULL;
        int step = lv_publishing_step(self, &result);
        if (step == PYGEN_RETURN) {
            PyErr_SetObject(PyExc_StopIteration, result);
            Py_CLEAR(result);
        }
        return result;
    }

    static PySendResult lv_publishing_send(PyObject *self, PyObject *value, PyObject **result) {
        if (value != Py_None) {
            PyErr_SetString(PyExc_TypeError, "a publishing takes no values");
            return PYGEN_ERROR;
        }
        return (PySendResult)lv_publishing_step(self, result);
    }

    static void lv_install_steps(PyObject *type, void *step) {
        lv_publishing_step = (lv_step)step;
        ((PyTypeObject *)type)->tp_iternext = lv_publishing_next;
        ((PyTypeObject *)type)->tp_as_async->am_send = (sendfunc)lv_publishing_send;
    }
    """
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    void lv_install_steps(object kind, void* step)

# An outcome's value (leveret.message).
cdef enum:
    UNKNOWN = 5

T = TypeVar("T")


@cython.final
@cython.freelist(512)
cdef class Receipt:
    """The result of `publish`: the broker has confirmed the message.

    Attributes:
        delivery_tag: The publishing's sequence number in its producer, from 1 (RabbitMQ: publisher confirms).
        outcome: `Outcome.CONFIRMED`; without confirms `Outcome.UNKNOWN`, because the broker tells nothing.
        attempts: How often the message was written: 1, or more when it was sent again. Then it may be in its queue more
            than once, and the later ones have the header `x-leveret-resent`.
    """

    def __cinit__(self, uint64_t delivery_tag=0, uint8_t outcome=CONFIRMED, uint32_t attempts=1):
        self.delivery_tag = delivery_tag
        self.ended = outcome
        self.repeats = attempts - 1

    @property
    def attempts(self):
        return self.repeats + 1

    @property
    def outcome(self):
        # Here, because it loads dataclasses, which `import leveret` does not need.
        from leveret.message import Outcome

        return Outcome(self.ended)

    def __eq__(self, other):
        if type(other) is not Receipt:
            return NotImplemented
        return (self.delivery_tag == (<Receipt>other).delivery_tag and self.ended == (<Receipt>other).ended
                and self.repeats == (<Receipt>other).repeats)

    def __hash__(self):
        return hash((self.delivery_tag, self.ended, self.repeats))

    def __repr__(self):
        return f"Receipt(delivery_tag={self.delivery_tag}, outcome={self.outcome!r}, attempts={self.attempts})"


@cython.final
@cython.freelist(512)
cdef class Ticket:
    """The outcome of one publishing, or of all the publishings of a batch.

    Awaiting it waits for the outcome; see `Producer.publish_nowait`.

    Attributes:
        delivery_tag: The sequence number of the first publishing in its producer.
        count: How many publishings it stands for.
        pending: How many have no outcome yet.
        confirmed: How many ended confirmed.
        failures: None, or by index an `Outcome` value, the returned `Message`, or the error that ended it.
        future: Set by the caller that waits; the window hands out finished tickets with a future.
        observed: A caller awaits the ticket or awaited it, so `flush` does not report it.
    """

    def __cinit__(self, owner=None):
        self.owner = owner

    def __await__(self):
        return self.owner.wait_for(self).__await__()

    @property
    def done(self):
        """True when every publishing has its outcome."""
        return self.pending == 0

    def attempts(self, Py_ssize_t index=0):
        """Returns how often the publishing with this index was written, once it has its outcome."""
        return 1 if self.sends is None else self.sends.get(index, 1)

    def fail(self, Py_ssize_t index, reason):
        """Records why the publishing with this index did not end as confirmed."""
        if self.failures is None:
            self.failures = {}
        self.failures[index] = reason

    def __repr__(self):
        return f"<Ticket delivery_tag={self.delivery_tag} pending={self.pending} of {self.count}>"


cdef Ticket new_ticket(object owner):
    cdef Ticket ticket = Ticket.__new__(Ticket)
    ticket.owner = owner
    return ticket


cdef Receipt new_receipt(uint64_t delivery_tag):
    cdef Receipt receipt = Receipt.__new__(Receipt)
    receipt.delivery_tag = delivery_tag
    receipt.ended = CONFIRMED
    return receipt


# The shared receipt of publishings without confirms.
NO_RECEIPT = Receipt(0, UNKNOWN)


@cython.final
cdef class Publishing(Waiter):
    """A publishing that has begun. Awaiting it gives the receipt; from `enqueue` it gives the ticket.

    It begins with the call, whether it is awaited or not; `flush` raises when one failed that was not awaited. It may
    be awaited more than once, and by `asyncio.gather`, `wait_for`, `shield`, `create_task` and `TaskGroup` as well, of
    which only the last two make a task for it. `asyncio.wait` takes it in a task only, as it does a coroutine.

    Cancelling it ends the wait. A message that was written is not taken back; one that waits for room is not sent.

    Attributes:
        ticket: Its ticket, once it is written; None before.
        gives_ticket: True for what `enqueue` returns.
        template: Its frames while it waits for room.
        body: Its body while it waits for room.
        deadline: When a policy gives it up, by the loop's clock.
    """

    def __init__(self, producer, Waiters waiters not None, *, gives_ticket=False):
        self.producer = producer
        self.owner = waiters
        self.gives = TICKET if gives_ticket else RECEIPT

    def __repr__(self):
        cdef str state = "pending"
        if self.state == CANCELLED:
            state = "cancelled"
        elif self.state == ENDED:
            state = "failed" if self.error is not None else "done"
        return f"<Publishing delivery_tag={0 if self.ticket is None else self.ticket.delivery_tag} {state}>"

    def __await__(self):
        return self

    def __next__(self):
        if self.state != PENDING:
            raise StopIteration(self.outcome())
        self._asyncio_future_blocking = True
        return self

    # ------------------------------------------------------------------ what a coroutine has

    def send(self, value):
        """Goes on, as a coroutine does."""
        if value is not None:
            raise TypeError("a publishing takes no values")
        return next(self)

    def throw(self, kind, value=None, traceback=None):
        """Raises an error where it is awaited, which ends the wait."""
        if value is None:
            value = kind() if isinstance(kind, type) else kind
        if isinstance(value, self.owner.cancelled_error):
            self.cancel()  # what waits for room is not sent
        else:
            self.close()
        raise value if traceback is None else value.with_traceback(traceback)

    def close(self):
        """Ends the wait, as for a coroutine that is not resumed any more; the message goes its way."""
        if self.ticket is not None:
            self.ticket.observed = True

    # ------------------------------------------------------------------ what a future has

    def cancel(self, msg=None):
        """Ends the wait; returns False when it was done already."""
        if self.state != PENDING:
            return False
        if self.task is not None:
            return self.task.cancel(msg)
        self.template = self.body = None
        if self.ticket is not None:
            self.ticket.observed = True
        self.end_cancelled(msg)
        return True

    def result(self):
        """Returns the receipt or ticket; raises why it failed, or that it was cancelled, or InvalidStateError."""
        return self.outcome()

    def exception(self):
        """Returns why it failed, or None; raises as `result` when it was cancelled or has no outcome yet."""
        if self.error is None:
            self.outcome()
        self.take()
        return self.error

    cdef object outcome(self):
        if self.state == PENDING:
            raise self.owner.early_error("the publishing has no outcome yet")
        if self.state == CANCELLED:
            raise self.cancelled_error()
        if self.error is not None:
            self.take()
            # Without what was added where it was raised before.
            raise self.error.with_traceback(self.traceback)
        return self.value

    # A failure is asked for, so `flush` need not report it.
    cdef int take(self) except -1:
        if self.kept:
            self.kept = False
            self.producer._forget(self.ticket)
        return 0

    @property
    def _cancel_message(self):
        return self.cancel_message

    def _make_cancelled_error(self):
        # asyncio.gather asks for it.
        return self.cancelled_error()

    # ------------------------------------------------------------------ how it ends

    @property
    def gives_ticket(self):
        return self.gives == TICKET

    def wait(self, PublishTemplate template not None, bytes body not None):
        """Keeps the message until `written`."""
        self.template = template
        self.body = body

    def written(self, Ticket ticket not None):
        """The message is appended, or held until there is a channel."""
        self.template = self.body = None
        if self.state == PENDING:
            self.expect(ticket)
        else:
            ticket.observed = True

    cdef int expect(self, Ticket ticket) except -1:
        self.ticket = ticket
        if self.gives == TICKET:
            self.give(ticket)
        elif ticket.pending:
            ticket.future = self
        else:
            self.give(NO_RECEIPT)
        return 0

    cdef bint is_cancelled(self) noexcept:
        return self.state == CANCELLED

    # Whether a policy may have it tried again.
    cdef bint may_go_on(self) noexcept:
        return self.template is not None and self.state == PENDING

    def again(self):
        """Lets go of a ticket that failed, because a policy decides what follows; returns it."""
        cdef Ticket ticket = self.ticket
        ticket.future = self.ticket = None
        ticket.observed = True
        return ticket

    # The ticket has its outcome.
    cdef int finish(self) except -1:
        cdef Ticket ticket = self.ticket
        ticket.future = None
        if self.state != PENDING:
            return 0  # cancelled
        if ticket.failures is not None:
            self.error = self.producer._outcome_error(ticket)
            self.keep()
            return self.give(None)
        if ticket.confirmed == 0:
            return self.give(NO_RECEIPT)  # it was held, and is written without confirms
        if ticket.sends is not None:
            return self.give(Receipt(ticket.delivery_tag, CONFIRMED, ticket.attempts()))
        return self.give(new_receipt(ticket.delivery_tag))

    @classmethod
    def __class_getitem__(cls, kind):
        return cls

    def fail(self, error):
        """Ends it with an error: it was not written, or a policy gave it up."""
        if self.state != PENDING:
            return
        self.error = error
        self.traceback = error.__traceback__
        if self.ticket is None:
            self.ticket = new_ticket(self.producer)
            self.ticket.fail(0, self.producer._refusal(error))
        self.keep()
        self.give(None)

    def follow(self, task not None):
        """Ends as a task does."""
        self.task = task
        task.add_done_callback(self._followed)

    def _followed(self, task):
        self.task = None
        if task.cancelled():
            self.end_cancelled(None)
        elif task.exception() is not None:
            self.fail(task.exception())
        else:
            self.give(task.result())

    cdef int give(self, object value) except -1:
        self.template = self.body = None
        self.state = ENDED
        self.value = value
        return self.call()

    # Has `flush` report a failure that no task waits for.
    cdef int keep(self) except -1:
        if self.callback is None and self.others is None:
            self.kept = True
            self.producer._remember(self.ticket)
        else:
            self.ticket.observed = True
        return 0


# Resumes what awaits it: gives the publishing itself while there is no outcome, as futures do, and then the outcome.
cdef int _step(Publishing publishing, PyObject** result) except PYGEN_ERROR:
    cdef object given
    if publishing.state == PENDING:
        publishing._asyncio_future_blocking = True
        given = publishing
    else:
        given = publishing.outcome()
    Py_INCREF(given)
    result[0] = <PyObject*>given
    return PYGEN_NEXT if given is publishing else PYGEN_RETURN


lv_install_steps(Publishing, <void*>_step)
Coroutine.register(Publishing)


cdef Publishing new_publishing(object producer, Waiters waiters, uint8_t gives):
    cdef Publishing publishing = Publishing.__new__(Publishing)
    publishing.producer = producer
    publishing.owner = waiters
    publishing.gives = gives
    return publishing
