"""Bodies as views of pooled memory: what a view shows never changes while it is held, and the pool stays bounded."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import random
import struct
import sys
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import frames, malformed, strategies
from tests.corpus.strategies import mutated

from leveret.codecs.decoding import BodyDecoder
from leveret.errors import ConfigurationError, DecodeFailed, RemoteProtocolError
from leveret.plugins import SerializerSpec, hookimpl
from leveret.plugins.registry import PluginRegistry
from leveret.publishing.confirms import ConfirmWindow
from leveret.settings import ConsumerSettings
from leveret.wire.buffers import BodyPool, SendBuffer
from leveret.wire.content import append_content, append_deliveries
from leveret.wire.message import redelivered_copy
from leveret.wire.properties import Properties
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leveret.wire.message import Message

KiB, MiB = 1024, 1024 * 1024
CHUNK = 131_072 - 8
#: Without a GIL nothing is used again, see `BodyPool`.
reuses = pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="memory is not used again")


def delivery(channel: int, data: bytes, *, tag: int = 1, chunk: int = CHUNK, properties: bytes = b"\0\0") -> bytes:
    parts = [frames.deliver(channel, tag), frames.header(channel, len(data), properties)]
    return b"".join(parts + frames.bodies(channel, data, chunk))


def messages(events: list[Any]) -> list[Message]:
    return [message for event in events if isinstance(event, ContentRun) for message in event.messages]


def viewing(*channels: int, size: int = 1, pool: BodyPool | None = None, **options: Any) -> FrameReader:
    reader = FrameReader(**{"frame_max": 131_072, "body_pool": pool} | options)
    for channel in channels or (1,):
        reader.view_bodies(channel, size)
    return reader


def read(reader: FrameReader, data: bytes, channel: int = 1, **options: Any) -> memoryview:
    (message,) = messages(reader.feed(delivery(channel, data, **options)))
    assert isinstance(message.body, memoryview)
    return message.body


def pool_of(reader: FrameReader) -> BodyPool:
    assert reader.body_pool is not None
    return reader.body_pool


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


# ---------------------------------------------------------------------------------------------- what a view is


def test_s32_large_bodies_are_views_of_memory_that_is_used_again_when_a_channel_asks() -> None:
    reader = viewing(size=64 * KiB)
    for i in range(100):
        data = content(i, MiB - i)
        view = read(reader, data)
        assert view.readonly
        assert view.contiguous
        assert (view.format, view.itemsize, view.ndim) == ("B", 1, 1)
        assert view.nbytes == len(data)
        assert view.tobytes() == data
        assert view.obj == data, "the object behind it is the body, too"
        del view
    pool = pool_of(reader)
    assert pool.held_blocks == 0
    assert pool.hits + pool.misses == 100
    if len(pool):
        assert pool.misses <= 3
        assert len(pool) <= 3


@pytest.mark.parametrize("chunk", [1, 7, 1000, CHUNK], ids=lambda chunk: f"frames of {chunk}")
@pytest.mark.parametrize("size", [1000, 1001, 4096])
def test_only_bodies_of_at_least_the_size_are_views_when_it_is_set(size: int, chunk: int) -> None:
    reader = viewing(size=1001)
    (message,) = messages(reader.feed(delivery(1, content(1, size), chunk=chunk)))
    assert type(message.body) is (memoryview if size >= 1001 else bytes)
    assert message.body == content(1, size)
    assert message.body_size == len(message) == size


def test_an_empty_body_is_bytes_when_all_others_are_views() -> None:
    (message,) = messages(viewing().feed(delivery(1, b"")))
    assert message.body == b""
    assert type(message.body) is bytes


def test_other_channels_have_bytes_when_one_asks_for_views() -> None:
    reader = viewing(2)
    bodies = [m.body for m in messages(reader.feed(b"".join(delivery(n, b"body") for n in (1, 2, 3))))]
    assert [type(body) for body in bodies] == [bytes, memoryview, bytes]


@pytest.mark.parametrize(
    "end", [lambda reader: reader.view_bodies(1, 0), lambda reader: reader.forget(1)], ids=["0", "forgotten"]
)
def test_bodies_are_bytes_again_when_views_are_ended_or_the_channel_is_forgotten(
    end: Callable[[FrameReader], None],
) -> None:
    reader = viewing()
    view = read(reader, b"before")
    end(reader)
    assert len(pool_of(reader)) == 0, "no other channel has views, so the pool drops its memory"
    (message,) = messages(reader.feed(delivery(1, b"after")))
    assert type(message.body) is bytes
    assert bytes(view) == b"before"


def test_the_pool_keeps_its_memory_when_another_channel_has_views_still() -> None:
    reader = viewing(1, 2)
    read(reader, bytes(1000))
    reader.forget(1)
    reader.forget(7)
    pool = pool_of(reader)
    read(reader, bytes(1000), channel=2)
    assert pool.hits + pool.misses == 2
    assert pool.hits == len(pool)


def test_a_body_keeps_its_form_when_views_are_switched_after_its_header() -> None:
    for before, after in ((0, 1), (1, 0)):
        reader = FrameReader()
        reader.view_bodies(1, before)
        reader.feed(frames.deliver(1, 1) + frames.header(1, 6) + frames.body(1, b"abc"))
        reader.view_bodies(1, after)
        (message,) = messages(reader.feed(frames.body(1, b"def")))
        assert message.body == b"abcdef"
        assert type(message.body) is (memoryview if before else bytes)


def test_a_body_over_the_limit_is_none_when_views_are_on() -> None:
    reader = viewing(max_body_size=100)
    (message,) = messages(reader.feed(delivery(1, bytes(101), chunk=20)))
    assert message.body is None
    assert message.body_size == 101
    assert pool_of(reader).misses == 0


def test_what_get_returns_is_a_view_and_what_was_returned_is_bytes() -> None:
    reader = viewing()
    names = frames.shortstr("") + frames.shortstr("q")
    rest = frames.header(1, 4) + frames.body(1, b"body")
    get_ok = frames.method(1, 60, frames.GET_OK, struct.pack(">QB", 1, 0) + names + struct.pack(">I", 0))
    returned = frames.method(1, 60, frames.RETURN, struct.pack(">H", 312) + frames.shortstr("NO_ROUTE") + names)
    one, other = messages(reader.feed(get_ok + rest + returned + rest))
    assert (type(one.body), type(other.body)) == (memoryview, bytes)
    assert one.body == other.body == b"body"


def test_views_are_refused_when_the_reader_is_a_servers() -> None:
    with pytest.raises(ValueError, match="server"):
        FrameReader(server=True).view_bodies(1, 1)


@pytest.mark.parametrize(("channel", "size"), [(65_536, 1), (-1, 1), (1, -1), (1, 2**64)])
def test_arguments_out_of_range_are_refused_when_views_are_asked_for(channel: int, size: int) -> None:
    with pytest.raises(OverflowError):
        FrameReader().view_bodies(channel, size)


# ---------------------------------------------------------------------------------------------- views that are held


def test_held_views_do_not_change_when_thousands_of_messages_follow() -> None:
    reader = viewing(1, 2, 3, pool=BodyPool(8, MiB))
    rng = random.Random(32)
    held: list[tuple[object, str]] = []
    for i in range(5000):
        data = rng.randbytes(rng.choice([1, 100, 5000, 20_000, 70_000, 200_000]))
        view = read(reader, data, channel=1 + i % 3, chunk=rng.choice([5000, 50_000, CHUNK]))
        assert view == data
        # Whatever keeps hold of the memory: a view, a part, another form of it, the bytes, or a view of those.
        at = rng.randrange(len(data))
        whole: list[tuple[object, bytes]] = [
            (view, data),
            (view[at:], data[at:]),
            (view[::-2], data[::-2]),
            (view.cast("b"), data),
            (view.obj, data),
            (memoryview(view.obj)[at:], data[at:]),
        ]
        thing, shown = whole[rng.randrange(len(whole))]
        if rng.random() < 0.2:
            held.append((thing, hashlib.sha256(shown).hexdigest()))
        del view, whole, thing
        while len(held) > 40:
            del held[rng.randrange(len(held))]
        if i % 50 == 0:
            check(held)
    check(held)
    pool = pool_of(reader)
    assert pool.hits + pool.misses == 5000
    assert len(pool) <= 8
    assert pool.pooled_bytes <= MiB


def check(held: list[tuple[object, str]]) -> None:
    for thing, digest in held:
        raw = memoryview(thing).tobytes()  # type: ignore[arg-type]
        assert hashlib.sha256(raw).hexdigest() == digest


def test_a_copied_message_shares_the_view_when_the_message_is_gone() -> None:
    reader = viewing()
    (message,) = messages(reader.feed(delivery(1, b"shared body")))
    copy = redelivered_copy(message)
    del message
    for i in range(50):
        read(reader, bytes([i]) * 11)
    assert copy.body == b"shared body"


def test_the_hash_of_the_bytes_is_that_of_the_body_when_the_memory_had_another() -> None:
    reader = viewing()
    for i in range(20):
        data = content(i, 5000)
        view = read(reader, data)
        assert hash(view.obj) == hash(view) == hash(data)
        assert {view.obj: 1} == {data: 1}
        del view


def test_a_released_view_is_of_no_use_and_others_stay_when_memory_is_used_again() -> None:
    reader = viewing()
    view = read(reader, b"first!")
    part = view[1:3]
    with pytest.raises(TypeError):
        view[0] = 1
    view.release()
    for i in range(20):
        read(reader, bytes([i]) * 6)
    assert bytes(part) == b"ir"
    with pytest.raises(ValueError, match="released"):
        view.tobytes()
    part.release()
    for i in range(20):
        read(reader, bytes([i]) * 6)


def test_raw_parts_of_a_decoded_value_stay_when_memory_is_used_again() -> None:
    class Envelope(msgspec.Struct):
        kind: str
        payload: msgspec.Raw

    reader = viewing()
    decoder = BodyDecoder(PluginRegistry.load(), Envelope, ConsumerSettings(serializer="json", body_view_size=1))
    payload = json.dumps(["x" * 5000]).encode()
    (message,) = messages(reader.feed(delivery(1, b'{"kind":"a","payload":' + payload + b"}")))
    value = decoder.decode(message)
    message.body.release()  # type: ignore[union-attr]
    del message
    for i in range(50):
        read(reader, bytes([i]) * 5050)
    assert bytes(value.payload) == payload


def test_views_do_not_change_when_other_threads_read_and_drop_them() -> None:
    reader = viewing(pool=BodyPool(4, 4 * MiB))
    wrong: list[int] = []
    room = threading.Semaphore(12)

    def work(i: int, view: memoryview, digest: bytes) -> None:
        # Of so many bytes the digest is made without the GIL.
        wrong.extend(i for _ in range(3) if hashlib.sha256(view).digest() != digest)
        del view
        room.release()

    threads = []
    for i in range(400):
        data = content(i, 100_000)
        room.acquire()
        thread = threading.Thread(target=work, args=(i, read(reader, data), hashlib.sha256(data).digest()))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    assert wrong == []


class Held:
    """A view, what it must show, and for how many more messages it is held."""

    def __init__(self, view: memoryview, data: bytes, times: int) -> None:
        self.view, self.data, self.times = view, data, times


@given(st.data())
def test_every_view_is_what_was_sent_while_it_is_held_whatever_the_splits(data: st.DataObject) -> None:
    draw = data.draw
    max_blocks, max_bytes = draw(st.integers(0, 5)), draw(st.sampled_from([0, 700, 3000, 20_000]))
    channels = draw(st.lists(st.sampled_from([1, 2, 255, 65535]), min_size=1, max_size=3, unique=True))
    reader = FrameReader(body_pool=BodyPool(max_blocks, max_bytes), max_body_size=6000)
    limits = {channel: draw(st.sampled_from([0, 1, 100, 2000])) for channel in channels}
    for channel, limit in limits.items():
        reader.view_bodies(channel, limit)
    # The frames of several channels stand between each other; each message is different.
    queues: dict[int, list[bytes]] = {channel: [] for channel in channels}
    bodies: dict[tuple[int, int], bytes] = {}
    for tag in range(1, draw(st.integers(1, 25)) + 1):
        channel = draw(st.sampled_from(channels))
        size = draw(st.sampled_from([0, 1, 99, 100, 500, 513, 1000, 1999, 2000, 4000, 6001]))
        bodies[channel, tag] = body = content(tag, size)
        chunk = draw(st.sampled_from([1 + size // 5, 1 + size // 2, 4088]))
        queues[channel] += [frames.deliver(channel, tag), frames.header(channel, size)]
        queues[channel] += frames.bodies(channel, body, chunk)
    stream = bytearray()
    while waiting := [queue for queue in queues.values() if queue]:
        stream += waiting[draw(st.integers(0, len(waiting) - 1))].pop(0)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    held: list[Held] = []
    seen = 0
    pool = pool_of(reader)
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        for message in messages(reader.feed(bytes(stream[start:end]))):
            seen += 1
            body = bodies[message.channel, message.delivery_tag]
            limit = limits[message.channel]
            if len(body) > 6000:
                assert message.body is None
                continue
            assert message.body == body
            viewed = 0 < limit <= len(body)
            assert type(message.body) is (memoryview if viewed else bytes)
            if isinstance(message.body, memoryview):
                held.append(Held(message.body, body, draw(st.integers(0, 8))))
        for each in held:
            assert each.view.tobytes() == each.data == each.view.obj
            each.times -= 1
        held = [each for each in held if each.times > 0]
        assert len(pool) <= max_blocks
        assert pool.pooled_bytes <= max_bytes
    assert reader.error is None
    assert seen == len(bodies)


@given(st.data())
def test_events_and_errors_are_the_same_with_views_when_a_stream_is_mutated(data: st.DataObject) -> None:
    raw = data.draw(mutated(strategies.streams(server=False).map(lambda stream: stream[0])))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=10)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    plain = FrameReader(max_body_size=strategies.MAX_BODY)
    size = data.draw(st.sampled_from([1, 17, 100]))
    views = viewing(1, 2, 255, 65535, size=size, max_body_size=strategies.MAX_BODY, frame_max=4096)
    # Equal also when the bytes of one are compared with the views of the other, which still are what they were.
    assert frames.feed_pieces(plain, pieces) == frames.feed_pieces(views, pieces)
    assert str(plain.error) == str(views.error)
    assert type(plain.error) is type(views.error)


# ---------------------------------------------------------------------------------------------- the pool


@reuses
def test_memory_is_used_again_for_a_similar_size_and_not_for_a_much_smaller_one() -> None:
    reader = viewing()
    pool = pool_of(reader)
    read(reader, bytes(100_000))
    assert (pool.hits, pool.misses) == (0, 1)
    for size in (100_000, 99_000, 101_000, 60_000):
        read(reader, bytes(size))
    assert (pool.hits, pool.misses) == (4, 1)
    # A small body that is kept must not keep a large block.
    read(reader, bytes(20_000))
    assert (pool.hits, pool.misses) == (4, 2)
    assert 120_000 <= pool.pooled_bytes <= 120_000 * 9 / 8 + 2048


@reuses
def test_a_block_of_a_mebibyte_wastes_at_most_an_eighth() -> None:
    for size in (MiB, MiB + 1, 1_500_000, 2 * MiB - 1, 12_345_678):
        reader = viewing()
        read(reader, bytes(size))
        assert size <= pool_of(reader).pooled_bytes <= size * 9 / 8


@reuses
def test_fresh_memory_is_given_when_all_blocks_are_held() -> None:
    reader = viewing(pool=BodyPool(3, MiB))
    pool = pool_of(reader)
    held = [read(reader, bytes([i]) * 1000) for i in range(10)]
    assert (len(pool), pool.held_blocks, pool.hits, pool.misses) == (3, 3, 0, 10)
    assert [view[0] for view in held] == list(range(10))
    del held[5:]
    read(reader, bytes(1000))
    assert pool.misses == 11
    del held[0]
    assert pool.held_blocks == 2
    read(reader, bytes(1000))
    assert (pool.hits, pool.misses) == (1, 11)


@reuses
def test_free_blocks_make_room_when_bodies_have_another_size() -> None:
    reader = viewing(pool=BodyPool(4, 4 * MiB))
    pool = pool_of(reader)
    held = [read(reader, bytes(10_000)) for _ in range(4)]
    assert len(pool) == 4
    kept = held[0]
    del held
    for _ in range(10):
        read(reader, bytes(MiB))
    assert (pool.hits, pool.misses) == (9, 5)
    assert pool.held_blocks == 1
    assert pool.pooled_bytes <= 4 * MiB
    assert kept == bytes(10_000)


@reuses
def test_nothing_is_let_go_when_it_would_not_make_enough_room() -> None:
    reader = viewing(pool=BodyPool(8, 64 * KiB))
    pool = pool_of(reader)
    held = read(reader, bytes(30_000))
    read(reader, bytes(10_000))
    assert len(pool) == 2
    read(reader, bytes(50_000))
    assert len(pool) == 2
    read(reader, bytes(10_000))
    assert pool.hits == 1
    assert held == bytes(30_000)


@reuses
def test_blocks_that_are_kept_for_good_do_not_stay_in_the_pool() -> None:
    reader = viewing(pool=BodyPool(2, MiB))
    pool = pool_of(reader)
    kept = [read(reader, bytes([i]) * 500) for i in range(2)]
    for _ in range(5000):
        read(reader, bytes(500))
    assert pool.hits > 500, "two bodies that an application keeps must not end the use of the pool"
    assert pool.held_blocks <= 1
    assert kept == [bytes(500), b"\1" * 500]


@pytest.mark.parametrize("bounds", [(0, MiB), (8, 0), (8, 999)])
def test_views_are_of_fresh_memory_when_the_pool_has_no_room(bounds: tuple[int, int]) -> None:
    pool = BodyPool(*bounds)
    reader = viewing(pool=pool)
    for i in range(3):
        assert read(reader, bytes([i]) * 1000, chunk=300) == bytes([i]) * 1000
    assert (len(pool), pool.pooled_bytes, pool.hits, pool.misses) == (0, 0, 0, 3)


@pytest.mark.parametrize(("max_blocks", "max_bytes"), [(-1, 1), (4097, 1), (1, -1)])
def test_a_pool_is_refused_when_its_bounds_are_out_of_range(max_blocks: int, max_bytes: int) -> None:
    with pytest.raises(ValueError, match="max_"):
        BodyPool(max_blocks, max_bytes)


def test_a_pool_may_be_shared_and_tells_its_bounds() -> None:
    pool = BodyPool(5, MiB)
    assert (pool.max_blocks, pool.max_bytes) == (5, MiB)
    assert (BodyPool().max_blocks, BodyPool().max_bytes) == (32, 32 * MiB)
    one, other = viewing(pool=pool), viewing(pool=pool)
    assert FrameReader().body_pool is None
    held = read(one, b"a" * 1000)
    assert read(other, b"b" * 1000) == b"b" * 1000
    assert held == b"a" * 1000
    assert pool.hits + pool.misses == 2
    pool.clear()
    assert len(pool) == 0
    assert held == b"a" * 1000


def test_views_stay_when_the_reader_and_its_pool_are_gone() -> None:
    reader = viewing()
    views = [read(reader, content(i, 1000 * i), chunk=777) for i in range(1, 20)]
    del reader
    gc.collect()
    [bytes(1000 * i) for i in range(1, 20)]
    assert views == [content(i, 1000 * i) for i in range(1, 20)]


def test_blocks_cannot_be_had_but_through_their_views() -> None:
    reader = viewing()
    view = read(reader, bytes(5000))
    assert gc.get_referents(pool_of(reader)) in ([], [BodyPool])
    assert not any(thing is view.obj for thing in gc.get_referents(reader))


@reuses
def test_a_block_is_free_again_when_its_channel_is_closed_inside_a_body() -> None:
    reader = viewing(1, 2)
    pool = pool_of(reader)
    read(reader, bytes(50_000))
    for _ in range(5):
        reader.view_bodies(1, 1)
        reader.feed(frames.deliver(1, 1) + frames.header(1, 50_000) + frames.body(1, b"x"))
        assert pool.held_blocks == 1
        reader.forget(1)
        assert pool.held_blocks == 0
    assert read(reader, b"y" * 50_000, channel=2) == b"y" * 50_000
    assert (len(pool), pool.hits, pool.misses) == (1, 6, 1)


def test_the_pool_is_emptied_when_the_stream_ends_with_an_error() -> None:
    reader = viewing()
    view = read(reader, b"abc" * 100)
    reader.feed(frames.deliver(1, 1) + frames.header(1, 300) + frames.body(1, b"x") + frames.body(1, bytes(300)))
    assert isinstance(reader.error, RemoteProtocolError)
    assert len(pool_of(reader)) == 0
    assert view == b"abc" * 100


# ---------------------------------------------------------------------------------------------- memory


def test_memory_follows_what_arrived_when_headers_of_views_declare_64_MiB(peak: Callable[[], int]) -> None:
    reader = FrameReader()
    for channel in range(1, 501):
        reader.view_bodies(channel, 1)
        assert reader.feed(frames.deliver(channel, 1) + frames.header(channel, 64 * MiB)) == []
    assert peak() < 2 * MiB
    for _ in range(100):
        reader.feed(frames.body(1, b"x"))
    assert reader.error is None
    assert peak() < 3 * MiB, "one block, for the one body that has begun"


def test_memory_is_at_most_doubled_when_a_large_view_arrives_for_the_first_time(peak: Callable[[], int]) -> None:
    reader = viewing()
    size = 16 * MiB
    chunk = frames.body(1, bytes(CHUNK))
    reader.feed(frames.deliver(1, 1) + frames.header(1, size))
    arrived = 0
    while arrived + CHUNK <= size:
        assert reader.feed(chunk) == []
        arrived += CHUNK
    (run,) = reader.feed(frames.body(1, bytes(size - arrived)))
    assert isinstance(run, ContentRun)
    assert run.messages[0].body == bytes(size)
    assert peak() < 3 * size + 2 * MiB  # the comparison makes one, too


@reuses
def test_no_memory_is_allocated_when_a_free_block_fits(peak: Callable[[], int]) -> None:
    reader = viewing()
    pieces = [delivery(1, bytes(4 * MiB))[at : at + MiB] for at in range(0, 5 * MiB, MiB)]
    for piece in pieces:
        reader.feed(piece)
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(5):
        for piece in pieces:
            reader.feed(piece)
    assert tracemalloc.get_traced_memory()[1] - before < 64 * KiB
    assert pool_of(reader).hits == 5


def leaking_paths() -> Iterator[Callable[[], object]]:
    for case in malformed.STREAMS:
        if not case.server:

            def bad(case: malformed.Stream = case) -> None:
                reader = viewing(1, 8, frame_max=case.frame_max, max_body_size=case.max_body_size)
                reader.feed(frames.delivery(8, 1, bytes(100)) + case.data)

            yield bad
    reader = viewing(1, 2, pool=BodyPool(4, 8 * KiB))
    (view,) = messages(reader.feed(delivery(1, bytes(50))))
    kept: list[object] = []

    def held() -> None:
        kept.append(read(reader, bytes(100 + 100 * (len(kept) % 40)), chunk=33))
        if len(kept) > 60:
            kept.clear()

    def half_read() -> None:
        reader.view_bodies(2, 1)
        reader.feed(frames.deliver(2, 1) + frames.header(2, 1000) + frames.body(2, b"x"))
        reader.forget(2)

    def refused() -> None:
        out = SendBuffer(lambda: None, lambda: None)
        for send in (
            lambda: append_deliveries(out, 1, "c", 1, [view]),
            lambda: append_content(out, b"", view, channel=1),
            lambda: ConfirmWindow().tie_return(view),
            lambda: FrameReader(server=True, capacity=0).view_bodies(1, 1),
            lambda: BodyPool(-1),
        ):
            with pytest.raises((TypeError, ValueError)):
                send()

    yield from (held, half_read, refused)


def test_memory_does_not_grow_when_views_come_and_go_20000_times() -> None:
    functions = list(leaking_paths())

    def go_round(times: int) -> None:
        for i in range(times):
            functions[i % len(functions)]()

    go_round(500)
    gc.collect()
    tracemalloc.start()
    try:
        go_round(2000)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        go_round(20_000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # The bodies that are held when it ends.
    assert grown < 64 * KiB + 60 * 4 * KiB


# ---------------------------------------------------------------------------------------------- where bytes are needed


def test_a_view_is_refused_where_a_message_is_sent_again() -> None:
    (message,) = messages(viewing().feed(delivery(1, b"some body")))
    out = SendBuffer(lambda: None, lambda: None)
    with pytest.raises(TypeError, match="memoryview"):
        append_deliveries(out, 1, "c", 1, [message])
    with pytest.raises(TypeError, match="memoryview"):
        append_deliveries(out, 1, "c", 1, [redelivered_copy(message)])
    with pytest.raises(TypeError, match="memoryview"):
        append_content(out, b"", message, channel=1)
    assert len(out) == 0
    with pytest.raises(TypeError, match="memoryview"):
        ConfirmWindow().tie_return(message)


# ---------------------------------------------------------------------------------------------- decoding


class Upper:
    """A serializer that takes bytes and nothing else."""

    encode = staticmethod(bytes)

    @staticmethod
    def decoder(model: Any, /) -> Callable[[bytes], Any]:
        def decode(body: bytes) -> str:
            assert type(body) is bytes
            return body.upper().decode()

        return decode


class UpperPlugin:
    @staticmethod
    @hookimpl
    def leveret_serializers() -> list[SerializerSpec]:
        return [SerializerSpec(name="upper", content_type="text/x-upper", factory=Upper)]


REGISTRY = PluginRegistry.from_plugins(UpperPlugin())


def decoded(data: bytes, model: Any = None, *, view_size: int | None = 1, viewed: bool = True, **options: Any) -> Any:
    properties = Properties(
        content_type=options.pop("content_type", None), content_encoding=options.pop("content_encoding", None)
    ).encode()
    decoder = BodyDecoder(REGISTRY, model, ConsumerSettings(body_view_size=view_size, **options))
    reader = viewing(size=1 if viewed else 0)
    (message,) = messages(reader.feed(delivery(1, data, properties=properties)))
    assert type(message.body) is (memoryview if viewed else bytes)
    return decoder.decode(message)


@pytest.mark.parametrize("viewed", [True, False])
@pytest.mark.parametrize(
    ("data", "expected", "options"),
    [
        (b'{"a": 1}', {"a": 1}, {"content_type": "application/json"}),
        (b'{"a": 1}', {"a": 1}, {"serializer": "json"}),
        (b"[1]", [1], {"model": list[int], "content_type": "application/json"}),
        ("é".encode(), "é", {"content_type": "text/plain"}),
        (b"quiet", "QUIET", {"content_type": "text/x-upper"}),
        (b"quiet", "QUIET", {"serializer": "upper"}),
        (gzip.compress(b"[2]", mtime=0), [2], {"content_type": "application/json", "content_encoding": "gzip"}),
        (gzip.compress(b"quiet", mtime=0), "QUIET", {"serializer": "upper", "content_encoding": "gzip"}),
    ],
)
def test_values_are_the_same_when_bodies_are_views(
    data: bytes, expected: object, options: dict[str, Any], viewed: bool
) -> None:
    assert decoded(data, viewed=viewed, **options) == expected


@pytest.mark.parametrize("options", [{}, {"serializer": "bytes"}, {"content_type": "application/octet-stream"}])
def test_the_value_is_the_view_when_the_serializer_is_bytes(options: dict[str, Any]) -> None:
    value = decoded(b"as it came", **options)
    assert type(value) is memoryview
    assert bytes(value) == b"as it came"
    value = decoded(b"as it came", viewed=False, **options)
    assert type(value) is bytes


@pytest.mark.parametrize("options", [{}, {"serializer": "bytes"}, {"accept": ("application/octet-stream",)}])
def test_the_value_is_bytes_when_that_is_the_model(options: dict[str, Any]) -> None:
    value = decoded(b"as it came", bytes, content_type="application/octet-stream", **options)
    assert type(value) is bytes
    assert value == b"as it came"


def test_no_copy_is_made_when_a_decoder_takes_bytes() -> None:
    (message,) = messages(viewing().feed(delivery(1, bytes(1000))))
    assert isinstance(message.body, memoryview)
    decoder = BodyDecoder(REGISTRY, bytes, ConsumerSettings(body_view_size=1))
    assert decoder.decode(message) is message.body.obj


def test_decoders_are_called_directly_when_views_are_off() -> None:
    decoder = BodyDecoder(REGISTRY, None, ConsumerSettings(serializer="json"))
    (message,) = messages(FrameReader().feed(delivery(1, b"[1]")))
    assert decoder.decode(message) == [1]
    assert type(decoder._last.decode).__name__ == "builtin_function_or_method"


@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_a_released_body_fails_to_decode_when_its_value_is_asked_for(encoding: str | None) -> None:
    decoder = BodyDecoder(REGISTRY, None, ConsumerSettings(body_view_size=1))
    properties = Properties(content_type="application/json", content_encoding=encoding).encode()
    (message,) = messages(viewing().feed(delivery(1, b"[1]", properties=properties)))
    assert isinstance(message.body, memoryview)
    message.body.release()
    with pytest.raises(DecodeFailed, match="released"):
        decoder.decode(message)


def test_a_model_that_bytes_cannot_make_is_refused_when_views_are_on() -> None:
    with pytest.raises(ConfigurationError, match="bytes"):
        BodyDecoder(REGISTRY, int, ConsumerSettings(serializer="bytes", body_view_size=1))
