"""Retry policies and circuit breakers at a producer: asked after failures, and never while all goes well."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from typing import Any

import pluggy
import pytest
from tests.support.handling import until
from tests.support.plugins import plugin
from tests.support.policies import NeverRetries, RetriesOnce

import leveret
from leveret.broker import EmbeddedBroker
from leveret.errors import CircuitOpen, EncodeFailed, LeveretError, MessageNacked, MessageReturned, PublishError
from leveret.message import Outcome
from leveret.plugins import PluginRegistry, PolicySpec

pytestmark = pytest.mark.usefixtures("no_leftovers")


class NeverCalled:
    """A policy of both interfaces that counts every touch of its methods."""

    def __init__(self) -> None:
        self.closed = True
        self.calls = 0

    def next_delay(self, *_: Any) -> None:
        self.calls += 1

    def before_call(self) -> None:
        self.calls += 1

    def record(self, *_: Any, **__: Any) -> None:
        self.calls += 1


async def test_no_policy_and_no_hook_is_called_when_10000_messages_succeed(
    tight_client: leveret.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook_calls = 0

    def counted(*_: Any, **__: Any) -> Any:
        nonlocal hook_calls
        hook_calls += 1

    call = pluggy.HookCaller.__call__

    def counted_if_ours(caller: pluggy.HookCaller, **arguments: object) -> Any:
        if not caller.name.startswith("leveret_"):
            return call(caller, **arguments)  # pytest's own
        return counted()

    retry, breaker = NeverCalled(), NeverCalled()
    seen = 0
    async with tight_client.producer(retry=retry, circuit_breaker=breaker, serializer="json") as producer:
        consumer = tight_client.consumer("q", prefetch=1000, concurrency=4)
        await consumer.subscribe()
        # From here on a call of any hook, by whatever way, would be noticed.
        monkeypatch.setattr(pluggy.HookCaller, "__call__", counted_if_ours)
        for name, method in vars(PluginRegistry).items():
            if inspect.isfunction(method) and not name.startswith("__"):
                monkeypatch.setattr(PluginRegistry, name, counted)

        assert await producer.publish_batch(range(9000), "q")
        tickets = [producer.publish_nowait(i, "q") for i in range(500)]
        await producer.flush()
        await asyncio.gather(*(producer.publish(i, "q") for i in range(500)))
        assert all(ticket.done for ticket in tickets)
        assert producer.counters()["confirmed"] == 10_000

        async def handle(value: Any, message: leveret.Message) -> None:
            nonlocal seen
            seen += 1
            if seen == 10_000:
                consumer.stop()

        await consumer.run(handle)
    assert (seen, hook_calls, retry.calls, breaker.calls) == (10_000, 0, 0, 0)


class Retries:
    """Tries again at once, this many times, what the broker refused."""

    def __init__(self, retries: int = 3) -> None:
        self.retries = retries
        self.asked: list[tuple[int, Outcome]] = []

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        assert isinstance(error, PublishError)
        self.asked.append((attempt, error.outcome))
        return 0.0 if attempt <= self.retries and error.outcome is Outcome.NACKED else None


async def fill(client: leveret.Client) -> None:
    async with client.producer() as producer:
        await producer.publish(0, "full")


async def test_publish_is_tried_again_as_often_as_the_policy_allows(tight_client: leveret.Client) -> None:
    await fill(tight_client)
    policy = Retries(3)
    async with tight_client.producer(retry=policy) as producer:
        with pytest.raises(MessageNacked) as caught:
            await producer.publish(1, "full")
        assert policy.asked == [(attempt, Outcome.NACKED) for attempt in (1, 2, 3, 4)]
        assert caught.value.__notes__ == ["it was tried 4 times"]
        assert producer.counters()["nacked"] == 4


class Unfilling(Retries):
    """Makes room in the full queue when it is asked the second time."""

    def __init__(self, client: leveret.Client) -> None:
        super().__init__()
        self.client = client
        self.tasks: list[asyncio.Task[int]] = []

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        delay = super().next_delay(attempt, error)
        if attempt == 2:
            self.tasks.append(asyncio.get_running_loop().create_task(self.client.purge("full")))
            return 0.05
        return delay


async def test_publish_succeeds_when_a_later_attempt_does(tight_client: leveret.Client) -> None:
    await fill(tight_client)
    policy = Unfilling(tight_client)
    async with tight_client.producer(retry=policy) as producer:
        assert (await producer.publish(1, "full")).delivery_tag == 3
    assert [attempt for attempt, _ in policy.asked] == [1, 2]
    await asyncio.gather(*policy.tasks)


async def test_what_the_policy_does_not_retry_is_raised_at_once(tight_client: leveret.Client) -> None:
    policy = Retries()
    async with tight_client.producer(retry=policy, mandatory=True) as producer:
        with pytest.raises(MessageReturned):
            await producer.publish(1, "nowhere")
        with pytest.raises(EncodeFailed):
            await producer.publish(object(), "q")
    assert policy.asked == [(1, Outcome.RETURNED)]


async def test_only_what_failed_of_a_batch_is_tried_again(tight_client: leveret.Client) -> None:
    await fill(tight_client)
    policy = Unfilling(tight_client)
    async with tight_client.producer(retry=policy) as producer:
        result = await producer.publish_batch([1, object(), 2], "full")
        await asyncio.gather(*policy.tasks)
        counted = producer.counters()
    # The purge makes room for one of them.
    assert result.count == 3
    assert result.confirmed == 1
    assert [type(error) for error in result.failures.values()] == [EncodeFailed, MessageNacked]
    assert list(result.failures) == [1, 2]
    assert counted["published"] == 2 + 2 + 2 + 1


async def test_batch_indexes_are_those_of_the_iterable_when_it_goes_in_parts(tight_client: leveret.Client) -> None:
    async with tight_client.producer(retry=Retries(1), batch_size=10) as producer:
        values = (object() if i in (0, 99, 100, 249) else i for i in range(250))
        result = await producer.publish_batch(values, "q")
    assert (result.count, result.confirmed) == (250, 246)
    assert list(result.failures) == [0, 99, 100, 249]


async def test_a_lost_producer_is_not_tried_again() -> None:
    class Always(Retries):
        def next_delay(self, attempt: int, error: BaseException) -> float | None:
            self.asked.append((attempt, Outcome.NOT_SENT))
            return 0.0

    policy = Always()
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, auto_recovery=False) as client:
        await client.declare(leveret.Topology().queue("q"))
        producer = await client.producer(retry=policy).open()
        broker.close_connections()
        with pytest.raises(PublishError) as caught:
            await producer.publish(1, "q")
        assert caught.value.outcome is Outcome.UNKNOWN
        assert policy.asked == []
        assert len((await producer.publish_batch([1, 2, 3], "q")).failures) == 3
        await producer.close()


async def test_a_missing_exchange_is_tried_again_when_the_policy_says_so(tight_client: leveret.Client) -> None:
    class DeclaresIt(Retries):
        def next_delay(self, attempt: int, error: BaseException) -> float | None:
            assert isinstance(error, leveret.errors.ExchangeNotFound)
            self.asked.append((attempt, error.outcome))
            tasks.append(asyncio.create_task(tight_client.declare(leveret.Topology().exchange("late"))))
            return 0.2

    tasks: list[asyncio.Task[object]] = []
    policy = DeclaresIt()
    async with tight_client.producer(exchange="late", retry=policy, mandatory=False) as producer:
        assert (await producer.publish(1)).outcome is Outcome.CONFIRMED
    assert policy.asked == [(1, Outcome.UNKNOWN)]
    await asyncio.gather(*tasks)


async def test_a_publisher_that_waits_for_its_next_attempt_can_be_cancelled(tight_client: leveret.Client) -> None:
    await fill(tight_client)
    asked = asyncio.Event()

    class Slow(Retries):
        def next_delay(self, attempt: int, error: BaseException) -> float | None:
            asked.set()
            return 20.0  # within publish_timeout

    async with tight_client.producer(retry=Slow()) as producer:
        for publishing in (producer.publish(1, "full"), producer.publish_batch([1], "full")):
            asked.clear()
            task = asyncio.create_task(publishing)
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await producer.publish(1, "q")


async def test_the_error_is_raised_when_the_policy_itself_fails(
    tight_client: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Retries):
        def next_delay(self, attempt: int, error: BaseException) -> float | None:
            raise ZeroDivisionError("oops")

    await fill(tight_client)
    async with tight_client.producer(retry=Broken()) as producer:
        with pytest.raises(MessageNacked):
            await producer.publish(1, "full")
    assert "the retry policy failed: ZeroDivisionError: oops" in caplog.text


class Breaker:
    """Opens after this many failures, and closes when a trial succeeds. It notes what it is told."""

    def __init__(self, opens_after: int = 2) -> None:
        self.closed = True
        self.trial_allowed = False
        self.opens_after = opens_after
        self.failures = 0
        self.calls: list[Any] = []

    def before_call(self) -> None:
        self.calls.append("asked")
        if not self.trial_allowed:
            raise CircuitOpen("open")

    def record(
        self, successes: int, failures: int, *, seconds: float = 0.0, error: BaseException | None = None
    ) -> None:
        assert seconds >= 0
        assert (error is None) == (failures == 0)
        self.calls.append((successes, failures))
        if not self.closed and successes and not failures:
            self.closed = True
        self.failures += failures
        if self.failures >= self.opens_after:
            self.closed = False
            self.failures = 0


async def test_the_breaker_is_told_of_failures_and_of_the_successes_before(tight_client: leveret.Client) -> None:
    await fill(tight_client)
    breaker = Breaker(opens_after=100)
    async with tight_client.producer(circuit_breaker=breaker) as producer:
        assert await producer.publish_batch(range(50), "q")
        await producer.publish(50, "q")
        assert breaker.calls == []
        with pytest.raises(MessageNacked):
            await producer.publish(1, "full")
        assert breaker.calls == [(51, 1)]
        assert len((await producer.publish_batch([1, 2, 3], "full")).failures) == 3
        assert breaker.calls == [(51, 1), (0, 3)]


async def test_nothing_is_sent_while_the_breaker_is_open(tight_client: leveret.Client) -> None:
    await fill(tight_client)
    breaker = Breaker(opens_after=1)
    async with tight_client.producer(circuit_breaker=breaker) as producer:
        with pytest.raises(MessageNacked):
            await producer.publish(1, "full")
        sent = producer.next_delivery_tag
        with pytest.raises(CircuitOpen):
            await producer.publish(1, "q")
        with pytest.raises(CircuitOpen):
            await producer.publish_batch([1, 2], "q")
        with pytest.raises(CircuitOpen):
            producer.publish_nowait(1, "q")
        assert producer.next_delivery_tag == sent


async def test_a_trial_that_succeeds_closes_the_breaker(tight_client: leveret.Client) -> None:
    await fill(tight_client)
    for batch in (False, True):
        breaker = Breaker(opens_after=1)
        async with tight_client.producer(circuit_breaker=breaker) as producer:
            with pytest.raises(MessageNacked):
                await producer.publish(1, "full")
            breaker.trial_allowed = True
            breaker.calls.clear()
            assert await (producer.publish_batch([1, 2], "q") if batch else producer.publish(1, "q"))
            assert breaker.closed
            assert breaker.calls == ["asked", (2 if batch else 1, 0)]
            breaker.calls.clear()
            assert await producer.publish(1, "q")
            assert breaker.calls == []


async def test_a_trial_without_a_result_is_given_back(tight_client: leveret.Client) -> None:
    breaker = Breaker()
    breaker.closed, breaker.trial_allowed = False, True
    async with tight_client.producer(circuit_breaker=breaker) as producer:
        with pytest.raises(EncodeFailed):
            await producer.publish(object(), "q")
        assert breaker.calls == [], "there is nothing to try"
        task = asyncio.create_task(producer.publish(1, "q"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert breaker.calls == ["asked", (0, 0)]


async def test_the_rest_of_a_batch_fails_when_the_breaker_opens_meanwhile(tight_client: leveret.Client) -> None:
    await fill(tight_client)
    breaker = Breaker(opens_after=1)
    async with tight_client.producer(circuit_breaker=breaker, batch_size=1) as producer:
        read = 0

        def values() -> Any:
            nonlocal read
            while read < 1000:
                read += 1
                yield read

        result = await producer.publish_batch(values(), "full")
    assert result.confirmed == 0
    assert result.count == read < 1000
    assert {type(error) for error in result.failures.values()} == {MessageNacked, CircuitOpen}


async def test_failures_of_tickets_that_nobody_awaits_count(tight_client: leveret.Client) -> None:
    await fill(tight_client)
    breaker = Breaker(opens_after=100)
    async with tight_client.producer(circuit_breaker=breaker) as producer:
        awaited = producer.publish_nowait(1, "full")
        waiters = await asyncio.gather(*[asyncio.ensure_future(awaited) for _ in range(3)], return_exceptions=True)
        assert [type(error) for error in waiters] == [MessageNacked] * 3
        producer.publish_nowait(2, "full")
        with pytest.raises(PublishError):
            await producer.flush()
        assert breaker.calls == [(0, 1), (0, 1)]


async def test_a_ticket_is_a_trial_when_the_breaker_allows_it(tight_client: leveret.Client) -> None:
    await fill(tight_client)
    breaker = Breaker(opens_after=1)
    breaker.closed, breaker.trial_allowed = False, True
    async with tight_client.producer(circuit_breaker=breaker) as producer:
        refused = producer.publish_nowait(1, "full")
        with pytest.raises(PublishError, match="1 publishings that were not awaited failed"):
            await producer.flush()
        assert refused.done
        with pytest.raises(EncodeFailed):
            producer.publish_nowait(object(), "q")
        assert not breaker.closed
        producer.publish_nowait(2, "q")
        await producer.flush()
        await asyncio.sleep(0)
        assert breaker.closed
    assert breaker.calls == ["asked", (0, 1), "asked", (0, 0), "asked", (1, 0)]


async def test_publishing_goes_on_when_the_breaker_itself_fails(
    tight_client: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Breaker):
        def record(self, *_: Any, **__: Any) -> None:
            raise ZeroDivisionError("oops")

    await fill(tight_client)
    async with tight_client.producer(circuit_breaker=Broken()) as producer:
        with pytest.raises(MessageNacked):
            await producer.publish(1, "full")
        assert await producer.publish(1, "q")
    assert "the circuit breaker failed: ZeroDivisionError: oops" in caplog.text


async def test_policies_are_found_by_name_and_made_for_each_producer() -> None:
    made: list[object] = []

    def make(kind: type) -> Any:
        def factory() -> object:
            made.append(kind())
            return made[-1]

        return factory

    registry = PluginRegistry.from_plugins(
        plugin(
            policies=[
                PolicySpec(kind="retry", name="at-once", factory=make(Retries)),
                PolicySpec(kind="circuit_breaker", name="simple", factory=make(Breaker)),
            ]
        )
    )
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, plugins=registry) as client:
        settings = leveret.ProducerSettings(retry="at-once")
        async with client.producer(settings, circuit_breaker="simple"), client.producer(settings):
            assert [type(each) for each in made] == [Retries, Breaker, Retries]


async def test_the_connection_stays_when_a_cancelled_batch_with_a_policy_fails_in_part(
    tight_client: leveret.Client,
) -> None:
    async with tight_client.producer(retry=NeverRetries()) as producer:
        # The queue takes the first value and refuses the others.
        task = asyncio.create_task(producer.publish_batch([1, 2, 3], "full"))
        await asyncio.sleep(0)
        assert producer.outstanding == 3
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not producer.outstanding)
        assert tight_client.connection.is_open
        assert producer.counters()["nacked"] == 2
        assert (await producer.publish(4, "q")).outcome is Outcome.CONFIRMED


async def test_a_batch_with_a_policy_is_not_true_when_the_producer_was_closed_before_its_next_part(
    tight_client: leveret.Client,
) -> None:
    producer = await tight_client.producer(retry=NeverRetries(), batch_size=1, batches_in_flight=10).open()
    task = asyncio.create_task(producer.publish_batch(list(range(50)), "q"))
    await asyncio.sleep(0)
    assert producer.outstanding == 10
    await producer.close()
    result = await task
    assert result.confirmed < 50
    assert not result
    # As without a policy: the values that are left end NOT_SENT.
    assert result.count == 50
    assert len(result.failures) == 50 - result.confirmed


class Noting:
    """Allows trials when it is not closed, and notes what it is told."""

    def __init__(self, *, closed: bool = True) -> None:
        self.closed = closed
        self.calls: list[Any] = []

    def before_call(self) -> None:
        self.calls.append("asked")

    def record(
        self, successes: int, failures: int, /, *, seconds: float = 0.0, error: BaseException | None = None
    ) -> None:
        self.calls.append((successes, failures))


class OpensForEver(Noting):
    """Opens at the first failure."""

    def before_call(self) -> None:
        raise CircuitOpen("open")

    def record(self, *_: Any, **__: Any) -> None:
        self.closed = False


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("breaker", [None, OpensForEver])
async def test_the_outcome_is_unknown_when_an_earlier_attempt_may_be_in_the_broker(
    embedded: EmbeddedBroker, tight_client: leveret.Client, breaker: type[Noting] | None, batch: bool
) -> None:
    circuit_breaker = None if breaker is None else breaker()
    times: dict[str, Any] = {"confirm_timeout": 0.1, "publish_timeout": 0.1}
    async with tight_client.producer(retry=RetriesOnce(), circuit_breaker=circuit_breaker, **times) as producer:
        embedded.block()  # what is written now is read later
        if batch:
            outcome = (await producer.publish_batch([7], "q")).outcome(0)
        else:
            with pytest.raises(LeveretError) as caught:
                await producer.publish(7, "q")
            outcome = getattr(caught.value, "outcome", Outcome.NOT_SENT)  # CircuitOpen says that nothing was sent
        embedded.unblock()
        await until(lambda: embedded.queue_depth("q") == 1)
        assert outcome is Outcome.UNKNOWN


async def test_an_endless_batch_with_a_policy_ends_when_there_is_no_room(
    embedded: EmbeddedBroker, tight_client: leveret.Client
) -> None:
    async with tight_client.producer(
        retry=NeverRetries(), batch_size=10, confirm_timeout=0.05, publish_timeout=0.05
    ) as producer:
        embedded.block()
        producer.publish_nowait(1, "q")
        await until(lambda: tight_client.connection.blocked)
        async with asyncio.timeout(3):
            result = await producer.publish_batch(itertools.count(), "q")
        assert not result
        embedded.unblock()


async def test_one_record_follows_a_trial_when_it_is_cancelled_and_fails_later(tight_client: leveret.Client) -> None:
    breaker = Noting(closed=False)
    async with tight_client.producer(circuit_breaker=breaker) as producer:
        await producer.publish(0, "full")
        breaker.calls.clear()
        task = asyncio.create_task(producer.publish(1, "full"))
        await asyncio.sleep(0)
        assert producer.outstanding == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not producer.outstanding)
    assert breaker.calls.count("asked") == 1
    assert len(breaker.calls) == 2


class Answers:
    """A retry policy that returns what no retry policy may."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def next_delay(self, attempt: int, error: BaseException, /) -> Any:
        return self.answer if attempt == 1 else None


class CannotSay(Noting):
    """A circuit breaker with a defect."""

    def before_call(self) -> None:
        raise ZeroDivisionError


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    "policies",
    [
        {"retry": Answers("1")},
        {"retry": Answers(float("nan"))},
        {"circuit_breaker": CannotSay(closed=False)},
    ],
)
async def test_publishing_fails_with_errors_of_ours_only_when_a_policy_has_a_defect(
    tight_client: leveret.Client, policies: dict[str, Any], batch: bool
) -> None:
    async with tight_client.producer() as producer:
        await producer.publish(0, "full")
    async with tight_client.producer(**policies) as producer:

        async def publish() -> None:
            if batch:
                (await producer.publish_batch([1], "full")).raise_for_failures()
            else:
                await producer.publish(1, "full")

        with pytest.raises(LeveretError):
            await asyncio.wait_for(publish(), 2)
