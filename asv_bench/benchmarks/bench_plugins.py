"""The cost of plugins: they take time at start-up, and none for a message."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from . import corpus
from .former import find, need

if TYPE_CHECKING:
    from collections.abc import Callable

#: Enough for the best timings of two equal functions to differ by less than one per cent.
ROUNDS = 60


def _plugin() -> Any:
    """A plugin with a serializer that does almost nothing, so that anything beside it would show."""
    plugins = need("leveret.plugins")

    class Tiny:
        def encode(self, value: bytes) -> bytes:
            return value

        def decoder(self, model: object) -> Callable[[bytes], bytes]:
            return bytes

    class Plugin:
        @staticmethod
        @plugins.hookimpl
        def leveret_serializers() -> list[Any]:
            return [plugins.SerializerSpec(name="tiny", content_type="text/x-tiny", factory=Tiny)]

    return Plugin(), Tiny()


class RegisteredSerializer:
    """A plugin's serializer as a producer calls it, beside the same function called directly."""

    params = ("direct", "registered")
    param_names = ("how",)
    operation = "message"
    operations = corpus.MESSAGES

    def setup(self, how: str) -> None:
        plugins, settings = need("leveret.plugins"), need("leveret.settings")
        plugin, tiny = _plugin()
        registry = plugins.PluginRegistry.from_plugins(plugin)
        encoder = find("BodyEncoder")(registry, settings.ProducerSettings(serializer="tiny"))
        self.functions = {"direct": tiny.encode, "registered": encoder.encode}
        self.encode = self.functions[how]
        self.values = [b"x"] * corpus.MESSAGES

    def time_encode(self, how: str) -> None:
        list(map(self.encode, self.values))

    def _best(self, how: str) -> float:
        encode, started = self.functions[how], time.perf_counter()
        list(map(encode, self.values))
        return time.perf_counter() - started

    def track_cost_ratio(self, how: str) -> float:
        """Ratio to the time of the direct call, measured in turn. It may be at most 1.05."""
        timings: dict[str, float] = {}
        for _ in range(ROUNDS):
            for each in ("direct", how):
                timings[each] = min(timings.get(each, 1.0), self._best(each))
        return timings[how] / timings["direct"]

    track_cost_ratio.unit = "times the direct call"  # type: ignore[attr-defined]


class HookCall:
    """One hook call through pluggy, with one implementation. Because of its cost, Leveret calls no hook per message."""

    operation = "call"
    operations = 1

    def setup(self) -> None:
        import pluggy

        hookspecs = need("leveret.plugins.hookspecs")
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs.HookSpecs)
        self.manager.register(_plugin()[0])

    def time_call(self) -> None:
        self.manager.hook.leveret_serializers()


class Registry:
    """Finding and checking plugins, which a client does once."""

    operation = "registry"
    operations = 1

    def setup(self) -> None:
        self.make = need("leveret.plugins").PluginRegistry.from_plugins
        self.plugin = _plugin()[0]

    def time_make(self) -> None:
        self.make(self.plugin)


class Compressed:
    """A JSON body of about 4 KiB with each compressor that is installed."""

    params = ("none", "gzip", "deflate", "lz4", "zstd")
    param_names = ("compressor",)
    operation = "message"
    operations = 1

    def setup(self, compressor: str) -> None:
        plugins, settings = need("leveret.plugins"), need("leveret.settings")
        registry = plugins.PluginRegistry.load(settings.PluginSettings())
        if compressor != "none" and compressor not in registry.names("compressor"):
            raise NotImplementedError(f"{compressor} is not installed")
        chosen = None if compressor == "none" else compressor
        self.pack = find("BodyEncoder")(registry, settings.ProducerSettings(compressor=chosen)).pack
        self.value = {"orders": [{"id": i, "sku": f"SKU-{i * 7919 % 1000}", "price": i * 0.37} for i in range(90)]}

    def time_pack(self, compressor: str) -> None:
        self.pack(self.value)
