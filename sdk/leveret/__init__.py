"""Leveret: typed Python objects in, confirmed messages out, over RabbitMQ (AMQP 0-9-1).

    async with leveret.connect("amqp://guest:guest@localhost") as client:
        async with client.producer(exchange="orders") as producer:
            await producer.publish({"id": 1}, "order.created")

Names are loaded when they are first used, so that importing a part does not load the network.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leveret._batching import Receipt as Receipt
    from leveret._batching import Ticket as Ticket
    from leveret._framing import FieldValue as FieldValue
    from leveret._framing import Message as Message
    from leveret._framing import Properties as Properties
    from leveret.app import App as App
    from leveret.client import Client as Client
    from leveret.client import DedicatedConnection as DedicatedConnection
    from leveret.client import connect as connect
    from leveret.connection import Connection as Connection
    from leveret.consumer import Consumer as Consumer
    from leveret.consuming import Consumption as Consumption
    from leveret.delivery_batches import Batches as Batches
    from leveret.delivery_batches import DeliveryBatch as DeliveryBatch
    from leveret.error_policy import DeadLetter as DeadLetter
    from leveret.error_policy import Drop as Drop
    from leveret.error_policy import ErrorPolicy as ErrorPolicy
    from leveret.error_policy import Park as Park
    from leveret.error_policy import Requeue as Requeue
    from leveret.error_policy import Retry as Retry
    from leveret.error_policy import Stop as Stop
    from leveret.errors import BackpressureError as BackpressureError
    from leveret.errors import LeveretError as LeveretError
    from leveret.errors import PublishError as PublishError
    from leveret.gc_policy import GcPolicy as GcPolicy
    from leveret.message import BatchResult as BatchResult
    from leveret.message import Outcome as Outcome
    from leveret.pooling import ObjectPool as ObjectPool
    from leveret.prefetch import prefetch_for as prefetch_for
    from leveret.producer import Producer as Producer
    from leveret.publishing import Publishing as Publishing
    from leveret.publishing import PublishOptions as PublishOptions
    from leveret.publishing import Template as Template
    from leveret.settings import ConnectionSettings as ConnectionSettings
    from leveret.settings import ConsumerSettings as ConsumerSettings
    from leveret.settings import GcSettings as GcSettings
    from leveret.settings import MonitoringSettings as MonitoringSettings
    from leveret.settings import PluginSettings as PluginSettings
    from leveret.settings import ProducerSettings as ProducerSettings
    from leveret.settings import TLSSettings as TLSSettings
    from leveret.topology import Classic as Classic
    from leveret.topology import Quorum as Quorum
    from leveret.topology import Topology as Topology
    from leveret.transaction import Transaction as Transaction
    from leveret.transport import run as run

__version__ = "0.1.0"

_HOMES = {
    "Ticket": "_batching",
    "FieldValue": "_framing",
    "Message": "_framing",
    "Properties": "_framing",
    "App": "app",
    "Client": "client",
    "DedicatedConnection": "client",
    "connect": "client",
    "Connection": "connection",
    "Consumer": "consumer",
    "Consumption": "consuming",
    "Batches": "delivery_batches",
    "DeliveryBatch": "delivery_batches",
    "DeadLetter": "error_policy",
    "Drop": "error_policy",
    "ErrorPolicy": "error_policy",
    "Park": "error_policy",
    "Requeue": "error_policy",
    "Retry": "error_policy",
    "Stop": "error_policy",
    "BackpressureError": "errors",
    "LeveretError": "errors",
    "PublishError": "errors",
    "GcPolicy": "gc_policy",
    "BatchResult": "message",
    "Outcome": "message",
    "Receipt": "_batching",
    "ObjectPool": "pooling",
    "prefetch_for": "prefetch",
    "Producer": "producer",
    "PublishOptions": "publishing",
    "Publishing": "publishing",
    "Template": "publishing",
    "ConnectionSettings": "settings",
    "ConsumerSettings": "settings",
    "GcSettings": "settings",
    "MonitoringSettings": "settings",
    "PluginSettings": "settings",
    "ProducerSettings": "settings",
    "TLSSettings": "settings",
    "Classic": "topology",
    "Quorum": "topology",
    "Topology": "topology",
    "Transaction": "transaction",
    "run": "transport",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604

try:
    from leveret import _batching, _buffers, _consuming, _framing, _waiting  # noqa: F401
except ImportError as error:
    raise ImportError(
        "leveret's extension modules are missing or do not fit this Python. Install a wheel (pip install leveret), or "
        "build them in a checkout: pip install -e . (needs a C compiler)"
    ) from error


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
