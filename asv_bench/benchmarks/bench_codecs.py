"""The serializers of the core."""

from __future__ import annotations

import types

from . import corpus
from .former import find


def _order_struct() -> type:
    import msgspec

    item = msgspec.defstruct("Item", [("sku", str), ("quantity", int), ("price", float)])
    items = types.GenericAlias(list, item)
    return msgspec.defstruct(
        "Order",
        [("order_id", int), ("customer_id", int), ("items", items), ("total", float), ("currency", str)],
    )


class JSON:
    """An order as a plain dict and as a typed struct."""

    params = ("dict", "struct")
    param_names = ("value",)
    operation = "value"
    operations = 1

    def setup(self, value: str) -> None:
        import msgspec

        codec = find("JSONSerializer")()
        model = _order_struct() if value == "struct" else None
        self.value = msgspec.convert(corpus.ORDER, model) if model else corpus.ORDER
        self.encode, self.decode = codec.encode, codec.decoder(model)
        self.body = self.encode(self.value)

    def time_encode(self, value: str) -> None:
        self.encode(self.value)

    def time_decode(self, value: str) -> None:
        self.decode(self.body)


class Text:
    """A string of 1 KiB."""

    operation = "value"
    operations = 1

    def setup(self) -> None:
        codec = find("TextSerializer")()
        self.encode, self.decode = codec.encode, codec.decoder(None)
        self.value = "x" * 1024
        self.body = self.encode(self.value)

    def time_encode(self) -> None:
        self.encode(self.value)

    def time_decode(self) -> None:
        self.decode(self.body)
