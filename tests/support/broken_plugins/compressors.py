"""Sound compressors, each broken in one way, with the conformance kit as their tests."""

from __future__ import annotations

import asyncio
import time
import zlib
from typing import Any, ClassVar

import pytest

from leveret.errors import BodyTooLarge
from leveret.plugins import CompressorSpec
from leveret.plugins.builtin import ZlibCompressor
from leveret.testing import (
    CompressorConformance,
)


class BrokenCompressor(CompressorConformance):
    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[type[Any]]
    levels: ClassVar[tuple[int, int]] = (0, 9)

    @pytest.fixture
    def spec(self) -> CompressorSpec:
        make, levels = type(self).make, self.levels
        return CompressorSpec(name="broken", content_encoding="x-broken", factory=make, levels=levels)


class Zlib(ZlibCompressor):
    def __init__(self, level: int | None) -> None:
        super().__init__(zlib.MAX_WBITS, level)


class TestSoundCompressor(BrokenCompressor):
    make = Zlib


class IgnoresMaxSize(Zlib):
    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        return super().decompress(data, 1 << 30)


class TestBrokenByIgnoringMaxSize(BrokenCompressor):
    make = IgnoresMaxSize
    caught_by = "test_max_size_is_exact"
    because = "the interface wants leveret.errors.BodyTooLarge"


class IsOffByOne(Zlib):
    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        return super().decompress(data, max(max_size - 1, 0))


class TestBrokenByBeingOffByOne(BrokenCompressor):
    make = IsOffByOne
    caught_by = "test_max_size_is_exact"
    because = "with max_size 1 raised BodyTooLarge"


class RaisesAnotherError(Zlib):
    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        try:
            return super().decompress(data, max_size)
        except BodyTooLarge:
            raise ValueError("too large") from None


class TestBrokenByRaisingAnotherError(BrokenCompressor):
    make = RaisesAnotherError
    caught_by = "test_max_size_is_exact"
    because = "raised ValueError; the interface wants leveret.errors.BodyTooLarge"


class TestBrokenByRaisingAnotherErrorInAConsumer(BrokenCompressor):
    make = RaisesAnotherError
    caught_by = "test_bad_bodies_are_refused_by_a_consumer"
    because = "raised DecodeFailed, not BodyTooLarge"


class LooksAfterwards(Zlib):
    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        body = super().decompress(data, 1 << 30)
        if len(body) > max_size:
            raise BodyTooLarge("too large")
        return body


class TestBrokenByDecompressingBombs(BrokenCompressor):
    make = LooksAfterwards
    caught_by = "test_bombs_are_refused_within_bounded_memory"
    because = "MiB of memory"


class IgnoresWhatFollows(Zlib):
    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        stream = zlib.decompressobj()
        body = stream.decompress(data, max_size + 1)
        if len(body) > max_size:
            raise BodyTooLarge("too large")
        if not stream.eof:
            raise ValueError("cut off")
        return body


class TestBrokenByIgnoringTrailingBytes(BrokenCompressor):
    make = IgnoresWhatFollows
    caught_by = "test_bytes_behind_the_frame_are_refused"
    because = "a body is one complete frame and nothing else"


class IgnoresTruncation(Zlib):
    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        stream = zlib.decompressobj()
        body = stream.decompress(data, max_size + 1)
        if len(body) > max_size:
            raise BodyTooLarge("too large")
        if stream.unused_data:
            raise ValueError("too much")
        return body


class TestBrokenByIgnoringTruncation(BrokenCompressor):
    make = IgnoresTruncation
    caught_by = "test_cut_off_frames_are_refused"
    because = "a frame that is cut off must raise"


class ReturnsBytearray(Zlib):
    def decompress(self, data: bytes, /, max_size: int) -> Any:
        return bytearray(super().decompress(data, max_size))


class TestBrokenByReturningBytearray(BrokenCompressor):
    make = ReturnsBytearray
    caught_by = "test_both_functions_return_bytes"
    because = "decompress returned bytearray"


class DoesNotCompress(Zlib):
    def __init__(self, level: int | None) -> None:
        super().__init__(level or 0)


class TestBrokenByNotCompressing(BrokenCompressor):
    make = DoesNotCompress
    caught_by = "test_repetitive_bodies_become_smaller"
    because = "it does not compress"


class TestBrokenByArrivingAsItWas(BrokenCompressor):
    make = DoesNotCompress
    caught_by = "test_bodies_travel_from_a_producer_to_a_consumer"
    because = "arrived with the content encoding None"


class TestBrokenByItsLevels(BrokenCompressor):
    make = Zlib
    levels = (9, 0)
    caught_by = "test_descriptor_is_accepted_by_the_registry"
    because = "its levels are (9, 0)"


class SharesAStream(Zlib):
    data: ClassVar[bytes] = b""

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        SharesAStream.data = data
        time.sleep(1e-5)  # where another thread may come in
        return super().decompress(SharesAStream.data, max(max_size, 1 << 20))


class TestBrokenBySharingAStream(BrokenCompressor):
    make = SharesAStream
    caught_by = "test_two_threads_do_not_disturb_each_other"
    because = "they share state"


class TakesWhatItDoesNotKnow(Zlib):
    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        try:
            return super().decompress(data, max_size)
        except zlib.error:
            return data[:max_size]


class TestBrokenByTakingRandomBytes(BrokenCompressor):
    make = TakesWhatItDoesNotKnow
    caught_by = "test_random_bytes_are_refused"
    because = "random bytes must raise"


class BelievesItsHeader(Zlib):
    def compress(self, data: bytes, /) -> bytes:
        return len(data).to_bytes(8) + super().compress(data)

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        size = int.from_bytes(data[:8])
        if len(data) < 8:
            raise ValueError("cut off")
        whole = bytearray(min(size, 1 << 62))
        body = super().decompress(data[8:], max_size)
        if len(whole) != len(body):
            raise ValueError("wrong size")
        return body


class TestBrokenByBelievingItsHeader(BrokenCompressor):
    make = BelievesItsHeader
    caught_by = "test_flipped_bits_are_harmless"
    because = "raised MemoryError"


class KeepsItsStream(Zlib):
    def __init__(self, level: int | None) -> None:
        super().__init__(level)
        self._stream = zlib.decompressobj()

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        body = self._stream.decompress(data, max_size + 1)
        if len(body) > max_size:
            raise BodyTooLarge("too large")  # and the stream is not renewed
        if not self._stream.eof or self._stream.unused_data:
            raise ValueError("bad")
        self._stream = zlib.decompressobj()
        return body


class TestBrokenByKeepingItsStream(BrokenCompressor):
    make = KeepsItsStream
    caught_by = "test_works_as_before_after_an_error"
    because = "a good frame after a bad one"


class SharesItsLevel(Zlib):
    shared: ClassVar[int] = 1

    def __init__(self, level: int | None) -> None:
        super().__init__(level)
        SharesItsLevel.shared = self._level

    def compress(self, data: bytes, /) -> bytes:
        return zlib.compress(data, SharesItsLevel.shared)


class TestBrokenBySharingItsLevel(BrokenCompressor):
    make = SharesItsLevel
    caught_by = "test_two_instances_do_not_share_state"
    because = "they share state"


class RaisesBaseException(Zlib):
    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        try:
            return super().decompress(data, max_size)
        except zlib.error:
            raise asyncio.CancelledError from None


class TestBrokenByCancelling(BrokenCompressor):
    make = RaisesBaseException
    caught_by = "test_random_bytes_are_refused"
    because = "raised CancelledError, which is not an Exception"


class ReadsOnlyItsOwnLevel(Zlib):
    def compress(self, data: bytes, /) -> bytes:
        return bytes([self._level]) + super().compress(data)

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        if data[:1] != bytes([self._level]):
            raise ValueError("another level")
        return super().decompress(data[1:], max_size)


class TestBrokenByReadingOnlyItsOwnLevel(BrokenCompressor):
    make = ReadsOnlyItsOwnLevel
    caught_by = "test_bodies_come_back_whole_at_every_level"
    because = "(level 0) raised ValueError"
