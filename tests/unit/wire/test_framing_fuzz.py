"""Random and mutated input: whatever comes, only our own errors, bounded memory, and no crash."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.corpus import frames, malformed, strategies
from tests.corpus.strategies import mutated

from leveret.errors import FrameError, LeveretError, RemoteProtocolError, TableSyntaxError
from leveret.protocol import commands
from leveret.wire.decoding import decode_arguments, decode_table
from leveret.wire.encoding import encode_table
from leveret.wire.properties import Properties, decode_properties
from leveret.wire.reader import FrameReader
from leveret.wire.runs import MethodFrame

if TYPE_CHECKING:
    from collections.abc import Callable

both_sides = pytest.mark.parametrize("server", [False, True], ids=["client", "server"])
STREAMS = {server: strategies.streams(server=server).map(lambda stream: stream[0]) for server in (False, True)}


def read_everything(reader: FrameReader, pieces: list[bytes]) -> None:
    """Feeds a reader and touches all that comes out, as the layers above it would."""
    for piece in pieces:
        for event in reader.feed(piece):
            frames.flatten([event])
            if isinstance(event, MethodFrame):
                with_our_errors(commands.decode, event)
            for message in getattr(event, "messages", []):
                repr(message)
                with_our_errors(getattr, message, "headers")
    assert reader.error is None or isinstance(reader.error, RemoteProtocolError)


def with_our_errors(function: Callable[..., object], *args: object) -> None:
    try:
        function(*args)
    except RemoteProtocolError as error:
        assert error.reply_code in {501, 502, 503, 505}  # noqa: PT017


@both_sides
@given(st.data())
def test_reader_raises_nothing_when_bytes_are_random(server: bool, data: st.DataObject) -> None:
    pieces = data.draw(st.lists(st.binary(max_size=200), max_size=5))
    read_everything(FrameReader(server=server, protocol_header=data.draw(st.booleans())), pieces)


@both_sides
@given(st.data())
def test_reader_raises_nothing_when_a_valid_stream_is_mutated(server: bool, data: st.DataObject) -> None:
    raw = data.draw(mutated(STREAMS[server]))
    at = data.draw(st.integers(0, len(raw)))
    read_everything(FrameReader(server=server, max_body_size=strategies.MAX_BODY), [raw[:at], raw[at:]])


@both_sides
@given(st.data())
def test_error_and_events_do_not_depend_on_splits_when_a_stream_is_mutated(server: bool, data: st.DataObject) -> None:
    raw = data.draw(mutated(STREAMS[server]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    whole, split = (FrameReader(server=server, max_body_size=strategies.MAX_BODY) for _ in range(2))
    assert frames.feed_whole(whole, raw) == frames.feed_pieces(split, pieces)
    assert type(whole.error) is type(split.error)
    if whole.error is not None:
        assert split.error is not None
        assert whole.error.reply_code == split.error.reply_code


def _like_the_one_before(server: bool) -> st.SearchStrategy[bytes]:
    """Messages that differ in little, as the reader's short way takes them, and some that it must not take."""
    channels = st.sampled_from([1, 1, 1, 2])
    methods = st.builds(
        frames.publish if server else frames.deliver,
        channels,
        **({"bits": st.integers(0, 3)} if server else {"delivery_tag": st.integers(0, 2**64 - 1)}),
    )
    data = st.binary(max_size=20) | st.just(bytes(strategies.MAX_BODY)) | st.just(bytes(strategies.MAX_BODY + 1))
    contents = st.builds(
        lambda channel, raw: frames.header(channel, len(raw)) + frames.body(channel, raw), channels, data
    )
    messages = st.tuples(methods, contents).map(b"".join)
    return st.lists(messages, min_size=2, max_size=5).map(b"".join)


ALIKE = {server: _like_the_one_before(server) for server in (False, True)}


@both_sides
@settings(max_examples=300)
@given(st.data())
def test_messages_like_the_one_before_are_read_as_byte_by_byte(server: bool, data: st.DataObject) -> None:
    # Byte by byte no message is ever there in one piece, which the short way needs.
    raw = data.draw(ALIKE[server] | mutated(ALIKE[server]))
    frame_max = data.draw(st.sampled_from([4096, 131_072]))
    short, long = (FrameReader(server=server, max_body_size=strategies.MAX_BODY, frame_max=frame_max) for _ in range(2))
    cut = data.draw(st.integers(0, len(raw)))
    assert frames.feed_pieces(short, [raw[:cut], raw[cut:]]) == frames.feed_pieces(
        long, [raw[i : i + 1] for i in range(len(raw))]
    )
    assert type(short.error) is type(long.error)
    assert short.received_bytes == long.received_bytes


TABLES = strategies.tables.map(encode_table)


@given(st.binary(max_size=300) | mutated(TABLES))
@example(malformed.TABLE_NESTED_32_DEEP[:-1])
@example(b"\x00\x00\x00\x02\x00V")
def test_decode_table_raises_only_syntax_errors_when_bytes_are_random_or_mutated(raw: bytes) -> None:
    try:
        table = decode_table(raw)
    except TableSyntaxError as error:
        assert error.reply_code == 502  # noqa: PT017
    else:
        assert isinstance(table, dict)
        # Decoded values can be printed. An unsigned long or a late timestamp may not be encoded again.
        repr(table)


PROPERTIES = st.builds(
    Properties,
    content_type=st.none() | strategies.shortstrs,
    headers=st.none() | strategies.tables,
    delivery_mode=st.sampled_from([None, 1, 2]),
    message_id=st.none() | strategies.shortstrs,
    timestamp=st.none() | st.integers(0, 2**64 - 1),
    app_id=st.none() | strategies.shortstrs,
).map(Properties.encode)


@given(PROPERTIES | st.binary(max_size=300) | mutated(PROPERTIES))
def test_headers_alone_are_those_of_the_properties_and_so_are_errors(raw: bytes) -> None:
    assume(len(raw) >= 2)  # the reader refuses a header without flags
    data = frames.deliver(1, 1) + frames.header(1, 0, raw)
    found: list[str] = []
    for names in (("headers",), ("properties", "headers")):
        (message,) = frames.run_of(FrameReader().feed(data)).messages
        try:
            values = [getattr(message, name) for name in names]
        except TableSyntaxError as error:
            found.append(str(error))
        else:
            assert message.properties.headers is values[-1] is message.headers
            found.append(repr(values[-1]))  # NaN is no equal of itself
    assert found[0] == found[1]


@given(st.binary(max_size=300) | mutated(PROPERTIES))
def test_decode_properties_raises_only_syntax_errors_when_bytes_are_random_or_mutated(raw: bytes) -> None:
    try:
        properties = decode_properties(raw)
    except TableSyntaxError as error:
        assert error.reply_code == 502  # noqa: PT017
    else:
        assert isinstance(properties, Properties)


@given(st.text("tohlqsST", max_size=12), st.binary(max_size=200) | TABLES)
def test_decode_arguments_raises_only_syntax_errors_when_bytes_are_random(types: str, raw: bytes) -> None:
    try:
        values = decode_arguments(types, raw)
    except TableSyntaxError as error:
        assert error.reply_code == 502  # noqa: PT017
    else:
        assert len(values) == len(types)


@given(st.recursive(st.one_of(strategies.leaves, st.builds(object), st.integers()), st.lists))
def test_encode_table_raises_only_our_errors_when_values_are_anything(value: object) -> None:
    with contextlib.suppress(LeveretError):
        encode_table({"k": value})


# ---------------------------------------------------------------------------------------------- memory


MiB = 1024 * 1024


def test_memory_follows_what_arrived_when_headers_declare_64_MiB(peak: Callable[[], int]) -> None:
    reader = FrameReader()
    for channel in range(1, 501):
        assert reader.feed(frames.deliver(channel, 1) + frames.header(channel, 64 * MiB)) == []
    assert reader.error is None
    assert peak() < 2 * MiB, "500 headers that declare 32 GB together and send nothing must cost next to nothing"


def test_memory_is_one_block_when_a_body_of_64_MiB_has_only_begun(peak: Callable[[], int]) -> None:
    reader = FrameReader()
    reader.feed(frames.deliver(1, 1) + frames.header(1, 64 * MiB) + frames.body(1, b"x") * 100)
    assert peak() < 2 * MiB


def test_memory_is_at_most_doubled_when_a_large_body_arrives(peak: Callable[[], int]) -> None:
    reader = FrameReader(frame_max=131_072)
    size = 16 * MiB
    chunk = frames.body(1, bytes(131_064))
    reader.feed(frames.deliver(1, 1) + frames.header(1, size))
    arrived = 0
    while arrived + 131_064 <= size:
        assert reader.feed(chunk) == []
        arrived += 131_064
    run = frames.run_of(reader.feed(frames.body(1, bytes(size - arrived))))
    arrived_body = run.messages[0].body
    assert arrived_body is not None
    assert len(arrived_body) == size
    # The body, half of it again while it moves, and the receive buffer.
    assert peak() < 2 * size + 2 * MiB


def test_memory_stays_when_an_oversize_body_is_dropped(peak: Callable[[], int]) -> None:
    reader = FrameReader(max_body_size=MiB)
    reader.feed(frames.deliver(1, 1) + frames.header(1, 40_000_000))
    chunk = frames.body(1, bytes(4000)) * 10
    for _ in range(1000):
        reader.feed(chunk)
    assert peak() < 2 * MiB
    assert reader.error is None


def test_memory_is_not_taken_when_a_frame_of_4_GiB_is_announced(peak: Callable[[], int]) -> None:
    reader = FrameReader()
    reader.feed(b"\x03\x00\x01\xff\xff\xff\xf0")
    assert isinstance(reader.error, FrameError)
    assert peak() < MiB


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff\xff",
        frames.longstr(b"\x01aS\xff\xff\xff\xff"),
        frames.longstr(b"\x01ax\x7f\xff\xff\xff"),
        frames.longstr(b"\x01aA\xff\xff\xff\xf0"),
        frames.longstr(b"\x01aA" + frames.longstr(b"V" * 120_000)),
        frames.longstr(b"\x01aA" + frames.longstr(b"F\x00\x00\x00\x00" * 24_000)),
    ],
    ids=["table", "string", "bytes", "array", "many-voids", "many-tables"],
)
def test_memory_is_bounded_when_a_table_lies_or_has_too_many_entries(peak: Callable[[], int], raw: bytes) -> None:
    with pytest.raises(TableSyntaxError):
        decode_table(raw)
    assert peak() < 3 * MiB
