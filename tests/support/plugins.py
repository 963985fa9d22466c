"""Plugins made of functions and values, for tests that need one that counts, fails or lies."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

from leveret.errors import BodyTooLarge
from leveret.plugins import CompressorSpec, SerializerSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable


def plugin(name: str = "tested", **hooks: Any) -> Any:
    """A plugin object.

    Args:
        name: What errors call it.
        **hooks: What its hooks return, or the functions that they are, by their names without `leveret_`.
    """

    def hook(value: Any) -> Any:
        return hookimpl(value if callable(value) else lambda: value)

    made = type(name, (), {f"leveret_{key}": staticmethod(hook(value)) for key, value in hooks.items()})()
    made.__name__ = name
    return made


def serializer_plugin(
    name: str,
    encode: Callable[[Any], Any] = lambda value: json.dumps(value).encode(),
    decode: Callable[[bytes], Any] = json.loads,
    **fields: Any,
) -> Any:
    """A plugin with one serializer that is made of two functions."""

    class Made:
        def __init__(self) -> None:
            self.encode = encode

        def decoder(self, model: Any) -> Callable[[bytes], Any]:
            return decode

    spec = SerializerSpec(**{"name": name, "content_type": f"text/x-{name}", "factory": Made, **fields})
    return plugin(name, serializers=[spec])


def compressor_plugin(
    name: str,
    compress: Callable[[bytes], Any] = gzip.compress,
    decompress: Callable[[bytes, int], Any] | None = None,
) -> Any:
    """A plugin with one compressor that is made of two functions."""

    class Made:
        def __init__(self, level: int | None) -> None:
            self.compress = compress

        def decompress(self, data: bytes, max_size: int) -> Any:
            if decompress is not None:
                return decompress(data, max_size)
            body = gzip.decompress(data)
            if len(body) > max_size:
                raise BodyTooLarge("too large")
            return body

    spec = CompressorSpec(name=name, content_encoding=name, factory=Made, levels=(1, 9))
    return plugin(name, compressors=[spec])
