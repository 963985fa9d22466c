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
    from leveret.app.app import App as App
    from leveret.client.client import Client as Client
    from leveret.client.client import connect as connect
    from leveret.client.dedicated_connection import DedicatedConnection as DedicatedConnection
    from leveret.connection.connection import Connection as Connection
    from leveret.consuming.batches import Batches as Batches
    from leveret.consuming.batches import DeliveryBatch as DeliveryBatch
    from leveret.consuming.builder import ConsumerBuilder as ConsumerBuilder
    from leveret.consuming.consumer import Consumer as Consumer
    from leveret.consuming.failing.error_policy import DeadLetter as DeadLetter
    from leveret.consuming.failing.error_policy import Drop as Drop
    from leveret.consuming.failing.error_policy import ErrorPolicy as ErrorPolicy
    from leveret.consuming.failing.error_policy import Park as Park
    from leveret.consuming.failing.error_policy import Requeue as Requeue
    from leveret.consuming.failing.error_policy import Retry as Retry
    from leveret.consuming.failing.error_policy import Stop as Stop
    from leveret.consuming.prefetch import prefetch_for as prefetch_for
    from leveret.errors import BackpressureError as BackpressureError
    from leveret.errors import LeveretError as LeveretError
    from leveret.errors import PublishError as PublishError
    from leveret.message import BatchResult as BatchResult
    from leveret.message import Outcome as Outcome
    from leveret.monitoring.alerts import Alert as Alert
    from leveret.monitoring.alerts import AlertRule as AlertRule
    from leveret.monitoring.health import Health as Health
    from leveret.monitoring.logs import setup_logging as setup_logging
    from leveret.monitoring.report import Report as Report
    from leveret.publishing.builder import MessageBuilder as MessageBuilder
    from leveret.publishing.options import PublishOptions as PublishOptions
    from leveret.publishing.producer import Producer as Producer
    from leveret.publishing.publishing import Receipt as Receipt
    from leveret.publishing.publishing import Ticket as Ticket
    from leveret.publishing.template import Template as Template
    from leveret.publishing.transaction import Transaction as Transaction
    from leveret.runtime.gc_policy import GcPolicy as GcPolicy
    from leveret.runtime.object_pool import ObjectPool as ObjectPool
    from leveret.settings import ConnectionSettings as ConnectionSettings
    from leveret.settings import ConsumerSettings as ConsumerSettings
    from leveret.settings import GcSettings as GcSettings
    from leveret.settings import MonitoringSettings as MonitoringSettings
    from leveret.settings import PluginSettings as PluginSettings
    from leveret.settings import ProducerSettings as ProducerSettings
    from leveret.settings import TLSSettings as TLSSettings
    from leveret.topology.topology import Classic as Classic
    from leveret.topology.topology import Quorum as Quorum
    from leveret.topology.topology import Topology as Topology
    from leveret.transport.loop import run as run
    from leveret.wire.encoding import FieldValue as FieldValue
    from leveret.wire.message import Message as Message
    from leveret.wire.properties import Properties as Properties

__version__ = "0.1.0"

_HOMES = {
    "Ticket": "publishing.publishing",
    "FieldValue": "wire.encoding",
    "Message": "wire.message",
    "Properties": "wire.properties",
    "App": "app.app",
    "Client": "client.client",
    "DedicatedConnection": "client.dedicated_connection",
    "connect": "client.client",
    "Connection": "connection.connection",
    "Consumer": "consuming.consumer",
    "ConsumerBuilder": "consuming.builder",
    "Batches": "consuming.batches",
    "DeliveryBatch": "consuming.batches",
    "DeadLetter": "consuming.failing.error_policy",
    "Drop": "consuming.failing.error_policy",
    "ErrorPolicy": "consuming.failing.error_policy",
    "Park": "consuming.failing.error_policy",
    "Requeue": "consuming.failing.error_policy",
    "Retry": "consuming.failing.error_policy",
    "Stop": "consuming.failing.error_policy",
    "BackpressureError": "errors",
    "LeveretError": "errors",
    "PublishError": "errors",
    "GcPolicy": "runtime.gc_policy",
    "BatchResult": "message",
    "Outcome": "message",
    "Alert": "monitoring.alerts",
    "AlertRule": "monitoring.alerts",
    "Health": "monitoring.health",
    "Report": "monitoring.report",
    "setup_logging": "monitoring.logs",
    "Receipt": "publishing.publishing",
    "ObjectPool": "runtime.object_pool",
    "prefetch_for": "consuming.prefetch",
    "Producer": "publishing.producer",
    "PublishOptions": "publishing.options",
    "MessageBuilder": "publishing.builder",
    "Template": "publishing.template",
    "ConnectionSettings": "settings",
    "ConsumerSettings": "settings",
    "GcSettings": "settings",
    "MonitoringSettings": "settings",
    "PluginSettings": "settings",
    "ProducerSettings": "settings",
    "TLSSettings": "settings",
    "Classic": "topology.topology",
    "Quorum": "topology.topology",
    "Topology": "topology.topology",
    "Transaction": "publishing.transaction",
    "run": "transport.loop",
}

__all__ = ["__version__", *sorted(_HOMES)]  # noqa: PLE0604

try:
    import leveret.wire.buffers  # noqa: F401 - one for all: they are built together
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
