"""What a client remembers of what it has declared."""

from __future__ import annotations

import pytest

from leveret import Classic, Topology
from leveret.errors import ConfigurationError
from leveret.topology.declared import Declared, DeclaredQueue
from leveret.topology.entities import BindingEntity, ExchangeBindingEntity

HOME = object()


def filled(topology: Topology, chosen: str = "amq.gen-1") -> Declared:
    """A memory of a topology that was declared; the server has chosen this name."""
    declared = Declared()
    for exchange in topology.exchanges:
        declared.add_exchange(exchange)
    for queue in topology.queues:
        declared.add_queue(queue, queue.name or chosen, HOME if queue.needs_home else None)
    for binding in topology.bindings:
        if isinstance(binding, BindingEntity):
            declared.add_binding(binding.of(binding.queue or chosen))
        else:
            declared.add_exchange_binding(binding)
    return declared


def found(declared: Declared, name: str) -> DeclaredQueue:
    queue = declared.queue(name)
    assert queue is not None
    return queue


def test_it_tells_which_queues_have_a_dead_letter_exchange() -> None:
    declared = filled(
        Topology()
        .queue("with", Classic(dead_letter_exchange="dead"))
        .queue("default", Classic(dead_letter_exchange=""))
        .queue("without", Classic(dead_letter_routing_key="dead"))
    )
    assert declared.has_dead_letter_exchange("with")
    assert declared.has_dead_letter_exchange("default"), "the default exchange is one"
    assert not declared.has_dead_letter_exchange("without")
    assert not declared.has_dead_letter_exchange("another client's")


def test_it_tells_which_queues_are_transient() -> None:
    declared = filled(
        Topology()
        .queue("durable")
        .queue("not durable", durable=False)
        .queue("exclusive", exclusive=True)
        .queue("auto", auto_delete=True)
        .queue("")
    )
    names = ("durable", "not durable", "exclusive", "auto", "amq.gen-1", "amq.gen-other", "unknown")
    assert [name for name in names if declared.is_transient(name)] == [
        "exclusive",
        "auto",
        "amq.gen-1",
        "amq.gen-other",
    ]


def test_a_queue_takes_its_bindings_along_when_the_server_names_it_again() -> None:
    declared = filled(Topology().exchange("x").queue("").bind("", "x", "key").bind("", "x", "other"))
    queue = found(declared, "amq.gen-1")
    declared.rename(queue, "amq.gen-2")
    assert queue.name == "amq.gen-2"
    assert [(it.queue, it.routing_key) for it in queue.bindings.values()] == [
        ("amq.gen-2", "key"),
        ("amq.gen-2", "other"),
    ]
    assert found(declared, "amq.gen-1") is found(declared, "amq.gen-2") is queue
    declared.add_binding(BindingEntity(queue="amq.gen-1", exchange="x", routing_key="late"))
    assert [it.queue for it in queue.bindings.values()] == ["amq.gen-2"] * 3


def test_the_first_name_and_the_last_ones_are_found_however_often_a_queue_is_renamed() -> None:
    declared = filled(Topology().queue(""))
    queue = found(declared, "amq.gen-1")
    for number in range(2, 1001):
        declared.rename(queue, f"amq.gen-{number}")
    known = [number for number in range(1, 1001) if declared.queue(f"amq.gen-{number}") is queue]
    assert known[0] == 1
    assert known[-3:] == [998, 999, 1000]
    assert len(known) < 20, "it does not grow"
    declared.forget_queue("amq.gen-1")
    assert [number for number in range(1, 1001) if declared.queue(f"amq.gen-{number}")] == []
    assert queue.is_forgotten


def test_a_deleted_queue_is_forgotten_with_its_bindings() -> None:
    declared = filled(Topology().exchange("x").queue("q").queue("other").bind("q", "x").bind("other", "x"))
    declared.forget_queue("q")
    assert [queue.name for queue in declared.queues()] == ["other"]
    assert len(declared.queues()[0].bindings) == 1
    declared.add_queue(Topology().queue("q").queues[0])
    assert found(declared, "q").bindings == {}


def test_a_deleted_exchange_is_forgotten_with_its_bindings() -> None:
    topology = Topology().exchange("a").exchange("b").queue("q").bind("q", "a").bind("q", "b").bind("alien", "a")
    declared = filled(topology.bind_exchange("a", "b").bind_exchange("b", "a").bind_exchange("b", "amq.topic"))
    declared.forget_exchange("a")
    assert [exchange.name for exchange in declared.exchanges()] == ["b"]
    assert [binding.exchange for binding in found(declared, "q").bindings.values()] == ["b"]
    assert [(it.source, it.destination) for it in declared.exchange_bindings()] == [("amq.topic", "b")]
    assert declared.other_bindings() == []


@pytest.mark.parametrize("queue", ["q", "alien"])
def test_one_binding_of_several_is_forgotten_when_it_is_unbound(queue: str) -> None:
    topology = Topology().exchange("x", "headers").queue("q")
    for arguments in ({"a": 1}, {"a": 2}, {"list": [1, {"x": 2}]}):
        topology.bind(queue, "x", arguments=arguments)
    declared = filled(topology)
    declared.forget_binding(queue, "x", "", {"a": 2})
    declared.forget_binding(queue, "x", "", {"a": 3})
    left = declared.other_bindings() if queue == "alien" else [*found(declared, "q").bindings.values()]
    assert [binding.arguments for binding in left] == [{"a": 1}, {"list": [1, {"x": 2}]}]


def test_an_auto_delete_exchange_is_forgotten_with_its_last_binding() -> None:
    topology = Topology().exchange("auto", auto_delete=True).exchange("kept").queue("a").queue("b").bind("a", "auto")
    declared = filled(topology.bind("b", "auto").bind("a", "kept").bind_exchange("auto", "kept"))
    declared.forget_queue("a")
    assert len(declared.exchanges()) == 2
    declared.forget_binding("b", "auto", "")
    assert [exchange.name for exchange in declared.exchanges()] == ["kept"]
    assert declared.exchange_bindings() == [], "what led to it went with it"


def test_exchanges_that_feed_each_other_are_forgotten_one_after_the_other() -> None:
    topology = Topology().exchange("a", auto_delete=True).exchange("b", auto_delete=True).queue("q")
    declared = filled(topology.bind_exchange("b", "a").bind("q", "b"))
    declared.forget_queue("q")
    assert declared.exchanges() == []


def test_an_unbound_exchange_binding_is_forgotten() -> None:
    declared = filled(Topology().bind_exchange("a", "b", "x").bind_exchange("a", "b", "y"))
    declared.forget_exchange_binding("a", "b", "x")
    assert declared.exchange_bindings() == [ExchangeBindingEntity(destination="a", source="b", routing_key="y")]


def test_a_binding_goes_to_the_queue_that_is_declared_later() -> None:
    declared = filled(Topology().bind("q", "x", "key"))
    assert len(declared.other_bindings()) == 1
    declared.add_queue(Topology().queue("q").queues[0])
    assert declared.other_bindings() == []
    assert len(found(declared, "q").bindings) == 1


def test_what_is_declared_again_keeps_its_place_and_its_bindings() -> None:
    declared = filled(Topology().queue("a").queue("b").bind("a", "x"))
    declared.add_queue(Topology().queue("a").queues[0])
    assert [queue.name for queue in declared.queues()] == ["a", "b"]
    assert len(found(declared, "a").bindings) == 1


def test_an_auto_delete_queue_is_forgotten_when_its_last_consumer_is_closed() -> None:
    declared = filled(Topology().queue("auto", auto_delete=True).queue("kept"))
    auto, kept = found(declared, "auto"), found(declared, "kept")
    auto.consumers |= {"one", "two"}
    kept.consumers.add("one")
    for queue in (auto, kept):
        declared.leave(queue, "one")
        declared.leave(queue, "never came")
    assert not auto.is_forgotten
    declared.leave(auto, "two")
    assert [queue.name for queue in declared.queues()] == ["kept"]


def test_queues_of_a_connection_that_was_closed_are_forgotten() -> None:
    declared = filled(Topology().queue("shared").queue("exclusive", exclusive=True).queue(""))
    declared.forget_home(object())
    assert len(declared.queues()) == 3
    declared.forget_home(HOME)
    assert [queue.name for queue in declared.queues()] == ["shared"]


@pytest.mark.parametrize(("name", "kind"), [("exclusive", "exclusive"), ("amq.gen-1", "server-named")])
def test_a_queue_of_another_connection_is_refused_by_name(name: str, kind: str) -> None:
    declared = filled(Topology().queue("shared").queue("exclusive", exclusive=True).queue(""))
    found(declared, "shared").check_home(object())
    found(declared, name).check_home(HOME)
    with pytest.raises(ConfigurationError, match=f"{kind} queue '{name}'") as refused:
        found(declared, name).check_home(object())
    assert refused.value.option == "queue"


def test_a_topology_has_one_queue_without_a_name() -> None:
    with pytest.raises(ConfigurationError, match="one queue without a name"):
        Topology().queue("").queue("", exclusive=True)


def test_a_topology_keeps_the_arguments_that_it_was_given() -> None:
    arguments = {"x-match": "all"}
    topology = Topology().exchange("x", "headers", arguments=arguments).bind("q", "x", arguments=arguments)
    arguments["x-match"] = "any"
    assert topology.exchanges[0].arguments == {"x-match": "all"}
    assert topology.bindings[0].arguments == {"x-match": "all"}
