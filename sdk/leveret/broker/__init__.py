"""The embedded broker: a RabbitMQ for development and tests that needs no installation and keeps nothing on disk."""

from __future__ import annotations

from leveret.broker.server import EmbeddedBroker, serve_forever

__all__ = ["EmbeddedBroker", "serve_forever"]
