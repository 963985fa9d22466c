"""The message that a user receives, and the memory of its body."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from leveret.wire.buffers cimport Py_REFCNT, _drop, set_bytes_size
from leveret.wire.properties cimport Properties

from leveret.errors import LocalProtocolError
from leveret.wire.properties import decode_properties

cdef extern from "Python.h":
    bint PyObject_GC_IsTracked(object o)
    void PyObject_GC_UnTrack(void* object) noexcept

cdef enum:
    # Of how many bodies the memory is kept: less than a MiB in all.
    MOST_SPARE_BODIES = 96


# Bodies whose messages are gone and that nobody else holds, for the messages that come next: what was just used is in
# the processor's cache, and the allocator is slow for sizes over half a KiB. Only those of `spare_body_of` get here.
cdef PyObject* _spare_bodies[MOST_SPARE_BODIES]
cdef Py_ssize_t _spare_count = 0


# How much memory a body of this size gets: eight sizes between a power of two and the next.
cdef inline Py_ssize_t _spare_room(Py_ssize_t size) noexcept:
    cdef Py_ssize_t step = 64
    while step <= size >> 4:
        step <<= 1
    return (size + step - 1) & -step


cdef object spare_body_of(const uint8_t* data, Py_ssize_t size):
    global _spare_count
    cdef PyObject* raw
    cdef object body = None
    cdef Py_ssize_t spare_size
    if _spare_count:
        _spare_count -= 1
        raw = _spare_bodies[_spare_count]
        spare_size = PyBytes_GET_SIZE(<object>raw)
        if spare_size == size or _spare_room(spare_size) == _spare_room(size):
            body = <object>raw
        # Ours is the only reference now. One of another size makes room for the sizes that come now.
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

    Its properties stay packed until one of them is asked for, and its value until `value` is.

    Attributes:
        body: The bytes as they came, or None when the message was larger than the reader's limit. A read-only
            memoryview of bytes where `FrameReader.view_bodies` asked for it: it stays valid and as it is for as long as
            it, or a slice of it, is held. Its `obj` is a bytes object with the same bytes.
        body_size: The size that the content header declared, in bytes.
        delivery_tag: Its number on the channel, for acknowledgements; 0 for returned messages.
        redelivered: The broker tried to deliver it before. False does not mean that it is new: a publisher
            that was not sure may have published it twice.
        exchange: Where it was published.
        routing_key: The routing key it was published with.
        consumer_tag: The consumer it was delivered to; empty for `get` and returns.
        raw_properties: The packed properties, as they came.
        message_count: For `get`: how many messages the queue still had.
        reply_code: For returned messages: why.
        reply_text: For returned messages: why.
        channel: The channel number.
        method_id: The basic method it came with: 60 deliver, 71 get-ok, 50 return, 40 publish.
        mandatory: For basic.publish: the mandatory bit.
        immediate: For basic.publish: the immediate bit.
        received_at: When a consumer took it from the socket, in seconds of the event loop's clock (`loop.time`).
    """

    def __dealloc__(self):
        global _spare_count
        cdef PyObject* raw = <PyObject*>self.body
        if self.spare_body and _spare_count < MOST_SPARE_BODIES and raw is not NULL and Py_REFCNT(raw) == 1:
            Py_INCREF(self.body)
            _spare_bodies[_spare_count] = raw
            _spare_count += 1

    @property
    def queue(self):
        """The queue of the consumer that took it, or None."""
        return None if self.owner is None else self.owner.queue

    @property
    def properties(self):
        """The decoded `Properties`.

        Raises:
            TableSyntaxError: They are malformed; the message itself is usable.
        """
        if self.decoded is None:
            self.decoded = decode_properties(self.raw_properties, max_depth=self.max_table_depth,
                                             max_entries=self.max_table_entries)
        return self.decoded

    @property
    def headers(self):
        """The message's headers as a dict, empty when it has none."""
        cdef Properties p = self.properties
        if p.headers is None:
            p.headers = {}
        return p.headers

    @property
    def content_type(self):
        """The MIME type of the body, or None."""
        return self.properties.content_type

    @property
    def content_encoding(self):
        """How the body is encoded, or None."""
        return self.properties.content_encoding

    @property
    def correlation_id(self):
        """The correlation id, or None."""
        return self.properties.correlation_id

    @property
    def reply_to(self):
        """Where an answer should go, or None."""
        return self.properties.reply_to

    @property
    def message_id(self):
        """The application's message id, or None."""
        return self.properties.message_id

    @property
    def timestamp(self):
        """Seconds since 1970 as the publisher set them, or None."""
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
        """The body decoded by its content type into the consumer's model; decoded once.

        Raises:
            DecodeFailed: The body is not what its content type or the model says.
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
    def is_settled(self):
        """False while it can be settled: neither was it, nor is the channel gone that it came on."""
        return self.owner is None or not self.owner.is_open(self)

    cdef object settle(self, str verb):
        if self.owner is None:
            raise LocalProtocolError("this message did not come from a consumer that acknowledges")
        return self.owner.settle(self, verb)

    def ack(self):
        """Acknowledges the message: the broker forgets it.

        The acknowledgement is appended to the next write. It may be await-ed, which does not wait for anything.

        Returns:
            An object that is true when this call settled the message, and false when it was settled before or its
            channel is gone.
        """
        return self.settle("ack")

    def requeue(self):
        """Gives the message back to the queue at once (basic.reject with requeue), as one that failed.

        It counts towards a quorum queue's delivery limit. Returns as `ack` does.
        """
        return self.settle("requeue")

    def release(self):
        """Gives the message back to the queue at once (basic.nack with requeue), as one that was not tried.

        From RabbitMQ 4.3 on it does not count towards a quorum queue's delivery limit. Returns as `ack` does.
        """
        return self.settle("release")

    def dead_letter(self):
        """Refuses the message (basic.reject): it goes to the queue's dead-letter exchange.

        Without a dead-letter exchange the broker drops it. Returns as `ack` does.
        """
        return self.settle("dead_letter")

    def __len__(self):
        return self.body_size

    def __bool__(self):
        return True

    def __repr__(self):
        return (f"<Message tag={self.delivery_tag} exchange={self.exchange[:80]!r} "
                f"routing_key={self.routing_key[:80]!r} size={self.body_size}>")


# The caller fills in the four names, which are None here.
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
