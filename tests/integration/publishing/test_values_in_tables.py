"""Values in headers and arguments at their limits: a broker takes all that is sent, and the rest is refused here."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.queues import messages

import leveret
from leveret import Classic, FieldValue, Quorum, Topology
from leveret.errors import EncodeFailed

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_leftovers")


def _nested(levels: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = None
    for _ in range(levels):
        value = wrap(value)
    return value


#: Every field type at its limits.
LIMITS: dict[str, Any] = {
    "t": [FieldValue("t", True), FieldValue("t", False)],
    "b": [FieldValue("b", -(2**7)), FieldValue("b", 2**7 - 1)],
    "B": [FieldValue("B", 0), FieldValue("B", 2**8 - 1)],
    "s": [FieldValue("s", -(2**15)), FieldValue("s", 2**15 - 1)],
    "u": [FieldValue("u", 0), FieldValue("u", 2**16 - 1)],
    "I": [FieldValue("I", -(2**31)), FieldValue("I", 2**31 - 1)],
    "i": [FieldValue("i", 0), FieldValue("i", 2**32 - 1)],
    "l": [FieldValue("l", -(2**63)), FieldValue("l", 2**63 - 1)],
    "L": [FieldValue("L", 0), FieldValue("L", 2**63 - 1)],
    "f": [FieldValue("f", value) for value in (0.0, -0.0, 1.401298464324817e-45, 3.4028234663852886e38)],
    "d": [0.0, -0.0, 5e-324, 1.7976931348623157e308, -1.7976931348623157e308],
    "D": [Decimal("2147483647"), Decimal("-2147483648"), Decimal("1E-255"), Decimal(0)],
    "S": ["", "\0", "\U0010ffff", "x" * 5_000, FieldValue("S", b"\xff\xc3(")],
    "x": [b"", bytes(range(256))],
    "T": [FieldValue("T", 0), FieldValue("T", 2**63), FieldValue("T", 2**64 - 1)],
    "V": [None],
    "A": [[], [[]], _nested(31, lambda value: [value]), list(range(1_000))],
    "F": [{}, {"": None}, {"k" * 255: None}, _nested(31, lambda value: {"k": value}), {"\udcff": 1}],
}


@pytest.mark.server_version
@pytest.mark.parametrize("prefix", ["k", "x-k"])
@pytest.mark.parametrize("kind", [Classic(), Quorum()], ids=["classic", "quorum"])
async def test_a_broker_takes_every_type_at_its_limits(
    client: leveret.Client, name: Callable[[str], str], kind: Classic | Quorum, prefix: str
) -> None:
    queue = name("limits")
    await client.declare(Topology().queue(queue, kind))
    cases = [(letter, value) for letter, values in LIMITS.items() for value in values]
    async with client.producer(serializer="bytes") as producer:
        for letter, value in cases:
            receipt = await producer.publish(letter.encode(), queue, headers={f"{prefix}-{letter}": value})
            assert receipt.outcome is leveret.Outcome.CONFIRMED, (letter, value)
        assert client.connection.is_open
    found = await messages(client, queue, bytes)
    assert [message.body.decode() for message in found] == [letter for letter, _ in cases]
    for message, (letter, value) in zip(found, cases, strict=True):
        back = message.headers[f"{prefix}-{letter}"]
        plain = value.value if isinstance(value, FieldValue) else value
        if letter not in "TS":
            assert back == plain, (letter, value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: value,
        lambda value: FieldValue("f", value),
        lambda value: [[value]],
        lambda value: {"a": [{"b": FieldValue("d", value)}]},
    ],
    ids=["float", "single", "array", "nested"],
)
async def test_nothing_is_sent_when_a_float_is_infinite_or_nan(
    client: leveret.Client, queue: str, name: Callable[[str], str], value: float, wrap: Callable[[float], Any]
) -> None:
    connection = client.connection
    async with client.producer() as producer:
        await producer.publish("before", queue)
        with pytest.raises((EncodeFailed, leveret.PublishError), match="infinite or NaN"):
            await producer.publish("refused", queue, headers={"k": wrap(value)})
        with pytest.raises((EncodeFailed, leveret.PublishError), match="infinite or NaN"):
            producer.publish_nowait("refused", queue, headers={"k": wrap(value)})
        with pytest.raises(EncodeFailed, match="infinite or NaN"):
            producer.template(queue, headers={"k": wrap(value)})
        await producer.publish("after", queue)
    channel = await client.channel()
    with pytest.raises(EncodeFailed, match="infinite or NaN"):
        await channel.queue_declare(name("q"), arguments={"k": wrap(value)})
    with pytest.raises(EncodeFailed, match="infinite or NaN"):
        await channel.queue_bind(queue, "amq.headers", arguments={"k": wrap(value)})
    await channel.close()
    assert client.connection is connection
    assert connection.is_open
    assert [message.value for message in await messages(client, queue)] == ["before", "after"]


@pytest.mark.parametrize("text", ["q\udcff", b"q\xff", "\udcc3("])
async def test_nothing_is_sent_when_a_name_in_a_method_is_no_utf8(
    client: leveret.Client, queue: str, text: Any
) -> None:
    channel = await client.channel()
    for request in (
        lambda: channel.queue_declare(text),
        lambda: channel.queue_delete(text),
        lambda: channel.exchange_declare(text),
        lambda: channel.queue_bind(queue, text),
        lambda: channel.queue_bind(queue, "amq.topic", text),
        lambda: channel.basic_get(text),
    ):
        with pytest.raises(EncodeFailed, match="is no UTF-8"):
            await request()
    await channel.basic_qos(1)
    await channel.close()
    assert client.connection.is_open
    # Routing keys of messages may be any bytes.
    async with client.producer() as producer:
        await producer.publish("x", "k\udcff", exchange="amq.fanout", mandatory=False)
