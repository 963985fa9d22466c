"""The compiled way to publish and the long Python way do the same: equal bytes, results, errors and deadlines.

Each example gives the same calls to two producers, of which one never takes the compiled way. A scripted server records
every byte of theirs, and confirms, refuses, returns or ignores their messages by the same plan.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pamqp import frame
from pamqp.commands import Basic, Channel, Connection
from tests.corpus import strategies
from tests.support.outcomes import awaited
from tests.support.peers import ANSWERS, FakeServer, Peer

import leveret
from leveret.errors import PublishError
from leveret.publishing.options import OPTIONS
from leveret.publishing.producer import Producer
from leveret.publishing.template import Template

if TYPE_CHECKING:
    from leveret.publishing.publishing import Publishing

assert strategies  # its import loads the hypothesis profile

#: Seconds: the two deadlines of a message, and how late a busy machine may be.
PUBLISH_TIMEOUT, CONFIRM_TIMEOUT, LATE = 0.1, 5.0, 1.0

#: Where one message's deadline makes room for another whose deadline is due too, either may come first, whichever way
#: the message takes. A difference between the two ways comes with each attempt.
ATTEMPTS = 4


class Long(Producer):
    """A producer that never takes the compiled way."""

    def publish(self, value: Any, routing_key: Any = "", **options: Any) -> Publishing[leveret.Receipt]:
        return self.publish_by(self._loop.time() + self.settings.publish_timeout, value, routing_key, **options)

    def publish_nowait(self, value: Any, routing_key: Any = "", **options: Any) -> leveret.Ticket:
        chosen: Any = options
        return self._publish_nowait(value, routing_key, chosen)


class Counting(Producer):
    """A producer that counts the calls which leave the compiled way."""

    long = 0

    def _publish(self, *arguments: Any) -> None:
        self.long += 1
        super()._publish(*arguments)

    def _publish_nowait(self, *arguments: Any) -> leveret.Ticket:
        self.long += 1
        return super()._publish_nowait(*arguments)


class Key(enum.StrEnum):
    """Routing keys as programs name them."""

    ORDERS = "orders"


class Text(str):
    """Text of another type."""

    __slots__ = ()


@dataclass(frozen=True)
class Body:
    """Stands for so many bytes in an example that is printed."""

    size: int


class Unequal(str):
    """Text that is equal to nothing."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 1


# ---------------------------------------------------------------------- the server


@dataclass
class Recorder:
    """A server that records what comes on a channel, and settles messages by a plan."""

    plan: list[str]
    blocked: bool
    received: bytes = b""
    published: int = 0
    message: list[bytes] = field(default_factory=list)

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await self.read_frame(peer)

    async def read_frame(self, peer: Peer) -> None:
        start = await peer.read(7)
        kind, channel, size = struct.unpack(">BHI", start)
        raw = start + await peer.read(size + 1)
        if not channel:
            _, _, value = frame.unmarshal(raw)
            if value.name in ANSWERS:
                peer.send(ANSWERS[value.name](value))
            return
        if kind == 1 and raw[7:11] != struct.pack(">HH", 60, 40):
            _, _, value = frame.unmarshal(raw)
            peer.send(ANSWERS[value.name](value), channel)
            if isinstance(value, Channel.Open) and self.blocked:
                peer.send(Connection.Blocked("low on memory"))
            return
        self.received += raw
        self.message.append(raw)
        header = self.message[1] if len(self.message) > 1 else b""
        body = sum(len(part) - 8 for part in self.message[2:])
        if header and body == struct.unpack_from(">Q", header, 11)[0]:
            self.settle(peer, channel)
            self.message.clear()

    def settle(self, peer: Peer, channel: int) -> None:
        self.published += 1
        fate = self.plan[self.published % len(self.plan)]
        if fate == "return":
            _, _, publish = frame.unmarshal(self.message[0])
            assert isinstance(publish, Basic.Publish)
            peer.send(Basic.Return(312, "NO_ROUTE", publish.exchange, publish.routing_key), channel)
            peer.send_bytes(b"".join(self.message[1:]))
        if fate == "nack":
            peer.send(Basic.Nack(self.published), channel)
        elif fate != "ignore":
            peer.send(Basic.Ack(self.published, fate == "multiple"), channel)


# ---------------------------------------------------------------------- the calls


def shown(result: object) -> object:
    """What is the same for two producers that were asked for the same."""
    if isinstance(result, BaseException):
        names = ("delivery_tag", "outcome", "stage", "reply_code", "exchange", "routing_key")
        return type(result), str(result), repr(result.__cause__), [getattr(result, name, None) for name in names]
    if isinstance(result, leveret.Ticket):
        return result.delivery_tag, result.count
    return result


class Caller:
    """Calls one producer, and notes results and deadlines."""

    def __init__(self, producer: Producer, templates: dict[str, Template]) -> None:
        self.producer = producer
        self.templates = templates
        self.results: list[object] = []
        self.tickets: list[leveret.Ticket] = []

    async def call(self, how: str, value: Any, key: Any, options: dict[str, Any]) -> None:
        """Makes one call. Those that wait are followed by a flush.

        So what has its outcome by the next call does not depend on how fast the server is.
        """
        producer = self.producer
        key = self.templates.get(key, key) if type(key) is str else key
        value = b"x" * value.size if isinstance(value, Body) else value
        started = time.monotonic()
        results: list[Any] = []
        try:
            if how == "publish_nowait":
                results = [producer.publish_nowait(value, key, **options)]
            elif how == "at once":
                tasks = [producer.publish(value, key, **options) for _ in range(4)]
                results = await asyncio.gather(*tasks, return_exceptions=True)
            else:
                results = [await getattr(producer, how)(value, key, **options)]
        except Exception as error:
            results = [error]
        self.tickets += [result for result in results if isinstance(result, leveret.Ticket)]
        for result in results:
            self.check_deadline(result, time.monotonic() - started)
        self.results += map(shown, results)
        if how != "publish_nowait":
            with contextlib.suppress(PublishError):
                await producer.flush()

    def check_deadline(self, result: object, seconds: float) -> None:
        if isinstance(result, PublishError) and result.stage:
            own = "confirm_timeout of 0.05 s" in str(result)
            assert seconds >= (0.05 if own else 0.98 * PUBLISH_TIMEOUT)
        assert seconds <= PUBLISH_TIMEOUT + LATE

    async def finish(self) -> None:
        started = time.monotonic()
        ended = await asyncio.gather(*map(awaited, self.tickets), return_exceptions=True)
        assert time.monotonic() - started <= PUBLISH_TIMEOUT + LATE
        self.results += map(shown, ended)


#: Each option that the compiled way takes, with a value that fits.
EVERY_OPTION: list[dict[str, Any]] = [
    {"exchange": "amq.direct"},
    {"mandatory": False},
    {"headers": {"a": 1, "b": "text"}},
    {"delivery_mode": 1},
    {"priority": 3},
    {"expiration": 1.5},
    {"correlation_id": "c"},
    {"reply_to": "r"},
    {"message_id": "m"},
    {"timestamp": 1_764_547_200},
    {"type": "t"},
    {"user_id": "guest"},
    {"app_id": "app"},
    {"content_type": "a/b"},
    {"content_encoding": "none"},
]

calls: st.SearchStrategy[list[Any]] = st.lists(
    st.tuples(
        st.sampled_from(
            ["publish", "publish", "publish_nowait", "publish_nowait", "publish_nowait", "enqueue", "at once"]
        ),
        st.sampled_from(
            [
                b"",
                b"x",
                b"body",
                Body(3000),
                Body(8193),
                Body(140_000),
                bytearray(b"x"),
                "text",
                None,
                5,
                "\ud800",
                (),
            ]
        ),
        st.sampled_from(
            [
                *("orders",) * 4,
                *("template", "template with headers", "mandatory template", "another producer's template") * 2,
                *("other", "", "k" * 255, "k" * 256, "\u00fc" * 127, "\u00fc" * 128, "\ud800"),
                *(Key.ORDERS, Text("orders"), Unequal("orders"), 5, None, ("orders",), b"orders", 1.5, []),
            ]
        ),
        st.sampled_from(
            [
                *({},) * 8,
                {"priority": 3},
                {"headers": {"a": 1}},
                {"headers": {"a": [1]}},
                {"headers": None},
                {"priority": 256},
                {"no_option": 1},
                {"mandatory": True},
                {"mandatory": 1},
                {"exchange": "amq.direct"},
                {"exchange": 5},
                {"confirm_timeout": 5.0},
                {"confirm_timeout": 0.05},
                {"confirm_timeout": "long"},
                *EVERY_OPTION,
                {"headers": {"a": 1, "b": "text", "c": None, "d": 2**40, "e": 0.5, "f": True, "\u00fc": "\u00fc"}},
                {"headers": {"a": {"b": [1, {"c": b"raw"}]}}},
                {"headers": {"large": "x" * 2000}},
                {"headers": {"large": "x" * 200_000}},
                {"headers": {"a": float("inf")}},
                {"headers": {"original-size": 1}},
                {"headers": {5: 1}},
                {"headers": 5},
                {"message_id": "m" * 256},
                {"content_type": "application/json"},
                {"content_type": 5, "mandatory": False},
                {"priority": None, "content_type": None, "delivery_mode": None},
                {name: value for one in EVERY_OPTION for name, value in one.items()},
            ]
        ),
    ),
    max_size=20,
)
settings_of = st.fixed_dictionaries(
    {},
    optional={
        "serializer": st.sampled_from(["bytes", "json"]),
        "confirms": st.booleans(),
        "mandatory": st.booleans(),
        "exchange": st.sampled_from(["", "amq.topic"]),
        "compressor": st.sampled_from([None, "gzip"]),
        "max_buffered": st.sampled_from([1, 3, 10_000]),
        "max_outstanding": st.sampled_from([1, 2, 200, "auto"]),
        "max_outstanding_bytes": st.sampled_from([1, 5_000, 2**26]),
        "max_body_size": st.sampled_from([5, 50_000, 2**26]),
    },
)
plans = st.lists(st.sampled_from(["ack", "ack", "multiple", "nack", "return", "ignore"]), min_size=1, max_size=5)
states = st.sampled_from(["open"] * 6 + ["closed", "unopened", "blocked", "closing"])

BASIC_CALLS: list[Any] = [
    ("publish", b"x", "orders", {}),
    ("publish_nowait", b"x", "template", {}),
    ("enqueue", b"x", "orders", {}),
]
AT_ONCE = ("at once", b"x", "template", {"confirm_timeout": 0.05})


async def run(
    kind: type[Producer], options: dict[str, Any], asked: list[Any], plan: list[str], state: str
) -> tuple[bytes, list[object], dict[str, int]]:
    """What a producer writes and answers, and its counters."""
    recorder = Recorder(plan, blocked=state == "blocked")
    defaults = {"serializer": "bytes", "publish_timeout": PUBLISH_TIMEOUT, "confirm_timeout": CONFIRM_TIMEOUT}
    async with FakeServer(recorder) as server, leveret.connect(server.url) as client:
        chosen = leveret.ProducerSettings(**{**defaults, **options})
        producer = kind(client.publishing_link, chosen, client.registry)
        headers = {"a": 1, "b": "text"}
        specs: dict[str, Any] = {
            "template": ("orders", {"priority": 5}),
            "template with headers": ("orders", {"headers": headers}),
            "mandatory template": ("orders", {"mandatory": True, "exchange": "amq.direct"}),
            "another producer's template": ("orders", {"priority": 6}),
        }
        templates: dict[str, Template] = {name: Template(key, of.copy()) for name, (key, of) in specs.items()}
        if state != "unopened":
            await producer.open()
            templates = {name: producer.template(key, **of) for name, (key, of) in specs.items()}
            templates["another producer's template"] = Template(*specs["another producer's template"])
        if state == "blocked":
            await client.channel()  # its answer comes behind connection.blocked
            assert client.connection.blocked is not None
        if state == "closed":
            await producer.close()
        caller = Caller(producer, templates)
        closing: asyncio.Task[None] | None = None
        if state == "closing":
            with contextlib.suppress(leveret.LeveretError):
                caller.tickets.append(producer.publish_nowait(b"x", "orders"))
            closing = asyncio.create_task(producer.close())
            await asyncio.sleep(0)
        for one in asked:
            await caller.call(*one)
        await caller.finish()
        if closing is not None:
            await closing
        counters = producer.counters()
        await producer.close()
        return recorder.received, caller.results, counters


@settings(max_examples=80)
@given(options=settings_of, asked=calls, plan=plans, state=states)
@example({}, [*BASIC_CALLS, *BASIC_CALLS], ["ignore"], "open")
@example({"max_outstanding": 1}, [AT_ONCE, *BASIC_CALLS], ["ack", "ack", "ignore", "ack"], "open")
@example({"max_buffered": 1}, [BASIC_CALLS[1]] * 3 + BASIC_CALLS, ["ack", "nack", "return"], "open")
@example({"mandatory": True}, BASIC_CALLS * 2, ["return"], "open")
@example({}, BASIC_CALLS, ["ack"], "blocked")
@example({}, BASIC_CALLS, ["ack"], "closed")
@example({}, BASIC_CALLS, ["ack"], "closing")
@example({}, BASIC_CALLS, ["ack"], "unopened")
def test_both_ways_do_the_same(options: dict[str, Any], asked: list[Any], plan: list[str], state: str) -> None:
    for attempt in range(ATTEMPTS):
        compiled, long = (asyncio.run(run(kind, options, asked, plan, state)) for kind in (Producer, Long))
        if compiled == long or attempt + 1 == ATTEMPTS:
            break
    assert compiled[1] == long[1]
    assert compiled[0] == long[0]
    assert compiled[2] == long[2]


# ---------------------------------------------------------------------- which calls are compiled


@pytest.mark.parametrize(
    "options",
    [{}, {"max_outstanding": "auto"}, {"mandatory": True}, {"message_ids": True}, {"compressor": "gzip"}],
    ids=str,
)
async def test_keys_templates_and_options_are_published_the_compiled_way(options: dict[str, Any]) -> None:
    recorder = Recorder(["ack"], blocked=False)
    async with FakeServer(recorder) as server, leveret.connect(server.url) as client:
        chosen = leveret.ProducerSettings(serializer="bytes", compression_threshold=0, **options)
        async with Counting(client.publishing_link, chosen, client.registry) as producer:
            # More than the routing keys that are kept.
            templates = [producer.template("orders", headers={"a": number}) for number in range(2000)]
            keys: list[str] = ["orders", Key.ORDERS, Text("orders"), *(f"orders.{number}" for number in range(2000))]
            every: list[str | Template] = [templates[0], templates[1], templates[0], *templates, *keys]
            for key in every:
                await producer.publish(b"x", key)
                producer.publish_nowait(b"x" * 100, key)
                await producer.enqueue(b"x", key)
            for given in EVERY_OPTION:
                await producer.publish(b"x", "orders", **given)
                producer.publish_nowait(b"x" * 100, templates[0], **given)
            assert producer.long == 0
        assert recorder.published == 3 * 4006 + 2 * len(EVERY_OPTION)


def test_every_option_is_published_the_compiled_way() -> None:
    assert {name for one in EVERY_OPTION for name in one} == OPTIONS - {"confirm_timeout"}
