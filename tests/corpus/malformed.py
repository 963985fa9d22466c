"""Malformed input, each with its story and the answer that it must get. Append only: a fixed bug adds its bytes here.

`STREAMS` are for a frame reader, `TABLES` for `decode_table`, `PROPERTIES` for `decode_properties`, `ARGUMENTS` for
`decode_arguments`. Hexadecimal strings may hold spaces. What the errors must say is part of the case: the limit and
the value that broke it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from leveret.errors import FrameError, IncompatibleProtocol, RemoteProtocolError, TableSyntaxError
from tests.corpus.frames import (
    HEADER,
    HEARTBEAT,
    METHOD,
    ack,
    body,
    deliver,
    frame,
    header,
    longstr,
    method,
    publish,
    shortstr,
)


@dataclass(frozen=True)
class Stream:
    """Bytes that end a stream.

    Attributes:
        name: The test's id.
        story: What is wrong, and who does that.
        data: What the peer sends after valid frames.
        error: The type of error.
        reply_code: What connection.close should say.
        says: What the error's text must name.
        server: The peer is a client.
        first: These are the peer's first bytes; otherwise valid frames come before.
        frame_max: What was negotiated.
        max_body_size: The reader's limit.
    """

    name: str
    story: str
    data: bytes
    error: type[RemoteProtocolError]
    reply_code: int
    says: tuple[str, ...]
    server: bool = False
    first: bool = False
    frame_max: int = 4096
    max_body_size: int = 64 * 1024 * 1024


@dataclass(frozen=True)
class Block:
    """A table, property block or argument list that cannot be decoded.

    Attributes:
        name: The test's id.
        story: What is wrong.
        data: The bytes.
        says: What the error's text must name.
        types: For arguments: their types.
        limits: Keyword arguments of the decoder.
    """

    name: str
    story: str
    data: bytes
    says: tuple[str, ...]
    types: str = ""
    limits: dict[str, int] = field(default_factory=dict)


def _hex(text: str) -> bytes:
    return bytes.fromhex(text)


STREAMS = [
    # ------------------------------------------------------------------ frames, section 4.2.3
    Stream(
        "frame-end-is-zero",
        "The last octet of a frame is 0x00: sizes and bytes have parted, so nothing that follows can be trusted.",
        _hex("01 0003 0000000d 003c0050 0000000000000001 00 00"),
        FrameError,
        501,
        ("channel 3", "0x00", "0xce"),
    ),
    Stream(
        "frame-end-is-the-next-frame",
        "A frame one byte short, as a client writes that counts characters and not bytes: its end is the next type.",
        frame(METHOD, 1, _hex("003c0050 0000000000000001 00"))[:-1] + ack(1, 2),
        FrameError,
        501,
        ("channel 1", "0x01", "0xce"),
    ),
    Stream("frame-type-0", "No frame has type 0.", _hex("00 0001 00000000 ce"), FrameError, 501, ("frame type 0",)),
    Stream(
        "frame-type-4",
        "Types 4 to 7 were in older protocols (out-of-band, trace); 0-9-1 has none of them.",
        _hex("04 0001 00000000 ce"),
        FrameError,
        501,
        ("frame type 4",),
    ),
    Stream("frame-type-255", "All bits set.", b"\xff" * 16, FrameError, 501, ("frame type 255",)),
    Stream(
        "frame-type-A-in-mid-stream",
        "Only a peer's first bytes may be a protocol header; later an A is just an unknown type.",
        b"AMQP\x00\x00\x09\x01",
        FrameError,
        501,
        ("frame type 65",),
    ),
    Stream(
        "heartbeat-on-channel-1",
        "Heartbeats belong to the connection (section 4.2.7), so their channel is 0.",
        frame(HEARTBEAT, 1, b""),
        FrameError,
        501,
        ("heartbeat", "channel 1"),
    ),
    Stream(
        "heartbeat-with-payload",
        "A heartbeat carries nothing.",
        frame(HEARTBEAT, 0, b"x"),
        FrameError,
        501,
        ("heartbeat", "1 bytes"),
    ),
    Stream(
        "frame-over-the-limit-before-tune",
        "4097 bytes before frame_max was negotiated; 4096 is what every peer must take (section 4.2.3).",
        frame(METHOD, 0, bytes(4089)),
        FrameError,
        501,
        ("channel 0", "4097", "4096"),
    ),
    Stream(
        "frame-over-the-limit-after-tune",
        "131073 bytes where 131072 were negotiated.",
        frame(METHOD, 1, bytes(131065)),
        FrameError,
        501,
        ("channel 1", "131073", "131072"),
        frame_max=131072,
    ),
    Stream(
        "frame-of-4-GiB",
        "The size field alone, all bits set: it must be refused at once and not waited for.",
        _hex("03 0001 ffffffff"),
        FrameError,
        501,
        ("channel 1", "4294967303", "4096"),
    ),
    Stream(
        "frame-of-2-GiB",
        "A size that is negative when read as a signed number.",
        _hex("01 0001 80000000"),
        FrameError,
        501,
        ("2147483656", "4096"),
    ),
    # ------------------------------------------------------------------ methods, section 4.2.4
    Stream(
        "method-of-0-bytes",
        "A method frame without class and method ids.",
        frame(METHOD, 1, b""),
        FrameError,
        501,
        ("method frame", "0 bytes", "channel 1"),
    ),
    Stream(
        "method-of-3-bytes",
        "A method frame that ends inside the method id.",
        frame(METHOD, 1, _hex("003c00")),
        FrameError,
        501,
        ("method frame", "3 bytes", "channel 1"),
    ),
    Stream(
        "ack-of-8-bytes",
        "basic.ack without its bits.",
        method(1, 60, 80, bytes(8)),
        TableSyntaxError,
        502,
        ("basic.80", "8 bytes", "9"),
    ),
    Stream(
        "nack-of-10-bytes",
        "basic.nack with a byte too many.",
        method(1, 60, 120, bytes(10)),
        TableSyntaxError,
        502,
        ("basic.120", "10 bytes", "9"),
    ),
    Stream(
        "deliver-without-arguments",
        "basic.deliver and nothing else.",
        method(1, 60, 60),
        TableSyntaxError,
        502,
        ("consumer tag", "1 bytes", "0 are left"),
    ),
    Stream(
        "deliver-consumer-tag-past-the-end",
        "The consumer tag declares 200 bytes and the frame has 3: who trusts that reads other memory.",
        method(1, 60, 60, b"\xc8abc"),
        TableSyntaxError,
        502,
        ("consumer tag", "200 bytes", "3 are left"),
    ),
    Stream(
        "deliver-ends-in-delivery-tag",
        "Seven of the eight bytes of the delivery tag.",
        method(1, 60, 60, shortstr("c") + bytes(7)),
        TableSyntaxError,
        502,
        ("basic.deliver", "9 bytes", "7 are left"),
    ),
    Stream(
        "deliver-without-routing-key",
        "The exchange is the last thing in the frame.",
        method(1, 60, 60, shortstr("c") + bytes(9) + shortstr("exchange")),
        TableSyntaxError,
        502,
        ("routing key", "1 bytes", "0 are left"),
    ),
    Stream(
        "deliver-with-trailing-bytes",
        "Two bytes behind the routing key.",
        method(1, 60, 60, shortstr("c") + bytes(9) + shortstr("") + shortstr("q") + b"!!"),
        TableSyntaxError,
        502,
        ("2 bytes follow", "basic.60"),
    ),
    Stream(
        "return-without-reply-text",
        "basic.return that ends behind the reply code.",
        method(1, 60, 50, struct.pack(">H", 312)),
        TableSyntaxError,
        502,
        ("reply text", "1 bytes", "0 are left"),
    ),
    Stream(
        "return-of-1-byte",
        "basic.return that ends inside the reply code.",
        method(1, 60, 50, b"\x01"),
        TableSyntaxError,
        502,
        ("basic.return", "2 bytes", "1 are left"),
    ),
    Stream(
        "get-ok-without-message-count",
        "basic.get-ok whose message count has two of its four bytes.",
        method(1, 60, 71, bytes(9) + shortstr("") + shortstr("q") + b"\x00\x00"),
        TableSyntaxError,
        502,
        ("basic.get-ok", "4 bytes", "2 are left"),
    ),
    Stream(
        "publish-without-bits",
        "basic.publish that ends behind the routing key.",
        method(1, 60, 40, b"\x00\x00" + shortstr("e") + shortstr("q")),
        TableSyntaxError,
        502,
        ("basic.publish", "1 bytes", "0 are left"),
        server=True,
    ),
    Stream(
        "publish-exchange-past-the-end",
        "An exchange name of 255 bytes in a frame of two.",
        method(1, 60, 40, b"\x00\x00\xffe"),
        TableSyntaxError,
        502,
        ("exchange name", "255 bytes", "1 are left"),
        server=True,
    ),
    # ------------------------------------------------------------------ content, section 4.2.6
    Stream(
        "header-of-13-bytes",
        "A content header that ends inside the property flags.",
        deliver(1, 1) + frame(HEADER, 1, bytes([0, 60, *bytes(11)])),
        FrameError,
        501,
        ("content header", "13 bytes", "14"),
    ),
    Stream(
        "header-of-0-bytes",
        "An empty content header.",
        deliver(1, 1) + frame(HEADER, 1, b""),
        FrameError,
        501,
        ("content header", "0 bytes", "14"),
    ),
    Stream(
        "header-of-class-50",
        "The header's class is not that of the method, which is basic.",
        deliver(1, 1) + header(1, 1, class_id=50),
        FrameError,
        501,
        ("class 50", "channel 1", "60"),
    ),
    Stream(
        "header-of-weight-1",
        "The weight field is unused and must be 0.",
        deliver(1, 1) + header(1, 1, weight=1),
        FrameError,
        501,
        ("weight 1", "channel 1"),
    ),
    Stream(
        "header-declares-2^63-bytes",
        "A size that is negative when read as a signed number.",
        deliver(1, 1) + header(1, 2**63),
        FrameError,
        501,
        ("9223372036854775808", "channel 1"),
    ),
    Stream(
        "header-declares-2^64-1-bytes",
        "All bits set.",
        deliver(1, 1) + header(1, 2**64 - 1),
        FrameError,
        501,
        ("18446744073709551615", "channel 1"),
    ),
    Stream(
        "header-without-method",
        "A content header that no method announced.",
        header(1, 1),
        RemoteProtocolError,
        505,
        ("content header", "channel 1"),
    ),
    Stream(
        "header-on-channel-0",
        "Channel 0 carries no content.",
        header(0, 1),
        RemoteProtocolError,
        505,
        ("content header", "channel 0"),
    ),
    Stream(
        "header-on-another-channel",
        "The method was on channel 1, the header comes on channel 2.",
        deliver(1, 1) + header(2, 1),
        RemoteProtocolError,
        505,
        ("content header", "channel 2"),
    ),
    Stream(
        "two-headers",
        "A second content header where the body is due.",
        deliver(1, 1) + header(1, 1) + header(1, 1),
        RemoteProtocolError,
        505,
        ("content header", "channel 1"),
    ),
    Stream(
        "body-without-method",
        "A body out of the blue.",
        body(1, b"x"),
        RemoteProtocolError,
        505,
        ("content body", "channel 1"),
    ),
    Stream(
        "body-without-header",
        "A body where the content header is due.",
        deliver(1, 1) + body(1, b"x"),
        RemoteProtocolError,
        505,
        ("content body", "channel 1"),
    ),
    Stream(
        "body-after-the-end",
        "One body frame more than the header declared.",
        deliver(1, 1) + header(1, 1) + body(1, b"x") + body(1, b"y"),
        RemoteProtocolError,
        505,
        ("content body", "channel 1"),
    ),
    Stream(
        "body-after-an-empty-message",
        "A message of 0 bytes has no body frame.",
        deliver(1, 1) + header(1, 0) + body(1, b""),
        RemoteProtocolError,
        505,
        ("content body", "channel 1"),
    ),
    Stream(
        "body-overrun-in-one-frame",
        "3 bytes of body where 2 were declared (CVE-2026-63335 in another client).",
        deliver(1, 1) + header(1, 2) + body(1, b"abc"),
        FrameError,
        501,
        ("content body", "channel 1", "2 bytes"),
    ),
    Stream(
        "body-overrun-in-the-second-frame",
        "The sum is too large, no frame is (CVE-2026-67235 in a server).",
        deliver(1, 1) + header(1, 3) + body(1, b"ab") + body(1, b"cd"),
        FrameError,
        501,
        ("content body", "channel 1", "3 bytes"),
    ),
    Stream(
        "body-overrun-while-discarding",
        "A body over the limit that is even longer than it declared.",
        deliver(1, 1) + header(1, 101) + body(1, bytes(100)) + body(1, b"ab"),
        FrameError,
        501,
        ("content body", "channel 1", "101 bytes"),
        max_body_size=100,
    ),
    Stream(
        "header-while-discarding",
        "A second header in the middle of a body over the limit.",
        deliver(1, 1) + header(1, 2**32) + body(1, bytes(4000)) * 2 + header(1, 1),
        RemoteProtocolError,
        505,
        ("content header", "channel 1"),
    ),
    Stream(
        "method-instead-of-header",
        "A method on a channel whose content header is due.",
        deliver(1, 1) + ack(1, 1),
        RemoteProtocolError,
        505,
        ("method frame", "channel 1"),
    ),
    Stream(
        "method-inside-body",
        "A method between two body frames of its channel; on other channels it may come.",
        deliver(1, 1) + header(1, 2) + body(1, b"a") + ack(2, 9) + deliver(1, 2),
        RemoteProtocolError,
        505,
        ("method frame", "channel 1"),
    ),
    Stream(
        "publish-inside-publish",
        "A client that lost count of its body sends the next message too early.",
        publish(1) + header(1, 5) + body(1, b"1234") + publish(1),
        RemoteProtocolError,
        505,
        ("method frame", "channel 1"),
        server=True,
    ),
    # ------------------------------------------------------------------ not AMQP, or not this one
    Stream(
        "server-answers-another-version",
        "A server that does not speak 0-9-1 answers with the header of what it speaks, and closes (section 4.2.2).",
        b"AMQP\x00\x00\x09\x00",
        IncompatibleProtocol,
        503,
        ("0-9-0", "0-9-1"),
        first=True,
    ),
    Stream(
        "server-echoes-our-version",
        "A server that refuses with the very header it was sent.",
        b"AMQP\x00\x00\x09\x01",
        IncompatibleProtocol,
        503,
        ("0-9-1",),
        first=True,
    ),
    Stream(
        "server-speaks-1.0",
        "An AMQP 1.0 server with SASL (protocol id 3).",
        b"AMQP\x03\x01\x00\x00",
        IncompatibleProtocol,
        503,
        ("1-0-0", "protocol id 3"),
        first=True,
    ),
    Stream(
        "server-speaks-http",
        "The port of the management plugin.",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        IncompatibleProtocol,
        503,
        ("does not speak AMQP",),
        first=True,
    ),
    Stream(
        "server-speaks-tls",
        "A TLS port answers our plain header with an alert record.",
        _hex("15 0303 0002 02 46"),
        IncompatibleProtocol,
        503,
        ("does not speak AMQP",),
        first=True,
    ),
    Stream(
        "server-speaks-ssh",
        "An SSH server greets first.",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        IncompatibleProtocol,
        503,
        ("does not speak AMQP",),
        first=True,
    ),
    Stream(
        "server-speaks-nearly-amqp",
        "Two letters right.",
        b"AMXP\x00\x00\x09\x01",
        IncompatibleProtocol,
        503,
        ("does not speak AMQP",),
        first=True,
    ),
]

# ---------------------------------------------------------------------------------------------- tables


def _nested_tables(depth: int) -> bytes:
    data = longstr(b"")
    for _ in range(depth - 1):
        data = longstr(b"\x01kF" + data)
    return data


def _nested_arrays(depth: int) -> bytes:
    data = longstr(b"")
    for _ in range(depth - 1):
        data = longstr(b"A" + data)
    return longstr(b"\x01kA" + data)


TABLES = [
    Block("empty", "Not even a length.", b"", ("a table", "4 bytes", "0 are left")),
    Block("length-of-3-bytes", "A length cut short.", bytes(3), ("a table", "4 bytes", "3 are left")),
    Block(
        "length-past-the-end",
        "The table says 44 bytes and has none.",
        _hex("0000002c"),
        ("a table", "44 bytes", "0 are left"),
    ),
    Block(
        "length-of-4-GiB",
        "All bits of the length set.",
        _hex("ffffffff 01 61 56"),
        ("a table", "4294967295 bytes", "3 are left"),
    ),
    Block("trailing-bytes", "A byte behind the table.", _hex("00000000 00"), ("1 bytes follow",)),
    Block(
        "key-past-the-end",
        "A key of 5 bytes where the table has 1.",
        _hex("00000002 05 61"),
        ("a table key", "5 bytes", "1 are left"),
    ),
    Block(
        "key-past-the-inner-end",
        "The key fits the outer table and not the inner one: bytes of one table must not be read as another's.",
        longstr(b"\x01kF" + longstr(b"\x09k") + b"\x07padding"),
        ("a table key", "9 bytes", "1 are left"),
    ),
    Block("key-without-value", "The table ends behind the key.", _hex("00000002 01 61"), ("field type", "0 are left")),
    Block("type-unknown", "There is no field type Z.", longstr(b"\x01aZ"), ("field type 0x5a",)),
    Block("type-zero", "Some old clients wrote 0 for void; the type is V.", longstr(b"\x01a\x00"), ("0x00",)),
    Block("int-past-the-end", "Three of four bytes.", longstr(b"\x01aI123"), ("field value", "4 bytes", "3 are left")),
    Block("long-past-the-end", "Seven of eight bytes.", longstr(b"\x01al1234567"), ("8 bytes", "7 are left")),
    Block("double-past-the-end", "Seven of eight bytes.", longstr(b"\x01ad1234567"), ("8 bytes", "7 are left")),
    Block("float-past-the-end", "Three of four bytes.", longstr(b"\x01af123"), ("4 bytes", "3 are left")),
    Block("timestamp-past-the-end", "Seven of eight bytes.", longstr(b"\x01aT1234567"), ("8 bytes", "7 are left")),
    Block("decimal-past-the-end", "Four of five bytes.", longstr(b"\x01aD1234"), ("5 bytes", "4 are left")),
    Block("bool-past-the-end", "No byte.", longstr(b"\x01at"), ("1 bytes", "0 are left")),
    Block("octet-past-the-end", "No byte.", longstr(b"\x01aB"), ("1 bytes", "0 are left")),
    Block("signed-octet-past-the-end", "No byte.", longstr(b"\x01ab"), ("1 bytes", "0 are left")),
    Block("short-past-the-end", "One of two bytes.", longstr(b"\x01as1"), ("2 bytes", "1 are left")),
    Block("unsigned-short-past-the-end", "One of two bytes.", longstr(b"\x01au1"), ("2 bytes", "1 are left")),
    Block("unsigned-int-past-the-end", "Three of four bytes.", longstr(b"\x01ai123"), ("4 bytes", "3 are left")),
    Block("unsigned-long-past-the-end", "Seven of eight.", longstr(b"\x01aL1234567"), ("8 bytes", "7 are left")),
    Block(
        "string-of-2-GiB",
        "A string that claims 2 GiB in a table of 11 bytes; pamqp takes this one.",
        longstr(b"\x01aS" + _hex("80000000") + b"abcd"),
        ("long string", "2147483648 bytes", "4 are left"),
    ),
    Block(
        "bytes-past-the-end",
        "A byte array of 5 bytes where 4 are left.",
        longstr(b"\x01ax" + _hex("00000005") + b"abcd"),
        ("byte array", "5 bytes", "4 are left"),
    ),
    Block(
        "array-past-the-table",
        "An array longer than the table that holds it.",
        longstr(b"\x01aA" + _hex("00000010") + b"t\x01"),
        ("an array", "16 bytes", "2 are left"),
    ),
    Block(
        "value-past-the-array",
        "An int whose last bytes would lie behind its array.",
        longstr(b"\x01aA" + longstr(b"I12") + b"\x01bI3456"),
        ("field value", "4 bytes", "2 are left"),
    ),
    Block(
        "nested-33-deep",
        "One more than the limit.",
        _nested_tables(33),
        ("a table", "deeper", "32"),
    ),
    Block(
        "arrays-nested-33-deep",
        "32 arrays in a table; arrays count like tables.",
        _nested_arrays(32),
        ("an array", "deeper", "32"),
    ),
    Block(
        "nested-1000-deep",
        "7 KB that overflow the stack of a reader without a limit.",
        _nested_tables(1000),
        ("a table", "deeper", "32"),
    ),
    Block(
        "nested-18000-deep",
        "What fits one frame of 131072 bytes.",
        _nested_tables(18000),
        ("a table", "deeper", "32"),
    ),
    Block(
        "nested-3-deep-of-2",
        "The limit is an argument.",
        _nested_tables(3),
        ("a table", "deeper", "2"),
        limits={"max_depth": 2},
    ),
    Block(
        "16385-entries",
        "One more than the limit, two bytes each: small input, many objects.",
        longstr(b"\x01aA" + longstr(b"V" * 16384)),
        ("more entries", "16384"),
    ),
    Block(
        "entries-over-a-limit-of-2",
        "The limit counts the values of all tables together.",
        longstr(b"\x01aF" + longstr(b"\x01bV") + b"\x01cV"),
        ("more entries", "2"),
        limits={"max_entries": 2},
    ),
]

PROPERTIES = [
    Block("empty", "No flags.", b"", ("property flags", "2 bytes", "0 are left")),
    Block("flags-of-1-byte", "Half of the flags.", b"\x80", ("property flags", "2 bytes", "1 are left")),
    Block(
        "flags-continue",
        "Bit 0 announces another word of flags; basic has 14 properties and needs none.",
        _hex("0001 0000"),
        ("0x0001",),
    ),
    Block(
        "flags-continue-for-ever",
        "Every word announces another: 64 KiB that made another client's loop quadratic.",
        _hex("0001") * 32768,
        ("0x0001",),
    ),
    Block("flag-of-no-property", "Bit 1 is the 15th property.", _hex("0002"), ("0x0002",)),
    Block("all-flags", "Everything announced, nothing there.", _hex("ffff"), ("0xffff",)),
    Block("all-properties-missing", "All 14 announced.", _hex("fffc"), ("content_type", "1 bytes", "0 are left")),
    Block(
        "content-type-past-the-end",
        "A short string of 16 bytes where 4 are left.",
        _hex("8000 10") + b"text",
        ("content_type", "16 bytes", "4 are left"),
    ),
    Block(
        "headers-past-the-end", "A table of 9 bytes that is not there.", _hex("2000 00000009"), ("a table", "9 bytes")
    ),
    Block("delivery-mode-missing", "No byte.", _hex("1000"), ("delivery_mode", "1 bytes", "0 are left")),
    Block("priority-missing", "No byte.", _hex("0800"), ("priority", "1 bytes", "0 are left")),
    Block("timestamp-of-7-bytes", "One too few.", _hex("0040 00000000000000"), ("timestamp", "8 bytes", "7 are left")),
    Block("trailing-bytes", "A byte behind the last property.", _hex("1000 02 00"), ("1 bytes follow",)),
    Block(
        "headers-nested-1000-deep",
        "Deep tables where every message may carry one.",
        _hex("2000") + _nested_tables(1000),
        ("a table", "deeper", "32"),
    ),
    Block(
        "headers-over-the-entry-limit",
        "16385 voids.",
        _hex("2000") + longstr(b"\x01aA" + longstr(b"V" * 16384)),
        ("more entries", "16384"),
    ),
]

ARGUMENTS = [
    Block("bit-missing", "No byte.", b"", ("bit", "1 bytes", "0 are left"), "t"),
    Block("ninth-bit-missing", "Nine bits need two bytes.", b"\xff", ("bit", "1 bytes", "0 are left"), "ttttttttt"),
    Block("octet-missing", "No byte.", b"", ("octet", "1 bytes", "0 are left"), "o"),
    Block("short-of-1-byte", "One too few.", b"\x00", ("short argument", "2 bytes", "1 are left"), "h"),
    Block("long-of-3-bytes", "One too few.", bytes(3), ("long argument", "4 bytes", "3 are left"), "l"),
    Block("longlong-of-7-bytes", "One too few.", bytes(7), ("longlong", "8 bytes", "7 are left"), "q"),
    Block("shortstr-missing", "No length.", b"", ("short string", "1 bytes", "0 are left"), "s"),
    Block("shortstr-past-the-end", "255 of 0 bytes.", b"\xff", ("short string", "255 bytes", "0 are left"), "s"),
    Block("longstr-past-the-end", "4 GiB.", b"\xff" * 4, ("long string", "4294967295 bytes", "0 are left"), "S"),
    Block("table-past-the-end", "1 byte of table.", _hex("00000001"), ("a table", "1 bytes", "0 are left"), "T"),
    Block("table-nested-33-deep", "One too deep.", _nested_tables(33), ("a table", "deeper", "32"), "T"),
    Block("trailing-bytes", "A byte behind the last argument.", bytes(3), ("1 bytes follow",), "h"),
    Block("no-arguments-expected", "A method without arguments that has some.", bytes(1), ("1 bytes follow",), ""),
]

#: The deepest table that is accepted.
TABLE_NESTED_32_DEEP = _nested_tables(32)
ARRAYS_NESTED_TO_THE_LIMIT = _nested_arrays(31)
TABLE_OF_16384_ENTRIES = longstr(b"\x01aA" + longstr(b"V" * 16383))
