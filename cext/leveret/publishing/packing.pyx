"""From a routing key with options to frames, in one step and without objects between them."""
cimport cython
from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem, PyDict_Next
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport uint16_t

from leveret.publishing.message_ids cimport ID_SIZE, MessageIds
from leveret.publishing.template cimport (
    BEFORE_PROPERTIES, PublishTemplate, Template, begin_header, end_header, new_template, put_method
)
from leveret.wire.encoding cimport Writer
from leveret.wire.endian cimport lv_get32, lv_put16
from leveret.wire.own_headers cimport original_size_entry, sent_at_entry
from leveret.wire.properties cimport (
    CLUSTER_ID, CONTENT_ENCODING, CONTENT_TYPE, DELIVERY_MODE, EXPIRATION, HEADERS, MESSAGE_ID, PROPERTIES, flag_of,
    put_values
)

from leveret.errors import EncodeFailed, PublishError
from leveret.message import Outcome
from leveret.plugins.builtin import BytesSerializer
from leveret.publishing.options import OPTIONS, joined, milliseconds, unknown_option
from leveret.wire.own_headers import ORIGINAL_SIZE_HEADER, SENT_AT_HEADER
from leveret.wire.properties import PROPERTY_NAMES

cdef enum:
    # Options that are no properties have the numbers behind those of the properties.
    EXCHANGE = PROPERTIES
    MANDATORY
    CONFIRM_TIMEOUT
    NUMBERS
    # Bytes of the frames that routing keys keep, and what each takes beside its frames: objects and a place.
    MOST_KEPT = 4194304
    KEPT_BESIDE = 300
    # A larger scratch buffer is not kept.
    LARGEST_SCRATCH = 65536

# The names of the options by number.
cdef tuple _NAMES = (*PROPERTY_NAMES, "exchange", "mandatory", "confirm_timeout")
cdef PyObject* _names[NUMBERS]
cdef dict _numbers = {}
for _number, _name in enumerate(_NAMES):
    _names[_number] = <PyObject*>_name  # it lives as long as _NAMES
    if _name in OPTIONS:
        _numbers[_name] = _number

# The keys of direct reply-to, which is no queue: RabbitMQ returns a mandatory reply although it delivers it.
cdef str _DIRECT_REPLY = "amq.rabbitmq.reply-to."
# Where a message id will be.
cdef str _NO_ID = "0" * ID_SIZE
cdef dict _NO_OPTIONS = {}
# It returns bytes as they are.
cdef object _keep_bytes = BytesSerializer.encode


@cython.final
cdef class Scratch:

    def __cinit__(self):
        self.w = Writer()

    # Writes everything up to the content type, with room for the flags.
    cdef int begin(self, str exchange, str routing_key, bint mandatory, object content_type) except -1:
        if (self.values_at and exchange is self.exchange and routing_key is self.routing_key
                and mandatory == self.mandatory and content_type is self.content_type):
            self.w.used = self.values_at
            return 0
        self.values_at = 0
        self.w.used = 0
        put_method(self.w, exchange, routing_key, mandatory)
        self.header_at = begin_header(self.w)
        self.w.put16(0)
        if content_type is not None:
            self.w.put_shortstr(content_type, "content_type")
        self.exchange = exchange
        self.routing_key = routing_key
        self.mandatory = mandatory
        self.content_type = content_type
        self.values_at = self.w.used
        return 0


@cython.final
cdef class Packer:
    """Packs the messages of one producer.

    Args:
        settings: The producer's options.
        encoder: Its serializer and compressor.
        encode: Encodes a value by them, when all bodies have one form.

    Attributes:
        frame_max: The negotiated limit of the connection; 0 before the producer is open.
        one_form: All bodies have one content type, and none is compressed.
        ids: Makes message ids; None unless the producer does.
    """

    def __cinit__(self, settings not None, encoder not None, encode not None):
        self.encoder = encoder
        self.encode = encode
        self.content_type = self.encoder.content_type
        self.one_form = self.content_type is not None
        self.part = self.encoder.part
        self.compressor = self.encoder.compressor
        self.exchange = settings.exchange
        self.mandatory = settings.mandatory
        self.delivery_mode = settings.delivery_mode
        self.timed = settings.sent_at_header
        self.kept = {}
        if settings.message_ids:
            self.ids = MessageIds()

    def pack(self, value, routing_key, dict options not None):
        """Packs a message.

        Args:
            value: What the serializer takes.
            routing_key: The routing key or a template.
            options: As the publish methods take them; of this call alone.

        Returns:
            Its frames and its body.

        Raises:
            EncodeFailed: The value, the routing key or an option does not fit.
            ConfigurationError: There is no such option.
            PublishError: The producer is not open.
        """
        return self.packed(value, routing_key, options)

    def check(self, routing_key, dict options not None):
        """Validates a routing key and options.

        Returns:
            Their frames when all bodies have one form, or None. With message ids they are a pattern for those of each
            message.

        Raises:
            EncodeFailed: As `pack`.
            ConfigurationError: As `pack`.
            PublishError: As `pack`.
        """
        if self.one_form and not options:
            return self.pattern(routing_key)
        routing_key, options = joined(routing_key, options)
        made = self.make(routing_key, options, self.content_type, None, -1)
        return made if self.one_form else None

    def raw(self, routing_key, bytes raw_properties not None):
        """Makes the frames of a message whose properties are packed already."""
        cdef PublishTemplate like = self.make(routing_key, _NO_OPTIONS, None, None, -1)
        return PublishTemplate(like.exchange, like.routing_key, raw_properties, mandatory=like.mandatory,
                               frame_max=self.frame_max)

    def check_open(self):
        """Raises when the producer was never open.

        Raises:
            PublishError: The outcome is NOT_SENT.
        """
        if not self.frame_max:
            raise PublishError("the producer is not open; use `async with`", outcome=Outcome.NOT_SENT)

    # The frames of a routing key or template alone, when all bodies have one form.
    cdef PublishTemplate pattern(self, object routing_key):
        cdef PublishTemplate made
        cdef PyObject* found
        cdef dict options
        if type(routing_key) is Template and (<Template>routing_key).encoder is self.encoder:
            return (<Template>routing_key).frames
        if not PyUnicode_CheckExact(routing_key):
            routing_key, options = joined(routing_key, _NO_OPTIONS)
            return self.make(routing_key, options, self.content_type, None, -1)
        found = PyDict_GetItem(self.kept, routing_key)
        if found is not NULL:
            return <PublishTemplate>found
        made = self.make(routing_key, _NO_OPTIONS, self.content_type, None, -1)
        self.keep(routing_key, made)
        return made

    # Keeps the frames of a routing key if there is room, and begins anew when as many bytes found none: others may be
    # in use by now.
    cdef int keep(self, str routing_key, PublishTemplate made) except -1:
        cdef Py_ssize_t size = made.size + KEPT_BESIDE
        if self.kept_bytes >= MOST_KEPT:
            self.refused_bytes += size
            if self.refused_bytes < MOST_KEPT:
                return 0
            self.kept.clear()
            self.kept_bytes = self.refused_bytes = 0
        self.kept[routing_key] = made
        self.kept_bytes += size
        return 0

    # The frames of a message, when all bodies have one form.
    cdef PublishTemplate frames(self, object routing_key, dict options):
        cdef PublishTemplate made
        if not options:
            made = self.pattern(routing_key)
            return made if made.id_at == 0 else self.identified(made)
        if not PyUnicode_CheckExact(routing_key):
            routing_key, options = joined(routing_key, options)
        made = self.make(routing_key, options, self.content_type, None, -1)
        if made.id_at:
            self.ids.write(made.data + made.id_at)
        return made

    # The frames of one message with an id of its own.
    cdef PublishTemplate identified(self, PublishTemplate pattern):
        cdef PublishTemplate made = pattern.copied()
        self.ids.write(made.data + pattern.id_at)
        return made

    # The frames and the body of a message.
    cdef tuple packed(self, object value, object routing_key, dict options):
        cdef PublishTemplate made
        cdef Py_ssize_t original_size = -1
        if self.one_form:
            made = self.frames(routing_key, options)
            body = None if made.misfit is None else self.encoder.given(value, made.misfit)
            return made, self.encode(value) if body is None else body
        if options is None:
            options = _NO_OPTIONS
        if not PyUnicode_CheckExact(routing_key):
            routing_key, options = joined(routing_key, options)
        misfit = self.misfit(options) if options else None
        body = None if misfit is None else self.encoder.given(value, misfit)
        try:
            encode, content_type = self.part if self.part is not None else self.encoder.choose(value)
            if body is None:
                body = value if PyBytes_CheckExact(value) and encode is _keep_bytes else encode(value)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise self.encoder.failed(error, value)  # it has its cause
        if not PyBytes_CheckExact(body):
            raise self.encoder.not_bytes(body)
        if self.compressor is not None and options.get("content_encoding") is None:
            compressed = self.compressor.compress(<bytes>body)
            if compressed is not None:
                original_size, body = PyBytes_GET_SIZE(body), compressed
        made = self.make(routing_key, options, content_type, None if original_size < 0 else self.compressor.encoding,
                         original_size)
        if made.id_at:
            self.ids.write(made.data + made.id_at)
        return made, body

    # Compares the content type and encoding of these options with the serializer's; see `BodyEncoder.misfit`.
    cdef object misfit(self, dict options):
        if "content_type" in options or "content_encoding" in options:
            return self.encoder.misfit(options.get("content_type"), options.get("content_encoding"))
        return None

    # Packs frames. `options` belong to this call alone: their values are only borrowed from them.
    cdef PublishTemplate make(self, object routing_key, dict options, object content_type, object content_encoding,
                              Py_ssize_t original_size):
        cdef PublishTemplate made
        # A value's own code may publish, and needs another one.
        cdef Scratch scratch = self.scratch
        if self.frame_max == 0:
            self.check_open()
        if scratch is None:
            scratch = Scratch()
        self.scratch = None
        made = self.write(scratch, routing_key, options, content_type, content_encoding, original_size)
        if scratch.w.capacity <= LARGEST_SCRATCH:
            self.scratch = scratch
        return made

    cdef PublishTemplate write(self, Scratch scratch, object routing_key, dict options, object content_type,
                               object content_encoding, Py_ssize_t original_size):
        cdef Writer w = scratch.w
        cdef PyObject* values[NUMBERS]
        cdef Py_ssize_t places[PROPERTIES]
        cdef PyObject* name
        cdef PyObject* value
        cdef Py_ssize_t place = 0
        cdef int number
        cdef uint16_t flags = flag_of(DELIVERY_MODE)
        # The caller gives the content type or encoding.
        cdef bint typed = False
        cdef bint mandatory = self.mandatory
        cdef bytes entries = None
        cdef str exchange = self.exchange
        cdef str key
        cdef PublishTemplate made
        values[CONTENT_TYPE] = <PyObject*>content_type
        values[DELIVERY_MODE] = <PyObject*>self.delivery_mode
        values[HEADERS] = NULL
        if content_type is not None:
            flags |= flag_of(CONTENT_TYPE)
        if self.ids is not None:
            values[MESSAGE_ID] = <PyObject*>_NO_ID
            flags |= flag_of(MESSAGE_ID)
        while PyDict_Next(options, &place, &name, &value):
            number = _number_of(name)
            if number == EXCHANGE:
                exchange = _text("exchange", <object>value)
            elif number == MANDATORY:
                if not isinstance(<object>value, bool):
                    raise EncodeFailed(f"mandatory is True or False, not {type(<object>value).__name__}")
                mandatory = <object>value
            elif number < 0:
                raise unknown_option(options)
            elif number < PROPERTIES:
                values[number] = value
                if value is <PyObject*>None:
                    flags &= <uint16_t>~flag_of(number)
                else:
                    flags |= flag_of(number)
                typed |= number <= CONTENT_ENCODING
        key = _text("routing_key", routing_key)
        if mandatory and not exchange and key.startswith(_DIRECT_REPLY):
            mandatory = False
        if flags & flag_of(EXPIRATION):
            expiration = milliseconds(<object>values[EXPIRATION])
            values[EXPIRATION] = <PyObject*>expiration
        w.entries = 0
        if original_size >= 0:
            values[CONTENT_ENCODING] = <PyObject*>content_encoding
            flags |= flag_of(CONTENT_ENCODING)
            entries = original_size_entry(original_size)
            w.count(ORIGINAL_SIZE_HEADER)
        if self.timed:
            entries = sent_at_entry() if entries is None else entries + sent_at_entry()
        if entries is not None:
            if flags & flag_of(HEADERS):
                headers = self.without_own(<object>values[HEADERS], original_size)
                values[HEADERS] = <PyObject*>headers
            else:
                values[HEADERS] = NULL
                flags |= flag_of(HEADERS)
        scratch.begin(exchange, key, mandatory,
                      <object>values[CONTENT_TYPE] if flags & flag_of(CONTENT_TYPE) else None)
        lv_put16(w.data + scratch.header_at + BEFORE_PROPERTIES, flags)
        put_values(w, values, flags & <uint16_t>~flag_of(CONTENT_TYPE), places, entries)
        end_header(w, scratch.header_at, self.frame_max)
        made = new_template(w, scratch.header_at, exchange, key, mandatory, self.misfit(options) if typed else None)
        if self.timed:
            made.sent_at = places[HEADERS] + 4 + <Py_ssize_t>lv_get32(w.data + places[HEADERS]) - 8
        if self.ids is not None and values[MESSAGE_ID] is <PyObject*>_NO_ID:
            made.id_at = places[MESSAGE_ID] + 1
        return made

    # The caller's headers without those that are added behind them.
    cdef object without_own(self, object headers, Py_ssize_t original_size):
        try:
            headers = dict(headers)
        except (TypeError, ValueError):
            return headers  # refused when they are packed
        if original_size >= 0:
            headers.pop(ORIGINAL_SIZE_HEADER, None)
        if self.timed:
            headers.pop(SENT_AT_HEADER, None)
        return headers


cdef int _number_of(PyObject* name) except -2:
    cdef PyObject* found
    cdef int i
    # Names of keyword arguments are interned.
    for i in range(NUMBERS):
        if _names[i] is name:
            return i if i != CLUSTER_ID else -1
    found = PyDict_GetItem(_numbers, <object>name)
    return -1 if found is NULL else <int><object>found


# A name as plain text; members of a StrEnum are text as well.
cdef str _text(str name, object value):
    if PyUnicode_CheckExact(value):
        return value
    if not isinstance(value, str):
        raise EncodeFailed(f"{name} is text, not {type(value).__name__}")
    return str.__str__(value)
