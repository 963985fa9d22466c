"""The circuit breaker, with a clock that the tests move."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import tracemalloc
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from leveret.errors import CircuitOpen, ConfigurationError, EncodeFailed, MessageReturned
from leveret.message import Outcome
from leveret.plugins import BreakerPolicy
from leveret_resilience import BreakerChange, BreakerState, CircuitBreaker

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Clock

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


async def succeed() -> str:
    return "done"


async def fail() -> NoReturn:
    raise OSError("down")


async def run(breaker: CircuitBreaker, function: Callable[[], Any]) -> str:
    try:
        return str(await breaker.call(function))
    except CircuitOpen:
        return "refused"
    except Exception as error:
        return type(error).__name__


@pytest.fixture
def events() -> list[BreakerChange]:
    return []


@pytest.fixture
def breaker(clock: Clock, events: list[BreakerChange]) -> CircuitBreaker:
    return CircuitBreaker(name="stock", clock=clock, on_change=events.append)


def opened(breaker: CircuitBreaker) -> CircuitBreaker:
    breaker.record(0, 5)
    assert breaker.state is OPEN
    return breaker


def half_opened(breaker: CircuitBreaker, clock: Clock) -> CircuitBreaker:
    """Half-open, with one trial running that `record` ends."""
    opened(breaker)
    clock.advance(60.0)
    breaker.before_call()
    assert breaker.state is HALF_OPEN
    return breaker


# ---------------------------------------------------------------------- the table of states


def record(*arguments: Any, **keywords: Any) -> Callable[[CircuitBreaker, Clock], None]:
    return lambda breaker, clock: breaker.record(*arguments, **keywords)


def wait(seconds: float) -> Callable[[CircuitBreaker, Clock], None]:
    return lambda breaker, clock: clock.advance(seconds)


def ask(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.before_call()


def refused(breaker: CircuitBreaker, clock: Clock) -> None:
    with pytest.raises(CircuitOpen):
        breaker.before_call()


RETURNED = MessageReturned("no route", outcome=Outcome.RETURNED)


@pytest.mark.parametrize(
    ("start", "happens", "end"),
    [
        pytest.param(CLOSED, [record(100, 0)], CLOSED, id="closed, successes: stays"),
        pytest.param(CLOSED, [record(0, 4)], CLOSED, id="closed, too few calls: stays"),
        pytest.param(CLOSED, [record(0, 5)], OPEN, id="closed, enough failures: opens"),
        pytest.param(CLOSED, [record(5, 5)], OPEN, id="closed, exactly the threshold: opens"),
        pytest.param(CLOSED, [record(6, 5)], CLOSED, id="closed, below the threshold: stays"),
        pytest.param(CLOSED, [record(0, 4), wait(60.0), record(0, 4)], CLOSED, id="closed, old failures: stays"),
        pytest.param(CLOSED, [record(0, 4), wait(50.0), record(0, 1)], OPEN, id="closed, failures in window: opens"),
        pytest.param(CLOSED, [record(0, 5, error=RETURNED)], CLOSED, id="closed, error not counted: stays"),
        pytest.param(CLOSED, [record(0, 5, error=asyncio.CancelledError())], CLOSED, id="closed, cancelled: stays"),
        pytest.param(CLOSED, [record(0, 0)], CLOSED, id="closed, no result: stays"),
        pytest.param(CLOSED, [ask, record(1, 0)], CLOSED, id="closed, asked all the same: lets through"),
        pytest.param(OPEN, [refused], OPEN, id="open, asked: refuses"),
        pytest.param(OPEN, [wait(59.9), refused], OPEN, id="open, asked too early: refuses"),
        pytest.param(OPEN, [wait(60.0)], OPEN, id="open, time over: waits to be asked"),
        pytest.param(OPEN, [wait(60.0), ask], HALF_OPEN, id="open, asked in time: half-opens"),
        pytest.param(OPEN, [record(1, 0)], OPEN, id="open, late success: stays"),
        pytest.param(OPEN, [record(0, 1)], OPEN, id="open, late failure: stays"),
        pytest.param(OPEN, [wait(59.9), record(0, 1), wait(0.1), ask], HALF_OPEN, id="open, late failure: no longer"),
        pytest.param(HALF_OPEN, [refused], HALF_OPEN, id="half-open, trial runs: refuses"),
        pytest.param(HALF_OPEN, [record(1, 0)], CLOSED, id="half-open, trial succeeds: closes"),
        pytest.param(HALF_OPEN, [record(1000, 0)], CLOSED, id="half-open, batch succeeds: closes"),
        pytest.param(HALF_OPEN, [record(0, 1)], OPEN, id="half-open, trial fails: opens"),
        pytest.param(HALF_OPEN, [record(0, 1), wait(59.9), refused], OPEN, id="half-open, trial fails: open anew"),
        pytest.param(HALF_OPEN, [record(999, 1)], OPEN, id="half-open, batch fails in part: opens"),
        pytest.param(HALF_OPEN, [record(0, 0)], HALF_OPEN, id="half-open, trial without result: stays"),
        pytest.param(HALF_OPEN, [record(0, 0), ask], HALF_OPEN, id="half-open, trial without result: place is free"),
        pytest.param(HALF_OPEN, [record(0, 1, error=RETURNED)], HALF_OPEN, id="half-open, error not counted: stays"),
        pytest.param(HALF_OPEN, [record(9, 1, error=RETURNED)], HALF_OPEN, id="half-open, late report: stays"),
        pytest.param(HALF_OPEN, [record(0, 0), record(1, 0)], HALF_OPEN, id="half-open, nobody's success: stays"),
        pytest.param(HALF_OPEN, [record(0, 0), record(0, 1)], HALF_OPEN, id="half-open, nobody's failure: stays"),
        pytest.param(HALF_OPEN, [wait(59.9), refused], HALF_OPEN, id="half-open, trial is slow: refuses"),
        pytest.param(HALF_OPEN, [wait(60.0), ask], HALF_OPEN, id="half-open, trial abandoned: place is free"),
        pytest.param(HALF_OPEN, [record(1, 0), record(0, 4)], CLOSED, id="closed again: begins from nothing"),
        pytest.param(HALF_OPEN, [record(1, 0), record(0, 5)], OPEN, id="closed again: opens again"),
    ],
)
def test_state_after_what_happens(
    breaker: CircuitBreaker,
    clock: Clock,
    events: list[BreakerChange],
    start: BreakerState,
    happens: list[Callable[[CircuitBreaker, Clock], None]],
    end: BreakerState,
) -> None:
    if start is OPEN:
        opened(breaker)
    elif start is HALF_OPEN:
        half_opened(breaker, clock)
    for event in happens:
        event(breaker, clock)
    assert breaker.state is end
    assert breaker.closed is (end is CLOSED)
    assert end is (events[-1].new if events else CLOSED)


# ---------------------------------------------------------------------- the window


def test_successes_from_before_the_window_do_not_count(breaker: CircuitBreaker) -> None:
    # 6000 successes in 10 minutes are 600 in the last one, or somewhat fewer: the window slides in steps.
    breaker.record(6000, 500, seconds=600.0)
    assert breaker.state is CLOSED
    breaker.record(0, 100)
    assert breaker.state is OPEN


def test_successes_leave_the_window_when_the_time_in_which_they_happened_does(clock: Clock) -> None:
    breaker = CircuitBreaker(clock=clock)
    breaker.record(60, 1, seconds=60.0)
    clock.advance(30.0)
    # Of one success a second those of about half a minute are left.
    breaker.record(0, 20)
    assert breaker.state is CLOSED
    breaker.record(0, 20)
    assert breaker.state is OPEN


def test_successes_of_just_now_count_fully(breaker: CircuitBreaker) -> None:
    breaker.record(6, 5, seconds=0.5)
    assert breaker.state is CLOSED
    breaker.record(0, 1)
    assert breaker.state is OPEN


@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 7.7, 33.3])
def test_minimum_calls_is_reached_when_the_successes_are_spread_over_several_buckets(
    clock: Clock, seconds: float
) -> None:
    breaker = CircuitBreaker(minimum_calls=10, clock=clock)
    breaker.record(5, 5, seconds=seconds)
    assert breaker.state is OPEN


def test_memory_does_not_grow_with_the_calls(clock: Clock) -> None:
    breaker = CircuitBreaker(clock=clock)
    ours = tracemalloc.Filter(inclusive=True, filename_pattern="*leveret_resilience*")

    def bytes_after(records: int) -> int:
        for _ in range(records):
            clock.advance(0.7)
            breaker.record(10, 1, seconds=0.7)
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([ours]).traces)

    tracemalloc.start()
    try:
        before = bytes_after(1000)
        # A record that stayed would be at least a float, of 24 bytes.
        assert bytes_after(10_000) - before < 10_000
    finally:
        tracemalloc.stop()
    assert breaker.state is CLOSED


# ---------------------------------------------------------------------- around calls


async def test_call_returns_what_the_function_returns_and_passes_its_arguments(breaker: CircuitBreaker) -> None:
    async def add(one: int, *, other: int) -> int:
        return one + other

    assert await breaker.call(add, 1, other=2) == 3


async def test_open_breaker_lets_nothing_through_and_says_when_it_may_be_tried_again(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    for _ in range(5):
        assert await run(breaker, fail) == "OSError"
    clock.advance(18.0)
    called = False

    async def notice() -> None:
        nonlocal called
        called = True

    with pytest.raises(CircuitOpen) as caught:
        await breaker.call(notice)
    assert not called
    assert caught.value.retry_after == 42.0
    assert str(caught.value) == (
        "the circuit breaker 'stock' is open: 5 of 5 calls failed within 60 s; it may be tried again in 42 s"
    )
    clock.advance(caught.value.retry_after)
    assert await run(breaker, succeed) == "done"
    assert breaker.state is CLOSED


async def test_half_open_breaker_lets_only_some_trials_through_at_once(clock: Clock) -> None:
    breaker = opened(CircuitBreaker(half_open_calls=2, clock=clock))
    clock.advance(60.0)
    gate = asyncio.Event()

    async def wait_for_gate() -> str:
        await gate.wait()
        return "done"

    tasks = [asyncio.create_task(run(breaker, wait_for_gate)) for _ in range(5)]
    await asyncio.sleep(0)
    clock.advance(10.0)
    with pytest.raises(CircuitOpen, match="half-open and waits for 2 trial calls") as caught:
        breaker.before_call()
    assert caught.value.retry_after == 50.0
    gate.set()
    assert sorted(await asyncio.gather(*tasks)) == ["done", "done", "refused", "refused", "refused"]
    assert breaker.state is CLOSED


async def test_breaker_closes_only_after_as_many_successes_as_there_are_half_open_calls(clock: Clock) -> None:
    breaker = opened(CircuitBreaker(half_open_calls=3, clock=clock))
    clock.advance(60.0)
    states = []
    for _ in range(3):
        await breaker.call(succeed)
        states.append(breaker.state)
    assert states == [HALF_OPEN, HALF_OPEN, CLOSED]


async def test_cancelled_trial_gives_its_place_back(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.advance(60.0)
    trial = asyncio.create_task(breaker.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    assert await run(breaker, succeed) == "refused"
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert breaker.state is HALF_OPEN
    assert await run(breaker, succeed) == "done"
    assert breaker.state is CLOSED


async def test_trial_that_ends_with_an_error_that_does_not_count_gives_its_place_back(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    async def refuse() -> NoReturn:
        raise EncodeFailed("not a value")

    opened(breaker)
    clock.advance(60.0)
    assert await run(breaker, refuse) == "EncodeFailed"
    assert breaker.state is HALF_OPEN
    assert await run(breaker, succeed) == "done"


@pytest.mark.parametrize("late", ["success", "failure"])
async def test_late_result_of_a_call_from_before_the_opening_counts_for_nothing(clock: Clock, late: str) -> None:
    breaker = CircuitBreaker(minimum_calls=1, clock=clock)
    gates = {state: asyncio.Event() for state in BreakerState}

    async def slow(state: BreakerState) -> None:
        await gates[state].wait()
        if late == "failure":
            raise OSError("down")

    # One ends in each state that comes after.
    old = {state: asyncio.create_task(run(breaker, functools.partial(slow, state))) for state in BreakerState}
    await asyncio.sleep(0)
    ended = "None" if late == "success" else "OSError"
    assert await run(breaker, fail) == "OSError"
    assert breaker.state is OPEN
    gates[OPEN].set()
    assert await old[OPEN] == ended
    clock.advance(59.0)
    assert await run(breaker, succeed) == "refused"
    clock.advance(1.0)
    trial_gate = asyncio.Event()
    trial = asyncio.create_task(breaker.call(trial_gate.wait))
    await asyncio.sleep(0)
    gates[HALF_OPEN].set()
    assert await old[HALF_OPEN] == ended
    assert breaker.state is HALF_OPEN
    assert await run(breaker, succeed) == "refused", "the trial still has its place"
    trial_gate.set()
    await trial
    assert breaker.closed
    gates[CLOSED].set()
    assert await old[CLOSED] == ended
    assert breaker.closed


def test_nothing_is_counted_any_more_when_it_has_closed(clock: Clock) -> None:
    breaker = CircuitBreaker(open_time=1.0, clock=clock)
    opened(breaker)
    clock.advance(1.0)
    breaker.before_call()
    breaker.record(1, 0)
    # The failures from before the opening are still within the window.
    breaker.record(0, 4)
    assert breaker.state is CLOSED


async def test_result_of_an_abandoned_trial_counts_for_nothing(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.advance(60.0)
    gates = [asyncio.Event(), asyncio.Event()]
    abandoned = asyncio.create_task(breaker.call(gates[0].wait))
    await asyncio.sleep(0)
    clock.advance(60.0)
    trial = asyncio.create_task(breaker.call(gates[1].wait))
    await asyncio.sleep(0)
    gates[0].set()
    await abandoned
    assert breaker.state is HALF_OPEN
    gates[1].set()
    await trial
    assert breaker.state is CLOSED


async def test_record_ends_no_trial_of_call(breaker: CircuitBreaker, clock: Clock) -> None:
    opened(breaker)
    clock.advance(60.0)
    gate = asyncio.Event()
    trial = asyncio.create_task(breaker.call(gate.wait))
    await asyncio.sleep(0)
    breaker.record(1, 0)
    assert breaker.state is HALF_OPEN
    gate.set()
    await trial
    assert breaker.state is CLOSED


async def test_counts_decides_which_errors_are_failures(clock: Clock) -> None:
    breaker = CircuitBreaker(counts=lambda error: isinstance(error, ValueError), clock=clock)
    for _ in range(10):
        assert await run(breaker, fail) == "OSError"
    assert breaker.state is CLOSED
    breaker.record(0, 5, error=ValueError())
    assert breaker.state is OPEN


async def test_error_counts_when_counts_itself_fails(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def broken(error: Exception) -> bool:
        raise RuntimeError("no idea")

    breaker = CircuitBreaker(name="stock", minimum_calls=1, counts=broken, clock=clock)
    assert await run(breaker, fail) == "OSError"
    assert breaker.state is OPEN
    assert "circuit breaker 'stock': counts failed for OSError, which counts" in caplog.text


async def test_call_refuses_a_function_that_returns_no_awaitable(breaker: CircuitBreaker) -> None:
    def plain() -> int:
        return 5

    with pytest.raises(ConfigurationError, match=r"must return an awaitable; .* returned int"):
        await breaker.call(plain)  # type: ignore[arg-type]


async def test_wrap_makes_a_function_that_goes_through_the_breaker(breaker: CircuitBreaker) -> None:
    @breaker.wrap
    async def reserve(item: str) -> str:
        """Reserves."""
        return item

    assert await reserve("carrots") == "carrots"
    assert (reserve.__name__, reserve.__doc__) == ("reserve", "Reserves.")
    opened(breaker)
    with pytest.raises(CircuitOpen):
        await reserve("carrots")


def test_wrap_refuses_a_plain_function(breaker: CircuitBreaker) -> None:
    with pytest.raises(ConfigurationError, match="function must be an `async def` function"):
        breaker.wrap(len)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- events


def test_on_change_gets_each_change_with_its_reason_and_time(
    breaker: CircuitBreaker, clock: Clock, events: list[BreakerChange]
) -> None:
    half_opened(breaker, clock)
    breaker.record(0, 1)
    clock.advance(60.0)
    breaker.before_call()
    breaker.record(1, 0)
    assert [(event.old, event.new, event.reason, event.time) for event in events] == [
        (CLOSED, OPEN, "5 of 5 calls failed within 60 s", 1000.0),
        (OPEN, HALF_OPEN, "it was open for 60 s", 1060.0),
        (HALF_OPEN, OPEN, "a trial call failed", 1060.0),
        (OPEN, HALF_OPEN, "it was open for 60 s", 1120.0),
        (HALF_OPEN, CLOSED, "a trial call succeeded", 1120.0),
    ]
    assert {event.breaker for event in events} == {"stock"}


def test_breaker_works_on_when_on_change_fails(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: BreakerChange) -> None:
        raise RuntimeError("pager is off")

    breaker = CircuitBreaker(name="stock", on_change=broken, clock=clock)
    half_opened(breaker, clock).record(1, 0)
    assert breaker.state is CLOSED
    assert caplog.text.count("circuit breaker 'stock': on_change failed") == 3


def test_changes_are_logged_and_an_opening_is_a_warning(
    breaker: CircuitBreaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="leveret.resilience")
    half_opened(breaker, clock)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "circuit breaker 'stock' is open, was closed: 5 of 5 calls failed within 60 s"),
        ("INFO", "circuit breaker 'stock' is half-open, was open: it was open for 60 s"),
    ]


def test_on_change_may_use_the_breaker(clock: Clock) -> None:
    seen: list[tuple[BreakerState, BreakerState]] = []

    def look(event: BreakerChange) -> None:
        with pytest.raises(CircuitOpen):
            one.before_call()
        seen.append((event.new, one.state))

    one = CircuitBreaker(on_change=look, clock=clock)
    opened(one)
    assert seen == [(OPEN, OPEN)]


# ---------------------------------------------------------------------- options


def test_breaker_has_the_plugin_interface(breaker: CircuitBreaker) -> None:
    assert isinstance(breaker, BreakerPolicy)
    assert vars(breaker)["closed"] is True, "a producer reads it for each message, so it is a plain attribute"


def test_refusal_without_a_name_names_no_name(clock: Clock) -> None:
    with pytest.raises(CircuitOpen, match=r"^the circuit breaker is open: "):
        opened(CircuitBreaker(clock=clock)).before_call()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": 5}, "name must be text, not int"),
        ({"window": 0}, "window is 0 s; it must be 0.001 to 86400"),
        ({"window": "60"}, "window must be a number, not str"),
        ({"threshold": 0}, "threshold is 0; it must be above 0 and up to 1"),
        ({"threshold": 50}, "threshold is 50; it must be 0 to 1"),
        ({"threshold": float("nan")}, "threshold is nan; it must be 0 to 1"),
        ({"minimum_calls": 0}, "minimum_calls is 0; it must be 1 to 1000000"),
        ({"minimum_calls": 0.5}, "minimum_calls must be a whole number, not float"),
        ({"open_time": float("inf")}, "open_time is inf s; it must be 0.001 to 86400"),
        ({"half_open_calls": 1001}, "half_open_calls is 1001; it must be 1 to 1000"),
        ({"counts": OSError("one")}, "counts must be a function, not OSError"),
        ({"on_change": fail}, "on_change must be a plain function, not an `async def`"),
        ({"clock": 5.0}, "clock must be a function, not float"),
    ],
)
def test_configuration_error_names_option_limit_and_value_when_an_option_is_wrong(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        CircuitBreaker(**options)
    assert caught.value.option in options
    assert str(caught.value) == text


# ---------------------------------------------------------------------- any sequence of events


class AnySequence(RuleBasedStateMachine):
    """Compares the breaker with a model that remembers every call, one second at a time."""

    WINDOW, OPEN_TIME, MINIMUM, TRIALS = 10, 7, 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.now = 500.0
        self.events: list[BreakerChange] = []
        self.breaker = CircuitBreaker(
            window=self.WINDOW,
            open_time=self.OPEN_TIME,
            minimum_calls=self.MINIMUM,
            half_open_calls=self.TRIALS,
            clock=lambda: self.now,
            on_change=self.events.append,
        )
        self.state = CLOSED
        self.calls: list[tuple[float, bool]] = []
        self.opened_at = 0.0
        self.trials: list[float] = []
        self.passed = 0

    def change(self, state: BreakerState) -> None:
        self.state, self.trials, self.passed = state, [], 0
        if state is OPEN:
            self.opened_at = self.now
        elif state is CLOSED:
            self.calls = []

    @rule(seconds=st.sampled_from([1, 2, 7, 12]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(successes=st.integers(0, 3), failures=st.integers(0, 3))
    @precondition(lambda self: self.state is CLOSED)
    def results_while_closed(self, successes: int, failures: int) -> None:
        self.breaker.record(successes, failures)
        self.calls += [(self.now, True)] * successes + [(self.now, False)] * failures
        results = [good for when, good in self.calls if when > self.now - self.WINDOW]
        if failures and len(results) >= self.MINIMUM and results.count(False) * 2 >= len(results):
            self.change(OPEN)

    @rule(successes=st.integers(0, 3), failures=st.integers(0, 3))
    @precondition(lambda self: self.state is OPEN)
    def late_results_while_open(self, successes: int, failures: int) -> None:
        self.breaker.record(successes, failures)

    @rule()
    @precondition(lambda self: self.state is not CLOSED)
    def somebody_asks(self) -> None:
        if self.state is OPEN and self.now - self.opened_at >= self.OPEN_TIME:
            self.change(HALF_OPEN)
        self.trials = [when for when in self.trials if self.now - when < self.OPEN_TIME]
        if self.state is HALF_OPEN and len(self.trials) < self.TRIALS:
            self.breaker.before_call()
            self.trials.append(self.now)
        else:
            with pytest.raises(CircuitOpen) as caught:
                self.breaker.before_call()
            since = self.opened_at if self.state is OPEN else self.trials[0]
            assert caught.value.retry_after == since + self.OPEN_TIME - self.now

    @rule(result=st.sampled_from([(1, 0), (0, 1), (0, 0), (3, 1)]))
    @precondition(lambda self: self.state is HALF_OPEN and self.trials)
    def a_trial_ends(self, result: tuple[int, int]) -> None:
        self.breaker.record(*result)
        self.trials.pop(0)
        if result[1]:
            self.change(OPEN)
        elif result[0]:
            self.passed += 1
            if self.passed == self.TRIALS:
                self.change(CLOSED)

    @invariant()
    def breaker_and_model_agree(self) -> None:
        assert self.breaker.state is self.state
        assert self.breaker.closed is (self.state is CLOSED)

    @invariant()
    def changes_follow_each_other_along_the_arrows(self) -> None:
        states = [CLOSED, *(event.new for event in self.events)]
        assert [event.old for event in self.events] == states[:-1]
        arrows = {(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, OPEN), (HALF_OPEN, CLOSED)}
        assert set(itertools.pairwise(states)) <= arrows


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
