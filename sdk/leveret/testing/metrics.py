"""The conformance kit of metrics sinks."""

from __future__ import annotations

import itertools
import math
import re
import threading
from typing import TYPE_CHECKING, ClassVar, Final

import pytest

from leveret.errors import PluginError
from leveret.monitoring.histogram import Histogram
from leveret.plugins.interfaces import Metric, MetricsSpec, Sample
from leveret.testing.base import (
    Conformance,
    fail,
    in_threads,
    ordinary,
    override,
    registry_of,
    require,
    with_deadline,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from leveret.plugins import Distribution
    from leveret.plugins.interfaces import MetricsSink

__all__ = ["KitSource", "MetricsConformance", "ReadMetrics"]

if TYPE_CHECKING:
    #: Returns what is exported: (metric name, label values) to value.
    ReadMetrics = Callable[[], Mapping[tuple[str, tuple[str, ...]], float]]

_SENT: Final = Metric("conformance_sendings", "counter", "messages", "Messages of the kit.", ("client", "outcome"))
_BYTES: Final = Metric("conformance_volume", "counter", "bytes", "Bytes of the kit.", ("client",))
_WAITING: Final = Metric("conformance_waiting", "gauge", "messages", "Messages that wait.", ("client", "queue"))
_UP: Final = Metric("conformance_up", "gauge", "", "1 while the kit is up.", ("client",))
_TIMES: Final = Metric("conformance_times", "histogram", "seconds", "Durations of the kit.", ("client", "queue"))
#: Durations in nanoseconds, and how often each came.
_DURATIONS: Final = {2_000_000: 30, 70_000_000: 20, 3_000_000_000: 10}
#: The numbers that are exported of a histogram, by the words behind its name: how many values came, and their sum.
_PARTS: Final = ("count", "sum")
#: A bound this near to a value, as a share of it, may have the value on either side.
_NEAR: Final = 1 / 8

#: How often a sink may call `snapshot` while nothing reads its export; `start` may need some of these calls.
_UNASKED: Final = 3
#: Seconds for which the kit counts these calls.
_WATCHED: Final = 0.5
#: Seconds that `start` and `close` may take. The core waits for `sink_timeout`, 5 s by default.
_PROMPT: Final = 10.0

_clients = itertools.count(1)


class KitSource:
    """A `MetricsSource` whose numbers the kit sets.

    Args:
        client: The first label of every sample, unique unless it is given.

    Attributes:
        client: The first label of every sample.
        broken: True makes `snapshot` raise.
        calls: How often `snapshot` was called.
        too_often: Set when `snapshot` was called more than three times.
        step: The factor of all counters.
    """

    def __init__(self, client: str = "") -> None:
        # All sinks of a process may share one export, so each source needs labels of its own.
        self.client = client or f"conformance-{next(_clients)}"
        self.broken = False
        self.calls = 0
        self.too_often = threading.Event()
        self.step = 1

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Two counters, two gauges and a histogram."""
        return (_SENT, _BYTES, _WAITING, _UP, _TIMES)

    def samples(self) -> list[Sample]:
        """The numbers as they are now."""
        client = self.client
        return [
            Sample(_SENT, (client, "confirmed"), 10 * self.step),
            Sample(_SENT, (client, 'a "strange"\noutcome \\ {}'), 3 * self.step),
            Sample(_BYTES, (client,), 2**40 * self.step),
            Sample(_WAITING, (client, "orders"), 7),
            Sample(_WAITING, (client, ""), 0),
            Sample(_UP, (client,), 1),
            _times((client, "orders"), {value: count * self.step for value, count in _DURATIONS.items()}),
            _times((client, ""), {5_000_000: self.step}),
        ]

    def snapshot(self) -> Iterable[Sample]:
        """Returns the samples, and counts the call."""
        self.calls += 1
        if self.calls > _UNASKED:
            self.too_often.set()
        if self.broken:
            raise RuntimeError("the kit's source fails on purpose")
        return self.samples()


class MetricsConformance(Conformance):
    """Checks a metrics sink against `leveret.plugins.MetricsSink`.

    Subclass it in a class named `Test...` and override two fixtures. `spec` returns the `MetricsSpec`. `read` returns a
    function without arguments that reads the export as a monitoring system would, and returns
    `{(metric name, label values): value}` for all sinks of the factory. Names may have a prefix and a suffix, and other
    characters between the words; label values may stand in any order, and there may be more of them.

    Of a histogram two numbers are expected, whose names have the words `count` and `sum` behind the metric's name: how
    many values came, and their sum. Numbers with the word `bucket` there, and a label that is a number, are checked as
    well: each is how many values do not exceed that number.

    Attributes:
        counters_go_on: True: all sinks export to one place, such as the metrics page of a process. A counter must not
            fall there when a client closes and another client of the same name begins at zero, so the sink adds the
            counts of closed clients. False: the sink exports each client separately, under a name of its own.

    Example:
        >>> import pytest
        >>> class Registry:
        ...     def read(self):
        ...         return {("myapp_conformance_up", ("conformance-1",)): 1.0}
        >>> class TestMySink(MetricsConformance):
        ...     @pytest.fixture
        ...     def registry(self):
        ...         return Registry()
        ...
        ...     @pytest.fixture
        ...     def spec(self, registry):
        ...         return MetricsSpec(name="mine", factory=lambda: MySink(registry))
        ...
        ...     @pytest.fixture
        ...     def read(self, registry):
        ...         return registry.read
    """

    counters_go_on: ClassVar[bool] = True

    @pytest.fixture
    def spec(self) -> MetricsSpec:
        """The descriptor to check; override it."""
        override(type(self), "spec", "your MetricsSpec")

    @pytest.fixture
    def read(self) -> ReadMetrics:
        """A function that reads what is exported; override it."""
        override(type(self), "read", "a function that returns {(metric name, label values): value} as exported")

    # ------------------------------------------------------------------ the descriptor

    def test_descriptor_is_accepted_by_the_registry(self, spec: MetricsSpec) -> None:
        """The name has the right syntax, and the factory makes a sink."""
        require(isinstance(spec, MetricsSpec), f"`spec` is a {type(spec).__name__}, not a MetricsSpec")
        try:
            registry_of("leveret_metrics", spec).make_sink(spec.name)
        except PluginError as error:
            fail(f"the core does not take this MetricsSpec: {error}")

    # ------------------------------------------------------------------ starting and closing

    def test_starts_and_closes(self, spec: MetricsSpec) -> None:
        """`start` and `close` return within 10 s and raise nothing."""
        sink = spec.factory()
        _start(sink, KitSource())
        _close(sink)

    def test_closes_twice(self, spec: MetricsSpec) -> None:
        """Closing again does nothing."""
        sink = spec.factory()
        _start(sink, KitSource())
        _close(sink)
        _close(sink, "close, called a second time,")

    def test_closes_without_start(self, spec: MetricsSpec) -> None:
        """A sink that was never started can be closed."""
        _close(spec.factory(), "close without start")

    def test_two_sinks_live_side_by_side(self, spec: MetricsSpec) -> None:
        """A process may have several clients, each with a sink; they start and close in any order."""
        one, other = spec.factory(), spec.factory()
        require(one is not other, "the factory returned one object twice; each client gets its own")
        _start(one, KitSource())
        _start(other, KitSource(), "start of a second sink, while the first runs,")
        _close(one)
        _close(other)

    def test_many_sinks_start_and_close_at_once(self, spec: MetricsSpec) -> None:
        """The core calls `start` and `close` in threads, for several clients at once."""

        def live() -> None:
            for _ in range(10):
                sink = spec.factory()
                _start(sink, KitSource(), "start, in several threads at once,")
                _close(sink, "close, in several threads at once,")

        in_threads(live, live, live, live)

    # ------------------------------------------------------------------ pulling

    def test_pulls_only_when_asked(self, spec: MetricsSpec) -> None:
        """Without a reader, `start` and the half second after it call `snapshot` three times at most."""
        source = KitSource()
        sink = spec.factory()
        _start(sink, source)
        try:
            often = source.too_often.wait(_WATCHED)
        finally:
            _close(sink)
        require(
            not often,
            f"nothing read the export, and the sink called snapshot more than {_UNASKED} times within {_WATCHED} s: "
            "keep the source, and call its snapshot when the export is read, or every few seconds",
        )

    def test_reads_nothing_after_close(self, spec: MetricsSpec, read: ReadMetrics) -> None:
        """After `close` the sink does not call `snapshot`, because the source may be gone."""
        source = KitSource()
        sink = spec.factory()
        _start(sink, source)
        _read(read)
        _close(sink)
        before = source.calls
        _read(read)
        require(source.calls == before, "after close the sink called snapshot again; the source may be gone by then")

    # ------------------------------------------------------------------ what is exported

    def test_exports_every_sample(self, spec: MetricsSpec, read: ReadMetrics) -> None:
        """Every sample is exported with its value and labels, under a name that contains the metric's name.

        A distribution is exported as how many values came, and their sum. Its buckets, if there are any, have them too.
        """
        source = KitSource()
        sink = spec.factory()
        _start(sink, source)
        try:
            for source.step in (1, 2, 5):
                _require_exported(source, _read(read))
        finally:
            _close(sink)

    def test_exports_both_of_two_sinks(self, spec: MetricsSpec, read: ReadMetrics) -> None:
        """The numbers of two clients are exported together. When one client closes, those of the other stay."""
        sources = KitSource(), KitSource()
        sinks = spec.factory(), spec.factory()
        for sink, source in zip(sinks, sources, strict=True):
            _start(sink, source)
        try:
            sources[1].step = 4
            exported = _read(read)
            for source in sources:
                _require_exported(source, exported)
            _close(sinks[0])
            sources[1].step = 6
            _require_exported(sources[1], _read(read))
        finally:
            for sink in sinks:
                _close(sink)

    def test_counters_never_fall(self, spec: MetricsSpec, read: ReadMetrics) -> None:
        """A counter does not fall, even when its client was closed and another of the same name begins at zero.

        Neither do the numbers of a histogram.

        With `counters_go_on = False` the numbers of each client are compared separately.
        """
        first, second = KitSource(), None
        sink = spec.factory()
        _start(sink, first)
        exported = []
        try:
            for first.step in (1, 2, 3):
                exported.append(_read(read))
        finally:
            _close(sink)
        second = KitSource(first.client)
        sink = spec.factory()
        _start(sink, second, "start of a second sink, after the first was closed,")
        try:
            for second.step in (0, 1, 5):
                exported.append(_read(read))
        finally:
            _close(sink)
        for sample in first.samples():
            if sample.metric.kind == "gauge":
                continue
            for part in _parts(sample):
                found = [_value_of(sample, part, numbers) for numbers in exported]
                runs = [found] if self.counters_go_on else [found[:3], found[3:]]
                require(
                    all(run == sorted(run) for run in runs),
                    f"the counter {_named(sample, part)} {sample.labels} was exported as {found}, one after the other. "
                    "The fourth comes from a second client of the same name, which begins at 0: a counter never falls, "
                    "so add the last numbers of sources that were closed, or, if clients are exported separately, set "
                    "`counters_go_on = False`",
                )

    # ------------------------------------------------------------------ bad sources

    def test_survives_a_source_that_raises(self, spec: MetricsSpec, read: ReadMetrics) -> None:
        """While one source raises, the others are exported. A source that works again is exported again."""
        bad, good = KitSource(), KitSource()
        sinks = spec.factory(), spec.factory()
        bad.broken = True
        _start(sinks[0], bad, "start, with a source that raises,")
        try:
            _start(sinks[1], good)
            _require_exported(good, _read(read, "while another source raises"))
            bad.broken = False
            _require_exported(bad, _read(read, "after a source that had raised works again"))
            bad.broken = True
        finally:
            _close(sinks[0], "close, with a source that raises,")
            _close(sinks[1])
        _read(read, "after a source that raises was closed")


# ---------------------------------------------------------------------- using sinks


def _start(sink: MetricsSink, source: KitSource, what: str = "start") -> None:
    _call(lambda: sink.start(source), what)


def _close(sink: MetricsSink, what: str = "close") -> None:
    _call(sink.close, what)


def _call(function: Callable[[], None], what: str) -> None:
    try:
        with_deadline(function, what, _PROMPT)
    except BaseException as error:
        ordinary(error, what)
        fail(f"{what} raised {type(error).__name__}: {error}")


def _read(read: ReadMetrics, when: str = "") -> Mapping[tuple[str, tuple[str, ...]], float]:
    try:
        return dict(read())
    except BaseException as error:
        ordinary(error, "read")
        fail(f"reading what is exported{when and ' ' + when} raised {type(error).__name__}: {error}")


# ---------------------------------------------------------------------- what was exported


def _times(labels: tuple[str, ...], durations: Mapping[int, int]) -> Sample:
    histogram = Histogram()
    for value, count in durations.items():
        histogram.record(value, count)
    return Sample(_TIMES, labels, histogram.count, histogram.read())


def _parts(sample: Sample) -> tuple[str, ...]:
    return ("",) if sample.distribution is None else _PARTS


def _named(sample: Sample, part: str) -> str:
    return f"{sample.metric.name} ({part})" if part else sample.metric.name


def _words(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


def _found(
    sample: Sample, part: str, exported: Mapping[tuple[str, tuple[str, ...]], float]
) -> list[tuple[tuple[str, ...], float]]:
    """Returns the labels and values of what is exported under a sample's labels, with this word behind its name."""
    return [
        (labels, value)
        for (name, labels), value in exported.items()
        if sample.metric.name in _words(name)
        and (not part or part in _words(name).rpartition(sample.metric.name)[2].split("_"))
        and all(labels.count(each) >= 1 for each in sample.labels)
    ]


def _value_of(sample: Sample, part: str, exported: Mapping[tuple[str, tuple[str, ...]], float]) -> float:
    found = _found(sample, part, exported)
    names = sorted({name for name, _ in exported if "conformance" in name})
    require(
        len(found) == 1,
        f"{_named(sample, part)} with the labels {sample.labels} is exported {len(found)} times, not once; the names "
        f"of the kit's metrics in what `read` returned are {names}",
    )
    return found[0][1]


def _require_exported(source: KitSource, exported: Mapping[tuple[str, tuple[str, ...]], float]) -> None:
    for sample in source.samples():
        expected: dict[str, float] = {"": sample.value}
        if sample.distribution is not None:
            expected = {"count": sample.distribution.count, "sum": sample.distribution.total}
        for part, wanted in expected.items():
            value = _value_of(sample, part, exported)
            require(
                value == wanted or (part == "sum" and math.isclose(value, wanted, rel_tol=1e-9)),
                f"{_named(sample, part)} with the labels {sample.labels} is exported as {value}, not {wanted}",
            )
        if sample.distribution is not None:
            _require_buckets(sample, sample.distribution, exported)


def _require_buckets(
    sample: Sample, distribution: Distribution, exported: Mapping[tuple[str, tuple[str, ...]], float]
) -> None:
    for labels, value in _found(sample, "bucket", exported):
        others = list(labels)
        for label in sample.labels:
            others.remove(label)
        for bound in filter(None, map(_number, others)):
            around = distribution.at_most([bound * (1 - _NEAR), bound * (1 + _NEAR)])
            if around[0] == around[1]:
                require(
                    value == around[0],
                    f"the bucket {bound:g} of {sample.metric.name} with the labels {sample.labels} is exported as "
                    f"{value}; {around[0]} values do not exceed its bound",
                )


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None
