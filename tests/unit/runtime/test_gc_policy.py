"""The garbage collector's policy: when it collects and what, never everything by force, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import sysconfig
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.collector import frozen_by_others, unchanged_collector
from tests.support.loops import every_loop
from tests.support.metrics import values

import leveret
from leveret.consuming.acks import AckWindow
from leveret.errors import ConfigurationError
from leveret.monitoring.meters import ConsumerMeter
from leveret.monitoring.monitor import Monitor
from leveret.runtime import gc_policy as module
from leveret.runtime.gc_policy import GcPolicy, GcStatistics

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def collector() -> Iterator[None]:
    """A collector as a program finds it, with nothing frozen, and the same afterwards."""
    with unchanged_collector():
        yield


@pytest.mark.usefixtures("collector")
async def test_s33_the_collector_is_as_before_when_the_policy_is_closed() -> None:
    former = gc.get_threshold()
    policy = GcPolicy(threshold=12_345)
    assert not policy.is_active
    async with policy as entered:
        assert entered is policy
        assert policy.is_active
        assert repr(policy) == "<GcPolicy active threshold=12345>"
        assert gc.get_threshold() == (12_345, *former[1:])
        assert frozen_by_others() > 1000
        assert len(gc.callbacks) > 0
    assert gc.get_threshold() == former
    assert frozen_by_others() == 0
    assert not policy.is_active
    policy.close()  # again does nothing


@pytest.mark.usefixtures("collector")
async def test_s33_the_collector_is_as_before_when_the_block_raises() -> None:
    former = gc.get_threshold()
    with pytest.raises(KeyError, match="mine"):
        async with GcPolicy():
            raise KeyError("mine")
    assert (gc.get_threshold(), frozen_by_others()) == (former, 0)


@pytest.mark.usefixtures("collector")
async def test_s33_a_policy_may_be_started_again() -> None:
    policy = GcPolicy(freeze=False)
    for _ in range(2):
        assert policy.start() is policy
        assert frozen_by_others() == 0
        policy.close()


@pytest.mark.usefixtures("collector")
async def test_s33_only_one_is_active_in_a_process() -> None:
    former = gc.get_threshold()
    async with GcPolicy(threshold=5000) as first:
        for policy in (first, GcPolicy(threshold=6000)):
            with pytest.raises(ConfigurationError, match="a GcPolicy is active in this process already"):
                policy.start()
        policy.close()  # not active: it does nothing to the first
        assert gc.get_threshold()[0] == 5000
    assert gc.get_threshold() == former


@pytest.mark.usefixtures("collector")
def test_s33_one_whose_loop_is_gone_is_put_away_by_the_next() -> None:
    former = gc.get_threshold()

    async def forget() -> None:
        GcPolicy(threshold=5000).start()

    async def use() -> None:
        async with GcPolicy(threshold=6000):
            assert gc.get_threshold()[0] == 6000

    asyncio.run(forget())
    asyncio.run(use())
    assert gc.get_threshold() == former


def test_s33_it_is_started_in_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        GcPolicy().start()
    assert GcPolicy._active is None


@pytest.mark.usefixtures("collector")
async def test_s33_it_refuses_when_collection_is_switched_off() -> None:
    gc.disable()
    try:
        with pytest.raises(ConfigurationError, match="switched off"):
            GcPolicy().start()
    finally:
        gc.enable()
    former = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with pytest.raises(ConfigurationError, match="switched off"):
            GcPolicy().start()
    finally:
        gc.set_threshold(*former)
    assert GcPolicy._active is None


async def test_s33_it_refuses_when_every_collection_would_be_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: int(name == "Py_GIL_DISABLED"))
    with pytest.raises(ConfigurationError, match="needs CPython with the GIL"):
        GcPolicy().start()


@pytest.mark.usefixtures("collector")
async def test_s33_what_others_have_frozen_stays_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    async with GcPolicy():
        assert gc.get_freeze_count() <= frozen
    left = gc.get_freeze_count()
    gc.unfreeze()
    assert left > frozen // 2


@pytest.mark.usefixtures("collector")
async def test_s33_thresholds_that_others_set_meanwhile_stay() -> None:
    former = gc.get_threshold()
    async with GcPolicy():
        gc.set_threshold(999, 8, 7)
    found = gc.get_threshold()
    gc.set_threshold(*former)
    assert found == (999, 8, 7)


@pytest.mark.usefixtures("collector")
async def test_s33_a_threshold_that_is_higher_already_is_not_lowered() -> None:
    former = gc.get_threshold()
    gc.set_threshold(50_000, 20, 30)
    async with GcPolicy(threshold=10_000):
        assert gc.get_threshold() == (50_000, 20, 30)
    assert gc.get_threshold() == (50_000, 20, 30)
    gc.set_threshold(*former)


def test_s33_options_are_checked() -> None:
    assert GcPolicy(leveret.GcSettings(threshold=2000), freeze=False).settings == leveret.GcSettings(
        threshold=2000, freeze=False
    )
    with pytest.raises(ConfigurationError, match="unknown option 'treshold'; did you mean 'threshold'") as caught:
        GcPolicy(treshold=1)
    assert caught.value.option == "treshold"


#: How long a test waits for a collection that never comes, in seconds.
DEADLINE = 20


class Collections:
    """What collections there were, by generation."""

    def __init__(self) -> None:
        self.generations: list[int] = []
        self.seen = asyncio.Event()

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            self.generations.append(info["generation"])
            self.seen.set()

    async def next(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await self.seen.wait()
        self.seen.clear()


@pytest.fixture
async def collections(collector: None) -> Any:
    """Watches collections. What exists now is frozen, so that only what the test makes is looked at."""
    gc.collect()
    gc.freeze()
    gc.collect()
    watching = Collections()
    gc.callbacks.append(watching)
    yield watching
    gc.callbacks.remove(watching)
    gc.unfreeze()


class Node:
    """Refers to itself, so only the collector frees it."""

    def __init__(self) -> None:
        self.me = self


def garbage(count: int = 3000) -> weakref.ref[Node]:
    """Makes cycles that nobody holds; returns a reference to one."""
    nodes = [Node() for _ in range(count)]
    return weakref.ref(nodes[0])


@every_loop
async def test_s33_the_youngest_are_collected_when_the_loop_is_idle(collections: Collections) -> None:
    async with GcPolicy(interval=0.001, idle_turn=1, max_delay=86_400) as policy:
        node = garbage()
        assert node() is not None  # it would be gone with Python's own threshold
        await collections.next()
        assert node() is None
        (young, middle, old) = policy.statistics()
    assert collections.generations == [0]
    assert young.collections == 1
    assert young.collected >= 3000
    assert young.seconds > 0
    assert middle == old == GcStatistics(0, 0, 0, 0.0)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@every_loop
async def test_s33_a_loop_that_is_never_idle_collects_after_max_delay(
    collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    loop = asyncio.get_running_loop()
    busy = True

    def work() -> None:
        clock.now += 0.01  # so long does a turn of the loop take, which is ten times what counts as idle
        if busy:
            loop.call_soon(work)

    async with GcPolicy(interval=0.001, idle_turn=0.001, max_delay=5):
        work()
        garbage()
        await collections.next()
        busy = False
        assert clock.now >= 1005
    assert collections.generations == [0]


async def test_s33_python_collects_by_itself_at_the_threshold(collections: Collections) -> None:
    async with GcPolicy(threshold=5000, interval=60) as policy:  # the timer does not come
        garbage(4000)
        assert collections.generations == []
        garbage(4000)
        assert collections.generations in ([0], [1])  # where it collects in increments, that is 1
        assert sum(generation.collections for generation in policy.statistics()) == 1


async def test_s33_nothing_is_collected_when_there_is_little(
    collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    enough = asyncio.Event()
    little = gc.get_threshold()[0]

    def get_count() -> tuple[int, int, int]:
        nonlocal looks
        looks += 1
        if looks == 10:
            enough.set()
        return little, 1, 1

    async with GcPolicy(interval=0.001, idle_turn=1, max_delay=0.001):
        monkeypatch.setattr(gc, "get_count", get_count)
        async with asyncio.timeout(DEADLINE):
            await enough.wait()
    assert collections.generations == []


async def test_s33_every_eleventh_collection_is_of_the_middle_generation(collections: Collections) -> None:
    async with GcPolicy(interval=0.001, idle_turn=1):
        for _ in range(33):
            garbage()
            await collections.next()
    assert collections.generations == ([0] * 10 + [1]) * 3


async def test_s33_old_garbage_is_freed_and_no_full_collection_is_forced(
    collections: Collections, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    collect = gc.collect

    def recording(generation: int = 2) -> int:
        asked.append(generation)
        return collect(generation)

    async with GcPolicy(freeze=False, interval=0.001, idle_turn=1):
        monkeypatch.setattr(gc, "collect", recording)
        old = [Node() for _ in range(5000)]
        node = weakref.ref(old[0])
        rounds = 0
        while node() is not None and rounds < 1000:
            if rounds == 30:  # two collections of the middle generation: what is alive has become old
                del old
            garbage()
            await collections.next()
            rounds += 1
    assert node() is None
    assert rounds > 30
    assert set(asked) == {0, 1}
    # Python decided after each eleven of eleven, and the policy asked for all others.
    assert len(collections.generations) - len(asked) == rounds // 121
    assert gc.get_threshold()[0] < 10_000


async def test_s33_thresholds_of_others_are_not_touched_when_python_would_decide(collections: Collections) -> None:
    former = gc.get_threshold()
    async with GcPolicy(freeze=False, interval=0.001, idle_turn=1) as policy:
        gc.set_threshold(50_000, 10, 10)
        policy._middles = 100
        garbage()
        await collections.next()
        assert gc.get_threshold() == (50_000, 10, 10)
    gc.set_threshold(*former)


@pytest.mark.usefixtures("collector")
async def test_s33_collections_are_counted_and_timed_by_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    async with GcPolicy(interval=60, freeze=False, threshold=1_000_000) as policy:
        observe = gc.callbacks[-1]
        # One that ran when the policy was started has no beginning.
        observe("stop", {"generation": 2, "collected": 1, "uncollectable": 0})
        for generation, seconds in ((0, 0.25), (0, 0.5), (1, 2.0)):
            observe("start", {"generation": generation, "collected": 0, "uncollectable": 0})
            clock.now += seconds
            observe("stop", {"generation": generation, "collected": 10, "uncollectable": 3})
    assert policy.statistics() == (
        GcStatistics(2, 20, 6, 0.75),
        GcStatistics(1, 10, 3, 2.0),
        GcStatistics(1, 1, 0, 0.0),
    )


class Attached:
    """A client as far as the policy needs one."""

    def __init__(self) -> None:
        self.monitor = Monitor("billing")


@pytest.mark.usefixtures("collector")
async def test_s33_counters_are_those_of_a_monitor_when_it_is_attached() -> None:
    client = Attached()
    policy = GcPolicy(interval=60, freeze=False, threshold=1_000_000)
    policy.attach(client)
    policy.attach(client)
    async with policy:
        observe = gc.callbacks[-1]
        for _ in range(2):
            observe("start", {})
            observe("stop", {"generation": 1, "collected": 10, "uncollectable": 3})
        policy.attach(client)
        seen = values(client.monitor.snapshot())
    assert len(seen) == 12
    assert seen["gc_collections", "1"] == 2
    assert seen["gc_collected", "1"] == 20
    assert seen["gc_uncollectable", "1"] == 6
    assert seen["gc_collections", "0"] == seen["gc_collections", "2"] == seen["gc_time", "2"] == 0

    # What it counted stays when it is gone, and the next one goes on from there.
    del policy, observe
    gc.collect()
    assert values(client.monitor.snapshot())["gc_collections", "1"] == 2
    async with GcPolicy(interval=60, freeze=False, threshold=1_000_000) as policy:
        policy.attach(client)
        gc.callbacks[-1]("stop", {"generation": 1, "collected": 1, "uncollectable": 0})
        assert values(client.monitor.snapshot())["gc_collections", "1"] == 3


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.enough = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.levelname} {record.getMessage()}")
        if len(self.texts) == 2:
            self.enough.set()


@pytest.mark.usefixtures("collector")
async def test_s33_the_log_says_what_collections_there_were() -> None:
    client = Attached()
    acks = AckWindow(1)
    meter = ConsumerMeter(acks)
    client.monitor.add(acks_owner := Attached(), "consumer", "orders", meter)
    lines = Lines()
    logger = logging.getLogger("leveret.gc")
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        async with GcPolicy(interval=60, freeze=False, threshold=1_000_000, log_interval=0.001) as policy:
            policy.attach(client)
            observe = gc.callbacks[-1]
            observe("stop", {"generation": 2, "collected": 7, "uncollectable": 1})
            async with asyncio.timeout(DEADLINE):
                await lines.enough.wait()
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
    del acks_owner
    one = r"{} collections, {} objects freed, {} not, \d+\.\d ms"
    nothing = one.format(0, 0, 0)
    pattern = "INFO garbage collection in 0.001 s: generation 0: {}; generation 1: {}; generation 2: {}; {}"
    acked = "0 deliveries acknowledged so far"
    assert re.fullmatch(pattern.format(nothing, nothing, one.format(1, 7, 1), acked), lines.texts[0])
    # The second says what was new.
    assert re.fullmatch(pattern.format(nothing, nothing, nothing, acked), lines.texts[1])


def test_s33_a_line_is_written_each_minute_by_default() -> None:
    assert leveret.GcSettings().log_interval == 60.0


@pytest.mark.usefixtures("collector")
async def test_s33_a_collection_in_a_thread_is_counted() -> None:
    async with GcPolicy(interval=60, freeze=False) as policy:
        started = time.perf_counter()
        await asyncio.to_thread(gc.collect, 0)
        assert policy.statistics()[0].collections == 1
        assert 0 < policy.statistics()[0].seconds <= time.perf_counter() - started
