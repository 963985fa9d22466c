"""The control plane's methods, every one of them, against pamqp's own codec."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import frame as pamqp_frame
from pamqp.commands import INDEX_MAPPING
from tests.corpus import frames, malformed, strategies

from leveret.errors import EncodeFailed, RemoteProtocolError, TableSyntaxError
from leveret.protocol import commands
from leveret.protocol.commands import Basic, Channel, Confirm, Connection, Exchange, Queue, Tx
from leveret.wire.decoding import decode_arguments
from leveret.wire.encoding import encode_method
from leveret.wire.reader import FrameReader
from leveret.wire.runs import MethodFrame

if TYPE_CHECKING:
    from tests.corpus.malformed import Block

EVERY_METHOD: list[type[commands.Method]] = sorted(INDEX_MAPPING.values(), key=lambda cls: cls.index)
every_method = pytest.mark.parametrize("cls", EVERY_METHOD, ids=lambda cls: commands.spec_of(cls).name)

VALUES = {
    "t": st.booleans(),
    "o": st.integers(0, 2**8 - 1),
    "h": st.integers(0, 2**16 - 1),
    "l": st.integers(0, 2**32 - 1),
    "q": st.integers(0, 2**63 - 1),  # pamqp takes delivery tags for signed numbers
    "s": strategies.shortstrs,
    "S": strategies.text,
    "T": strategies.pamqp_tables,
}


def arguments(cls: type[commands.Method]) -> st.SearchStrategy[dict[str, object]]:
    spec = commands.spec_of(cls)
    return st.fixed_dictionaries({field: VALUES[letter] for field, letter in zip(spec.fields, spec.types, strict=True)})


def unchecked(method: commands.Method) -> commands.Method:
    """The same method with pamqp's checks of values off: they refuse much that RabbitMQ takes, such as spaces."""
    cls = type(method)
    other: Any = type(
        cls.__name__, (cls,), {"__slots__": [], "attributes": cls.attributes, "validate": lambda self: None}
    )
    copy: commands.Method = other.__new__(other)
    for field in cls.attributes():
        setattr(copy, field, getattr(method, field))
    return copy


def pamqp_bytes(channel: int, method: commands.Method) -> bytes:
    # marshal() goes over __slots__ of the object's own class.
    copy = unchecked(method)
    type(copy).__slots__ = type(method).__slots__
    return pamqp_frame.marshal(copy, channel)


def read(data: bytes) -> MethodFrame:
    """The one method frame in `data`. Methods with content, and acks, are read on channel 0 to get at them here."""
    reader = FrameReader(frame_max=1 << 20)
    (event,) = reader.feed(data)
    assert isinstance(event, MethodFrame)
    return event


def fields_of(method: commands.Method) -> dict[str, object]:
    return {field: getattr(method, field) for field in type(method).attributes()}


def thawed(value: object) -> object:
    if isinstance(value, dict):
        return {key: thawed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [thawed(item) for item in value]
    return bytes(value) if isinstance(value, bytearray) else value


@every_method
@settings(max_examples=settings().max_examples // 5)
@pytest.mark.filterwarnings("ignore:This command is deprecated in AMQP 0-9-1")
@given(data=st.data())
def test_pamqp_reads_the_same_when_we_wrote_it(cls: type[commands.Method], data: st.DataObject) -> None:
    values = data.draw(arguments(cls))
    raw = commands.encode(3, commands.make(cls, **values))
    consumed, channel, method = pamqp_frame.unmarshal(raw)
    assert (consumed, channel, type(method)) == (len(raw), 3, cls)
    assert isinstance(method, commands.Method)
    assert thawed(fields_of(method)) == thawed(values)


@every_method
@settings(max_examples=settings().max_examples // 5)
@given(data=st.data())
def test_we_read_the_same_when_pamqp_wrote_it(cls: type[commands.Method], data: st.DataObject) -> None:
    values = data.draw(arguments(cls))
    method = commands.make(cls, **values)
    raw = pamqp_bytes(0, method)
    decoded = commands.decode(read(raw))
    assert type(decoded) is cls
    assert fields_of(decoded) == thawed(values)
    if "T" not in commands.spec_of(cls).types:
        assert raw == commands.encode(0, method)


@every_method
def test_arguments_have_the_specifications_defaults_when_left_out(cls: type[commands.Method]) -> None:
    method = commands.make(cls)
    for field, parameter in inspect.signature(cls).parameters.items():
        assert getattr(method, field) == parameter.default
    with pytest.raises(TypeError, match=r"no_such_argument"):
        commands.make(cls, no_such_argument=1)


@every_method
def test_cut_or_lengthened_arguments_are_refused_by_name_when_decoded(cls: type[commands.Method]) -> None:
    spec = commands.spec_of(cls)
    fill = {"t": True, "o": 1, "h": 1, "l": 1, "q": 1, "s": "s", "S": "S", "T": {"k": 1}}
    values = dict(zip(spec.fields, (fill[letter] for letter in spec.types), strict=True))
    payload = commands.encode(0, commands.make(cls, **values))[11:-1]
    name = spec.name.replace(".", r"\.")
    for cut in [*(payload[:n] for n in range(len(payload))), payload + b"\x00"]:
        with pytest.raises(TableSyntaxError, match=rf"{name} on channel 0") as caught:
            commands.decode(read(frames.method(0, spec.class_id, spec.method_id, cut)))
        assert caught.value.reply_code == 502


@pytest.mark.parametrize(
    ("method", "payload"),
    [
        (
            commands.make(Queue.Declare, queue="q", durable=True, auto_delete=True, arguments={"x": True}),
            "0000 01 71 0a 00000004 01 78 74 01",
        ),
        (commands.make(Exchange.Declare, exchange="e", exchange_type="topic"), "0000 01 65 05 746f706963 00 00000000"),
        (commands.make(Basic.Qos, prefetch_count=100, global_=True), "00000000 0064 01"),
        (commands.make(Connection.Tune, channel_max=2047, frame_max=131072, heartbeat=60), "07ff 00020000 003c"),
        (commands.make(Confirm.Select, nowait=True), "01"),
        (commands.make(Tx.Commit), ""),
        (commands.make(Basic.GetEmpty), "00"),
    ],
    ids=lambda value: commands.spec_of(type(value)).name if not isinstance(value, str) else "",
)
def test_bytes_are_those_of_the_specification_when_encoded(method: commands.Method, payload: str) -> None:
    spec = commands.spec_of(type(method))
    expected = frames.method(7, spec.class_id, spec.method_id, bytes.fromhex(payload))
    assert commands.encode(7, method) == expected


@given(st.lists(st.booleans(), max_size=20), st.integers(0, 2**16 - 1))
def test_bits_share_octets_and_others_end_the_octet_when_packed(bits: list[bool], short: int) -> None:
    types = "t" * len(bits) + "h" + "tt"
    values = (*bits, short, True, False)
    payload = encode_method(1, 60, 1, types, values)[11:-1]
    assert len(payload) == (len(bits) + 7) // 8 + 2 + 1
    assert decode_arguments(types, payload) == values


@given(st.binary(max_size=40))
def test_names_survive_when_they_are_no_utf8(raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    data = commands.encode(0, commands.make(Channel.Close, reply_code=404, reply_text=name, class_id=1, method_id=2))
    close: Any = commands.decode(read(data))
    assert close.reply_text == name
    secret: Any = commands.decode(read(commands.encode(0, commands.make(Connection.Secure, challenge=name))))
    assert secret.challenge == name


REFUSED = [
    (commands.make(Queue.Declare, queue="q" * 256), ["queue.declare queue", "256", "255"]),
    (commands.make(Queue.Declare, queue="é" * 128), ["queue.declare queue", "256", "255"]),
    (commands.make(Queue.Declare, queue=5), ["queue.declare queue", "int"]),
    (commands.make(Queue.Declare, queue=None), ["queue.declare queue", "NoneType"]),
    (commands.make(Queue.Declare, arguments={"x-max": object()}), ["x-max", "object"]),
    (commands.make(Queue.Declare, arguments="hunter2"), ["queue.declare arguments", "str"]),
    (commands.make(Queue.Bind, queue="q", routing_key="r" * 300), ["queue.bind routing_key", "300", "255"]),
    (commands.make(Basic.Qos, prefetch_count=65536), ["basic.qos prefetch_count", "int"]),
    (commands.make(Basic.Qos, prefetch_count=-1), ["basic.qos prefetch_count", "int"]),
    (commands.make(Basic.Qos, prefetch_count="hunter2"), ["basic.qos prefetch_count", "str"]),
    (commands.make(Basic.Qos, prefetch_count=1.0), ["basic.qos prefetch_count", "float"]),
    (commands.make(Basic.Qos, prefetch_size=2**32), ["basic.qos prefetch_size", "int"]),
    (commands.make(Basic.Ack, delivery_tag=2**64), ["basic.ack delivery_tag", "int"]),
    (commands.make(Basic.Ack, delivery_tag=-1), ["basic.ack delivery_tag", "int"]),
    (commands.make(Basic.Ack, delivery_tag=1.5), ["basic.ack delivery_tag", "float"]),
    (commands.make(Connection.StartOk, response=7), ["connection.start-ok response", "int"]),
]


@pytest.mark.parametrize(
    ("method", "says"), REFUSED, ids=[f"{i}-{says[0].replace(' ', '-')}" for i, (_, says) in enumerate(REFUSED)]
)
def test_refusal_names_method_and_argument_and_no_secret_when_a_value_does_not_fit(
    method: commands.Method, says: list[str]
) -> None:
    with pytest.raises(EncodeFailed) as caught:
        commands.encode(1, method)
    for text in says:
        assert text in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_method_is_refused_with_503_when_amqp_does_not_have_it() -> None:
    with pytest.raises(RemoteProtocolError, match=r"999\.1.*channel 4") as caught:
        commands.decode(read(frames.method(4, 999, 1)))
    assert caught.value.reply_code == 503
    assert commands.method_name(999, 1) == "999.1"
    assert commands.method_name(50, 10) == "queue.declare"
    assert commands.method_name(10, 11) == "connection.start-ok"


@pytest.mark.parametrize("case", malformed.ARGUMENTS, ids=lambda case: case.name)
def test_error_is_typed_and_names_the_value_when_arguments_are_malformed(case: Block) -> None:
    with pytest.raises(TableSyntaxError) as caught:
        decode_arguments(case.types, case.data, **case.limits)
    assert caught.value.reply_code == 502
    for text in case.says:
        assert text in str(caught.value)


def test_table_limits_are_arguments_when_decoding_a_method() -> None:
    data = commands.encode(0, commands.make(Queue.Declare, queue="q", arguments={"a": {"b": 1}}))
    declare: Any = commands.decode(read(data), max_table_depth=2, max_table_entries=2)
    assert declare.arguments == {"a": {"b": 1}}
    with pytest.raises(TableSyntaxError, match=r"queue\.declare.*limit of 1"):
        commands.decode(read(data), max_table_depth=1)
    with pytest.raises(TableSyntaxError, match=r"queue\.declare.*limit of 1"):
        commands.decode(read(data), max_table_entries=1)


def test_wrong_use_is_a_plain_error_when_types_and_values_do_not_match() -> None:
    with pytest.raises(ValueError, match="1 values for 2 types"):
        encode_method(1, 60, 1, "tt", (True,))
    with pytest.raises(ValueError, match="unknown argument type 'Z'"):
        encode_method(1, 60, 1, "Z", (True,))
    with pytest.raises(ValueError, match="unknown argument type 'Z'"):
        decode_arguments("Z", b"")
    with pytest.raises(OverflowError):
        encode_method(65536, 60, 1, "", ())
