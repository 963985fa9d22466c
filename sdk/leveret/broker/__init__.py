"""The embedded broker: an AMQP 0-9-1 server like RabbitMQ, for development, tests and benchmarks, in memory only.

This package may use `protocol`, `wire` and the frame transport; no package but `cli` and `testing` uses it. A read of a
client's socket becomes runs of methods and messages in `session`, which hands them to its channels; `channel` publishes
through the exchanges of `virtual_host` into `queues`, which deliver to consumers in slices and settle by `unacked`.
"""

from __future__ import annotations

from leveret.broker.server import EmbeddedBroker, serve_forever

__all__ = ["EmbeddedBroker", "serve_forever"]
