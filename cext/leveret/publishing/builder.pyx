"""The fluent way to write a message and its options."""
cimport cython

from leveret.errors import ConfigurationError
from leveret.message import PERSISTENT as _PERSISTENT
from leveret.message import TRANSIENT as _TRANSIENT


cdef class MessagePublisher:
    """The base of `CompiledPublisher`: what makes a builder, and what a builder calls."""

    def message(self, value):
        """Begins a message that is put together call by call; see `MessageBuilder`."""
        cdef MessageBuilder message = MessageBuilder.__new__(MessageBuilder)
        message.value = value
        message.key = ""
        message.options = {}
        message.publisher = self
        return message

    cdef object publish_message(self, object value, object routing_key, dict options):
        raise NotImplementedError

    cdef object publish_nowait_message(self, object value, object routing_key, dict options):
        raise NotImplementedError

    cdef object enqueue_message(self, object value, object routing_key, dict options):
        raise NotImplementedError


@cython.final
@cython.freelist(32)
cdef class MessageBuilder:
    """A message that is put together call by call. Made by `Client.message` and `Producer.message`.

    Each call changes it and returns it, and `publish`, `publish_nowait` or `enqueue` comes last. It may be published
    more than once. It may also be one of the values of `publish_batch`; then its options go over those of the batch.

        await client.message(order).exchange("orders").routing_key("order.created").header("tenant", 7).publish()

    Attributes:
        value: What the serializer takes.
        key: The routing key so far.
        options: The options so far.
    """

    def __init__(self, value, publisher=None):
        self.value = value
        self.key = ""
        self.options = {}
        self.publisher = publisher

    def __repr__(self):
        return f"<MessageBuilder routing_key={self.key!r} options={sorted(self.options)}>"

    def exchange(self, name):
        """Publishes to this exchange; the empty name is the default exchange, which routes by queue name."""
        self.options["exchange"] = name
        return self

    def routing_key(self, routing_key):
        """Sets the routing key."""
        self.key = routing_key
        return self

    def queue(self, name):
        """Publishes straight to a queue, by the default exchange."""
        return self.exchange("").routing_key(name)

    def header(self, name, value):
        """Adds one header."""
        cdef dict own = self.own_headers
        headers = self.options.get("headers")
        if own is None or headers is not own:
            own = self.own_headers = dict(headers) if headers else {}
            self.options["headers"] = own
        own[name] = value
        return self

    def headers(self, headers):
        """Adds headers."""
        self.own_headers = {**(self.options.get("headers") or {}), **headers}
        self.options["headers"] = self.own_headers
        return self

    def persistent(self):
        """Sets delivery mode 2: durable queues write it to disk."""
        return self.delivery_mode(_PERSISTENT)

    def transient(self):
        """Sets delivery mode 1: it may be lost when the broker restarts."""
        return self.delivery_mode(_TRANSIENT)

    def delivery_mode(self, delivery_mode):
        """Sets 1 (transient) or 2 (persistent)."""
        self.options["delivery_mode"] = delivery_mode
        return self

    def priority(self, priority):
        """Sets the priority, 0 to 255."""
        self.options["priority"] = priority
        return self

    def expiration(self, seconds):
        """Sets how many seconds the message may wait in a queue."""
        self.options["expiration"] = seconds
        return self

    def content_type(self, content_type):
        """Sets the content type over the serializer's."""
        self.options["content_type"] = content_type
        return self

    def content_encoding(self, content_encoding):
        """Sets the encoding of a body that is encoded already; it is not compressed again."""
        self.options["content_encoding"] = content_encoding
        return self

    def correlation_id(self, correlation_id):
        """Sets the id by which a reply is matched to its request."""
        self.options["correlation_id"] = correlation_id
        return self

    def reply_to(self, queue):
        """Sets the queue for replies."""
        self.options["reply_to"] = queue
        return self

    def message_id(self, message_id):
        """Sets the message's id."""
        self.options["message_id"] = message_id
        return self

    def timestamp(self, timestamp):
        """Sets the time: seconds since 1970, or a datetime with a time zone."""
        self.options["timestamp"] = timestamp
        return self

    def type(self, name):
        """Sets the message's type."""
        self.options["type"] = name
        return self

    def user_id(self, user_id):
        """Sets the user; RabbitMQ refuses another one than the connection's."""
        self.options["user_id"] = user_id
        return self

    def app_id(self, app_id):
        """Sets the application."""
        self.options["app_id"] = app_id
        return self

    def mandatory(self, mandatory = True):
        """Sets whether the broker returns the message when no queue takes it, as it does by default."""
        self.options["mandatory"] = mandatory
        return self

    def confirm_timeout(self, seconds):
        """Sets how many seconds the confirm may take after the message is written, at most the producer's own."""
        self.options["confirm_timeout"] = seconds
        return self

    def publish(self):
        """Publishes it and waits for the confirm; see `Producer.publish`."""
        self.check_bound()
        if isinstance(self.publisher, MessagePublisher):
            return (<MessagePublisher>self.publisher).publish_message(self.value, self.key, self.options.copy())
        return self.publisher.publish(self.value, self.key, **self.options)

    def publish_nowait(self):
        """Publishes it without waiting; see `Producer.publish_nowait`."""
        self.check_bound()
        if isinstance(self.publisher, MessagePublisher):
            return (<MessagePublisher>self.publisher).publish_nowait_message(self.value, self.key, self.options.copy())
        return self.publisher.publish_nowait(self.value, self.key, **self.options)

    def enqueue(self):
        """Publishes it as `publish_nowait` does, but waits while there is no room; see `Producer.enqueue`."""
        self.check_bound()
        if isinstance(self.publisher, MessagePublisher):
            return (<MessagePublisher>self.publisher).enqueue_message(self.value, self.key, self.options.copy())
        return self.publisher.enqueue(self.value, self.key, **self.options)

    cdef int check_bound(self) except -1:
        if self.publisher is None:
            raise ConfigurationError("this message belongs to no producer; make it by `producer.message(value)`")
        return 0
