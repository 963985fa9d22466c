"""What the core's metrics are called in Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from leveret.plugins import Metric
from leveret_prometheus import PrometheusSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    Scrape = Callable[[], dict[str, float]]
    Sources = Callable[..., Any]

LABELS = ("client",)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (Metric("publishings", "counter", "messages", "", LABELS), "leveret_publishings_messages_total"),
        (Metric("deliveries_unsettled", "gauge", "messages", "", LABELS), "leveret_deliveries_unsettled_messages"),
        (Metric("sent", "counter", "bytes", "", LABELS), "leveret_sent_bytes_total"),
    ],
    ids=["counter", "gauge", "bytes"],
)
def test_name_ends_with_unit_and_total_when_it_is_a_counter(
    metric: Metric, name: str, registry: CollectorRegistry, scrape: Scrape, numbers: Sources
) -> None:
    PrometheusSink(registry).start(numbers({(metric, ("billing",)): 3}))

    assert scrape() == {f'{name}{{client="billing"}}': 3.0}


@pytest.mark.parametrize(
    ("name", "unit", "exported"),
    [
        ("sent_bytes", "bytes", "leveret_sent_bytes_total"),
        ("connections_opened", "connections", "leveret_connections_opened_total"),
        ("bytes", "bytes", "leveret_bytes_total"),
    ],
)
def test_unit_is_not_repeated_when_the_name_says_it(
    name: str, unit: str, exported: str, registry: CollectorRegistry, scrape: Scrape, numbers: Sources
) -> None:
    PrometheusSink(registry).start(numbers({(Metric(name, "counter", unit, "", LABELS), ("billing",)): 1}))

    assert scrape() == {f'{exported}{{client="billing"}}': 1.0}


def test_name_has_no_suffix_when_a_state_has_no_unit(
    registry: CollectorRegistry, scrape: Scrape, numbers: Sources
) -> None:
    PrometheusSink(registry).start(numbers({(Metric("connection_open", "gauge", "", "", LABELS), ("billing",)): 1}))

    assert scrape() == {'leveret_connection_open{client="billing"}': 1.0}


def test_name_is_valid_when_the_unit_has_other_characters(
    registry: CollectorRegistry, scrape: Scrape, numbers: Sources
) -> None:
    PrometheusSink(registry).start(numbers({(Metric("written", "counter", "By/flush", "", LABELS), ("billing",)): 1}))

    assert scrape() == {'leveret_written_By_flush_total{client="billing"}': 1.0}


def test_metrics_parse_as_openmetrics_when_scraped_in_that_format(
    registry: CollectorRegistry, numbers: Sources
) -> None:
    PrometheusSink(registry).start(
        numbers(
            {
                (Metric("publishings", "counter", "messages", "Written.", LABELS), ("a",)): 1,
                (Metric("connections_opened", "counter", "connections", "Opened.", LABELS), ("a",)): 2,
                (Metric("connection_open", "gauge", "", "Open.", LABELS), ("a",)): 1,
                (Metric("sent", "counter", "bytes", "Sent.", LABELS), ("a",)): 9,
            }
        )
    )

    # Neither function has types.
    text = open_metrics(registry).decode()  # type: ignore[no-untyped-call]
    parsed = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    families = {family.name: family for family in parsed}

    assert {(name, family.type, family.unit, family.documentation) for name, family in families.items()} == {
        ("leveret_publishings_messages", "counter", "messages", "Written."),
        ("leveret_connections_opened", "counter", "", "Opened."),
        ("leveret_connection_open", "gauge", "", "Open."),
        ("leveret_sent_bytes", "counter", "bytes", "Sent."),
    }
