"""The sink: many sources in one registry, sources that end, sources that fail."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Counter, generate_latest

import leveret_prometheus
from leveret.errors import ConfigurationError
from leveret.plugins import Metric, PluginRegistry
from leveret_prometheus import PrometheusSink, _collector

if TYPE_CHECKING:
    from collections.abc import Callable

    Scrape = Callable[[], dict[str, float]]
    Sources = Callable[..., Any]

ORDERS = 'leveret_publishings_messages_total{client="billing",exchange="orders"}'
UNSETTLED = Metric("deliveries_unsettled", "gauge", "messages", "Deliveries being worked on.", ("client", "queue"))
GAUGE = 'leveret_deliveries_unsettled_messages{client="billing",queue="work"}'


def test_sink_is_found_when_the_wheel_is_installed() -> None:
    sink, provided = PluginRegistry.load().make_sink("prometheus")

    assert isinstance(sink, PrometheusSink)
    assert provided.origin == f"leveret-prometheus {leveret_prometheus.__version__}"


def test_default_registry_is_used_when_none_is_given(publishings: Sources) -> None:
    sink = PrometheusSink()
    sink.start(publishings(4, client="default-registry"))
    try:
        value = REGISTRY.get_sample_value(
            "leveret_publishings_messages_total", {"client": "default-registry", "exchange": "orders"}
        )
    finally:
        sink.close()

    assert value == 4


def test_registry_is_refused_when_it_is_something_else() -> None:
    mapping: Any = {}
    with pytest.raises(ConfigurationError, match="not dict") as caught:
        PrometheusSink(registry=mapping)

    assert caught.value.option == "registry"


# ---------------------------------------------------------------------- reading


def test_source_is_read_when_scraped_and_at_no_other_time(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources
) -> None:
    source = publishings(1)
    PrometheusSink(registry).start(source)
    assert source.reads == 0

    scrape()
    source.values = publishings(2).values

    assert scrape() == {ORDERS: 2.0}
    assert source.reads == 2


def test_named_metric_is_returned_when_the_scrape_asks_for_it_alone(
    registry: CollectorRegistry, numbers: Sources, publishings: Sources
) -> None:
    PrometheusSink(registry).start(numbers({**publishings(1).values, (UNSETTLED, ("billing", "work")): 5}))

    page = generate_latest(registry.restricted_registry(["leveret_publishings_messages_total"])).decode()

    assert ORDERS in page
    assert "unsettled" not in page


def test_scrape_succeeds_when_a_label_is_not_utf_8(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources
) -> None:
    exchange = b"caf\xe9 \xc3\xa9".decode("utf-8", "surrogateescape")
    PrometheusSink(registry).start(publishings(1, exchange=exchange))

    ((name, value),) = scrape().items()

    assert name == r'leveret_publishings_messages_total{client="billing",exchange="caf\\udce9 é"}'
    assert value == 1


# ---------------------------------------------------------------------- several clients


def test_equal_labels_are_added_up_when_two_clients_have_them(
    registry: CollectorRegistry, scrape: Scrape, numbers: Sources, publishings: Sources
) -> None:
    for value in (3, 4):
        PrometheusSink(registry).start(numbers({**publishings(value).values, (UNSETTLED, ("billing", "work")): value}))

    assert scrape() == {ORDERS: 7.0, GAUGE: 7.0}


def test_families_are_exported_once_when_clients_have_different_labels(
    registry: CollectorRegistry, publishings: Sources
) -> None:
    for client in ("billing", "shipping"):
        PrometheusSink(registry).start(publishings(1, client=client))

    page = generate_latest(registry).decode()

    assert page.count("# TYPE leveret_publishings_messages_total counter") == 1
    assert page.count("\nleveret_publishings_messages_total{") == 2


def test_registries_are_apart_when_two_are_used(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources
) -> None:
    other = CollectorRegistry()
    PrometheusSink(other).start(publishings(1))
    PrometheusSink(registry).start(publishings(2))

    assert scrape() == {ORDERS: 2.0}


def test_new_metrics_are_named_in_the_registry_when_a_later_source_brings_them(
    registry: CollectorRegistry, numbers: Sources, publishings: Sources
) -> None:
    PrometheusSink(registry).start(publishings(1))
    PrometheusSink(registry).start(numbers({(UNSETTLED, ("billing", "work")): 5}))

    page = generate_latest(registry.restricted_registry([GAUGE.partition("{")[0]])).decode()

    assert f"{GAUGE} 5.0" in page


def test_first_kind_is_kept_when_sources_disagree_on_it(
    registry: CollectorRegistry, scrape: Scrape, numbers: Sources
) -> None:
    for kind in ("gauge", "counter"):
        PrometheusSink(registry).start(numbers({(Metric("depth", kind, "messages", "", ("client",)), (kind,)): 1}))

    assert scrape() == {'leveret_depth_messages{client="gauge"}': 1.0}


# ---------------------------------------------------------------------- start and close


def test_source_is_counted_once_when_started_twice(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources
) -> None:
    source = publishings(3)
    sink = PrometheusSink(registry)

    sink.start(source)
    sink.start(source)

    assert scrape() == {ORDERS: 3.0}


def test_second_source_takes_the_place_of_the_first_when_the_sink_is_started_with_it(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources
) -> None:
    sink = PrometheusSink(registry)
    first = publishings(3)
    sink.start(first)
    sink.start(publishings(1))
    reads = first.reads

    assert scrape() == {ORDERS: 4.0}
    assert first.reads == reads


def test_counters_stay_and_gauges_go_when_a_client_closes(
    registry: CollectorRegistry, scrape: Scrape, numbers: Sources, publishings: Sources
) -> None:
    source = numbers({**publishings(3).values, (UNSETTLED, ("billing", "work")): 5})
    sink = PrometheusSink(registry)
    sink.start(source)
    scrape()
    source.values.update(publishings(8).values)

    sink.close()
    sink.close()
    source.values.update(publishings(100).values)

    assert scrape() == {ORDERS: 8.0}


def test_counters_go_on_from_their_last_values_when_a_client_comes_again(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources
) -> None:
    for value in (3, 4):
        sink = PrometheusSink(registry)
        sink.start(publishings(value))
        sink.close()
    PrometheusSink(registry).start(publishings(1))

    assert scrape() == {ORDERS: 8.0}


def test_close_does_nothing_when_the_sink_was_never_started(registry: CollectorRegistry, scrape: Scrape) -> None:
    PrometheusSink(registry).close()

    assert scrape() == {}


def test_source_is_let_go_when_the_sink_is_closed(registry: CollectorRegistry, publishings: Sources) -> None:
    source = publishings(1)
    reference = weakref.ref(source)
    sink = PrometheusSink(registry)
    sink.start(source)
    sink.close()
    del source
    gc.collect()

    assert reference() is None


def test_registry_is_freed_when_nobody_else_holds_it(publishings: Sources) -> None:
    registry = CollectorRegistry()
    reference = weakref.ref(registry)
    PrometheusSink(registry).start(publishings(1))
    del registry
    gc.collect()

    assert reference() is None


def test_start_fails_with_the_name_when_the_registry_has_such_a_metric(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources
) -> None:
    Counter("leveret_publishings_messages", "Somebody else's.", registry=registry)
    sink = PrometheusSink(registry)

    with pytest.raises(ConfigurationError, match="leveret_publishings_messages") as caught:
        sink.start(publishings(1))
    sink.close()

    assert caught.value.option == "registry"
    assert scrape()["leveret_publishings_messages_total"] == 0


def test_other_clients_are_exported_on_when_a_later_source_cannot_be(
    registry: CollectorRegistry, scrape: Scrape, numbers: Sources, publishings: Sources
) -> None:
    Counter("leveret_taken", "Somebody else's.", registry=registry)
    PrometheusSink(registry).start(publishings(1))

    with pytest.raises(ConfigurationError, match="leveret_taken"):
        PrometheusSink(registry).start(numbers({(Metric("taken", "counter", "", "", ()), ()): 9}))

    assert scrape()[ORDERS] == 1
    assert scrape()["leveret_taken_total"] == 0


# ---------------------------------------------------------------------- bounds


def test_oldest_counters_are_dropped_when_closed_clients_left_too_many(
    registry: CollectorRegistry,
    scrape: Scrape,
    publishings: Sources,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_collector, "MOST_CLOSED", 2)
    for number in range(5):
        sink = PrometheusSink(registry)
        sink.start(publishings(1, client=f"client-{number}"))
        sink.close()

    assert [name.split('"')[1] for name in scrape()] == ["client-3", "client-4"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_counters_that_an_open_client_shares_are_not_dropped_when_there_are_too_many(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_collector, "MOST_CLOSED", 1)
    PrometheusSink(registry).start(publishings(10))
    scrape()
    for client in ("billing", "shipping", "audit"):
        sink = PrometheusSink(registry)
        sink.start(publishings(1, client=client))
        sink.close()

    assert scrape()[ORDERS] == 11


# ---------------------------------------------------------------------- failures


def test_failing_source_is_left_out_and_logged_once_when_others_work(
    registry: CollectorRegistry,
    scrape: Scrape,
    numbers: Sources,
    publishings: Sources,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = numbers({(UNSETTLED, ("billing", "work")): 5})
    broken.error = RuntimeError("gone")
    PrometheusSink(registry).start(broken)
    PrometheusSink(registry).start(publishings(2))

    for _ in range(3):
        assert scrape() == {ORDERS: 2.0}

    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_counter_does_not_fall_when_one_of_its_sources_fails(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources
) -> None:
    broken = publishings(5)
    sink = PrometheusSink(registry)
    sink.start(broken)
    PrometheusSink(registry).start(publishings(2))
    scrape()
    broken.error = RuntimeError("gone")

    assert scrape() == {ORDERS: 7.0}
    sink.close()
    assert scrape() == {ORDERS: 7.0}


def test_source_is_included_again_when_it_recovers(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources
) -> None:
    source = publishings(5)
    source.error = RuntimeError("not yet")
    PrometheusSink(registry).start(source)
    assert scrape() == {}
    source.error = None

    assert scrape() == {ORDERS: 5.0}


def test_source_is_left_out_when_its_samples_lack_labels(
    registry: CollectorRegistry, scrape: Scrape, numbers: Sources, publishings: Sources
) -> None:
    PrometheusSink(registry).start(numbers({(UNSETTLED, ("billing",)): 5}))
    PrometheusSink(registry).start(publishings(2))

    assert scrape() == {ORDERS: 2.0}


# ---------------------------------------------------------------------- threads


def test_no_count_is_lost_or_doubled_when_clients_come_and_go_while_scraped(
    registry: CollectorRegistry, scrape: Scrape, publishings: Sources
) -> None:
    clients, rounds, scrapers = 8, 25, 2
    stop = threading.Event()

    def come_and_go() -> None:
        for _ in range(rounds):
            sink = PrometheusSink(registry)
            sink.start(publishings(1))
            sink.close()

    def watch() -> list[float]:
        seen = []
        while not stop.is_set():
            seen.append(scrape().get(ORDERS, 0.0))
        return seen

    with ThreadPoolExecutor(clients + scrapers) as pool:
        watchers = [pool.submit(watch) for _ in range(scrapers)]
        workers = [pool.submit(come_and_go) for _ in range(clients)]
        try:
            for worker in workers:
                worker.result()
        finally:
            stop.set()
        for watcher in watchers:
            seen = watcher.result()
            assert seen == sorted(seen), "a counter fell"

    assert scrape() == {ORDERS: float(clients * rounds)}
