"""The conformance kit of serializers."""

from __future__ import annotations

import copy
import random
import typing
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec
import pytest

from leveret.errors import ConfigurationError, DecodeFailed, EncodeFailed, PluginError
from leveret.plugins.interfaces import SerializerSpec
from leveret.testing.base import Conformance, describe, fail, in_threads, ordinary, override, registry_of, require, same
from leveret.testing.child import MiB, in_child, peak_memory
from leveret.testing.live import QUEUE, take, with_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leveret.client.client import Client
    from leveret.errors import CodecError
    from leveret.plugins.interfaces import Serializer

__all__ = ["SampleRecord", "SampleStruct", "SerializerConformance", "plain_values"]

#: The seed of all random data here, so that a failure can be repeated.
_SEED: Final = 20_091_119
#: Deep enough to overflow the stack of a parser that recurses in C without counting.
_NESTED: Final = 250_000
#: Stands for the content of messages, which errors must not show.
_HIDDEN: Final = "the-hidden-5f1d"
_SCALARS: Final = (str, bytes, bytearray, int, float, complex, type(None))


class SampleStruct(msgspec.Struct):
    """A `msgspec.Struct` of the default value table."""

    id: int
    name: str
    amount: float = 0.0
    tags: list[str] = []
    parent: SampleStruct | None = None


@dataclass
class SampleRecord:
    """A dataclass of the default value table."""

    id: int
    name: str
    ok: bool = True
    counts: dict[str, int] = field(default_factory=dict)


def plain_values() -> list[tuple[Any, Any]]:
    """The default value table: values that JSON has, a Struct and a dataclass, each with its model or None."""
    numbers = [0, 1, -1, 127, 128, 255, 256, 65_535, 65_536, 2**31, -(2**31), 2**53, -(2**53)]
    floats = [0.5, -0.1, 1.0, 1e300, -1.7976931348623157e308, 5e-324]
    texts = ["", "a", "Grüße", "日本語", "\N{LEVEL SLIDER}\U0001f407", '\x00\x1f"\\/\u2028', "leveret " * 20_000]
    containers: list[Any] = [
        [],
        {},
        [None, True, False, 0, "", []],
        {"a": 1, "": None, "nested": {"list": [1, [2, [3, {"deep": True}]]]}},
        {"Schlüssel \U0001f511": [1.5, "x", None]},
        [{"id": number, "name": f"order {number}"} for number in range(50)],
    ]
    struct = SampleStruct(1, "\U0001f407", -2.5, ["a", ""], SampleStruct(2, "parent"))
    record = SampleRecord(7, "record", False, {"one": 1, "two": 2})
    plain = [None, True, False, *numbers, *floats, *texts, *containers]
    return [*((value, None) for value in plain), (struct, SampleStruct), (record, SampleRecord)]


class Unencodable:
    """An object that no serializer can encode."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: typing.SupportsIndex, /) -> str:
        raise TypeError("this cannot be serialized")


class Hidden(Unencodable):
    """An object that no serializer can encode, with a repr that errors must not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _HIDDEN


class SerializerConformance(Conformance):
    """Checks a serializer against `leveret.plugins.Serializer`.

    Subclass it in a class named `Test...` and override the fixture `spec`, which returns the `SerializerSpec`. A
    serializer that does not take plain values, such as one for protobuf messages or for text alone, overrides `values`
    as well: a list of (value, model) pairs. `decoder(model)` must decode the encoded value to an equal value of the
    same type. Values are compared with `==` and by type.

    Attributes:
        prefixes_are_refused: True: bodies of lists, dicts and objects show where they end, so every body that is cut
            off is refused. Set it to False for a format in which the beginning of a body can be a whole body, such as
            protobuf or YAML.

    Example:
        >>> import pytest
        >>> from leveret.plugins import builtin
        >>> class TestJSON(SerializerConformance):
        ...     @pytest.fixture
        ...     def spec(self):
        ...         return builtin.leveret_serializers()[0]
        ...
        ...     @pytest.fixture
        ...     def values(self):
        ...         return [({"id": 1}, None), ([1, 2], list[int])]
    """

    prefixes_are_refused: ClassVar[bool] = True

    @pytest.fixture
    def spec(self) -> SerializerSpec:
        """The descriptor to check; override it."""
        override(type(self), "spec", "your SerializerSpec")

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        """The values to check with, and their models; override it when your serializer takes others."""
        return plain_values()

    # ------------------------------------------------------------------ the descriptor

    def test_descriptor_is_accepted_by_the_registry(self, spec: SerializerSpec) -> None:
        """Name, content type and aliases have the right syntax, and the factory makes a serializer."""
        require(isinstance(spec, SerializerSpec), f"`spec` is a {type(spec).__name__}, not a SerializerSpec")
        try:
            registry = registry_of("leveret_serializers", spec)
            registry.make_serializer(registry.provided("serializer", spec.name))
        except PluginError as error:
            fail(f"the core does not take this SerializerSpec: {error}")

    def test_models_answers_for_every_object(self, spec: SerializerSpec, values: list[tuple[Any, Any]]) -> None:
        """`models` returns True for each model of `values`, and a bool for any other object, without raising."""
        if spec.models is None:
            return
        for _, model in values:
            require(
                model is None or spec.models(model) is True,
                f"models({model!r}) is not True, although `values` has a value of this model",
            )
        for model in (None, int, str, dict, list[int], object(), "text", 1, SampleStruct, lambda: None):
            try:
                answer = spec.models(model)
            except BaseException as error:
                ordinary(error, f"models({model!r})")
                fail(f"models({model!r}) raised {type(error).__name__}; it must return False for other models")
            require(isinstance(answer, bool), f"models({model!r}) returned {answer!r}; it must return a bool")

    # ------------------------------------------------------------------ round trips

    def test_values_come_back_equal_when_encoded_and_decoded(
        self, spec: SerializerSpec, values: list[tuple[Any, Any]]
    ) -> None:
        """Decoding what was encoded gives an equal value of the same type."""
        require(values, "`values` is empty: there is nothing to check")
        serializer = spec.factory()
        for value, model in values:
            decoded = _decode(_decoder(serializer, model), _encode(serializer, value), value)
            require(
                same(value, decoded),
                f"{describe(value)} came back as {describe(decoded)} (model {model!r}); a round trip must give an "
                "equal value of the same type. Remove values that your serializer cannot carry from `values`",
            )

    def test_encode_returns_bytes(self, spec: SerializerSpec, values: list[tuple[Any, Any]]) -> None:
        """`encode` returns exactly bytes: no str, bytearray or memoryview."""
        encode = spec.factory().encode
        for value, _ in values:
            body = encode(value)
            require(
                type(body) is bytes,
                f"encode returned {type(body).__name__} for {describe(value)}; the interface wants bytes",
            )

    def test_encode_is_deterministic_within_one_object(
        self, spec: SerializerSpec, values: list[tuple[Any, Any]]
    ) -> None:
        """One serializer encodes one value to the same bytes each time, whatever it encoded in between."""
        serializer = spec.factory()
        first = [_encode(serializer, value) for value, _ in values]
        for (value, _), body in reversed(list(zip(values, first, strict=True))):
            require(
                _encode(serializer, value) == body,
                f"encode returned other bytes when {describe(value)} was encoded again: it keeps state between calls",
            )

    def test_encode_does_not_change_its_value(self, spec: SerializerSpec, values: list[tuple[Any, Any]]) -> None:
        """The value belongs to the caller, who may publish it again."""
        serializer = spec.factory()
        for value, _ in values:
            before = copy.deepcopy(value)
            _encode(serializer, value)
            require(same(before, value), f"encode changed its value: {describe(before)} became {describe(value)}")

    # ------------------------------------------------------------------ models

    def test_unknown_models_are_refused_with_configuration_error(self, spec: SerializerSpec) -> None:
        """For a model that it cannot make, `decoder` raises ConfigurationError with option "model", nothing else."""
        serializer = spec.factory()
        for model in (object(), 1.5, "no model", Unencodable, lambda: None, [1]):
            try:
                decode = serializer.decoder(model)
            except ConfigurationError as error:
                require(
                    error.option == "model",
                    f"decoder({model!r}) raised ConfigurationError with option {error.option!r}, not 'model'",
                )
            except BaseException as error:
                ordinary(error, f"decoder({model!r})")
                fail(
                    f"decoder({model!r}) raised {type(error).__name__}; the interface wants "
                    "ConfigurationError(..., option='model') for a model that it cannot decode into"
                )
            else:
                require(
                    callable(decode), f"decoder({model!r}) returned a {type(decode).__name__}, which is no function"
                )

    # ------------------------------------------------------------------ bad bodies

    def test_cut_off_bodies_are_refused(self, spec: SerializerSpec, values: list[tuple[Any, Any]]) -> None:
        """A body that is cut off anywhere raises an ordinary exception, unless `prefixes_are_refused` is False.

        If the decoder returns a value instead, it is an instance of the model.
        """

        def check() -> None:
            serializer = spec.factory()
            for value, model in values:
                body, decode = _encode(serializer, value), _decoder(serializer, model)
                for size in _cuts(len(body)):
                    what = f"decoding the first {size} of {len(body)} bytes of {describe(value)}"
                    ended, result = _attempt(decode, body[:size], what)
                    if not ended:
                        continue
                    _require_model(result, model, what)
                    require(
                        not self.prefixes_are_refused or isinstance(value, _SCALARS),
                        f"{what} returned {describe(result)}: a body that is cut off must raise. If in this format the "
                        "beginning of a body can be a whole body, set `prefixes_are_refused = False` in your class",
                    )

        in_child(check, "decoding bodies that are cut off")

    def test_random_bodies_raise_ordinary_exceptions(self, spec: SerializerSpec, values: list[tuple[Any, Any]]) -> None:
        """Up to 1 MiB of random bytes are decoded or refused. A decoder with a model returns only instances of it."""
        if not spec.safe:
            _skip_unsafe()

        def check() -> None:
            serializer = spec.factory()
            for model, decode in _decoders(serializer, values):
                for body in _random_bodies():
                    what = f"decoding {len(body)} random bytes (model {model!r})"
                    ended, result = _attempt(decode, body, what)
                    if ended:
                        _require_model(result, model, what)

        in_child(check, "decoding random bytes")

    def test_bodies_that_claim_large_sizes_allocate_little(
        self, spec: SerializerSpec, values: list[tuple[Any, Any]]
    ) -> None:
        """Bodies in which a few bytes were set to 255 are decoded or refused within 64 MiB of memory."""
        allowed = 64 * MiB

        if not spec.safe:
            _skip_unsafe()

        def check() -> None:
            serializer = spec.factory()
            baseline = peak_memory()
            for value, model in values:
                body, decode = _encode(serializer, value), _decoder(serializer, model)
                if len(body) > 4096:
                    continue
                for bad in _mutations(body):
                    _attempt(decode, bad, f"decoding {describe(value)} with some bytes set to 255 (model {model!r})")
                    used = peak_memory() - baseline
                    require(
                        used <= allowed,
                        f"decoding {len(bad)} bytes took {used // MiB} MiB of memory: do not allocate by a size that "
                        "the body claims",
                    )

        in_child(check, "decoding bodies that claim large sizes")

    def test_deeply_nested_bodies_do_not_crash(self, spec: SerializerSpec, values: list[tuple[Any, Any]]) -> None:
        """Bodies that nest a quarter of a million levels are decoded or refused; RecursionError counts as refused."""
        if not spec.safe:
            _skip_unsafe()

        def check() -> None:
            serializer = spec.factory()
            bodies = [bytes([byte]) * _NESTED for byte in range(256)]
            bodies += _nested_bodies(serializer)
            for model, decode in _decoders(serializer, values):
                for body in bodies:
                    _attempt(decode, body, f"decoding a deeply nested body (model {model!r})", recursion=True)

        in_child(check, "decoding deeply nested bodies")

    def test_deeply_nested_values_do_not_crash(self, spec: SerializerSpec) -> None:
        """Encoding lists and dicts of very many levels succeeds or raises; RecursionError is fine."""

        def check() -> None:
            encode = spec.factory().encode
            for wrap in (lambda inner: [inner], lambda inner: {"a": inner}):
                value: Any = None
                for _ in range(_NESTED):
                    value = wrap(value)
                _attempt(encode, value, "encoding a deeply nested value", recursion=True)

        in_child(check, "encoding deeply nested values")

    # ------------------------------------------------------------------ in the core

    def test_values_travel_from_a_producer_to_a_consumer(
        self, spec: SerializerSpec, values: list[tuple[Any, Any]]
    ) -> None:
        """Values pass a real client and broker. The consumer gets the serializer's name, or only the content type."""
        registry = registry_of("leveret_serializers", spec)

        async def work(client: Client) -> None:
            async with client.producer(serializer=spec.name) as producer:
                for value, model in values:
                    readers: list[dict[str, Any]] = [{"serializer": spec.name}]
                    if spec.models is None or model is not None:
                        readers.append({"accept": (spec.content_type,)})
                    for options in readers:
                        await producer.publish(value, QUEUE)
                        async with client.consumer(QUEUE, model, **options) as consumer:
                            message = await take(consumer)
                            require(
                                message.content_type == spec.content_type,
                                f"{describe(value)} arrived with the content type {message.content_type!r}",
                            )
                            require(
                                same(value, message.value),
                                f"{describe(value)} arrived as {describe(message.value)} (model {model!r}, {options})",
                            )

        with_client(registry, work, "publishing and consuming")

    def test_values_do_not_show_in_errors(self, spec: SerializerSpec, values: list[tuple[Any, Any]]) -> None:
        """The EncodeFailed of a bad value, and the DecodeFailed of a bad body, do not show any of it.

        The core quotes the text of a CodecError. When encoding it also quotes a PluginError; when decoding, a
        `msgspec.ValidationError` that begins with "Expected" or "Object missing". It quotes no other exception of a
        plugin.
        """
        registry = registry_of("leveret_serializers", spec)

        async def work(client: Client) -> None:
            async with client.producer(serializer=spec.name) as producer:
                for bad in (Hidden(), [_HIDDEN, Hidden()], {_HIDDEN: Hidden()}, _HIDDEN, {_HIDDEN: _HIDDEN}):
                    what = f"publishing a {type(bad).__name__} that cannot be encoded"
                    try:
                        await producer.publish(bad, QUEUE)
                    except Exception as error:
                        _require_discreet(error, EncodeFailed, what)
            async with client.producer(serializer="bytes") as producer:
                for model, bodies in _telling_bodies(spec, values):
                    async with client.consumer(QUEUE, model, serializer=spec.name) as consumer:
                        for body in bodies:
                            await producer.publish(body, QUEUE, content_type=spec.content_type)
                            message = await take(consumer)
                            try:
                                message.value  # noqa: B018 - decodes
                            except Exception as error:
                                _require_discreet(error, DecodeFailed, f"decoding a bad body (model {model!r})")

        if not spec.safe:
            _skip_unsafe()
        what = "publishing and consuming what is bad"
        in_child(lambda: with_client(registry, work, what), what)

    # ------------------------------------------------------------------ independence

    def test_two_instances_do_not_share_state(self, spec: SerializerSpec, values: list[tuple[Any, Any]]) -> None:
        """Two serializers, and decoders for several models, used in turns, each do what they would do alone."""
        alone = spec.factory()
        expected = [_encode(alone, value) for value, _ in values]
        one, other = spec.factory(), spec.factory()
        require(one is not other, "the factory returned one object twice; each producer and consumer gets its own")
        # All decoders are made before any is used, which shows a serializer that remembers only the last model.
        pairs = [(_decoder(one, model), _decoder(other, model)) for _, model in values]
        order = list(range(len(values)))
        for first, second in zip(order, reversed(order), strict=True):
            (value, model), (another, _) = values[first], values[second]
            bodies = _encode(one, value), _encode(other, another)
            require(
                bodies == (expected[first], expected[second]),
                f"two serializers used in turns encoded {describe(value)} and {describe(another)} to other bytes than "
                "one alone: they share state. Keep state in the object, not in the class or module",
            )
            text = "with two serializers used in turns: they share state"
            decoded = _decode(pairs[first][0], expected[first], value, text)
            other_decoded = _decode(pairs[second][1], expected[second], another, text)
            require(
                same(value, decoded) and same(another, other_decoded),
                f"two serializers used in turns decoded {describe(value)} (model {model!r}) to {describe(decoded)} and "
                f"{describe(another)} to {describe(other_decoded)}: they share state. Keep state in the object and in "
                "the function that `decoder` returns, not in the class or module",
            )

    def test_two_threads_do_not_disturb_each_other(self, spec: SerializerSpec, values: list[tuple[Any, Any]]) -> None:
        """Two threads with a serializer each get what they would get alone."""

        def work(mine: list[tuple[Any, Any]]) -> Callable[[], None]:
            def run() -> None:
                serializer = spec.factory()
                for _ in range(20):
                    for value, model in mine:
                        text = "with two threads that have a serializer each: they share state"
                        decoded = _decode(_decoder(serializer, model), _encode(serializer, value), value, text)
                        require(
                            same(value, decoded),
                            f"with two threads that have a serializer each, {describe(value)} came back as "
                            f"{describe(decoded)}: they share state",
                        )

            return run

        in_threads(work(values), work(values[::-1]))

    def test_works_as_before_after_an_error(self, spec: SerializerSpec, values: list[tuple[Any, Any]]) -> None:
        """After a value that cannot be encoded, or a body that cannot be decoded, the next call works as before."""

        def check() -> None:
            serializer = spec.factory()
            expected = [_encode(serializer, value) for value, _ in values]
            bad_bodies = list(_random_bodies(count=20, large=False))
            for (value, model), body in zip(values, expected, strict=True):
                decode = _decoder(serializer, model)
                for bad in (Unencodable(), [value, Unencodable()], {"a": value, "b": Unencodable()}):
                    _attempt(serializer.encode, bad, f"encoding a {type(bad).__name__} that cannot be encoded")
                    after = _encode(serializer, value)
                    require(
                        after == body,
                        f"after an encode that failed, {describe(value)} was encoded to {describe(after)}, not "
                        f"{describe(body)}: the failed call left something behind",
                    )
                for bad_body in (*bad_bodies, body[: len(body) // 2], body + b"\xc1"):
                    _attempt(decode, bad_body, "decoding a bad body")
                    decoded = _decode(decode, body, value, "after a decode of a bad body")
                    require(
                        same(value, decoded),
                        f"after a decode of a bad body, {describe(value)} was decoded to {describe(decoded)}: the "
                        "failed call left something behind",
                    )

        in_child(check, "encoding and decoding good and bad in turns")


# ---------------------------------------------------------------------- using serializers


def _encode(serializer: Serializer, value: Any) -> bytes:
    try:
        return serializer.encode(value)
    except BaseException as error:
        ordinary(error, f"encoding {describe(value)}")
        fail(
            f"encoding {describe(value)} raised {type(error).__name__}: {error}. A serializer that does not take such "
            "values overrides the fixture `values` with those it takes"
        )


def _decoder(serializer: Serializer, model: Any) -> Callable[[bytes], Any]:
    try:
        return serializer.decoder(model)
    except BaseException as error:
        ordinary(error, f"decoder({model!r})")
        fail(f"decoder({model!r}) raised {type(error).__name__}: {error}; `values` says that it can make this model")


def _decode(decode: Callable[[bytes], Any], body: bytes, value: Any, when: str = "") -> Any:
    try:
        return decode(body)
    except BaseException as error:
        what = f"decoding what {describe(value)} was encoded to"
        ordinary(error, what)
        fail(f"{what} raised {type(error).__name__}: {error}{when and '; ' + when}")


def _decoders(serializer: Serializer, values: list[tuple[Any, Any]]) -> Iterator[tuple[Any, Callable[[bytes], Any]]]:
    """A decoder for each model of the values; models need not be hashable."""
    seen: list[Any] = []
    for _, model in values:
        if not any(model is other for other in seen):
            seen.append(model)
            yield model, _decoder(serializer, model)


def _attempt(function: Callable[[Any], Any], argument: Any, what: str, *, recursion: bool = False) -> tuple[bool, Any]:
    """Calls a function that may raise an ordinary exception. Returns (True, its result), or (False, None)."""
    try:
        return True, function(argument)
    except BaseException as error:
        ordinary(error, what, recursion=recursion)
        return False, None


def _require_model(result: Any, model: Any, what: str) -> None:
    if isinstance(model, type) and not typing.is_typeddict(model):
        require(
            isinstance(result, model),
            f"{what} returned {describe(result)}, which is no {model.__name__}: raise for a body that is not the model",
        )


def _require_discreet(error: Exception, wanted: type[CodecError], what: str) -> None:
    require(
        isinstance(error, wanted),
        f"{what} raised {type(error).__name__}; users expect {wanted.__name__}. Raise an ordinary exception; the "
        "core wraps it",
    )
    require(
        _HIDDEN not in str(error) and _HIDDEN not in repr(error),
        f"{what} raised {wanted.__name__} with the value in its text: name types, places and sizes, and never the "
        "content of a message",
    )


def _skip_unsafe() -> None:
    pytest.skip("the serializer has safe=False: decoding a body of unknown origin could run code")


# ---------------------------------------------------------------------- bad bodies


def _telling_bodies(spec: SerializerSpec, values: list[tuple[Any, Any]]) -> Iterator[tuple[Any, list[bytes]]]:
    """Bodies that hold the hidden text and are mostly wrong, for each model of the values."""
    serializer = spec.factory()
    hidden = _HIDDEN.encode()
    bodies = [hidden, b'"' + hidden + b'"', b'{"id": "' + hidden + b'"}', b'{"' + hidden + b'": 1', b"\xff" + hidden]
    for bad in (
        _HIDDEN,
        [_HIDDEN],
        {"id": _HIDDEN},
        {"id": 1, "name": _HIDDEN, _HIDDEN: [_HIDDEN]},
        {_HIDDEN: _HIDDEN},
    ):
        with suppress(Exception):
            # Bodies of the wrong kind, whole and cut off, from a serializer that takes plain values.
            body = serializer.encode(bad)
            bodies += [body, body[:-1], body + hidden]
    for model, _ in _decoders(serializer, values):
        own = [_encode(serializer, value) for value, its_model in values if its_model is model]
        yield model, [*bodies, *(body + hidden for body in own[:20]), *(hidden + body for body in own[:20])]


def _cuts(size: int) -> list[int]:
    """Where to cut a body: everywhere, or in many places of a long one."""
    if size <= 512:
        return list(range(size))
    return sorted({*range(256), *range(256, size, size // 128), *range(size - 128, size)})


def _random_bodies(*, count: int = 1000, large: bool = True) -> Iterator[bytes]:
    source = random.Random(_SEED)  # noqa: S311 - must be the same each time
    yield b""
    for number in range(count):
        yield source.randbytes(number % 64 + 1)
    if large:
        for _ in range(20):
            yield source.randbytes(4096)
        yield source.randbytes(MiB)


def _mutations(body: bytes) -> Iterator[bytes]:
    """The body with 1, 2, 4 or 8 bytes set to 255, in many places: most formats have sizes of so many bytes."""
    for width in (1, 2, 4, 8):
        for start in _cuts(max(len(body) - width + 1, 1)):
            yield body[:start] + b"\xff" * width + body[start + width :]
    source = random.Random(_SEED)  # noqa: S311 - must be the same each time
    for tag in range(256):
        yield bytes([tag]) + b"\x7f" + b"\xff" * 7 + source.randbytes(8)
        yield bytes([tag]) + b"\xff" * 4


def _nested_bodies(serializer: Serializer) -> list[bytes]:
    """Deeply nested bodies of formats that write inner values between an opening and a closing part."""
    found = []
    for wrap in (lambda inner: [inner], lambda inner: {"a": inner}):
        try:
            inside, once, twice = (serializer.encode(value) for value in (1, wrap(1), wrap(wrap(1))))
        except Exception:  # noqa: S112 - not a serializer of plain values, and so not of nested ones
            continue
        at = once.find(inside)
        opening, closing = once[:at], once[at + len(inside) :]
        if at > 0 and opening + once + closing == twice:
            found += [opening * _NESTED, opening * _NESTED + inside + closing * _NESTED]
    return found
