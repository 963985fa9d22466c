"""Exchanges of the embedded broker: which destinations a routing key or headers lead to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.broker.exchanges import EXCHANGE_TYPES, Binding, Exchange
from leveret.broker.refusals import Refusal
from leveret.broker.tables import scan_table
from leveret.wire.encoding import encode_table

if TYPE_CHECKING:
    from collections.abc import Iterable

assert strategies  # its import loads the hypothesis profile


class Destination:
    """Stands for a queue: exchanges only use its inbound bindings."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inbound: dict[Binding, Exchange] = {}

    def __repr__(self) -> str:
        return self.name


def bind(exchange: Exchange, name: str, routing_key: str = "", arguments: dict[str, Any] | None = None) -> Binding:
    packed = scan_table(encode_table(arguments or {}))
    binding = Binding.of(exchange.name, "queue", name, routing_key, packed)
    exchange.add(binding, Destination(name), packed)  # type: ignore[arg-type]
    return binding


def make(kind: str) -> Exchange:
    return EXCHANGE_TYPES[kind]("x", "/")


def names(found: Iterable[object]) -> set[str]:
    return {str(destination) for destination in found}


def reference_match(pattern: str, routing_key: str) -> bool:
    """RabbitMQ's rules by another way: a regular expression over words that all end with a dot."""
    if not pattern or not routing_key:
        return pattern == routing_key or (not routing_key and set(pattern.split(".")) == {"#"})
    parts = {"*": r"[^.]*\.", "#": r"(?:[^.]*\.)*"}
    expression = "".join(parts.get(word, re.escape(word) + r"\.") for word in pattern.split("."))
    return re.fullmatch(expression, routing_key + ".") is not None


words = st.sampled_from(["a", "b", "", "*", "#"])
keys = st.lists(words, max_size=5).map(".".join)
plain_keys = st.lists(st.sampled_from(["a", "b", ""]), max_size=5).map(".".join)


@given(patterns=st.lists(keys, min_size=1, max_size=8, unique=True), routing_key=plain_keys)
def test_topic_matches_as_the_reference_does(patterns: list[str], routing_key: str) -> None:
    exchange = make("topic")
    for pattern in patterns:
        bind(exchange, f"q:{pattern}", pattern)
    expected = {f"q:{pattern}" for pattern in patterns if reference_match(pattern, routing_key)}
    assert names(exchange.match(routing_key, None)) == expected


@given(patterns=st.lists(keys, min_size=2, max_size=8, unique=True), routing_key=plain_keys, data=st.data())
def test_topic_forgets_what_was_unbound(patterns: list[str], routing_key: str, data: st.DataObject) -> None:
    exchange = make("topic")
    bindings = {pattern: bind(exchange, f"q:{pattern}", pattern) for pattern in patterns}
    gone = data.draw(st.sets(st.sampled_from(patterns), min_size=1))
    for pattern in gone:
        assert exchange.remove(bindings[pattern])
        assert not exchange.remove(bindings[pattern])
    expected = {f"q:{p}" for p in patterns if p not in gone and reference_match(p, routing_key)}
    assert names(exchange.match(routing_key, None)) == expected


def test_topic_keeps_no_nodes_when_everything_is_unbound() -> None:
    exchange = make("topic")
    bindings = [bind(exchange, "q", key) for key in ("a.b.c", "a.#", "a.b", "", "#.#")]
    for binding in bindings:
        exchange.remove(binding)
    assert exchange._root.children == {}  # type: ignore[attr-defined]


def test_topic_work_stays_bounded_when_patterns_would_make_backtracking_explode() -> None:
    exchange = make("topic")
    bind(exchange, "q", ".".join(["#", "a"] * 60))
    assert names(exchange.match(".".join(["a"] * 127), None)) == {"q"}
    assert names(exchange.match(".".join(["a"] * 126 + ["b"]), None)) == set()


def test_direct_and_fanout_match_by_key_and_always() -> None:
    direct, fanout = make("direct"), make("fanout")
    for exchange in (direct, fanout):
        bind(exchange, "one", "a")
        last = bind(exchange, "two", "b")
    assert names(direct.match("a", None)) == {"one"}
    assert names(direct.match("c", None)) == set()
    assert names(fanout.match("c", None)) == {"one", "two"}
    fanout.remove(last)
    assert names(fanout.match("c", None)) == {"one"}


@pytest.mark.parametrize(
    ("arguments", "headers", "expected"),
    [
        ({"a": 1, "b": "x"}, {"a": 1, "b": "x", "c": 3}, True),
        ({"a": 1, "b": "x"}, {"a": 1}, False),
        ({"x-match": "any", "a": 1, "b": "x"}, {"a": 1}, True),
        ({"x-match": "any", "a": 1}, {"a": 2}, False),
        ({"x-match": "any"}, {"a": 2}, False),
        ({}, {}, True),
        ({"a": None}, {"a": "whatever"}, True),
        ({"a": True}, {"a": 1}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": b"raw"}, {"a": "raw"}, True),
        ({"x-a": 1}, {}, True),
        ({"x-match": "all-with-x", "x-a": 1}, {}, False),
        ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 1}, True),
    ],
)
def test_headers_match(arguments: dict[str, Any], headers: dict[str, Any], expected: bool) -> None:
    exchange = make("headers")
    binding = bind(exchange, "q", arguments=arguments)
    assert names(exchange.match("", headers)) == ({"q"} if expected else set())
    exchange.remove(binding)
    assert names(exchange.match("", headers)) == set()


@pytest.mark.parametrize("arguments", [{"x-match": "some"}, {"x-match": 5}])
def test_headers_binding_is_refused_when_x_match_means_nothing(arguments: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="Invalid x-match") as raised:
        bind(make("headers"), "q", arguments=arguments)
    assert raised.value.reply_code == 406


def test_bindings_are_one_when_everything_is_equal_and_two_otherwise() -> None:
    exchange = make("direct")
    bind(exchange, "q", "key", {"a": 1, "b": 2})
    bind(exchange, "q", "key", {"b": 2, "a": 1})
    assert len(exchange.bindings) == 1
    bind(exchange, "q", "key", {"a": 1})
    assert len(exchange.bindings) == 2
