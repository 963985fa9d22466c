"""What no plugin, policy or sink may do: lose messages, hide outcomes, stop a consumer, or stop a program's start."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import frame
from pamqp.commands import Basic, Channel, Confirm, Connection
from tests.support.distributions import Installed
from tests.support.handling import until
from tests.support.peers import FakeServer, Peer
from tests.support.plugins import plugin, serializer_plugin
from tests.support.policies import NeverRetries, RetriesOnce

import leveret
from leveret.errors import (
    CircuitOpen,
    ConfigurationError,
    ConnectionClosed,
    DecodeFailed,
    EncodeFailed,
    LeveretError,
    MessageNacked,
    PluginError,
    PublishError,
)
from leveret.message import Outcome
from leveret.plugins import CompressorSpec, ConnectionEvent, MetricsSource, MetricsSpec, PluginRegistry
from leveret.settings import ConnectionSettings, MonitoringSettings, PluginSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from leveret import Message
    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")

SECRET = "do-not-tell-7731"


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


# ---------------------------------------------------------------------- outcomes


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


async def test_other_producers_are_told_of_a_loss_when_a_cancelled_batch_was_half_confirmed() -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select, Channel.Open, Confirm.Select)
        published = 0
        while published < 4:
            published += isinstance((await peer.receive())[1], Basic.Publish)
        peer.send(Basic.Ack(1), 1)
        await go_on.wait()
        peer.hang_up()

    async with FakeServer(script) as server, leveret.connect(server.url, close_timeout=0.1) as client:
        guarded = await client.producer(retry=NeverRetries()).open()
        other = await client.producer(confirm_timeout=1.0).open()
        waiting = asyncio.create_task(other.publish(1, "q"))
        batch = asyncio.create_task(guarded.publish_batch([1, 2, 3], "q"))
        await until(lambda: guarded.counters()["confirmed"] == 1)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        go_on.set()
        with pytest.raises(PublishError) as caught:
            await waiting
        # It was told, and did not have to find out by its own deadline.
        assert type(caught.value) is PublishError


async def test_a_batch_with_a_policy_is_not_true_when_the_producer_was_closed_before_its_next_part(
    tight_client: leveret.Client,
) -> None:
    producer = await tight_client.producer(retry=NeverRetries(), batch_size=1).open()
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


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("breaker", [None, OpensForEver])
async def test_the_outcome_is_unknown_when_an_earlier_attempt_may_be_in_the_broker(
    embedded: EmbeddedBroker, tight_client: leveret.Client, breaker: type[Noting] | None, batch: bool
) -> None:
    circuit_breaker = None if breaker is None else breaker()
    times = {"confirm_timeout": 0.1, "publish_timeout": 0.1}
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


def failing_after(count: int) -> Iterator[int]:
    yield from range(count)
    raise RuntimeError("the iterable failed")


@pytest.mark.parametrize("retry", [None, NeverRetries()])
async def test_what_came_before_is_published_when_the_iterable_of_a_batch_raises(
    tight_client: leveret.Client, retry: NeverRetries | None
) -> None:
    async with tight_client.producer(retry=retry) as producer:
        with pytest.raises(RuntimeError):
            await producer.publish_batch(failing_after(150), "q")
        await producer.flush()
        assert producer.counters()["confirmed"] == 150


async def test_flush_tells_of_failures_of_a_batch_whose_iterable_raised(tight_client: leveret.Client) -> None:
    async with tight_client.producer() as producer:
        await producer.publish(0, "full")
        with pytest.raises(RuntimeError):
            await producer.publish_batch(failing_after(100), "full")
        with pytest.raises(MessageNacked):
            await producer.flush()


async def test_failures_that_nobody_awaited_are_logged_when_a_lost_producer_is_closed(
    embedded: EmbeddedBroker, tight_client: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    producer = await tight_client.producer().open()
    embedded.block()
    for number in range(3):
        producer.publish_nowait(number, "q")
    await until(lambda: tight_client.connection.blocked)
    embedded.close_connections()
    await until(lambda: producer.counters()["unknown"] == 3)
    await producer.close()
    assert "3 publishings that were not awaited failed" in caplog.text


@pytest.mark.parametrize("first", ["producer", "client"])
async def test_what_is_in_flight_is_confirmed_when_a_client_is_closed_during_another_close(first: str) -> None:
    confirm = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        while not isinstance((await peer.receive())[1], Basic.Publish):
            pass

        async def answer() -> None:
            await confirm.wait()
            peer.send(Basic.Ack(1), 1)

        answering = asyncio.create_task(answer())
        await peer.linger()
        await answering

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        producer = await client.producer().open()
        ticket = producer.publish_nowait(1, "q")
        closing = [asyncio.create_task(each.close()) for each in (producer if first == "producer" else client, client)]
        # Both have to wait for the confirm; what does not wait is over by then.
        await asyncio.wait(closing, timeout=0.2)
        confirm.set()
        await asyncio.gather(*closing)
        assert (await ticket).outcome is Outcome.CONFIRMED


# ---------------------------------------------------------------------- policies


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


# ---------------------------------------------------------------------- codecs


class Panic(BaseException):
    """As PyO3's PanicException, which codecs written in Rust raise, is no Exception either."""


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("this cannot be printed")


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise error

    return function


def compressor_whose_factory_raises(error: Exception) -> Any:
    spec = CompressorSpec(name="bad", content_encoding="bad", factory=raising(error), levels=(1, 9))
    return plugin("bad", compressors=[spec])


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(lambda: compressor_whose_factory_raises(ConfigurationError("too old")), id="factory"),
        pytest.param(lambda: serializer_plugin("bad", decode=raising(Panic())), id="panic"),
        pytest.param(lambda: serializer_plugin("bad", decode=raising(asyncio.CancelledError())), id="cancelled"),
        pytest.param(lambda: serializer_plugin("bad", decode=raising(NoText())), id="no text"),
    ],
)
async def test_the_consumer_goes_on_when_a_plugin_cannot_decode_a_message(
    embedded: EmbeddedBroker, bad: Callable[[], Any]
) -> None:
    async with leveret.connect(embedded.url, plugins=PluginRegistry.from_plugins(bad())) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer(serializer="bytes") as producer:
            await producer.publish(b"1", "q", content_type="text/x-bad", content_encoding=None)
            await producer.publish(b"1", "q", content_type="application/json", content_encoding="bad")
            await producer.publish(b"2", "q", content_type="application/json")
        consumer = client.consumer("q")
        seen: list[Any] = []

        async def handle(value: Any, message: Message) -> None:
            seen.append(value)
            consumer.stop()

        async with asyncio.timeout(3):
            await consumer.run(handle)
        assert seen == [2]
        assert consumer.counters()["undecodable"] == 2


@pytest.mark.parametrize(
    "error", [ValueError(f"Expected a number, got {SECRET}"), TypeError(f"unexpected keyword argument {SECRET}")]
)
async def test_neither_error_nor_log_has_a_body_when_a_plugin_quotes_it(
    embedded: EmbeddedBroker, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    bad = serializer_plugin("bad", encode=raising(error), decode=raising(error))
    async with leveret.connect(embedded.url, plugins=PluginRegistry.from_plugins(bad)) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer(serializer="bad") as producer:
            with pytest.raises(EncodeFailed) as encoding:
                await producer.publish(SECRET, "q")
        async with client.producer(serializer="bytes") as producer:
            await producer.publish(SECRET.encode(), "q", content_type="text/x-bad")
            await producer.publish(SECRET.encode(), "q", content_type="text/x-bad")
            await producer.publish(b"1", "q", content_type="application/json")
        consumer = client.consumer("q")
        message = await consumer.get()
        assert message is not None
        with pytest.raises(DecodeFailed) as decoding:
            _ = message.value
        await consumer.close()
        consumer = client.consumer("q")

        async def handle(value: Any, message: Message) -> None:
            consumer.stop()

        await consumer.run(handle)
    assert SECRET not in str(encoding.value)
    assert SECRET not in str(decoding.value)
    assert SECRET not in caplog.text
    assert "the plugin object 'bad'" in str(decoding.value)  # whose fault it is, as when it encodes


@pytest.mark.parametrize(
    ("properties", "options"),
    [
        ({"content_type": "application/json", "content_encoding": "Identity"}, {}),
        ({"content_type": "application/json"}, {"accept": ["Application/JSON"]}),
        ({"content_type": "application/json"}, {"accept": ["application/json; charset=utf-8"]}),
        ({"content_type": "text/x-mixed"}, {}),
        ({"content_type": "application/json", "content_encoding": "x-mixed"}, {}),
    ],
)
async def test_case_and_parameters_do_not_matter_when_a_content_type_or_encoding_is_compared(
    embedded: EmbeddedBroker, properties: dict[str, Any], options: dict[str, Any]
) -> None:
    class Mixed:
        def __init__(self, level: int | None) -> None:
            self.compress = gzip.compress

        def decompress(self, data: bytes, max_size: int) -> bytes:
            return data

    spec = CompressorSpec(name="mixed", content_encoding="X-Mixed", factory=Mixed, levels=(1, 9))
    registry = PluginRegistry.from_plugins(
        serializer_plugin("mixed", content_type="Text/X-Mixed"), plugin("compressing", compressors=[spec])
    )
    async with leveret.connect(embedded.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer(serializer="bytes") as producer:
            await producer.publish(b"[1]", "q", **properties)
        message = await client.consumer("q", **options).get()
        assert message is not None
        assert message.value == [1]


# ---------------------------------------------------------------------- loading


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    return Installed(tmp_path, monkeypatch)


LINES = {
    "is no Exception": "class Panic(BaseException): ...\nraise Panic",
    "cannot be printed": "class E(Exception):\n  def __str__(self): raise RuntimeError\nraise E",
    "has attributes that raise": (
        "def __getattr__(name): raise RuntimeError(name)\n@hookimpl\ndef leveret_metrics(): return []"
    ),
    "ends the program in a hook": "@hookimpl\ndef leveret_serializers(): raise SystemExit",
    "has a version that cannot be hashed": "@hookimpl\ndef leveret_serializers():\n  return [spec(api_version=[1])]",
    "has aliases that raise": (
        "def late():\n  yield 'text/y'\n  raise RuntimeError\n"
        "@hookimpl\ndef leveret_serializers(): return [spec(aliases=late())]"
    ),
    "brings two for one content type": (
        "@hookimpl\ndef leveret_serializers(): return [spec(), spec(name='y')]"  # which nobody could choose between
    ),
    "has aliases that can be read once": (
        "@hookimpl\ndef leveret_serializers(): return [spec(aliases=(each for each in ['text/y']))]"
    ),
    "has two functions for one hook": (
        "@hookimpl\ndef leveret_serializers(): return [spec()]\n"
        "@hookimpl(specname='leveret_serializers')\ndef more(): return [spec(name='y', content_type='text/y')]"
    ),
    "has an event hook that has to be awaited": "@hookimpl\nasync def leveret_connection_event(event): ...",
}


@pytest.mark.parametrize("what", LINES)
def test_it_alone_is_left_out_when_a_plugin(installed: Installed, what: str) -> None:
    head = (
        "from leveret.plugins import SerializerSpec, hookimpl\n"
        "def spec(name='x', content_type='text/x', **options):\n"
        "  return SerializerSpec(name=name, content_type=content_type, factory=int, **options)\n"
    )
    installed.add("good")
    installed.add("bad", head + LINES[what])
    registry = PluginRegistry.load(PluginSettings())
    assert {info.name: info.status for info in registry.plugins[1:]} == {"good": "active", "bad": "failed"}


@pytest.mark.parametrize("name", ["my-good-plugin", "My_Good_Plugin", "my.good.plugin"])
@pytest.mark.parametrize("option", ["allow", "block"])
def test_a_distribution_is_meant_when_its_name_is_spelled_in_another_way(
    installed: Installed, option: str, name: str
) -> None:
    installed.add("My-Good.Plugin", plugin="good", module="made_for_a_test_good")
    registry = PluginRegistry.load(PluginSettings(**{option: [name]}))  # type: ignore[arg-type]
    assert registry.plugins[1].status == ("active" if option == "allow" else "blocked")


# ---------------------------------------------------------------------- connections and sinks


async def open_and_say(peer: Peer, *more: Any) -> None:
    """Opens the connection as `handshake` does, and says more in the same breath."""
    await peer.read(8)
    peer.send(Connection.Start(server_properties={}))
    await peer.expect(Connection.StartOk)
    peer.send(Connection.Tune(2047, 131_072, 0))
    await peer.expect(Connection.TuneOk, Connection.Open)
    peer.send_bytes(b"".join(frame.marshal(each, 0) for each in (Connection.OpenOk(), *more)))
    await peer.linger()


async def silent(peer: Peer) -> None:
    await peer.read(8)


@pytest.mark.parametrize(
    ("script", "kinds", "lost"),
    [
        pytest.param(silent, [], 0, id="never open"),
        pytest.param(
            lambda peer: open_and_say(peer, Connection.Blocked("disk")),
            ["opened", "blocked", "closed"],
            0,
            id="blocked",
        ),
        pytest.param(
            lambda peer: open_and_say(peer, Connection.Close(320, "", 0, 0)), ["opened", "closed"], 1, id="lost"
        ),
    ],
)
async def test_a_connection_is_told_of_as_opened_before_anything_else(
    script: Callable[[Peer], Awaitable[None]], kinds: list[str], lost: int
) -> None:
    told: list[ConnectionEvent] = []

    def tell(event: ConnectionEvent) -> None:
        told.append(event)

    registry = PluginRegistry.from_plugins(plugin(connection_event=tell))
    async with FakeServer(script) as server:
        settings = ConnectionSettings.from_url(server.url, handshake_timeout=0.1)
        client = leveret.Client(Settings(connection=settings), registry)
        try:
            await client.open()
        except LeveretError:
            assert script is silent or lost
        await client.close()
        await asyncio.sleep(0)  # a socket that was closed says so in the next turn
        counted = {sample.metric.name: sample.value for sample in client.metrics() if sample.labels[1] == "publish"}
    assert [event.kind.value for event in told] == kinds
    assert counted["connections_lost"] == lost


async def test_no_closing_is_told_when_a_client_was_closed_before_its_connection_was_open() -> None:
    told: list[str] = []
    registry = PluginRegistry.from_plugins(plugin(connection_event=lambda event: told.append(event.kind.value)))
    dialed, go_on = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        dialed.set()
        await go_on.wait()
        await peer.handshake()
        await peer.linger()

    async with FakeServer(script) as server:
        client = leveret.Client(Settings(connection=ConnectionSettings.from_url(server.url)), registry)
        opening = asyncio.create_task(client.open())
        await dialed.wait()
        await client.close()
        go_on.set()
        with pytest.raises(ConnectionClosed):
            await opening
    assert told in ([], ["opened", "closed"])


class NotingSink:
    """Notes what happens to it; it waits where a test says so."""

    def __init__(self, waits_in: str = "") -> None:
        self.waits_in = waits_in
        self.entered: list[str] = []
        self.done: list[str] = []
        self.go_on = threading.Event()

    def _do(self, what: str) -> None:
        self.entered.append(what)
        if what == self.waits_in:
            self.go_on.wait(10)
        self.done.append(what)

    def start(self, source: MetricsSource, /) -> None:
        self._do("start")

    def close(self) -> None:
        self._do("close")


def with_sinks(**sinks: NotingSink) -> dict[str, Any]:
    specs = [MetricsSpec(name=name, factory=lambda sink=sink: sink) for name, sink in sinks.items()]  # type: ignore[misc]
    return {
        "plugins": PluginRegistry.from_plugins(plugin("sinks", metrics=specs)),
        "monitoring": MonitoringSettings(sinks=tuple(sinks), sink_timeout=0.2),
    }


async def test_every_sink_is_closed_when_closing_is_cancelled_and_done_again(embedded: EmbeddedBroker) -> None:
    slow, other = NotingSink("close"), NotingSink()
    client = await leveret.connect(embedded.url, **with_sinks(slow=slow, other=other))
    closing = asyncio.create_task(client.close())
    await until(lambda: "close" in slow.entered)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    slow.go_on.set()
    await client.close()
    assert other.done == ["start", "close"]


async def test_a_sink_does_not_start_behind_its_end_when_it_starts_too_slowly(embedded: EmbeddedBroker) -> None:
    slow = NotingSink("start")
    with pytest.raises(PluginError, match="did not start within"):
        await leveret.connect(embedded.url, **with_sinks(slow=slow))
    slow.go_on.set()
    await until(lambda: len(slow.done) == 2)
    assert slow.done == ["start", "close"]
