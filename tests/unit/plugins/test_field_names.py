"""Serializers rename fields and leave out None where they are told to, and read what they have written."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import uuid
from decimal import Decimal
from typing import Any, NamedTuple, NotRequired, TypedDict

import attrs
import msgspec
import pytest

from leveret.errors import ConfigurationError, EncodeFailed
from leveret.plugins import FieldNames, PluginRegistry
from leveret.plugins.field_names import renamed

NAMES = [
    *("order_id", "a", "orderId", "order_iD", "a_bC", "a_b2c", "aBc_dEf", "ABC_DEF", "url_2_x"),
    *("_x", "_first_name", "x_", "x__y", "é_ß", "order"),
]


@pytest.mark.parametrize("rename", ["camel", "pascal", "kebab"])
@pytest.mark.parametrize("name", NAMES)
def test_s29_names_are_those_that_msgspec_makes(name: str, rename: Any) -> None:
    (expected,) = msgspec.defstruct("Named", [name], rename=rename).__struct_encode_fields__
    assert renamed(name, rename) == expected


def test_a_style_that_does_not_exist_is_refused() -> None:
    for make in (lambda: renamed("a", "snake"), lambda: FieldNames("lower")):
        with pytest.raises(ConfigurationError, match="'camel' or 'pascal' or 'kebab'") as caught:
            make()
        assert caught.value.option == "rename"


class Line(msgspec.Struct):
    unit_price: Decimal
    tax_rate: float | None = None


class Colour(enum.Enum):
    DARK_RED = "dark_red"


class Point(NamedTuple):
    x_axis: int
    best_line: Line


class Place(TypedDict):
    house_number: int
    post_code: NotRequired[str | None]


@attrs.define
class Customer:
    first_name: str
    last_order: int | None = None


@dataclasses.dataclass
class Order:
    order_id: int
    order_lines: list[Line]
    by_name: dict[str, Line]
    sent_at: dt.datetime
    unique_id: uuid.UUID
    paint_colour: Colour
    raw_data: bytes
    sold_to: Customer
    free_text: str | None
    best_point: Point | None = None
    pair_of: tuple[int, Line] | None = None
    any_data: dict[str, Any] | None = None
    kept_none: str | None = "default"
    parent_order: Order | None = None
    all_lines: frozenset[int] = frozenset()


LINE = Line(Decimal("1.10"))
ORDER = Order(
    order_id=1,
    order_lines=[LINE, Line(Decimal(2), 0.5)],
    by_name={"first_name": LINE},
    sent_at=dt.datetime(2025, 7, 16, tzinfo=dt.UTC),
    unique_id=uuid.UUID(int=7),
    paint_colour=Colour.DARK_RED,
    raw_data=b"\x00\xff",
    sold_to=Customer("Ada"),
    free_text=None,
    best_point=Point(3, LINE),
    pair_of=(4, LINE),
    any_data={"a_b": None},
    kept_none=None,
    all_lines=frozenset({1, 2}),
)


def serializer(**options: Any) -> Any:
    registry = PluginRegistry.from_plugins()
    return registry.make_serializer(registry.provided("serializer", "json"), options)


def written(value: Any, **options: Any) -> Any:
    return json.loads(serializer(**options).encode(value))


def test_s29_fields_are_renamed_at_every_depth_and_keys_of_data_are_not() -> None:
    found = written(dataclasses.replace(ORDER, parent_order=ORDER), rename="camel")
    for order in (found, found["parentOrder"]):
        assert order["orderId"] == 1
        assert order["orderLines"] == [{"unitPrice": "1.10", "taxRate": None}, {"unitPrice": "2", "taxRate": 0.5}]
        assert order["byName"] == {"first_name": {"unitPrice": "1.10", "taxRate": None}}
        assert order["soldTo"] == {"firstName": "Ada", "lastOrder": None}
        assert order["bestPoint"] == [3, {"unitPrice": "1.10", "taxRate": None}]
        assert order["pairOf"] == [4, {"unitPrice": "1.10", "taxRate": None}]
        assert order["anyData"] == {"a_b": None}
        assert order["paintColour"] == "dark_red"
        assert not any("_" in key for key in order)


def test_s29_none_is_left_out_where_readers_make_it_none_again() -> None:
    found = written(ORDER, omit_none=True)
    assert "free_text" not in found
    assert "parent_order" not in found
    assert found["order_lines"] == [{"unit_price": "1.10"}, {"unit_price": "2", "tax_rate": 0.5}]
    assert found["kept_none"] is None, "its default is another"
    assert found["any_data"] == {"a_b": None}, "it is data"


def test_s29_plain_dicts_are_renamed_where_no_typed_value_holds_them() -> None:
    value = {"order_id": 1, "free_text": None, "two words": [{"a_b": None}, None], 3: LINE, "typed": ORDER}
    found = written(value, rename="camel", omit_none=True)
    assert found.pop("typed")["anyData"] == {"a_b": None}
    assert found == {"orderId": 1, "two words": [{}, None], "3": {"unitPrice": "1.10"}}
    assert value["free_text"] is None, "the caller's own stays"


@pytest.mark.parametrize("rename", ["camel", "pascal", "kebab", None])
@pytest.mark.parametrize("omit_none", [False, True])
def test_s29_models_read_what_was_written(rename: str | None, omit_none: bool) -> None:
    value = dataclasses.replace(ORDER, parent_order=ORDER)
    made = serializer(rename=rename, omit_none=omit_none)
    assert made.decoder(Order)(made.encode(value)) == value
    assert made.decoder(list[Order | None])(made.encode([value, None])) == [value, None]
    assert made.decoder(dict[str, Order])(made.encode({"key-1": value})) == {"key-1": value}


def test_s29_models_read_old_names_too_and_plain_values_keep_those_that_come() -> None:
    made = serializer(rename="camel", omit_none=True)
    assert made.decoder(Order)(serializer().encode(ORDER)) == ORDER
    assert made.decoder(None)(b'{"orderId":1}') == {"orderId": 1}
    assert made.decoder(Place)(b'{"houseNumber":1,"postCode":"x"}') == {"house_number": 1, "post_code": "x"}


class Cat(msgspec.Struct, tag=True):
    long_name: str


class Dog(msgspec.Struct, tag=True):
    long_name: int


class Chosen(msgspec.Struct, rename="pascal"):
    order_id: int
    free_text: str = msgspec.field(default="", name="NOTE")


class Row(msgspec.Struct, array_like=True):
    a_line: Line


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    order_id: int


@pytest.mark.parametrize(
    ("model", "value", "body"),
    [
        (list[Cat | Dog], [Cat("a"), Dog(1)], '[{"type":"Cat","longName":"a"},{"type":"Dog","longName":1}]'),
        (Chosen, Chosen(1, "x"), '{"OrderId":1,"NOTE":"x"}'),
        (list[Row], [Row(LINE)], '[[{"unit_price":"1.10","tax_rate":null}]]'),
        (Strict, Strict(1), '{"orderId":1}'),
        (int | list[Line], [LINE], '[{"unitPrice":"1.10","taxRate":null}]'),
        (int | list[Line], 7, "7"),
    ],
    ids=["tagged", "named_by_the_class", "array_like", "strict", "union", "number"],
)
def test_s29_what_a_class_has_chosen_itself_stays(model: Any, value: Any, body: str) -> None:
    made = serializer(rename="camel")
    assert made.encode(value).decode() == body
    assert made.decoder(model)(body.encode()) == value


def test_s29_values_are_checked_as_without_new_names() -> None:
    class Amounts(msgspec.Struct):
        whole: int = 0
        exact: Decimal = Decimal(0)
        data_text: bytes = b""

    class CamelAmounts(msgspec.Struct, rename="camel"):
        whole: int = 0
        exact: Decimal = Decimal(0)
        data_text: bytes = b""

    def outcome(decode: Any, body: str) -> str:
        try:
            return repr(decode(body.encode()))
        except msgspec.DecodeError as error:
            return str(error)

    ours, msgspecs = serializer(rename="camel").decoder(Amounts), serializer().decoder(CamelAmounts)
    # Numbers are the text that came.
    bodies = ['{"whole":2.0}', '{"whole":1e3}', '{"exact":1.10}', '{"exact":0.1234567890123456789012345}', "[]", "{"]
    bodies += ['{"whole":"1"}', '{"whole":123456789012345678901234567890}', '{"dataText":"AP8="}', '{"dataText":1}']
    expected = [outcome(msgspecs, body).replace("Camel", "").replace("dataText", "data_text") for body in bodies]
    assert [outcome(ours, body) for body in bodies] == expected
    assert sum("Amounts(" in text for text in expected) == 4
    with pytest.raises(msgspec.ValidationError, match="unknown field `other`"):
        serializer(rename="camel").decoder(Strict)(b'{"orderId":1,"other":2}')
    with pytest.raises(RecursionError):
        serializer(rename="camel").decoder(Order)(b'{"any_data":' * 100_000)


def test_two_fields_with_one_new_name_are_refused() -> None:
    @dataclasses.dataclass
    class Twice:
        order_id: int
        orderId: int

    made = serializer(rename="camel")
    with pytest.raises(EncodeFailed, match="two fields of Twice get the same name by rename='camel'"):
        made.encode(Twice(1, 2))
    with pytest.raises(ConfigurationError, match="two fields of Twice") as caught:
        made.decoder(Twice)
    assert caught.value.option == "rename"
    with pytest.raises(EncodeFailed, match="two keys of a dict get the same name") as failed:
        made.encode({"secret_key": 1, "secretKey": 2})
    assert "ecret" not in str(failed.value)


def test_s29_nothing_is_in_the_way_when_the_options_are_off() -> None:
    plain = serializer()
    assert type(plain.encode).__name__ == "builtin_function_or_method"
    assert type(plain.decoder(Order)).__name__ == "builtin_function_or_method"
    # Nor where a model has no fields.
    assert type(serializer(rename="camel").decoder(list[int])).__name__ == "builtin_function_or_method"


def test_a_type_that_msgspec_does_not_know_is_refused_by_its_name() -> None:
    with pytest.raises(TypeError, match="object"):
        serializer(rename="camel").encode({"a_b": [object()]})
