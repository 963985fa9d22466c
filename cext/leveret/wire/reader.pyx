"""Turns the bytes of one read into one list of events (AMQP 0-9-1 section 4.2.3).

Consecutive messages of a channel share an event, and so do acknowledgements, so the caller's work per read does not
grow with the number of messages. Incomplete input waits for the next read. Corrupt input ends the stream.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_Append
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from leveret.wire.assembly cimport Assemblies, Assembly
from leveret.wire.buffers cimport BodyPool, POOLS_BODIES, RecvBuffer
from leveret.wire.decoding cimport Cursor, cursor_over, need, text_of
from leveret.wire.endian cimport lv_get16, lv_get32, lv_get64
from leveret.wire.limits cimport (
    DEFAULT_FRAME_MAX_BEFORE_TUNE, DEFAULT_MAX_BODY_SIZE, DEFAULT_TABLE_DEPTH, DEFAULT_TABLE_ENTRIES)
from leveret.wire.message cimport LEAST_SPARE_BODY, MOST_SPARE_BODY, Message, new_message, spare_body_of
from leveret.wire.numbers cimport (
    BASIC, BASIC_ACK, BASIC_DELIVER, BASIC_GET_OK, BASIC_NACK, BASIC_PUBLISH, BASIC_REJECT, BASIC_RETURN, CHANNEL,
    CHANNEL_CLOSE, CHANNEL_CLOSE_OK, CHANNEL_OPEN, CHANNEL_OPEN_OK, FRAME_BODY, FRAME_END, FRAME_HEADER,
    FRAME_HEARTBEAT, FRAME_METHOD, FRAME_OVERHEAD,
    SETTLE_MULTIPLE, SETTLE_NACK, SETTLE_REQUEUE)
from leveret.wire.runs cimport ContentRun, MethodFrame, SettlementRun

from leveret.errors import FrameError, IncompatibleProtocol, RemoteProtocolError, TableSyntaxError

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(void* object) noexcept

cdef enum:
    STRING_CACHE = 256


# Compares two strings of the reader's cache, where equal strings are nearly always one object.
cdef inline bint _same(str a, str b) except -1:
    return a is b or a == b


@cython.final
cdef class FrameReader:
    """Turns received bytes into events. One call returns all complete events.

    An event is a `ContentRun`, a `SettlementRun`, a `MethodFrame`, or, once and only with `protocol_header=True`, the
    eight bytes of a client's protocol header. Heartbeats make no event. `received_bytes` grows with them, which shows
    that the peer is alive.

    Args:
        server: True reads as a server, for which basic.publish carries content. For a client basic.deliver,
            basic.return and basic.get-ok do.
        protocol_header: Expect a client's protocol header first.
        handshake: True reads for a connection, from its first byte on. Until `tune` is called a read is at most 8 KiB,
            and one event is returned at a time: call `received(0)` for the next one. Content may come only on channels
            that channel.open (for a client: channel.open-ok) has opened. On other channels a method with content is a
            `MethodFrame`, for the caller to refuse, and a header or body ends the stream. False, for recorded bytes:
            content may come on every channel.
        frame_max: The largest accepted frame, in bytes with its 8 bytes of overhead. It is 4096 until connection.tune
            (AMQP 0-9-1 section 4.2.3). The caller sets the negotiated value afterwards.
        max_body_size: The largest body, in bytes. A message with a larger one has the body None; its body frames are
            read and dropped. It is also, with `frame_max` on top, the limit for the properties and received bodies of
            all incomplete contents together: more ends the stream with reply code 506.
        max_table_depth: The deepest nesting of tables in a message's headers.
        max_table_entries: The most values in a message's headers together.
        capacity: The most bytes that are read at once. The receive buffer begins with 8 KiB.
        body_pool: The pool for `view_bodies`; None for a pool of its own. Readers of one thread may share a pool.

    Attributes:
        body_pool: As given, or None until `view_bodies` is called.
        in_handshake: True until `tune` is called, with `handshake`.
        error: The error that ended the stream, or None. The events before the error were returned.
    """

    def __cinit__(self, *, bint server=False, bint protocol_header=False, bint handshake=False,
                  uint32_t frame_max=DEFAULT_FRAME_MAX_BEFORE_TUNE, uint64_t max_body_size=DEFAULT_MAX_BODY_SIZE,
                  uint16_t max_table_depth=DEFAULT_TABLE_DEPTH, uint32_t max_table_entries=DEFAULT_TABLE_ENTRIES,
                  Py_ssize_t capacity=262144, BodyPool body_pool=None):
        self.buffer = RecvBuffer(0 if handshake else capacity)
        self.capacity = capacity
        self.body_pool = body_pool
        self.server = server
        self.header_due = protocol_header
        self.channels_open = not handshake
        self.in_handshake = handshake
        self.max_body_size = max_body_size
        self.max_table_depth = max_table_depth
        self.max_table_entries = max_table_entries
        self.error = None
        self.assemblies = Assemblies()
        self.assemblies.pool = body_pool
        self.last = None
        self.last_channel = -1
        self.strings = [None] * STRING_CACHE
        self.last_properties = b"\x00\x00"
        self.frame_max = frame_max

    @property
    def frame_max(self):
        """The largest accepted frame, in bytes with its overhead."""
        return self._frame_max

    @frame_max.setter
    def frame_max(self, uint32_t value):
        if value < 4096:
            raise FrameError(f"frame_max {value} is below the protocol's minimum of 4096 bytes")
        self._frame_max = value

    @property
    def received_bytes(self):
        """The number of bytes read so far."""
        return self.buffer.received_bytes

    def get_buffer(self, Py_ssize_t sizehint):
        """Returns memory for the next read (`asyncio.BufferedProtocol.get_buffer`)."""
        return self.buffer.get_buffer(sizehint)

    cpdef list received(self, Py_ssize_t n):
        """Parses after `n` bytes were read into the memory of `get_buffer`.

        Returns:
            A list of events, which may be empty. When the bytes are corrupt, it has the events before them, and `error`
            is set.
        """
        self.buffer.written(n)
        return self._parse()

    def feed(self, data):
        """Copies and parses `data`, for callers that do not use `get_buffer`. Returns as `received`."""
        self.buffer.feed(data)
        return self._parse()

    cdef list _parse(self):
        cdef list events = []
        if self.error is None:
            self.events = events
            try:
                self._frames()
            except RemoteProtocolError as error:
                self.error = error
            except BaseException:
                # Out of memory in the middle of a frame: the reader's state is not valid any more.
                self.error = RemoteProtocolError("out of memory while reading", reply_code=506)
                raise
            finally:
                self.events = None
                self.content_run = None
                self.settlement_run = None
        if self.error is not None:
            self._end()
        return events

    # Drops unread bytes and incomplete messages: the stream has ended.
    cdef int _end(self) except -1:
        self.buffer.release()
        self.assemblies.clear()
        self.last = None
        self.last_channel = -1
        return 0

    def release(self):
        """Frees the memory of the buffer, of incomplete messages and of the body pool: the connection is lost."""
        self._end()
        self.strings = [None] * STRING_CACHE

    # type(1) channel(2) size(4) payload(size) end(1), AMQP 0-9-1 section 4.2.3
    cdef int _frames(self) except -1:
        cdef RecvBuffer buf = self.buffer
        cdef const uint8_t* p
        cdef Py_ssize_t left, size
        cdef uint32_t declared
        cdef uint8_t kind
        cdef uint16_t channel
        if self.header_due and (not self._protocol_header() or self.in_handshake):
            return 0
        while not (self.in_handshake and self.events):
            left = buf.end - buf.start
            if left == 0:
                return 0
            p = buf.data + buf.start
            kind = p[0]
            if kind == FRAME_METHOD and left >= FRAME_OVERHEAD and self._known_content(p, left):
                continue
            if kind != FRAME_METHOD and kind != FRAME_HEADER and kind != FRAME_BODY and kind != FRAME_HEARTBEAT:
                self._refuse_first_octet(p, left)
                return 0
            if left < 7:
                return 0
            channel = lv_get16(p + 1)
            declared = lv_get32(p + 3)
            # Unsigned, so that no length is negative where pointers have 32 bits. frame_max is at least 4096.
            if declared > self._frame_max - FRAME_OVERHEAD:
                raise FrameError(f"a frame of {<uint64_t>declared + FRAME_OVERHEAD} bytes on channel {channel} is "
                                 f"larger than the limit of {self._frame_max}")
            size = <Py_ssize_t>declared
            if left < size + FRAME_OVERHEAD:
                buf.make_room(size + FRAME_OVERHEAD - left)
                return 0
            if p[7 + size] != FRAME_END:
                raise FrameError(f"a frame on channel {channel} ends with 0x{p[7 + size]:02x}, not 0xce")
            # Consume the frame before parsing it, so that no frame is parsed again after an error.
            buf.start += size + FRAME_OVERHEAD
            self.received_frames += 1
            p += 7
            if kind == FRAME_METHOD:
                self._method(channel, p, size)
            elif kind == FRAME_HEADER:
                self._header(channel, p, size)
            elif kind == FRAME_BODY:
                self._body(channel, p, size)
            elif channel != 0 or size != 0:
                raise FrameError(f"a heartbeat of {size} bytes on channel {channel}")

    # Reads the usual delivery or publishing: its method frame equals the previous one of its channel, except for the
    # delivery tag, and all of its body is here in one frame. For any other input it returns false and changes nothing,
    # and the general functions below read it, and find what is wrong.
    cdef bint _known_content(self, const uint8_t* p, Py_ssize_t left) except -1:
        cdef Assembly a
        cdef Message m
        cdef uint16_t channel = lv_get16(p + 1)
        cdef const uint8_t* known
        cdef const uint8_t* header
        cdef const uint8_t* body
        cdef Py_ssize_t size, known_size, tag_at
        cdef uint64_t body_size
        if channel == 0:
            return False
        a = self._assembly(channel)
        if a is None or a.known is None:
            return False
        known = <const uint8_t*>PyBytes_AS_STRING(a.known)
        known_size = PyBytes_GET_SIZE(a.known)
        tag_at = a.known_tag_at
        header = p + known_size
        # The least size of all three frames: the method, a header without properties, and the frame around the body.
        left -= known_size + 14 + 2 * FRAME_OVERHEAD
        if left < 0:
            return False
        if tag_at == 0:
            if memcmp(p, known, known_size) != 0:
                return False
        elif (memcmp(p, known, tag_at) != 0
              or memcmp(p + tag_at + 9, known + tag_at + 9, known_size - tag_at - 9) != 0):
            return False
        if (header[0] != FRAME_HEADER or memcmp(header + 1, p + 1, 2) != 0
                or lv_get32(header + 7) != <uint32_t>BASIC << 16):
            return False
        size = <Py_ssize_t>min(lv_get32(header + 3), <uint32_t>0x7FFFFFFF)
        left -= size - 14
        if size < 14 or left < 0 or <uint32_t>size > self._frame_max - FRAME_OVERHEAD:
            return False
        body = header + size + FRAME_OVERHEAD
        body_size = lv_get64(header + 11)
        if (body_size == 0 or body_size > <uint64_t>left or body_size > self.max_body_size
                or body_size > self._frame_max - FRAME_OVERHEAD or body[0] != FRAME_BODY
                or memcmp(body + 1, p + 1, 2) != 0 or lv_get32(body + 3) != body_size
                or body[7 + body_size] != FRAME_END or (body - 1)[0] != FRAME_END):
            return False
        # The general functions make views, and refuse what may not come.
        if a.message is not None or a.known_below <= body_size:
            return False
        m = self._message(channel, a.known_method_id)
        m.exchange = a.known_exchange
        m.routing_key = a.known_routing_key
        m.consumer_tag = a.known_consumer_tag
        m.reply_text = ""
        if tag_at:
            m.delivery_tag = lv_get64(p + tag_at)
            m.redelivered = p[tag_at + 8] & 1
        else:
            m.mandatory = (header - 2)[0] & 1
            m.immediate = ((header - 2)[0] >> 1) & 1
        m.raw_properties = self._properties(header + 19, size - 12)
        m.body_size = body_size
        if POOLS_BODIES and LEAST_SPARE_BODY <= body_size <= MOST_SPARE_BODY and not self.server:
            m.body = spare_body_of(body + 7, <Py_ssize_t>body_size)
            m.spare_body = True
        else:
            m.body = PyBytes_FromStringAndSize(<char*>body + 7, <Py_ssize_t>body_size)
        self.buffer.start += known_size + size + 2 * FRAME_OVERHEAD + <Py_ssize_t>body_size
        self.received_frames += 3
        a.message = m
        self._complete(a)
        return True

    # Keeps the method frame of these arguments for `_known_content`: 11 bytes before them, and one behind.
    cdef int _know(self, Assembly a, Message m, const uint8_t* arguments, Py_ssize_t size,
                   Py_ssize_t tag_at) except -1:
        if a.known is not None and PyBytes_GET_SIZE(a.known) == size + 12:
            memcpy(PyBytes_AS_STRING(a.known), arguments - 11, size + 12)
        else:
            a.known = PyBytes_FromStringAndSize(<char*>arguments - 11, size + 12)
        a.known_tag_at = tag_at
        a.known_method_id = m.method_id
        a.known_consumer_tag = m.consumer_tag
        a.known_exchange = m.exchange
        a.known_routing_key = m.routing_key
        return 0

    cdef bint _protocol_header(self) except -1:
        cdef RecvBuffer buf = self.buffer
        cdef Py_ssize_t left = buf.end - buf.start
        cdef Py_ssize_t n = min(left, 4)
        if memcmp(buf.data + buf.start, b"AMQP", n) != 0:
            raise IncompatibleProtocol("the client did not begin with an AMQP protocol header")
        if left < 8:
            return False
        self.events.append(PyBytes_FromStringAndSize(<char*>buf.data + buf.start, 8))
        buf.start += 8
        self.header_due = False
        return True

    # Raises for a peer that does not speak AMQP, or that answers with the protocol header of another version.
    cdef int _refuse_first_octet(self, const uint8_t* p, Py_ssize_t left) except -1:
        cdef bytes start = PyBytes_FromStringAndSize(<char*>p, min(left, 8))
        if self.received_frames == 0 and b"AMQP".startswith(start[:4]):
            if left < 8:
                return 0
            raise IncompatibleProtocol(f"the server speaks AMQP {start[5]}-{start[6]}-{start[7]} (protocol id "
                                       f"{start[4]}), not 0-9-1", began_with=start)
        if self.received_frames == 0:
            raise IncompatibleProtocol(f"the peer does not speak AMQP: it began with {start!r}", began_with=start)
        raise FrameError(f"unknown frame type {p[0]}")

    # Returns None when content may not come on the channel.
    cdef Assembly _assembly(self, uint16_t channel):
        cdef Assembly a
        if self.last_channel == channel:
            return self.last
        a = self.assemblies.get(channel)
        if a is None:
            if not self.channels_open:
                return None
            a = self.assemblies.add(channel)
        self.last = a
        self.last_channel = channel
        return a

    def tune(self, uint32_t frame_max, Py_ssize_t most_channels):
        """Ends the handshake: frames, reads and channels may be as negotiated (connection.tune).

        Args:
            frame_max: The largest accepted frame, in bytes with its overhead.
            most_channels: On how many channels content may come.
        """
        self.frame_max = frame_max
        self.most_channels = most_channels
        self.buffer.most = max(self.buffer.most, self.capacity)
        self.in_handshake = False

    # Lets content come on a channel. The caller refuses channels that cannot be opened, and ends the connection then.
    cdef int _open(self, uint16_t channel, Assembly a) except -1:
        if a is None:
            if not self.in_handshake and len(self.assemblies) < self.most_channels:
                self.assemblies.add(channel)
        elif a.dropped and not self.server:
            # The number is used again. A client may not do so before it has answered channel.close.
            self.assemblies.add(channel)
        return 0

    def drop_content(self, uint16_t channel):
        """Drops the incomplete message of a channel, and what still comes on it: one side has closed the channel.

        The contents make no events. It lasts until `forget` or, for a client, until the channel is opened again; for a
        server, until channel.close-ok.
        """
        self.assemblies.drop(channel)

    def forget(self, uint16_t channel):
        """Drops the incomplete message of a channel that both sides have closed, and ends `view_bodies` for it."""
        self.assemblies.remove(channel)
        if self.last_channel == channel:
            self.last = None
            self.last_channel = -1

    def view_bodies(self, uint16_t channel, uint64_t min_size):
        """Makes large bodies of a channel memoryviews of pooled memory, from the next content header on.

        Returned messages keep bytes, because they are compared with publishings.

        Args:
            channel: The channel number; nothing happens when it is not open. `forget` ends views for it.
            min_size: The least size of a body that becomes a view, in bytes; 0 ends views.

        Raises:
            ValueError: The reader is a server's. A broker sends the bodies that it receives, which must be bytes.
        """
        cdef Assembly a
        if self.server:
            raise ValueError("a server's reader hands bodies over as bytes")
        if self.body_pool is None:
            self.assemblies.pool = self.body_pool = BodyPool()
        a = self._assembly(channel)
        if a is not None and not a.dropped:
            a.known_below = min_size or UINT64_MAX
        if min_size == 0:
            self.assemblies.end_views()

    # Reads a short string. Names repeat from message to message, so equal bytes give the same str object.
    cdef str _name(self, Cursor* c, str what):
        cdef Py_ssize_t n, i
        cdef uint32_t h = 2166136261
        cdef uint32_t other
        cdef const uint8_t* p
        cdef object entry
        cdef bytes raw
        need(c, 1, what)
        n = c.at[0]
        c.at += 1
        need(c, n, what)
        p = c.at
        c.at += n
        if n == 0:
            return ""
        for i in range(n):
            h = (h ^ p[i]) * 16777619
        h = (h ^ (h >> 16)) & (STRING_CACHE - 1)
        # Each name has two places. With one, two alternating names of one place would be made anew for every message.
        for other in range(2):
            entry = (<list>self.strings)[h ^ other]
            if entry is not None:
                raw = <bytes>(<tuple>entry)[0]
                if PyBytes_GET_SIZE(raw) == n and memcmp(PyBytes_AS_STRING(raw), p, n) == 0:
                    return <str>(<tuple>entry)[1]
        text = text_of(p, n)
        (<list>self.strings)[h ^ 1] = (<list>self.strings)[h]
        (<list>self.strings)[h] = (PyBytes_FromStringAndSize(<char*>p, n), text)
        return text

    cdef int _method(self, uint16_t channel, const uint8_t* p, Py_ssize_t size) except -1:
        cdef uint16_t class_id, method_id
        cdef Assembly a
        cdef MethodFrame frame
        if size < 4:
            raise FrameError(f"a method frame of {size} bytes on channel {channel}")
        class_id = lv_get16(p)
        method_id = lv_get16(p + 2)
        if channel != 0:
            a = self._assembly(channel)
            if a is not None and a.message is not None:
                raise RemoteProtocolError(f"a method frame inside the content of channel {channel}", reply_code=505)
            if class_id == CHANNEL and method_id == (CHANNEL_OPEN if self.server else CHANNEL_OPEN_OK):
                # Content may follow in the same read.
                self._open(channel, a)
            elif (self.server and class_id == CHANNEL and a is not None
                    and (method_id == CHANNEL_CLOSE_OK or (method_id == CHANNEL_CLOSE and not a.dropped))):
                # So may channel.open and content of the next channel with this number.
                self.forget(channel)
                a = None
        if class_id == BASIC and channel != 0:
            if method_id == BASIC_ACK or method_id == BASIC_NACK or method_id == BASIC_REJECT:
                return self._settlement(channel, method_id, p + 4, size - 4)
            if a is None:
                pass
            elif self.server:
                if method_id == BASIC_PUBLISH:
                    return self._content(a, channel, method_id, p + 4, size - 4)
            elif method_id == BASIC_DELIVER or method_id == BASIC_GET_OK or method_id == BASIC_RETURN:
                return self._content(a, channel, method_id, p + 4, size - 4)
        frame = MethodFrame.__new__(MethodFrame)
        frame.channel = channel
        frame.class_id = class_id
        frame.method_id = method_id
        frame.payload = PyBytes_FromStringAndSize(<char*>p + 4, size - 4)
        self._event(frame)
        return 0

    cdef int _event(self, object event) except -1:
        self.content_run = None
        self.settlement_run = None
        PyList_Append(self.events, event)
        return 0

    # ack: tag, multiple; nack: tag, multiple | requeue << 1; reject: tag, requeue
    cdef int _settlement(self, uint16_t channel, uint16_t method_id, const uint8_t* p, Py_ssize_t size) except -1:
        cdef uint8_t flags
        cdef SettlementRun run = self.settlement_run
        if size != 9:
            raise TableSyntaxError(f"basic.{method_id} on channel {channel} has {size} bytes of arguments, not 9")
        if method_id == BASIC_ACK:
            flags = SETTLE_MULTIPLE if p[8] & 1 else 0
        elif method_id == BASIC_NACK:
            flags = SETTLE_NACK | (SETTLE_MULTIPLE if p[8] & 1 else 0) | (SETTLE_REQUEUE if p[8] & 2 else 0)
        else:
            flags = SETTLE_NACK | (SETTLE_REQUEUE if p[8] & 1 else 0)
        if run is None or run.channel != channel:
            run = SettlementRun.__new__(SettlementRun)
            run.channel = channel
            self._event(run)
            self.settlement_run = run
        return run.add(lv_get64(p), flags)

    # The caller sets exchange, routing_key, consumer_tag and reply_text.
    cdef inline Message _message(self, uint16_t channel, uint16_t method_id):
        cdef Message m = new_message()
        if self.server:
            # A broker's messages are in no reference cycle, and its queues may hold a million of them, which the
            # garbage collector would walk through again and again.
            PyObject_GC_UnTrack(<void*>m)
        m.max_table_depth = self.max_table_depth
        m.max_table_entries = self.max_table_entries
        m.channel = channel
        m.method_id = method_id
        return m

    cdef int _content(self, Assembly a, uint16_t channel, uint16_t method_id, const uint8_t* p,
                      Py_ssize_t size) except -1:
        cdef Cursor c = cursor_over(p, size, 0, 0)
        cdef Message m = self._message(channel, method_id)
        m.consumer_tag = m.reply_text = ""
        if method_id == BASIC_DELIVER:
            m.consumer_tag = self._name(&c, "a consumer tag")
            need(&c, 9, "basic.deliver")
            m.delivery_tag = lv_get64(c.at)
            m.redelivered = c.at[8] & 1
            c.at += 9
            m.exchange = self._name(&c, "an exchange name")
            m.routing_key = self._name(&c, "a routing key")
        elif method_id == BASIC_PUBLISH:
            need(&c, 2, "basic.publish")
            c.at += 2
            m.exchange = self._name(&c, "an exchange name")
            m.routing_key = self._name(&c, "a routing key")
            need(&c, 1, "basic.publish")
            m.mandatory = c.at[0] & 1
            m.immediate = (c.at[0] >> 1) & 1
            c.at += 1
        elif method_id == BASIC_RETURN:
            need(&c, 2, "basic.return")
            m.reply_code = lv_get16(c.at)
            c.at += 2
            m.reply_text = self._name(&c, "a reply text")
            m.exchange = self._name(&c, "an exchange name")
            m.routing_key = self._name(&c, "a routing key")
        else:
            need(&c, 9, "basic.get-ok")
            m.delivery_tag = lv_get64(c.at)
            m.redelivered = c.at[8] & 1
            c.at += 9
            m.exchange = self._name(&c, "an exchange name")
            m.routing_key = self._name(&c, "a routing key")
            need(&c, 4, "basic.get-ok")
            m.message_count = lv_get32(c.at)
            c.at += 4
        if c.at != c.end:
            raise TableSyntaxError(f"{c.end - c.at} bytes follow the arguments of basic.{method_id}")
        if method_id == BASIC_PUBLISH:
            self._know(a, m, p, size, 0)
        elif method_id == BASIC_DELIVER:
            self._know(a, m, p, size, 12 + p[0])
        a.message = m
        a.header_due = True
        return 0

    # Returns packed properties. They repeat from message to message, so equal bytes in a row give the same object.
    cdef bytes _properties(self, const uint8_t* p, Py_ssize_t size):
        if (size != PyBytes_GET_SIZE(self.last_properties)
                or memcmp(PyBytes_AS_STRING(self.last_properties), p, size) != 0):
            self.last_properties = PyBytes_FromStringAndSize(<char*>p, size)
        return self.last_properties

    # class(2) weight(2) body size(8) property flags(2) properties, AMQP 0-9-1 section 4.2.6.1
    cdef int _header(self, uint16_t channel, const uint8_t* p, Py_ssize_t size) except -1:
        cdef Assembly a = self._assembly(channel)
        cdef Message m
        cdef uint64_t body_size
        if a is None:
            raise RemoteProtocolError(f"a content header on channel {channel}, which is not open", reply_code=505)
        m = a.message
        if m is None or not a.header_due:
            raise RemoteProtocolError(f"a content header on channel {channel} that no method announced",
                                      reply_code=505)
        if size < 14:
            raise FrameError(f"a content header of {size} bytes on channel {channel}; the least is 14")
        if lv_get16(p) != BASIC:
            raise FrameError(f"a content header of class {lv_get16(p)} on channel {channel}, not {BASIC}")
        if lv_get16(p + 2) != 0:
            raise FrameError(f"a content header of weight {lv_get16(p + 2)} on channel {channel}, not 0")
        body_size = lv_get64(p + 4)
        if body_size >> 63:
            raise FrameError(f"a content header on channel {channel} declares {body_size} bytes")
        m.body_size = body_size
        m.raw_properties = self._properties(p + 12, size - 12)
        a.header_due = False
        a.received = 0
        a.body = None
        a.discard = a.dropped or body_size > self.max_body_size
        a.viewed = a.has_views() and a.known_below <= body_size and m.method_id != BASIC_RETURN
        if body_size == 0:
            m.body = b""
            return self._finish(a)
        if not a.dropped:
            self.assemblies.count(a, <uint64_t>(size - 12), self.max_body_size + self._frame_max)
        return 0

    cdef int _body(self, uint16_t channel, const uint8_t* p, Py_ssize_t size) except -1:
        cdef Assembly a = self._assembly(channel)
        cdef Message m
        if a is None:
            raise RemoteProtocolError(f"a content body on channel {channel}, which is not open", reply_code=505)
        m = a.message
        if m is None or a.header_due:
            raise RemoteProtocolError(f"a content body on channel {channel} that no header announced", reply_code=505)
        if <uint64_t>size > m.body_size - a.received:
            raise FrameError(f"the content body on channel {channel} is longer than the {m.body_size} bytes its "
                             f"header declared")
        if size == 0:
            # An empty frame is legal, and must not count as a whole body.
            return 0
        if a.discard:
            pass
        elif <uint64_t>size == m.body_size and not a.viewed:
            m.body = PyBytes_FromStringAndSize(<char*>p, size)
        else:
            self.assemblies.count(a, <uint64_t>size, self.max_body_size + self._frame_max)
            self.assemblies.append(a, p, size)
        a.received += <uint64_t>size
        if a.received == m.body_size:
            if a.body is not None:
                m.body = self.assemblies.view(a) if a.viewed else a.body
                a.body = None
            self._finish(a)
        return 0

    # Completes a content that was read frame by frame.
    cdef int _finish(self, Assembly a) except -1:
        self.assemblies.finish(a)
        if a.dropped:
            a.message = None
            return 0
        return self._complete(a)

    cdef int _complete(self, Assembly a) except -1:
        cdef Message m = a.message
        cdef ContentRun run = self.content_run
        a.message = None
        if (run is not None and run.channel == m.channel and run.method_id == m.method_id
                and _same(run.consumer_tag, m.consumer_tag)
                and (m.method_id == BASIC_DELIVER
                     or (_same(run.exchange, m.exchange) and _same(run.routing_key, m.routing_key)
                         and run.mandatory == m.mandatory and run.immediate == m.immediate))):
            if run.common_properties is not m.raw_properties or m.body is None:
                run.common_properties = None
            PyList_Append(run.messages, m)
            return 0
        run = ContentRun.__new__(ContentRun)
        run.channel = m.channel
        run.method_id = m.method_id
        run.consumer_tag = m.consumer_tag
        run.exchange = m.exchange
        run.routing_key = m.routing_key
        run.mandatory = m.mandatory
        run.immediate = m.immediate
        run.common_properties = None if m.body is None else m.raw_properties
        run.messages = [m]
        self._event(run)
        self.content_run = run
        return 0
