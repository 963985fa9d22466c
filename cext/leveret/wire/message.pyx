"""The message that a user receives, and the memory of its body."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from leveret.wire.buffers cimport Py_REFCNT, _drop, set_bytes_size
from leveret.wire.decoding cimport headers_of

from leveret.errors import LocalProtocolError
from leveret.wire.properties import decode_properties

cdef extern from "Python.h":
    bint PyObject_GC_IsTracked(object o)
    void PyObject_GC_UnTrack(void* object) noexcept

cdef enum:
    # The most kept bodies, and the most bytes in them. With the room behind each, an eighth at most, they take less
    # than a MiB.
    MOST_SPARE_BODIES = 96
    MOST_SPARE_BYTES = 917504


# Bodies of freed messages to which no other reference is left. The next messages take their memory: it is still in the
# processor's cache, and the allocator is slow for sizes over half a KiB. Only bodies of `spare_body_of` get here.
cdef PyObject* _spare_bodies[MOST_SPARE_BODIES]
cdef Py_ssize_t _spare_count = 0
cdef Py_ssize_t _spare_bytes = 0


# Returns the memory for a body of this size, in bytes: one of eight sizes between a power of two and the next.
cdef inline Py_ssize_t _spare_room(Py_ssize_t size) noexcept:
    cdef Py_ssize_t step = 64
    while step <= size >> 4:
        step <<= 1
    return (size + step - 1) & -step


cdef object spare_body_of(const uint8_t* data, Py_ssize_t size):
    global _spare_count, _spare_bytes
    cdef PyObject* raw
    cdef object body = None
    cdef Py_ssize_t spare_size
    if _spare_count:
        _spare_count -= 1
        raw = _spare_bodies[_spare_count]
        spare_size = PyBytes_GET_SIZE(<object>raw)
        _spare_bytes -= spare_size
        if spare_size == size or _spare_room(spare_size) == _spare_room(size):
            body = <object>raw
        # Drops the reference of the spare list. A body of another size is freed by that, and makes room for this size.
        _drop(raw)
    if body is None:
        body = PyBytes_FromStringAndSize(NULL, _spare_room(size))
    set_bytes_size(body, size)
    memcpy(PyBytes_AS_STRING(body), data, size)
    return body


@cython.final
@cython.freelist(512)
cdef class Message:
    """A message from the broker.

    Properties are decoded when one of them is first read, and the value when `value` is.

    Attributes:
        body: The received bytes, or None when the message was larger than the reader's limit. With
            `FrameReader.view_bodies` it is a read-only memoryview of bytes, valid and unchanged for as long as it, or a
            slice of it, is referenced. Its `obj` is a bytes object with the same bytes.
        body_size: The size that the content header declared, in bytes.
        delivery_tag: The number that acknowledgements name, counted on the channel; 0 for returned messages.
        redelivered: True when the broker tried to deliver the message before. False does not prove that it is new: a
            publisher without a confirm may have published it twice.
        exchange: The exchange that it was published to.
        routing_key: The routing key that it was published with.
        consumer_tag: The consumer that it was delivered to; empty for `get` and returns.
        raw_properties: The packed properties, as received.
        message_count: For `get`: the number of messages left in the queue.
        reply_code: For returned messages: the reason's number.
        reply_text: For returned messages: the reason.
        channel: The channel number.
        method_id: The basic method that announced it: 60 deliver, 71 get-ok, 50 return, 40 publish.
        mandatory: For basic.publish: the mandatory bit.
        immediate: For basic.publish: the immediate bit.
        received_at: When a consumer read it from the socket, in seconds of `time.monotonic`; 0 when no consumer did.
        failed_here: How often it has failed since it was delivered; more than once when the consumer holds it between
            its attempts.
    """

    def __dealloc__(self):
        global _spare_count, _spare_bytes
        cdef PyObject* raw = <PyObject*>self.body
        if self.decoded_value is self.body:
            self.decoded_value = None
        if (self.spare_body and _spare_count < MOST_SPARE_BODIES and raw is not NULL and Py_REFCNT(raw) == 1
                and _spare_bytes + PyBytes_GET_SIZE(self.body) <= MOST_SPARE_BYTES):
            Py_INCREF(self.body)
            _spare_bodies[_spare_count] = raw
            _spare_count += 1
            _spare_bytes += PyBytes_GET_SIZE(self.body)

    @property
    def queue(self):
        """The queue of the consumer that received it; None without a consumer."""
        return None if self.owner is None else self.owner.queue

    @property
    def properties(self):
        """The decoded `Properties`.

        Raises:
            TableSyntaxError: The properties are malformed. The message itself is usable.
        """
        if self.decoded is None:
            self.decoded = decode_properties(self.raw_properties, max_depth=self.max_table_depth,
                                             max_entries=self.max_table_entries)
            if self.header_table is not None:
                self.decoded.headers = self.header_table
        return self.decoded

    @property
    def headers(self):
        """The message's headers as a dict, empty when it has none."""
        if self.decoded is None:
            if self.header_table is None:
                self.header_table = headers_of(self.raw_properties, self.max_table_depth, self.max_table_entries)
            return self.header_table
        if self.decoded.headers is None:
            self.decoded.headers = {}
        return self.decoded.headers

    @property
    def content_type(self):
        """The MIME type of the body, or None."""
        return self.properties.content_type

    @property
    def content_encoding(self):
        """The encoding of the body, for example `gzip`, or None."""
        return self.properties.content_encoding

    @property
    def correlation_id(self):
        """The correlation id, or None."""
        return self.properties.correlation_id

    @property
    def reply_to(self):
        """The queue for an answer, or None."""
        return self.properties.reply_to

    @property
    def message_id(self):
        """The application's message id, or None."""
        return self.properties.message_id

    @property
    def timestamp(self):
        """The publisher's time in seconds since 1970, or None."""
        return self.properties.timestamp

    @property
    def type(self):
        """The application's message type, or None."""
        return self.properties.type

    @property
    def priority(self):
        """The priority, 0 to 255, or None."""
        return self.properties.priority

    @property
    def value(self):
        """The body, decoded by its content type into the consumer's model. It is decoded once.

        Raises:
            DecodeFailed: The body does not fit its content type or the model.
            ContentTypeNotAccepted: No accepted serializer has this content type.
            BodyTooLarge: The body was larger than the reader's limit and was not kept.
        """
        if not self.is_decoded:
            if self.owner is None:
                return self.body
            self.decoded_value = self.owner.decode(self)
            self.is_decoded = True
        return self.decoded_value

    @property
    def received_time(self):
        """When a consumer read it from the socket: a `datetime` in UTC, or None when no consumer did.

        It is worked out from `received_at` when it is first read, by the wall clock of that moment, and stays the same.
        """
        if self.owner is None:
            return None
        if not self.wall_time:
            self.wall_time = self.owner.wall_time(self.received_at)
        from datetime import UTC, datetime  # here, because importing this module has to be cheap
        return datetime.fromtimestamp(self.wall_time, UTC)

    @property
    def total_time(self):
        """Seconds since a consumer read it from the socket, or None when no consumer did; they go on."""
        return None if self.owner is None else self.owner.now() - self.received_at

    @property
    def waiting_time(self):
        """Seconds from the read that brought it to the beginning of its handler.

        None before, and for messages that `Consumer.run` does not hand to a handler: those of batches, of `async for`
        and of `get`.
        """
        return self.handler_began * 1e-9 - self.received_at if self.handler_began else None

    @property
    def handler_time(self):
        """Seconds since its handler began, or None as for `waiting_time`; they go on when the handler has ended."""
        return self.owner.now() - self.handler_began * 1e-9 if self.handler_began else None

    @property
    def is_settled(self):
        """False while the message can be settled.

        True once it is settled, its channel is closed, or `retry`, `park` or the error policy is moving or holding it.
        """
        return self.owner is None or not self.owner.is_open(self)

    cdef object settle(self, str verb, object detail):
        if self.owner is None:
            raise LocalProtocolError("this message did not come from a consumer that acknowledges")
        return self.owner.settle(self, verb, detail)

    def ack(self):
        """Acknowledges the message (basic.ack). The broker drops it.

        The acknowledgement is appended to the next write. The result may be awaited, which waits for nothing.

        Returns:
            An object that is true when this call settled the message. It is false when the message was settled before,
            or its channel is closed.
        """
        return self.settle("ack", None)

    def requeue(self):
        """Gives the message back to the queue at once (basic.reject with requeue), as one that failed.

        It counts towards a quorum queue's delivery limit. Returns as `ack` does.
        """
        return self.settle("requeue", None)

    def release(self):
        """Gives the message back to the queue at once (basic.nack with requeue), as one that was not tried.

        From RabbitMQ 4.3 on it does not count towards a quorum queue's delivery limit. Returns as `ack` does.
        """
        return self.settle("release", None)

    def dead_letter(self, reason=None):
        """Refuses the message (basic.reject): it goes to the queue's dead-letter exchange.

        Without a dead-letter exchange the broker drops it: use `park` where it is not known whether there is one. The
        log says so, with the reason, unless this client has declared the queue with a dead-letter exchange.

        Args:
            reason: A text for the log.

        Returns:
            As `ack` does.
        """
        return self.settle("dead_letter", reason)

    def retry(self, delay):
        """Has the message handled again after a delay, as `Retry` of an error policy does it, however often it failed.

        A copy is published to the retry queue of this delay, and when the broker has confirmed the copy, the message is
        acknowledged. A message of a transient queue is held by the consumer instead, for at most 10 minutes; so is one
        whose copy the broker does not take now.

        Args:
            delay: Seconds, 0.1 to 604800.

        Returns:
            An object that is true when this call took the message over, and false when it was settled before or its
            channel is closed. It may be awaited: then it waits until the copy is confirmed or the message is held.

        Raises:
            ConfigurationError: The delay is out of range.
        """
        return self.settle("retry", delay)

    def park(self, reason=None):
        """Puts the message aside in `<queue>.parked` for a person to look at, as `Park` of an error policy does it.

        Messages of transient queues go to `leveret.parked`. Where the broker does not take the copy now, the consumer
        holds the message, and it is handled again later.

        Args:
            reason: A text for the header `x-leveret-error` and the log, cut off after 200 characters.

        Returns:
            As `retry` does.
        """
        return self.settle("park", reason)

    def __len__(self):
        return self.body_size

    def __bool__(self):
        return True

    def __repr__(self):
        return (f"<Message tag={self.delivery_tag} exchange={self.exchange[:80]!r} "
                f"routing_key={self.routing_key[:80]!r} size={self.body_size}>")


# Makes an empty message. The caller sets exchange, routing_key, consumer_tag and reply_text, which are None here.
cdef Message new_message():
    return Message.__new__(Message)


def redelivered_copy(Message message not None):
    """Copies a message that a broker received, for a queue that delivers it again.

    The copy shares body and properties with the original.

    Args:
        message: The message; it stays as it is.

    Returns:
        A `Message` with `redelivered` set and without a delivery tag.
    """
    cdef Message m = new_message()
    if not PyObject_GC_IsTracked(message):
        PyObject_GC_UnTrack(<void*>m)
    m.body = message.body
    m.body_size = message.body_size
    m.exchange = message.exchange
    m.routing_key = message.routing_key
    m.consumer_tag = message.consumer_tag
    m.reply_text = message.reply_text
    m.raw_properties = message.raw_properties
    m.channel = message.channel
    m.method_id = message.method_id
    m.mandatory = message.mandatory
    m.redelivered = True
    m.max_table_depth = message.max_table_depth
    m.max_table_entries = message.max_table_entries
    return m
