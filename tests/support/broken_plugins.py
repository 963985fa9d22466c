"""Sound plugins, each broken in one way, with the conformance kits as their tests.

`tests/functional/test_conformance_kits.py` runs this file with pytest, and expects each `TestBroken...` to be caught by
the check that its `caught_by` names, with a text that has its `because` in it, and each `TestSound...` to pass
everything.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import pytest

from leveret.errors import BodyTooLarge, CircuitOpen, ConfigurationError, DecodeFailed, EncodeFailed
from leveret.plugins import CompressorSpec, MetricsSpec, PolicySpec, SerializerSpec
from leveret.plugins.builtin import ZlibCompressor
from leveret.testing import (
    BackoffConformance,
    CircuitBreakerConformance,
    CompressorConformance,
    MetricsConformance,
    RetryConformance,
    SerializerConformance,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.plugins import MetricsSource

# ---------------------------------------------------------------------- serializers


class JSONSerializer:
    def encode(self, value: Any) -> Any:
        return msgspec.json.encode(value)

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        try:
            return msgspec.json.Decoder(Any if model is None else model).decode
        except TypeError as error:
            raise ConfigurationError(str(error), option="model") from error


class BrokenSerializer(SerializerConformance):
    """Not collected: its name does not begin with Test."""

    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[Callable[[], Any]]
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def spec(self) -> SerializerSpec:
        options = {"name": "broken", "content_type": "application/x-broken", "factory": type(self).make} | self.options
        return SerializerSpec(**options)


class TestSoundSerializer(BrokenSerializer):
    make = JSONSerializer


class TestSoundUnsafeSerializer(BrokenSerializer):
    make = JSONSerializer
    options: ClassVar[dict[str, Any]] = {"safe": False}


class ReturnsStr(JSONSerializer):
    def encode(self, value: Any) -> Any:
        return msgspec.json.encode(value).decode()


class TestBrokenByReturningStr(BrokenSerializer):
    make = ReturnsStr
    caught_by = "test_encode_returns_bytes"
    because = "encode returned str"


class SharesTheModel(JSONSerializer):
    _decode: ClassVar[Callable[[bytes], Any]]

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        SharesTheModel._decode = super().decoder(model)

        def decode(body: bytes) -> Any:
            return SharesTheModel._decode(body)

        return decode


class TestBrokenBySharingTheModel(BrokenSerializer):
    make = SharesTheModel
    caught_by = "test_two_instances_do_not_share_state"
    because = "they share state"


class SharesAScratchBuffer(JSONSerializer):
    _value: ClassVar[Any] = None

    def encode(self, value: Any) -> bytes:
        SharesAScratchBuffer._value = value
        time.sleep(1e-5)  # where another thread may come in
        return msgspec.json.encode(SharesAScratchBuffer._value)


class TestBrokenBySharingAScratchBuffer(BrokenSerializer):
    make = SharesAScratchBuffer
    caught_by = "test_two_threads_do_not_disturb_each_other"
    because = "they share state"


class SwallowsErrors(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        decode = super().decoder(model)

        def lenient(body: bytes) -> Any:
            try:
                return decode(body)
            except msgspec.MsgspecError:
                return None

        return lenient


class TestBrokenBySwallowingTruncation(BrokenSerializer):
    make = SwallowsErrors
    caught_by = "test_cut_off_bodies_are_refused"
    because = "a body that is cut off must raise"


class TestBrokenByReturningWhatIsNotTheModel(BrokenSerializer):
    make = SwallowsErrors
    caught_by = "test_random_bodies_raise_ordinary_exceptions"
    because = "raise for a body that is not the model"


class Exits(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        decode = super().decoder(model)

        def deadly(body: bytes) -> Any:
            try:
                return decode(body)
            except msgspec.DecodeError:
                raise SystemExit("bad body") from None

        return deadly


class TestBrokenByExiting(BrokenSerializer):
    make = Exits
    caught_by = "test_random_bodies_raise_ordinary_exceptions"
    because = "raised SystemExit, which is no Exception"


class SortsItsValue(JSONSerializer):
    def encode(self, value: Any) -> bytes:
        if isinstance(value, dict):
            items = sorted(value.items())
            value.clear()
            value.update(items[:1])
            value["__type__"] = "dict"
            return msgspec.json.encode(dict(items))
        return msgspec.json.encode(value)


class TestBrokenByChangingItsValue(BrokenSerializer):
    make = SortsItsValue
    caught_by = "test_encode_does_not_change_its_value"
    because = "encode changed its value"


class QuotesTheValue(JSONSerializer):
    def encode(self, value: Any) -> bytes:
        try:
            return msgspec.json.encode(value)
        except TypeError:
            raise EncodeFailed(f"cannot encode {value!r}") from None


class TestBrokenByQuotingTheValue(BrokenSerializer):
    make = QuotesTheValue
    caught_by = "test_values_do_not_show_in_errors"
    because = "raised EncodeFailed with the value in its text"


class QuotesTheBody(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        decode = super().decoder(model)

        def telling(body: bytes) -> Any:
            try:
                return decode(body)
            except msgspec.DecodeError:
                raise DecodeFailed(f"Expected JSON, got {body!r}") from None

        return telling


class TestBrokenByQuotingTheBody(BrokenSerializer):
    make = QuotesTheBody
    caught_by = "test_values_do_not_show_in_errors"
    because = "raised DecodeFailed with the value in its text"


class KeepsADepth(JSONSerializer):
    def __init__(self) -> None:
        self._depth = 0

    def encode(self, value: Any) -> bytes:
        self._depth += 1
        body = msgspec.json.encode(value)  # when this raises, the depth stays
        self._depth -= 1
        return b" " * self._depth + body


class TestBrokenByWhatAnErrorLeavesBehind(BrokenSerializer):
    make = KeepsADepth
    caught_by = "test_works_as_before_after_an_error"
    because = "the failed call left something behind"


class CountsItsBodies(JSONSerializer):
    def __init__(self) -> None:
        self._count = 0

    def encode(self, value: Any) -> bytes:
        self._count += 1
        return msgspec.json.encode(value) + b" " * (self._count % 7)


class TestBrokenByBeingDifferentEachTime(BrokenSerializer):
    make = CountsItsBodies
    caught_by = "test_encode_is_deterministic_within_one_object"
    because = "it keeps state between calls"


class BelievesSizes(JSONSerializer):
    def encode(self, value: Any) -> bytes:
        body = msgspec.json.encode(value)
        return len(body).to_bytes(4) + body

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        decode = super().decoder(model)

        def trusting(body: bytes) -> Any:
            whole = bytearray(int.from_bytes(body[:4]))
            if len(whole) != len(body) - 4:
                raise ValueError("wrong size")
            whole[:] = body[4:]
            return decode(bytes(whole))

        return trusting


class TestBrokenByBelievingSizes(BrokenSerializer):
    make = BelievesSizes
    caught_by = "test_bodies_that_claim_large_sizes_allocate_little"
    because = "MemoryError: it allocates by what foreign data claims"


class OverflowsItsStack(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        decode = super().decoder(model)

        def crash(body: bytes) -> Any:
            if body.count(b"[") > 100_000:
                # What a parser in C does that recurses without counting.
                os.kill(os.getpid(), signal.SIGSEGV)
            return decode(body)

        return crash


class TestBrokenByOverflowingItsStack(BrokenSerializer):
    make = OverflowsItsStack
    caught_by = "test_deeply_nested_bodies_do_not_crash"
    because = "crashed the process (SIGSEGV)"


class OverflowsWhenItEncodes(JSONSerializer):
    def encode(self, value: Any) -> Any:
        inside, depth = value, 0
        while isinstance(inside, list) and inside:
            inside, depth = inside[0], depth + 1
        if depth > 100_000:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().encode(value)


class TestBrokenByOverflowingWhenItEncodes(BrokenSerializer):
    make = OverflowsWhenItEncodes
    caught_by = "test_deeply_nested_values_do_not_crash"
    because = "crashed the process (SIGSEGV)"


class RefusesModelsWithTypeError(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        return msgspec.json.Decoder(Any if model is None else model).decode


class TestBrokenByRefusingModelsWithTypeError(BrokenSerializer):
    make = RefusesModelsWithTypeError
    caught_by = "test_unknown_models_are_refused_with_configuration_error"
    because = "the interface wants ConfigurationError"


class LosesTypes(JSONSerializer):
    def encode(self, value: Any) -> bytes:
        return b"1" if value is True else msgspec.json.encode(value)


class TestBrokenByLosingTypes(BrokenSerializer):
    make = LosesTypes
    caught_by = "test_values_come_back_equal_when_encoded_and_decoded"
    because = "bool True came back as int 1"


class TestBrokenByItsContentType(BrokenSerializer):
    make = JSONSerializer
    options: ClassVar[dict[str, Any]] = {"content_type": "no content type"}
    caught_by = "test_descriptor_is_accepted_by_the_registry"
    because = "is not a content type"


class TestBrokenByModelsThatRaises(BrokenSerializer):
    make = JSONSerializer
    options: ClassVar[dict[str, Any]] = {"models": lambda model: model is None or issubclass(model, msgspec.Struct)}
    caught_by = "test_models_answers_for_every_object"
    because = "it must answer False for what is not its own"

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        return [({"a": 1}, None)]


class MakesOneObject(JSONSerializer):
    only: ClassVar[JSONSerializer]

    @classmethod
    def make(cls) -> JSONSerializer:
        return cls.only


MakesOneObject.only = JSONSerializer()


class TestBrokenByMakingOneObject(BrokenSerializer):
    make = MakesOneObject.make
    caught_by = "test_two_instances_do_not_share_state"
    because = "the factory returned one object twice"


class TestBrokenByRefusingItsValues(BrokenSerializer):
    make = JSONSerializer
    caught_by = "test_values_come_back_equal_when_encoded_and_decoded"
    because = "overrides the fixture `values`"

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        return [(object(), None)]


class WantsAModel(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        if model is None:
            raise ConfigurationError("it wants a model", option="model")
        return super().decoder(model)


class TestBrokenByNotMakingItsModels(BrokenSerializer):
    make = WantsAModel
    caught_by = "test_values_travel_from_a_producer_to_a_consumer"
    because = "it wants a model"


# ---------------------------------------------------------------------- compressors


class BrokenCompressor(CompressorConformance):
    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[Callable[[int | None], Any]]
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
    because = "raised CancelledError, which is no Exception"


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


# ---------------------------------------------------------------------- metrics sinks


class Page:
    """What all sinks of a test export to, as a metrics page does."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.sinks: list[SoundSink] = []
        self.closed: Counter[Any] = Counter()

    def read(self) -> dict[tuple[str, tuple[str, ...]], float]:
        with self.lock:
            numbers: Counter[Any] = Counter(self.closed)
            for sink in list(self.sinks):
                numbers.update(sink.read())
            return {(f"my_{name}_total", labels): value for (name, labels), value in numbers.items()}


class SoundSink:
    def __init__(self, page: Page) -> None:
        self.page = page
        self.source: MetricsSource | None = None

    def start(self, source: MetricsSource, /) -> None:
        with self.page.lock:
            self.source = source
            self.page.sinks.append(self)

    def numbers(self, *kinds: str) -> Counter[Any]:
        assert self.source is not None
        samples = self.source.snapshot()
        return Counter({(each.metric.name, each.labels): each.value for each in samples if each.metric.kind in kinds})

    def read(self) -> Counter[Any]:
        try:
            return self.numbers("counter", "gauge")
        except Exception:
            return Counter()

    def close(self) -> None:
        with self.page.lock:
            if self not in self.page.sinks:
                return
            self.page.sinks.remove(self)
            try:
                self.page.closed.update(self.numbers("counter"))
            except Exception:
                return  # what was counted last is lost, and nothing else


class BrokenSink(MetricsConformance):
    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[Callable[[Page], Any]]

    @pytest.fixture
    def page(self) -> Page:
        return Page()

    @pytest.fixture
    def spec(self, page: Page) -> MetricsSpec:
        return MetricsSpec(name="broken", factory=lambda: type(self).make(page))

    @pytest.fixture
    def read(self, page: Page) -> Any:
        return page.read


class TestSoundSink(BrokenSink):
    make = SoundSink


class RaisesInClose(SoundSink):
    def close(self) -> None:
        super().close()
        raise RuntimeError("cannot close")


class TestBrokenByRaisingInClose(BrokenSink):
    make = RaisesInClose
    caught_by = "test_starts_and_closes"
    because = "close raised RuntimeError: cannot close"


class Pushes(SoundSink):
    def start(self, source: MetricsSource, /) -> None:
        super().start(source)
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self.push, args=(source,))
        self.thread.start()

    def push(self, source: MetricsSource) -> None:
        while not self.closed.wait(0.001):
            source.snapshot()

    def close(self) -> None:
        super().close()
        if self.source is not None:
            self.closed.set()
            self.thread.join()


class TestBrokenByPushing(BrokenSink):
    make = Pushes
    caught_by = "test_pulls_only_when_asked"
    because = "nobody asked for the numbers"


class RemovesItselfTwice(SoundSink):
    def close(self) -> None:
        if self.source is not None:
            self.page.sinks.remove(self)


class TestBrokenByClosingOnce(BrokenSink):
    make = RemovesItselfTwice
    caught_by = "test_closes_twice"
    because = "close, called a second time, raised ValueError"


class NeedsStart(SoundSink):
    def close(self) -> None:
        self.page.sinks.remove(self)


class TestBrokenByNeedingStart(BrokenSink):
    make = NeedsStart
    caught_by = "test_closes_without_start"
    because = "close without start raised ValueError"


class IsAlone(SoundSink):
    def start(self, source: MetricsSource, /) -> None:
        if self.page.sinks:
            raise ValueError("duplicated timeseries")
        super().start(source)


class TestBrokenByBeingAlone(BrokenSink):
    make = IsAlone
    caught_by = "test_two_sinks_live_side_by_side"
    because = "start of a second sink, while the first runs, raised ValueError: duplicated timeseries"


class ReadsAfterClose(SoundSink):
    def close(self) -> None:
        """Leaves everything as it is."""


class TestBrokenByReadingAfterClose(BrokenSink):
    make = ReadsAfterClose
    caught_by = "test_reads_nothing_after_close"
    because = "after close the sink called snapshot again"


class ForgetsWhatWasCounted(SoundSink):
    def close(self) -> None:
        with self.page.lock:
            if self in self.page.sinks:
                self.page.sinks.remove(self)


class TestBrokenByCountersThatFall(BrokenSink):
    make = ForgetsWhatWasCounted
    caught_by = "test_counters_never_fall"
    because = "a counter never falls"


class TestSoundSinkOfEachClient(BrokenSink):
    make = ForgetsWhatWasCounted
    counters_go_on = False


class BreaksWithItsSource(SoundSink):
    def read(self) -> Counter[Any]:
        return self.numbers("counter", "gauge")


class TestBrokenByASourceThatRaises(BrokenSink):
    make = BreaksWithItsSource
    caught_by = "test_survives_a_source_that_raises"
    because = "while another source raises raised RuntimeError"


class DropsGauges(SoundSink):
    def read(self) -> Counter[Any]:
        try:
            return self.numbers("counter")
        except Exception:
            return Counter()


class TestBrokenByDroppingGauges(BrokenSink):
    make = DropsGauges
    caught_by = "test_exports_every_sample"
    because = "is exported 0 times, not once"


class ExportsTheLastOnly(SoundSink):
    def start(self, source: MetricsSource, /) -> None:
        with self.page.lock:
            self.source = source
            self.page.sinks[:] = [self]


class TestBrokenByExportingTheLastOnly(BrokenSink):
    make = ExportsTheLastOnly
    caught_by = "test_exports_both_of_two_sinks"
    because = "is exported 0 times, not once"


class CollidesWithOthers(SoundSink):
    running: ClassVar[int] = 0

    def start(self, source: MetricsSource, /) -> None:
        CollidesWithOthers.running += 1
        try:
            time.sleep(0.001)
            if threading.active_count() > 3 and CollidesWithOthers.running > 1:
                raise RuntimeError("the registry changed")
            super().start(source)
        finally:
            CollidesWithOthers.running -= 1


class TestBrokenByCollidingWithOthers(BrokenSink):
    make = CollidesWithOthers
    caught_by = "test_many_sinks_start_and_close_at_once"
    because = "start, in several threads at once, raised RuntimeError"


class TestBrokenByItsName(BrokenSink):
    make = SoundSink
    caught_by = "test_descriptor_is_accepted_by_the_registry"
    because = "its name is 'Not a name'"

    @pytest.fixture
    def spec(self, page: Page) -> MetricsSpec:
        return MetricsSpec(name="Not a name", factory=lambda: SoundSink(page))


class TestBrokenByMissingRead(MetricsConformance):
    caught_by = "test_counters_never_fall"
    because = "must override the fixture `read`"

    @pytest.fixture
    def spec(self) -> MetricsSpec:
        return MetricsSpec(name="broken", factory=lambda: SoundSink(Page()))


# ---------------------------------------------------------------------- retry policies


class BrokenRetry(RetryConformance):
    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[Callable[[], Any]]

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="retry", name="broken", factory=type(self).make)


class SoundRetry:
    """Three retries with full jitter."""

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        if attempt > 3 or not isinstance(error, Exception):
            return None
        return random.uniform(0, min(30.0, 2.0 ** (attempt - 1)))


class TestSoundRetry(BrokenRetry):
    make = SoundRetry
    longest_delay = 30.0
    most_attempts = 4
    retried = OSError()


class NeverEnds(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        return 1.0 if isinstance(error, Exception) else None


class TestBrokenByNeverEnding(BrokenRetry):
    make = NeverEnds
    caught_by = "test_gives_up_in_the_end"
    because = "after 1000 attempts it must give up"


class RetriesCancellation(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        return 1.0 if attempt < 4 else None


class TestBrokenByRetryingCancellation(BrokenRetry):
    make = RetriesCancellation
    caught_by = "test_cancellation_is_never_retried"
    because = "who cancels wants an end"


class Overflows(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        delay = min(30.0, 2.0**attempt)
        return delay if attempt < 4 and isinstance(error, Exception) else None


class TestBrokenByOverflowing(BrokenRetry):
    make = Overflows
    caught_by = "test_delays_are_finite_and_bounded"
    because = "raised OverflowError: a policy decides, and never raises"


class CountsCalls(SoundRetry):
    def __init__(self) -> None:
        self._calls = 0

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        if not isinstance(error, Exception):
            return None
        self._calls += 1
        return 1.0 if self._calls % 5 and attempt < 100 else None


class TestBrokenByCountingCalls(BrokenRetry):
    make = CountsCalls
    caught_by = "test_callers_at_once_do_not_disturb_each_other"
    because = "it counts calls"


class RemembersItsDelay(SoundRetry):
    def __init__(self) -> None:
        self._delay = 0.0

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        if attempt > 100 or not isinstance(error, Exception):
            return None
        self._delay = min(self._delay + 0.01, 30.0)
        return self._delay


class TestBrokenByRememberingItsDelay(BrokenRetry):
    make = RemembersItsDelay
    caught_by = "test_keeps_no_state_between_calls"
    because = "it keeps state"


class PrintsTheError(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        return None if "fatal" in str(error) else super().next_delay(attempt, error)


class TestBrokenByPrintingTheError(BrokenRetry):
    make = PrintsTheError
    caught_by = "test_never_raises_whatever_the_error"
    because = "raised RuntimeError: a policy decides, and never raises"


class ReRaises(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        if not isinstance(error, Exception):
            raise error
        return super().next_delay(attempt, error)


class TestBrokenByRaisingTheError(BrokenRetry):
    make = ReRaises
    caught_by = "test_never_raises_whatever_the_error"
    because = "raised _Base, which is no Exception"


class IsNegative(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        return 1.0 - attempt if attempt < 4 and isinstance(error, Exception) else None


class TestBrokenByBeingNegative(BrokenRetry):
    make = IsNegative
    caught_by = "test_delays_are_finite_and_bounded"
    because = "must not be negative"


class ReturnsText(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> Any:
        return "1s" if attempt < 4 and isinstance(error, Exception) else None


class TestBrokenByReturningText(BrokenRetry):
    make = ReturnsText
    caught_by = "test_delays_are_finite_and_bounded"
    because = "is a str; the interface wants seconds as a float"


class TestBrokenByItsKind(BrokenRetry):
    make = SoundRetry
    caught_by = "test_descriptor_is_accepted_by_the_registry"
    because = "the kind of this PolicySpec is 'backoff'"

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="backoff", name="broken", factory=SoundRetry)


# ---------------------------------------------------------------------- backoff policies


class BrokenBackoff(BackoffConformance):
    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[Callable[[], Any]]

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="backoff", name="broken", factory=type(self).make)


class SoundBackoff:
    def delay(self, attempt: int, /) -> float:
        return random.uniform(0, 30.0 if attempt > 6 else 2.0**attempt / 2)


class TestSoundBackoff(BrokenBackoff):
    make = SoundBackoff
    longest_delay = 32.0


class TestBrokenByBeingARetryPolicy(BrokenBackoff):
    make = SoundRetry
    caught_by = "test_descriptor_is_accepted_by_the_registry"
    because = "the factory made a SoundRetry, which is no BackoffPolicy"


class GrowsWithoutEnd(SoundBackoff):
    def delay(self, attempt: int, /) -> float:
        return float(attempt)


class TestBrokenByGrowingWithoutEnd(BrokenBackoff):
    make = GrowsWithoutEnd
    caught_by = "test_delays_are_finite_and_bounded"
    because = "put a maximum on delays that grow"


class GivesUp(SoundBackoff):
    def delay(self, attempt: int, /) -> Any:
        return 1.0 if attempt < 10 else None


class TestBrokenByGivingUp(BrokenBackoff):
    make = GivesUp
    caught_by = "test_delays_are_finite_and_bounded"
    because = "a backoff policy never gives up"


class CountsItsOwnAttempts(SoundBackoff):
    def __init__(self) -> None:
        self._attempt = 0

    def delay(self, attempt: int, /) -> float:
        self._attempt = min(self._attempt + 1, 10_000)
        return self._attempt * 0.01


class TestBrokenByCountingItsOwnAttempts(BrokenBackoff):
    make = CountsItsOwnAttempts
    caught_by = "test_keeps_no_state_between_calls"
    because = "it keeps state"


class IsNotForThreads(SoundBackoff):
    def __init__(self) -> None:
        self._busy = False

    def delay(self, attempt: int, /) -> float:
        if self._busy:
            raise RuntimeError("busy")
        self._busy = True
        if threading.current_thread() is not threading.main_thread():
            time.sleep(1e-5)  # where another thread may come in
        self._busy = False
        return 1.0


class TestBrokenByNotBeingForThreads(BrokenBackoff):
    make = IsNotForThreads
    caught_by = "test_callers_at_once_do_not_disturb_each_other"
    because = "called by two threads at once, raised RuntimeError"


# ---------------------------------------------------------------------- circuit breakers


class SoundBreaker:
    """Opens when most of at least ten calls of the last minute failed; allows two trials after ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.closed = True
        self.good: Counter[int] = Counter()
        self.bad: Counter[int] = Counter()
        self.opened_at = 0.0
        self.trials = 0

    def before_call(self) -> None:
        if self.closed:
            return
        if self.clock() < self.opened_at + 10 or self.trials >= 2:
            raise CircuitOpen("not now")
        self.trials += 1

    def record(
        self, successes: int, failures: int, /, *, seconds: float = 0.0, error: BaseException | None = None
    ) -> None:
        if not self.closed:
            self.decide(successes, failures)
            return
        now = int(self.clock())
        self.good[now] += round(successes * min(1.0, 60.0 / seconds)) if seconds else successes
        self.bad[now] += failures
        for calls in (self.good, self.bad):
            for second in [second for second in calls if second < now - 60]:
                del calls[second]
        if self.bad.total() >= 10 and self.bad.total() > self.good.total():
            self.open()

    def decide(self, successes: int, failures: int) -> None:
        self.trials = max(self.trials - 1, 0)
        if failures:
            self.open()
        elif successes:
            self.close()

    def open(self) -> None:
        self.closed = False
        self.opened_at = self.clock()
        self.trials = 0

    def close(self) -> None:
        self.closed = True
        self.good.clear()
        self.bad.clear()


class BrokenBreaker(CircuitBreakerConformance):
    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[Callable[[Callable[[], float]], Any]]

    @pytest.fixture
    def make_breaker(self) -> Any:
        return type(self).make


class TestSoundBreaker(BrokenBreaker):
    make = SoundBreaker

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="circuit_breaker", name="sound", factory=SoundBreaker)


class NeverHalfOpens(SoundBreaker):
    def before_call(self) -> None:
        if not self.closed:
            raise CircuitOpen("never")


class TestBrokenByNeverHalfOpening(BrokenBreaker):
    make = NeverHalfOpens
    caught_by = "test_allows_a_trial_after_some_time"
    because = "it stays open for ever"


class IgnoresOpen(SoundBreaker):
    def before_call(self) -> None:
        """Lets everything through."""


class TestBrokenByIgnoringOpen(BrokenBreaker):
    make = IgnoresOpen
    caught_by = "test_refuses_calls_while_open"
    because = "it is open and no time has passed, but before_call allowed a call"


class RefusesOtherwise(SoundBreaker):
    def before_call(self) -> None:
        try:
            super().before_call()
        except CircuitOpen:
            raise RuntimeError("open") from None


class TestBrokenByRefusingOtherwise(BrokenBreaker):
    make = RefusesOtherwise
    caught_by = "test_refuses_calls_while_open"
    because = "the interface wants leveret.errors.CircuitOpen"


class NeverOpens(SoundBreaker):
    def open(self) -> None:
        self.good.clear()
        self.bad.clear()


class TestBrokenByNeverOpening(BrokenBreaker):
    make = NeverOpens
    caught_by = "test_opens_after_many_failures"
    because = "failures in a row did not open it"


class CountsBatchesAsOne(SoundBreaker):
    def record(self, successes: int, failures: int, /, **options: Any) -> None:
        super().record(successes, min(failures, 1), **options)


class TestBrokenByCountingBatchesAsOne(BrokenBreaker):
    make = CountsBatchesAsOne
    caught_by = "test_opens_after_failures_that_come_at_once"
    because = "count all failures of one call"


class IgnoresSeconds(SoundBreaker):
    def record(self, successes: int, failures: int, /, *, seconds: float = 0.0, error: Any = None) -> None:
        super().record(successes, failures, error=error)


class TestBrokenByIgnoringSeconds(BrokenBreaker):
    make = IgnoresSeconds
    caught_by = "test_opens_although_old_successes_are_recorded_late"
    because = "older than any window"


class OpensOnSuccess(SoundBreaker):
    def record(self, successes: int, failures: int, /, **options: Any) -> None:
        super().record(0, successes + failures, **options)


class TestBrokenByOpeningOnSuccess(BrokenBreaker):
    make = OpensOnSuccess
    caught_by = "test_stays_closed_while_calls_succeed"
    because = "it opened although no call ever failed"


class StartsOpen(SoundBreaker):
    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.open()


class TestBrokenByStartingOpen(BrokenBreaker):
    make = StartsOpen
    caught_by = "test_is_closed_at_first"
    because = "`closed` of a new breaker is False"


class ComputesClosed:
    """`closed` is computed each time, and becomes true when time passes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.inner = SoundBreaker(clock)

    @property
    def closed(self) -> bool:
        return self.inner.closed or self.inner.clock() > self.inner.opened_at + 10

    def before_call(self) -> None:
        self.inner.before_call()

    def record(self, successes: int, failures: int, /, **options: Any) -> None:
        self.inner.record(successes, failures, **options)


class TestBrokenByComputingClosed(BrokenBreaker):
    make = ComputesClosed
    caught_by = "test_closed_is_a_plain_attribute"
    because = "`closed` is a property"


class TestBrokenByClosingWithTime(BrokenBreaker):
    make = ComputesClosed
    caught_by = "test_stays_open_until_a_trial_succeeds"
    because = "`closed` became True when time passed"


class AllowsAnyNumberOfTrials(SoundBreaker):
    def before_call(self) -> None:
        self.trials = 0
        super().before_call()


class TestBrokenByAllowingAnyNumberOfTrials(BrokenBreaker):
    make = AllowsAnyNumberOfTrials
    caught_by = "test_limits_how_many_trials_run_at_once"
    because = "limit the trials"


class NeverCloses(SoundBreaker):
    def close(self) -> None:
        """Waits for more."""


class TestBrokenByNeverClosing(BrokenBreaker):
    make = NeverCloses
    caught_by = "test_closes_when_trials_succeed"
    because = "it is still not closed"


class ForgivesFailedTrials(SoundBreaker):
    def decide(self, successes: int, failures: int) -> None:
        self.trials = 0
        if successes:
            self.close()


class TestBrokenByForgivingFailedTrials(BrokenBreaker):
    make = ForgivesFailedTrials
    caught_by = "test_opens_again_when_a_trial_fails"
    because = "open it again"


class ClosesOnFailedTrials(SoundBreaker):
    def decide(self, successes: int, failures: int) -> None:
        self.trials = 0
        if successes or failures:
            self.close()


class TestBrokenByClosingOnFailedTrials(BrokenBreaker):
    make = ClosesOnFailedTrials
    caught_by = "test_opens_again_when_a_trial_fails"
    because = "a trial failed, and it closed"


class KeepsCancelledTrials(SoundBreaker):
    def decide(self, successes: int, failures: int) -> None:
        if successes or failures:
            super().decide(successes, failures)


class TestBrokenByKeepingCancelledTrials(BrokenBreaker):
    make = KeepsCancelledTrials
    caught_by = "test_a_trial_without_result_is_given_back"
    because = "give its place back"


class TestBrokenByBlockingAfterCancelledTrials(BrokenBreaker):
    make = KeepsCancelledTrials
    caught_by = "test_recovers_after_cancelled_trials"
    because = "it stays open for ever"


class TakesCancelledForSuccess(SoundBreaker):
    def decide(self, successes: int, failures: int) -> None:
        super().decide(successes or not failures, failures)


class TestBrokenByTakingCancelledForSuccess(BrokenBreaker):
    make = TakesCancelledForSuccess
    caught_by = "test_a_trial_without_result_is_given_back"
    because = "only a success may"


class WantsAnError(SoundBreaker):
    def record(self, successes: int, failures: int, /, *, seconds: float = 0.0, error: Any = None) -> None:
        if failures and not isinstance(error, Exception):
            raise TypeError("error must be an Exception")
        super().record(successes, failures, seconds=seconds)


class TestBrokenByWantingAnError(BrokenBreaker):
    make = WantsAnError
    caught_by = "test_takes_every_error"
    because = "it must never raise"


class TestBrokenByBeingShared(BrokenBreaker):
    caught_by = "test_two_breakers_do_not_share_state"
    because = "make_breaker returned one object twice"

    @pytest.fixture
    def make_breaker(self) -> Any:
        only = SoundBreaker()
        return lambda clock: only


class TestBrokenByMakingSomethingElse(BrokenBreaker):
    make = SoundBreaker
    caught_by = "test_descriptor_is_accepted_by_the_registry"
    because = "which is no BreakerPolicy"

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="circuit_breaker", name="broken", factory=dict)


# ---------------------------------------------------------------------- fixtures that are missing


class TestBrokenByMissingSpec(SerializerConformance):
    caught_by = "test_encode_returns_bytes"
    because = "TestBrokenByMissingSpec must override the fixture `spec`"


class TestBrokenByMissingBreaker(CircuitBreakerConformance):
    caught_by = "test_is_closed_at_first"
    because = "must override the fixture `make_breaker`"
