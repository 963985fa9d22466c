"""Where earlier versions had what the benchmarks use, and in which form: no curve breaks off where a name changed.

Append a home when a name moves. What no version has under any name leaves its benchmark out.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

#: The modules of each name, the newest first.
HOMES = {
    "BodyEncoder": ("leveret.codecs.encoding", "leveret.codecs.bodies", "leveret.codecs"),
    "ChannelDeliveries": ("leveret.consuming.channel_deliveries",),
    "Generation": ("leveret.consuming.delivering", "leveret._consuming"),
    "AckWindow": ("leveret.consuming.acks", "leveret.publishing.batching", "leveret._batching"),
    "ConfirmWindow": ("leveret.publishing.confirms", "leveret.publishing.batching", "leveret._batching"),
    "Ticket": (
        "leveret.publishing.publishing",
        "leveret.publishing.confirms",
        "leveret.publishing.batching",
        "leveret._batching",
    ),
    "PublishBatch": (
        "leveret.publishing.publish_batch",
        "leveret.publishing.publisher",
        "leveret.publishing.batching",
        "leveret._batching",
    ),
    "PublishTemplate": ("leveret.publishing.template", "leveret.publishing.batching", "leveret._batching"),
    "SendBuffer": ("leveret.wire.buffers", "leveret._buffers"),
    "FrameReader": ("leveret.wire.reader", "leveret.wire.framing", "leveret._framing"),
    "SettlementRun": ("leveret.wire.runs", "leveret.wire.framing", "leveret._framing"),
    "Properties": ("leveret.wire.properties", "leveret.wire.framing", "leveret._framing"),
    "decode_properties": ("leveret.wire.properties", "leveret.wire.framing", "leveret._framing"),
    "encode_table": ("leveret.wire.encoding", "leveret.wire.framing", "leveret._framing"),
    "decode_table": ("leveret.wire.decoding", "leveret.wire.framing", "leveret._framing"),
    "FrameTransport": ("leveret.transport.frame_transport", "leveret.transport"),
    "JSONSerializer": ("leveret.plugins.builtin", "leveret.codecs"),
    "TextSerializer": ("leveret.plugins.builtin", "leveret.codecs"),
}


def need(name: str) -> ModuleType:
    """Imports a module of Leveret, or leaves the benchmark out when this version does not have it.

    An error inside the module is raised.
    """
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        try:
            found = importlib.util.find_spec(".".join(parts[:n]))
        except ModuleNotFoundError:  # the parent is a module, not a package
            found = None
        if found is None:
            raise NotImplementedError(f"this version has no {name}")
    return importlib.import_module(name)


def find(name: str) -> Any:
    """Returns what `HOMES` knows by this name, or leaves the benchmark out."""
    for home in HOMES[name]:
        try:
            return getattr(need(home), name)
        except (AttributeError, NotImplementedError):
            continue
    raise NotImplementedError(f"this version has no {name}")


def template_maker() -> Callable[..., Any]:
    """Makes a template of an exchange, a routing key and perhaps properties; once it had its channel's number, too."""
    make = find("PublishTemplate")
    try:
        make("", "")
    except TypeError:
        return partial(make, 1)
    return make


def discarding_buffer() -> Any:
    """A send buffer that drops each full block, as a transport would send it."""

    def on_full() -> None:
        out.take()

    out = find("SendBuffer")(lambda: None, on_full)
    return out


class _Decoder:
    """The decoder of a consumer (before ChannelDeliveries: the consumer), for deliveries that are only acknowledged."""

    queue = "orders"

    def decode(self, message: Any) -> Any:
        return message.body

    def plain(self, message: Any) -> None:
        return None


class _Acks:
    """What ChannelDeliveries does for acknowledgements, before it and Generation were there."""

    def __init__(self) -> None:
        self.acks = find("AckWindow")(1)
        self._out = discarding_buffer()

    def flush(self) -> None:
        self.acks.flush(self._out)


def channel_deliveries() -> Any:
    """The deliveries of a channel, whose acknowledgements are written to a discarding buffer."""
    try:
        make = find("ChannelDeliveries")
    except NotImplementedError:
        try:
            return find("Generation")(_Decoder(), 1, discarding_buffer())
        except NotImplementedError:
            return _Acks()
    return make("orders", 1, discarding_buffer(), _Decoder(), lambda deliveries, message, verb: None)


def without_plugins() -> dict[str, Any]:
    """The options of `connect` that keep plugins out, whose loading takes more instructions than many messages."""
    leveret = need("leveret")
    return {"plugins": leveret.PluginSettings(allow=[])} if hasattr(leveret, "PluginSettings") else {}


def options_once(producer: Any, routing_key: str, **options: Any) -> tuple[str | Any, dict[str, Any]]:
    """A template of these options, or, before there were templates, what a caller gave each `publish` instead."""
    if hasattr(producer, "template"):
        return producer.template(routing_key, **options), {}
    return routing_key, options
