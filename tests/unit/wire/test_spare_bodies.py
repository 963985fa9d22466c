"""Bodies that nobody refers to any more pass their memory on: never too early, and never more than a MiB of it."""

from __future__ import annotations

import hashlib
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from tests.corpus import frames

from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from leveret.wire.message import Message

MEBIBYTE = 1024 * 1024


def content(size: int, seed: int) -> bytes:
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)


def received(reader: FrameReader, sizes: list[int], first: int = 1) -> list[Message]:
    """Messages with bodies of these sizes; the seed of each is its delivery tag."""
    data = b"".join(frames.delivery(1, tag, content(size, tag)) for tag, size in enumerate(sizes, first))
    return list(frames.run_of(reader.feed(data)).messages)


@pytest.mark.parametrize(
    "keep", [lambda body: body, memoryview, lambda body: memoryview(body)[1:]], ids=["body", "view", "slice"]
)
def test_what_is_referred_to_does_not_change(keep: Any) -> None:
    reader = FrameReader(frame_max=131_072)
    sizes = [479, 480, 481, 1024, 8191, 8192, 8193, 65535, 65536, 65537]
    first = received(reader, sizes)
    kept = [keep(message.body) for message in first]
    expected = [bytes(each) for each in kept]
    del first
    for _ in range(3):
        # Their memory must not serve these.
        for message in received(reader, sizes * 4, first=100):
            assert message.body == content(message.body_size, message.delivery_tag)
    assert [bytes(each) for each in kept] == expected


@pytest.mark.parametrize("sizes", [[480], [8192], [16384], [65535], [65536], [480, 65536, 9000]])
def test_dropped_bodies_keep_less_than_a_mebibyte(sizes: list[int]) -> None:
    reader = FrameReader(frame_max=131_072)
    received(reader, [481])  # what there is only once
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            many = received(reader, sizes * (4 * MEBIBYTE // sum(sizes)))
            assert tracemalloc.get_traced_memory()[0] - before > 2 * MEBIBYTE
            del many
        reader.release()
        assert tracemalloc.get_traced_memory()[0] - before < MEBIBYTE + 65536
    finally:
        tracemalloc.stop()
