"""Sound metrics sinks, each broken in one way, with the conformance kit as their tests."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from leveret.plugins import MetricsSpec
from leveret.testing import (
    MetricsConformance,
)

if TYPE_CHECKING:
    from leveret.plugins import Distribution, MetricsSource, Sample


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
        numbers: Counter[Any] = Counter()
        for sample in self.source.snapshot():
            if sample.metric.kind in kinds:
                if sample.distribution is None:
                    numbers[sample.metric.name, sample.labels] = sample.value
                else:
                    self.add_distribution(numbers, sample, sample.distribution)
        return numbers

    def add_distribution(self, numbers: Counter[Any], sample: Sample, distribution: Distribution) -> None:
        name = sample.metric.name
        bounds = (0.001, 0.0025, 0.01, 0.1, 1.0, 10.0, math.inf)
        for bound, count in zip(bounds, distribution.at_most(bounds), strict=True):
            numbers[f"{name}_bucket", (*sample.labels, str(bound))] = count
        numbers[f"{name}_count", sample.labels] = distribution.count
        numbers[f"{name}_sum", sample.labels] = distribution.total  # type: ignore[assignment] # seconds

    def read(self) -> Counter[Any]:
        try:
            return self.numbers("counter", "gauge", "histogram")
        except Exception:
            return Counter()

    def close(self) -> None:
        with self.page.lock:
            if self not in self.page.sinks:
                return
            self.page.sinks.remove(self)
            try:
                self.page.closed.update(self.numbers("counter", "histogram"))
            except Exception:
                return  # what was counted last is lost, and nothing else


class BrokenSink(MetricsConformance):
    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[type[Any]]

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
    because = "nothing read the export"


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
        return self.numbers("counter", "gauge", "histogram")


class TestBrokenByASourceThatRaises(BrokenSink):
    make = BreaksWithItsSource
    caught_by = "test_survives_a_source_that_raises"
    because = "while another source raises raised RuntimeError"


class DropsGauges(SoundSink):
    def read(self) -> Counter[Any]:
        try:
            return self.numbers("counter", "histogram")
        except Exception:
            return Counter()


class TestBrokenByDroppingGauges(BrokenSink):
    make = DropsGauges
    caught_by = "test_exports_every_sample"
    because = "is exported 0 times, not once"


class DropsDistributions(SoundSink):
    def read(self) -> Counter[Any]:
        return self.numbers("counter", "gauge")


class TestBrokenByDroppingDistributions(BrokenSink):
    make = DropsDistributions
    caught_by = "test_exports_every_sample"
    because = "conformance_times (count) with the labels"


class MisnamesDistributions(SoundSink):
    def add_distribution(self, numbers: Counter[Any], sample: Sample, distribution: Distribution) -> None:
        # As of a counter: nothing tells that this is a number of values.
        numbers[sample.metric.name, sample.labels] = distribution.count


class TestBrokenByMisnamingDistributions(BrokenSink):
    make = MisnamesDistributions
    caught_by = "test_exports_every_sample"
    because = "conformance_times (count) with the labels"


class CountsDistributionsTwice(SoundSink):
    def add_distribution(self, numbers: Counter[Any], sample: Sample, distribution: Distribution) -> None:
        super().add_distribution(numbers, sample, distribution + distribution)


class TestBrokenByCountingDistributionsTwice(BrokenSink):
    make = CountsDistributionsTwice
    caught_by = "test_exports_every_sample"
    because = "is exported as 120, not 60"


class ForgetsSums(SoundSink):
    def add_distribution(self, numbers: Counter[Any], sample: Sample, distribution: Distribution) -> None:
        super().add_distribution(numbers, sample, distribution)
        numbers[f"{sample.metric.name}_sum", sample.labels] = distribution.count


class TestBrokenByWrongSums(BrokenSink):
    make = ForgetsSums
    caught_by = "test_exports_every_sample"
    because = "conformance_times (sum) with the labels"


class HasBucketsOfTheirOwn(SoundSink):
    def add_distribution(self, numbers: Counter[Any], sample: Sample, distribution: Distribution) -> None:
        super().add_distribution(numbers, sample, distribution)
        # Each bucket by itself, and not with all below it.
        numbers[f"{sample.metric.name}_bucket", (*sample.labels, "1.0")] -= 30


class TestBrokenByWrongBuckets(BrokenSink):
    make = HasBucketsOfTheirOwn
    caught_by = "test_exports_every_sample"
    because = "the bucket 1 of conformance_times"


class ForgetsDistributions(SoundSink):
    def close(self) -> None:
        with self.page.lock:
            if self in self.page.sinks:
                self.page.sinks.remove(self)
                with contextlib.suppress(Exception):
                    self.page.closed.update(self.numbers("counter"))


class TestBrokenByDistributionsThatFall(BrokenSink):
    make = ForgetsDistributions
    caught_by = "test_counters_never_fall"
    because = "the counter conformance_times (count)"


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
