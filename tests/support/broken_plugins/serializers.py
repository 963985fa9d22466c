"""Sound serializers, each broken in one way, with the conformance kit as their tests.

`tests/functional/test_conformance_kits.py` runs the files of this folder with pytest, and expects each `TestBroken...`
to be caught by the check that its `caught_by` names, with a text that has its `because` in it, and each `TestSound...`
to pass everything.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import pytest

from leveret.errors import ConfigurationError, DecodeFailed, EncodeFailed
from leveret.plugins import SerializerSpec
from leveret.testing import (
    SerializerConformance,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class JSONSerializer:
    def encode(self, value: Any) -> Any:
        return msgspec.json.encode(value)

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        try:
            return msgspec.json.Decoder(Any if model is None else model).decode
        except TypeError as error:
            raise ConfigurationError(str(error), option="model") from error


class BrokenSerializer(SerializerConformance):
    """Not collected: its name does not begin with Test."""

    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[Callable[[], Any]]
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def spec(self) -> SerializerSpec:
        options: dict[str, Any] = {"name": "broken", "content_type": "application/x-broken"}
        return SerializerSpec(**options | {"factory": type(self).make} | self.options)


class TestSoundSerializer(BrokenSerializer):
    make = JSONSerializer


class TestSoundUnsafeSerializer(BrokenSerializer):
    make = JSONSerializer
    options: ClassVar[dict[str, Any]] = {"safe": False}


class ReturnsStr(JSONSerializer):
    def encode(self, value: Any) -> Any:
        return msgspec.json.encode(value).decode()


class TestBrokenByReturningStr(BrokenSerializer):
    make = ReturnsStr
    caught_by = "test_encode_returns_bytes"
    because = "encode returned str"


class SharesTheModel(JSONSerializer):
    _decode: ClassVar[Callable[[bytes], Any]]

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        SharesTheModel._decode = super().decoder(model)

        def decode(body: bytes) -> Any:
            return SharesTheModel._decode(body)

        return decode


class TestBrokenBySharingTheModel(BrokenSerializer):
    make = SharesTheModel
    caught_by = "test_two_instances_do_not_share_state"
    because = "they share state"


class SharesAScratchBuffer(JSONSerializer):
    _value: ClassVar[Any] = None

    def encode(self, value: Any) -> bytes:
        SharesAScratchBuffer._value = value
        time.sleep(1e-5)  # where another thread may come in
        return msgspec.json.encode(SharesAScratchBuffer._value)


class TestBrokenBySharingAScratchBuffer(BrokenSerializer):
    make = SharesAScratchBuffer
    caught_by = "test_two_threads_do_not_disturb_each_other"
    because = "they share state"


class SwallowsErrors(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        decode = super().decoder(model)

        def lenient(body: bytes) -> Any:
            try:
                return decode(body)
            except msgspec.MsgspecError:
                return None

        return lenient


class TestBrokenBySwallowingTruncation(BrokenSerializer):
    make = SwallowsErrors
    caught_by = "test_cut_off_bodies_are_refused"
    because = "a body that is cut off must raise"


class TestBrokenByReturningWhatIsNotTheModel(BrokenSerializer):
    make = SwallowsErrors
    caught_by = "test_random_bodies_raise_ordinary_exceptions"
    because = "raise for a body that is not the model"


class Exits(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        decode = super().decoder(model)

        def deadly(body: bytes) -> Any:
            try:
                return decode(body)
            except msgspec.DecodeError:
                raise SystemExit("bad body") from None

        return deadly


class TestBrokenByExiting(BrokenSerializer):
    make = Exits
    caught_by = "test_random_bodies_raise_ordinary_exceptions"
    because = "raised SystemExit, which is not an Exception"


class SortsItsValue(JSONSerializer):
    def encode(self, value: Any) -> bytes:
        if isinstance(value, dict):
            items = sorted(value.items())
            value.clear()
            value.update(items[:1])
            value["__type__"] = "dict"
            return msgspec.json.encode(dict(items))
        return msgspec.json.encode(value)


class TestBrokenByChangingItsValue(BrokenSerializer):
    make = SortsItsValue
    caught_by = "test_encode_does_not_change_its_value"
    because = "encode changed its value"


class QuotesTheValue(JSONSerializer):
    def encode(self, value: Any) -> bytes:
        try:
            return msgspec.json.encode(value)
        except TypeError:
            raise EncodeFailed(f"cannot encode {value!r}") from None


class TestBrokenByQuotingTheValue(BrokenSerializer):
    make = QuotesTheValue
    caught_by = "test_values_do_not_show_in_errors"
    because = "raised EncodeFailed with the value in its text"


class QuotesTheBody(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        decode = super().decoder(model)

        def telling(body: bytes) -> Any:
            try:
                return decode(body)
            except msgspec.DecodeError:
                raise DecodeFailed(f"Expected JSON, got {body!r}") from None

        return telling


class TestBrokenByQuotingTheBody(BrokenSerializer):
    make = QuotesTheBody
    caught_by = "test_values_do_not_show_in_errors"
    because = "raised DecodeFailed with the value in its text"


class KeepsADepth(JSONSerializer):
    def __init__(self) -> None:
        self._depth = 0

    def encode(self, value: Any) -> bytes:
        self._depth += 1
        body = msgspec.json.encode(value)  # when this raises, the depth stays
        self._depth -= 1
        return b" " * self._depth + body


class TestBrokenByWhatAnErrorLeavesBehind(BrokenSerializer):
    make = KeepsADepth
    caught_by = "test_works_as_before_after_an_error"
    because = "the failed call left something behind"


class CountsItsBodies(JSONSerializer):
    def __init__(self) -> None:
        self._count = 0

    def encode(self, value: Any) -> bytes:
        self._count += 1
        return msgspec.json.encode(value) + b" " * (self._count % 7)


class TestBrokenByBeingDifferentEachTime(BrokenSerializer):
    make = CountsItsBodies
    caught_by = "test_encode_is_deterministic_within_one_object"
    because = "it keeps state between calls"


class BelievesSizes(JSONSerializer):
    def encode(self, value: Any) -> bytes:
        body = msgspec.json.encode(value)
        return len(body).to_bytes(4) + body

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        decode = super().decoder(model)

        def trusting(body: bytes) -> Any:
            whole = bytearray(int.from_bytes(body[:4]))
            if len(whole) != len(body) - 4:
                raise ValueError("wrong size")
            whole[:] = body[4:]
            return decode(bytes(whole))

        return trusting


class TestBrokenByBelievingSizes(BrokenSerializer):
    make = BelievesSizes
    caught_by = "test_bodies_that_claim_large_sizes_allocate_little"
    because = "MemoryError: it allocates as much as the data claims"


class OverflowsItsStack(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        decode = super().decoder(model)

        def crash(body: bytes) -> Any:
            if body.count(b"[") > 100_000:
                # What a parser in C does that recurses without counting.
                os.kill(os.getpid(), signal.SIGSEGV)
            return decode(body)

        return crash


class TestBrokenByOverflowingItsStack(BrokenSerializer):
    make = OverflowsItsStack
    caught_by = "test_deeply_nested_bodies_do_not_crash"
    because = "crashed the process (SIGSEGV)"


class OverflowsWhenItEncodes(JSONSerializer):
    def encode(self, value: Any) -> Any:
        inside, depth = value, 0
        while isinstance(inside, list) and inside:
            inside, depth = inside[0], depth + 1
        if depth > 100_000:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().encode(value)


class TestBrokenByOverflowingWhenItEncodes(BrokenSerializer):
    make = OverflowsWhenItEncodes
    caught_by = "test_deeply_nested_values_do_not_crash"
    because = "crashed the process (SIGSEGV)"


class RefusesModelsWithTypeError(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        return msgspec.json.Decoder(Any if model is None else model).decode


class TestBrokenByRefusingModelsWithTypeError(BrokenSerializer):
    make = RefusesModelsWithTypeError
    caught_by = "test_unknown_models_are_refused_with_configuration_error"
    because = "the interface wants ConfigurationError"


class LosesTypes(JSONSerializer):
    def encode(self, value: Any) -> bytes:
        return b"1" if value is True else msgspec.json.encode(value)


class TestBrokenByLosingTypes(BrokenSerializer):
    make = LosesTypes
    caught_by = "test_values_come_back_equal_when_encoded_and_decoded"
    because = "bool True came back as int 1"


class TestBrokenByItsContentType(BrokenSerializer):
    make = JSONSerializer
    options: ClassVar[dict[str, Any]] = {"content_type": "no content type"}
    caught_by = "test_descriptor_is_accepted_by_the_registry"
    because = "is not a content type"


class TestBrokenByModelsThatRaises(BrokenSerializer):
    make = JSONSerializer
    options: ClassVar[dict[str, Any]] = {"models": lambda model: model is None or issubclass(model, msgspec.Struct)}
    caught_by = "test_models_answers_for_every_object"
    because = "it must return False for other models"

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        return [({"a": 1}, None)]


class MakesOneObject(JSONSerializer):
    only: ClassVar[JSONSerializer]

    @classmethod
    def make(cls) -> JSONSerializer:
        return cls.only


MakesOneObject.only = JSONSerializer()


class TestBrokenByMakingOneObject(BrokenSerializer):
    make = MakesOneObject.make
    caught_by = "test_two_instances_do_not_share_state"
    because = "the factory returned one object twice"


class TestBrokenByRefusingItsValues(BrokenSerializer):
    make = JSONSerializer
    caught_by = "test_values_come_back_equal_when_encoded_and_decoded"
    because = "overrides the fixture `values`"

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        return [(object(), None)]


class WantsAModel(JSONSerializer):
    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        if model is None:
            raise ConfigurationError("it wants a model", option="model")
        return super().decoder(model)


class TestBrokenByNotMakingItsModels(BrokenSerializer):
    make = WantsAModel
    caught_by = "test_values_travel_from_a_producer_to_a_consumer"
    because = "it wants a model"


class TestBrokenByMissingSpec(SerializerConformance):
    caught_by = "test_encode_returns_bytes"
    because = "TestBrokenByMissingSpec must override the fixture `spec`"
