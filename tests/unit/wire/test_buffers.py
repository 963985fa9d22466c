"""The memory that a connection reads into, and the blocks that it writes."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import frames, strategies

from leveret.errors import BodyTooLarge
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publishing import Ticket
from leveret.publishing.template import PublishTemplate
from leveret.wire.assembly import Assemblies
from leveret.wire.buffers import RecvBuffer, SendBuffer
from leveret.wire.reader import FrameReader

assert strategies  # its import loads the hypothesis profile

KiB = 1024


class Blocks:
    """A send buffer whose callbacks write like a transport: when told to flush, and at once when full."""

    def __init__(self, flush_bytes: int = 64 * KiB) -> None:
        self.scheduled = 0
        self.full = 0
        self.written: list[bytes] = []
        self.buffer = SendBuffer(self.on_data, self.on_full, flush_bytes)

    def on_data(self) -> None:
        self.scheduled += 1

    def on_full(self) -> None:
        self.full += 1
        self.written.append(self.buffer.take())


# ---------------------------------------------------------------------------------------------- receiving


@pytest.mark.parametrize("most", [0, 8 * KiB, 256 * KiB])
def test_8_KiB_are_offered_at_first_whatever_is_asked_for(most: int) -> None:
    for sizehint in (-1, 0, 1, 64 * KiB, 1_000_000):
        assert len(RecvBuffer(most).get_buffer(sizehint)) == 8 * KiB


def test_more_is_offered_when_a_read_took_all_up_to_the_most() -> None:
    reader = FrameReader(capacity=256 * KiB)
    offered = []
    for _ in range(5):
        view = reader.get_buffer(-1)
        offered.append(len(view))
        # Heartbeats, and the beginning of one.
        data = (b"\x08\x00\x00\x00\x00\x00\x00\xce" * (len(view) // 8))[: len(view)]
        view[:] = data
        reader.received(len(view))
    assert offered == [8 * KiB, 32 * KiB, 128 * KiB, 256 * KiB, 256 * KiB]


def test_it_is_small_again_after_256_small_reads() -> None:
    reader = FrameReader(capacity=256 * KiB)
    heartbeat = b"\x08\x00\x00\x00\x00\x00\x00\xce"

    def receive(count: int) -> int:
        view = reader.get_buffer(-1)
        size = min(count * 8, len(view))
        view[:size] = heartbeat * (size // 8)
        reader.received(size)
        return len(view)

    for _ in range(3):
        receive(100_000)
    for _ in range(256):
        assert receive(1) == 256 * KiB
    assert receive(1) == 8 * KiB


def test_memory_behind_what_was_read_is_offered_when_nothing_was_consumed() -> None:
    buffer = RecvBuffer(16 * KiB)
    before = len(buffer.get_buffer(-1))
    buffer.get_buffer(-1)[:3] = b"abc"
    buffer.written(3)
    assert len(buffer) == 3
    assert len(buffer.get_buffer(-1)) == before - 3
    assert buffer.received_bytes == 3


@pytest.mark.parametrize("n", [-1, 8_193, 2**40])
def test_a_count_that_was_not_offered_is_refused_when_reported_as_written(n: int) -> None:
    buffer = RecvBuffer(262_144)
    assert len(buffer.get_buffer(-1)) == 8192
    with pytest.raises(ValueError, match=f"{n} bytes.*8192"):
        buffer.written(n)
    assert len(buffer) == 0
    reader = FrameReader()
    with pytest.raises(ValueError, match=f"{n} bytes"):
        reader.received(n)
    assert reader.error is None


def test_bytes_are_kept_in_order_when_the_buffer_grows() -> None:
    reader = FrameReader(frame_max=1 << 20, capacity=64 * KiB)
    data = b"".join(frames.method(1, 50, 11, bytes([i]) * 1000 * i) for i in range(200))
    pieces = [data[at : at + 50_000] for at in range(0, len(data), 50_000)]
    assert [event[4] for event in frames.receive_pieces(reader, pieces)] == [bytes([i]) * 1000 * i for i in range(200)]


def test_a_view_is_harmless_when_its_buffer_has_grown_meanwhile() -> None:
    buffer = RecvBuffer(64 * KiB)
    view = buffer.get_buffer(-1)
    buffer.feed(bytes(1_000_000))
    view[:] = b"x" * len(view)  # a transport that writes late writes into memory that is still there
    assert len(buffer) == 1_000_000
    del buffer
    gc.collect()
    assert view[-1] == ord("x")


def test_capacity_stays_when_small_reads_follow_each_other() -> None:
    reader = FrameReader(capacity=64 * KiB)
    size = len(reader.get_buffer(-1))
    data = frames.delivery(1, 1, bytes(3000))
    for _ in range(2000):
        frames.receive_pieces(reader, [data[:1000], data[1000:]])
    assert len(reader.get_buffer(-1)) <= 2 * size


@pytest.mark.parametrize("data", [bytearray(b"ab"), memoryview(b"ab"), memoryview(bytearray(b"xabx"))[1:3]])
def test_any_contiguous_bytes_are_copied_when_fed(data: Any) -> None:
    buffer = RecvBuffer()
    buffer.feed(data)
    buffer.feed(b"")
    assert len(buffer) == 2


@pytest.mark.parametrize("data", [None, "text", 5, memoryview(b"abcd")[::2]], ids=["None", "str", "int", "strided"])
def test_anything_else_is_refused_when_fed(data: Any) -> None:
    for feed in (RecvBuffer().feed, FrameReader().feed, Blocks().buffer.append):
        with pytest.raises((TypeError, ValueError, BufferError)):
            feed(data)


# ---------------------------------------------------------------------------------------------- sending


def test_flush_is_scheduled_once_when_many_frames_are_appended() -> None:
    blocks = Blocks()
    for _ in range(100):
        blocks.buffer.append(b"12345678")
    assert (blocks.scheduled, blocks.full, len(blocks.buffer)) == (1, 0, 800)
    assert blocks.buffer.take() == b"12345678" * 100
    assert len(blocks.buffer) == 0
    blocks.buffer.append(b"x")
    assert blocks.scheduled == 2


def test_block_is_written_at_once_when_full() -> None:
    blocks = Blocks(1000)
    for i in range(10):
        blocks.buffer.append(bytes([i]) * 300)
    assert [len(block) for block in blocks.written] == [1200, 1200]
    assert len(blocks.buffer) == 600
    assert blocks.scheduled == 3, "a new block asks for a flush of its own"


def test_empty_bytes_are_taken_when_nothing_was_appended() -> None:
    blocks = Blocks()
    assert blocks.buffer.take() == b""
    blocks.buffer.append(b"")
    assert blocks.scheduled == 0
    assert blocks.buffer.sent_bytes == 0


def test_a_block_that_was_taken_never_changes_when_more_is_appended() -> None:
    blocks = Blocks()
    taken = []
    for i in range(200):
        blocks.buffer.append(bytes([i]) * (i + 1))
        taken.append(blocks.buffer.take())
    assert taken == [bytes([i]) * (i + 1) for i in range(200)]
    assert blocks.buffer.sent_bytes == sum(map(len, taken))
    # Measured, because it is not the same in every Python: a call's argument is borrowed in some.
    mine = bytes(1000)
    own = [sys.getrefcount(block) for block in [mine[:500]]]
    assert [sys.getrefcount(block) for block in taken] == own * 200, "nobody holds a block but the list of them"


@given(
    st.lists(st.one_of(st.integers(0, 600), st.integers(0, 200_000), st.none()), max_size=40), st.integers(1, 100_000)
)
def test_all_bytes_leave_in_order_when_blocks_grow_and_are_taken_at_random(sizes: list, flush_bytes: int) -> None:
    blocks = Blocks(flush_bytes)
    expected = bytearray()
    for i, size in enumerate(sizes):
        if size is None:
            blocks.written.append(blocks.buffer.take())
        else:
            data = bytes([i]) * size
            blocks.buffer.append(data)
            expected += data
    blocks.written.append(blocks.buffer.take())
    assert b"".join(blocks.written) == expected
    assert blocks.buffer.sent_bytes == len(expected)


def test_buffer_works_on_when_a_diagnostic_tool_holds_its_block() -> None:
    # Tools that hunt for leaks call gc.get_referents and so hold the bytes object that is still being filled.
    blocks = Blocks()
    blocks.buffer.append(b"abc")
    held = gc.get_referents(blocks.buffer)
    blocks.buffer.append(bytes(100_000)[:60_000])
    held += gc.get_referents(blocks.buffer)
    assert blocks.buffer.take() == b"abc" + bytes(60_000)
    assert blocks.buffer.take() == b""
    reader = FrameReader()
    reader.feed(frames.deliver(1, 1) + frames.header(1, 3_000_000) + frames.body(1, b"x"))
    assemblies = next(one for one in gc.get_referents(reader) if isinstance(one, Assemblies))
    assembly = next(a for table in gc.get_referents(assemblies) if isinstance(table, dict) for a in table.values())
    held += gc.get_referents(assembly)
    run = frames.run_of(reader.feed(b"".join(frames.bodies(1, bytes(2_999_999), 4000))))
    assert run.messages[0].body == b"x" + bytes(2_999_999)


@pytest.mark.parametrize("flush_bytes", [0, -1])
def test_flush_bytes_is_refused_when_not_positive(flush_bytes: int) -> None:
    with pytest.raises(ValueError, match="flush_bytes"):
        Blocks(flush_bytes)


def test_message_is_whole_when_the_block_is_written_in_mid_publish() -> None:
    blocks = Blocks(100)
    batch = PublishBatch(blocks.buffer, None)
    template = PublishTemplate("", "q")
    for i in range(20):
        batch.add(template, bytes([i]) * 50)
    blocks.written.append(blocks.buffer.take())
    events = frames.feed_whole(FrameReader(server=True), b"".join(blocks.written))
    assert [event[-1] for event in events] == [bytes([i]) * 50 for i in range(20)]


def full_block(blocks: Blocks, fill: bytes) -> bytes:
    """Fills a block of 64 KiB and returns it as the transport gets it."""
    for _ in range(64):
        blocks.buffer.append(fill * KiB)
    return blocks.written.pop()


def test_memory_of_a_block_is_used_again_when_everybody_has_let_go_of_it() -> None:
    blocks = Blocks()
    full_block(blocks, b"a")  # the first blocks are smaller: the buffer does not know yet how much will come
    block = full_block(blocks, b"b")
    place, name = id(block), hash(block)
    del block
    block = full_block(blocks, b"c")
    assert id(block) == place
    assert block == b"c" * 64 * KiB
    assert hash(block) == hash(b"c" * 64 * KiB) != name


def test_blocks_never_change_when_they_are_still_held() -> None:
    blocks = Blocks()
    held = [full_block(blocks, bytes([i])) for i in range(40)]
    assert held == [bytes([i]) * 64 * KiB for i in range(40)]
    assert len(set(map(id, held))) == 40
    views = [memoryview(block) for block in held]
    del held[:]  # a transport that was able to write a part of a block keeps a view of the rest
    more = [full_block(blocks, b"x") for _ in range(40)]
    assert [bytes(view) for view in views] == [bytes([i]) * 64 * KiB for i in range(40)]
    assert more == [b"x" * 64 * KiB] * 40


def test_memory_is_given_back_when_little_is_written() -> None:
    blocks = Blocks()
    held = [full_block(blocks, b"x") for _ in range(40)]
    kept = sys.getsizeof(held[0]) + 16 * KiB
    tracemalloc.start()
    try:
        held = [full_block(blocks, b"x") for _ in range(40)]
        del held[:]
        busy = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            blocks.buffer.append(b"heartbeat")
            blocks.buffer.take()
        quiet = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert busy < 17 * kept, "about one mebibyte is kept for later"
    assert quiet < kept


# ---------------------------------------------------------------------------------------------- large bodies

LARGE = 100_000  # two bodies of this make a full write


class Publisher(Blocks):
    """Publishes on a send buffer, and writes in pieces as a transport does."""

    def __init__(self, *, flush_bytes: int = 64 * KiB, frame_max: int = 128 * KiB, max_body_size: int = 1 << 27):
        super().__init__(flush_bytes)
        self.pieces: list[bytes | memoryview] = []
        self.window = ConfirmWindow()
        self.batch = PublishBatch(self.buffer, self.window, frame_max=frame_max, max_body_size=max_body_size)
        self.template = PublishTemplate("", "q", frame_max=frame_max)

    def on_full(self) -> None:
        self.full += 1
        self.flush()

    def flush(self) -> None:
        if self.buffer.in_pieces:
            self.pieces += self.buffer.take_pieces()
        else:
            self.pieces.append(self.buffer.take())

    def bodies(self) -> list[object]:
        """Everything that was written, read by a frame reader."""
        self.flush()
        frame_max = self.batch.frame_max
        events = frames.feed_whole(FrameReader(server=True, frame_max=frame_max), b"".join(self.pieces))
        return [event[-1] for event in events]


def test_a_large_body_is_not_copied_when_it_is_bytes() -> None:
    publisher = Publisher(flush_bytes=1 << 20)
    body, other = bytes(LARGE), b"x" * LARGE
    for each in (b"small", body, other, b"small", bytearray(LARGE)):
        publisher.batch.add(publisher.template, each)
    assert publisher.buffer.in_pieces
    assert sum(piece is body or piece is other for piece in publisher.buffer.take_pieces()) == 2
    assert not publisher.buffer.in_pieces


def test_parts_of_a_large_body_are_views_of_it_when_it_takes_several_frames() -> None:
    publisher = Publisher()
    body = bytes(range(256)) * 4 * KiB
    publisher.batch.add(publisher.template, body)
    views = [piece for piece in publisher.pieces if isinstance(piece, memoryview)]
    assert [view.obj is body for view in views] == [True] * 9, "nine frames of 128 KiB less their overhead"
    assert publisher.bodies() == [body]


def test_a_change_of_a_large_bytearray_changes_nothing_that_was_published() -> None:
    publisher = Publisher(flush_bytes=1 << 20)
    body = bytearray(LARGE)
    publisher.batch.add(publisher.template, body)
    body[:] = b"x" * LARGE
    assert publisher.bodies() == [bytes(LARGE)]


def test_flush_is_scheduled_when_a_large_body_comes_first_and_written_at_once_when_the_block_is_full() -> None:
    publisher = Publisher(flush_bytes=150_000)
    publisher.batch.add(publisher.template, bytes(LARGE))
    assert (publisher.scheduled, publisher.full) == (1, 0)
    assert LARGE < len(publisher.buffer) < LARGE + 100
    publisher.batch.add(publisher.template, bytes(LARGE))
    assert (publisher.scheduled, publisher.full) == (1, 1)
    assert len(publisher.buffer) == 0
    assert publisher.buffer.sent_bytes == sum(map(len, publisher.pieces))


def test_pieces_are_joined_when_they_are_taken_as_bytes() -> None:
    publisher = Publisher(flush_bytes=1 << 20)
    for body in (b"1", bytes(LARGE), b"2"):
        publisher.batch.add(publisher.template, body)
    publisher.pieces = [publisher.buffer.take()]
    assert publisher.buffer.take_pieces() == []
    assert publisher.buffer.take() == b""
    assert publisher.bodies() == [b"1", bytes(LARGE), b"2"]


def test_nothing_is_appended_when_a_large_body_is_over_the_limit() -> None:
    publisher = Publisher(flush_bytes=1 << 20, max_body_size=LARGE)
    publisher.batch.add(publisher.template, bytes(LARGE))
    before = len(publisher.buffer)
    with pytest.raises(BodyTooLarge, match=r"100001 bytes.*max_body_size of 100000"):
        publisher.batch.add(publisher.template, bytes(LARGE + 1))
    assert len(publisher.buffer) == before
    assert publisher.window.next_delivery_tag == 2
    assert publisher.batch.published == 1


@given(
    st.lists(st.one_of(st.integers(0, 300), st.integers(8000, 8400), st.integers(0, 300_000), st.none()), max_size=25),
    st.integers(1, 200_000),
    st.sampled_from([4 * KiB, 8 * KiB, 8 * KiB + 1, 9000, 128 * KiB, 1 << 31]),
)
def test_all_messages_leave_in_order_when_small_and_large_ones_alternate(
    sizes: list, flush_bytes: int, frame_max: int
) -> None:
    publisher = Publisher(flush_bytes=flush_bytes, frame_max=frame_max)
    ticket = Ticket()
    expected = []
    for i, size in enumerate(sizes):
        if size is None:
            publisher.flush()
            continue
        expected.append(bytes([i]) * size)
        publisher.batch.add(publisher.template, expected[-1], ticket)
    assert publisher.bodies() == expected
    assert publisher.batch.published_bytes == sum(map(len, expected)) == publisher.window.outstanding_bytes
    assert ticket.count == ticket.pending == len(expected)
    assert publisher.buffer.sent_bytes == sum(map(len, publisher.pieces))
    assert len(publisher.buffer) == 0
