"""The catalogue of metrics: name, kind, unit, help and labels of each number that Leveret counts."""

from __future__ import annotations

from typing import Final

from leveret.plugins.interfaces import Metric

__all__ = ["CATALOGUE", "METRICS"]

_PRODUCER, _CONSUMER, _CONNECTION = ("client", "exchange"), ("client", "queue"), ("client", "connection")
_GENERATION = ("client", "generation")

#: Every metric by the name of its counter in the meters.
CATALOGUE: Final = {
    "published": Metric("publishings", "counter", "messages", "Publishings that were written.", _PRODUCER),
    "published_bytes": Metric("publishing", "counter", "bytes", "Bodies of publishings that were written.", _PRODUCER),
    "compressed": Metric("publishings_compressed", "counter", "messages", "Bodies that were compressed.", _PRODUCER),
    "incompressible": Metric(
        "publishings_incompressible",
        "counter",
        "messages",
        "Bodies over the threshold that compressing made too little smaller, or more than consumers allow.",
        _PRODUCER,
    ),
    "compression_input": Metric(
        "compression_input", "counter", "bytes", "Compressed bodies before compression.", _PRODUCER
    ),
    "compression_output": Metric(
        "compression_output", "counter", "bytes", "Compressed bodies after compression.", _PRODUCER
    ),
    "confirmed": Metric("publishings_confirmed", "counter", "messages", "Publishings the broker confirmed.", _PRODUCER),
    "returned": Metric("publishings_returned", "counter", "messages", "Publishings that no queue took.", _PRODUCER),
    "nacked": Metric("publishings_nacked", "counter", "messages", "Publishings the broker refused.", _PRODUCER),
    "unknown": Metric("publishings_unknown", "counter", "messages", "Publishings whose confirm never came.", _PRODUCER),
    "not_sent": Metric(
        "publishings_not_sent", "counter", "messages", "Publishings that were never written.", _PRODUCER
    ),
    "outstanding": Metric(
        "publishings_outstanding", "gauge", "messages", "Publishings without an outcome yet.", _PRODUCER
    ),
    "batches": Metric("batches", "counter", "batches", "Batches that were published.", _PRODUCER),
    "batch_confirmed": Metric(
        "batches_confirmed", "counter", "messages", "Publishings of batches the broker confirmed.", _PRODUCER
    ),
    "batch_milliseconds": Metric(
        "batches_time", "counter", "milliseconds", "Time from the start of batches to their last confirms.", _PRODUCER
    ),
    "batch_sizes": Metric("batches_size", "histogram", "messages", "Publishings of each batch.", _PRODUCER),
    "confirm_time": Metric(
        "publishings_confirm_time",
        "histogram",
        "seconds",
        "From the call that published to its confirm, of those that were confirmed.",
        _PRODUCER,
    ),
    "delivered": Metric("deliveries", "counter", "messages", "Deliveries taken from the broker.", _CONSUMER),
    "acked": Metric("deliveries_acked", "counter", "messages", "Deliveries acknowledged.", _CONSUMER),
    "requeued": Metric("deliveries_requeued", "counter", "messages", "Failed deliveries given back.", _CONSUMER),
    "released": Metric("deliveries_released", "counter", "messages", "Deliveries given back untried.", _CONSUMER),
    "dead_lettered": Metric("deliveries_dead_lettered", "counter", "messages", "Deliveries dead-lettered.", _CONSUMER),
    "rejected": Metric(
        "deliveries_rejected",
        "counter",
        "messages",
        "Deliveries rejected, perhaps without a dead-letter exchange.",
        _CONSUMER,
    ),
    "retried": Metric("deliveries_retried", "counter", "messages", "Failed deliveries to be retried later.", _CONSUMER),
    "parked": Metric("deliveries_parked", "counter", "messages", "Failed deliveries that were parked.", _CONSUMER),
    "dropped": Metric("deliveries_dropped", "counter", "messages", "Deliveries that were dropped or lost.", _CONSUMER),
    "held": Metric("deliveries_held", "gauge", "messages", "Failed deliveries held until their next try.", _CONSUMER),
    "undecodable": Metric(
        "deliveries_undecodable", "counter", "messages", "Deliveries whose body could not be decoded.", _CONSUMER
    ),
    "handler_errors": Metric("handler_errors", "counter", "messages", "Deliveries whose handler raised.", _CONSUMER),
    "unsettled": Metric("deliveries_unsettled", "gauge", "messages", "Deliveries being worked on.", _CONSUMER),
    "prefetch": Metric(
        "prefetch", "gauge", "messages", "Deliveries that consumers let the broker send ahead.", _CONSUMER
    ),
    "expected": Metric(
        "consumers_expected", "gauge", "consumers", "Consumers that should get deliveries now.", _CONSUMER
    ),
    "live": Metric("consumers_live", "gauge", "consumers", "Consumers that the broker has on its list.", _CONSUMER),
    "waiting_time": Metric(
        "deliveries_waiting_time",
        "histogram",
        "seconds",
        "From the read that brought a delivery to the beginning of its handler.",
        _CONSUMER,
    ),
    "handler_time": Metric("handler_time", "histogram", "seconds", "In handlers, failed ones included.", _CONSUMER),
    "settled_time": Metric(
        "deliveries_settled_time",
        "histogram",
        "seconds",
        "From the read that brought a delivery to its settlement.",
        _CONSUMER,
    ),
    "transit_time": Metric(
        "deliveries_transit_time",
        "histogram",
        "seconds",
        "From the publishing to the read that brought it, of deliveries with the header x-leveret-sent-at.",
        _CONSUMER,
    ),
    "opened": Metric("connections_opened", "counter", "connections", "Connections that were opened.", _CONNECTION),
    "failed": Metric(
        "connections_failed", "counter", "connections", "Attempts to connect that did not succeed.", _CONNECTION
    ),
    "lost": Metric("connections_lost", "counter", "connections", "Connections that were lost.", _CONNECTION),
    "open": Metric("connections_open", "gauge", "connections", "Connections that are open.", _CONNECTION),
    "blocked": Metric(
        "connections_blocked", "gauge", "connections", "Connections whose publishings the broker blocks.", _CONNECTION
    ),
    "received_bytes": Metric("received", "counter", "bytes", "Read from sockets.", _CONNECTION),
    "sent_bytes": Metric("sent", "counter", "bytes", "Given to sockets.", _CONNECTION),
    "write_sizes": Metric("writes_size", "histogram", "bytes", "Bytes of each write to a socket.", _CONNECTION),
    "gc_collections": Metric(
        "gc_collections", "counter", "collections", "Garbage collections of the process.", _GENERATION
    ),
    "gc_collected": Metric(
        "gc_collected", "counter", "objects", "Objects that garbage collections freed.", _GENERATION
    ),
    "gc_uncollectable": Metric(
        "gc_uncollectable", "counter", "objects", "Objects that garbage collections could not free.", _GENERATION
    ),
    "gc_milliseconds": Metric("gc_time", "counter", "milliseconds", "Time in garbage collections.", _GENERATION),
}

#: The metrics that a sink sees as `MetricsSource.metrics`.
METRICS: Final = tuple(CATALOGUE.values())
