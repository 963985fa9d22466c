"""$distribution: a serializer for Leveret.

It writes JSON with the standard library. Replace `_dumps` and `_loads` by your format.
msgspec converts models into plain values, and back. `leveret.plugins.Serializer` tells
what the two functions must do.
"""

from __future__ import annotations  # noqa: I001

import json
from typing import TYPE_CHECKING, Any

import msgspec
from leveret.errors import ConfigurationError
from leveret.plugins import SerializerSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PlainSerializer", "leveret_serializers"]


class PlainSerializer:
    """Plain values, and models that msgspec supports, as text.

    One object serves one producer or one consumer, in one thread.
    """

    def encode(self, value: Any, /) -> bytes:
        """Encodes a value. Raises TypeError for a type that msgspec does not support."""
        return _dumps(msgspec.to_builtins(value, str_keys=True))

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes a body.

        Args:
            model: A Struct, dataclass, TypedDict or similar; None for plain values.

        Returns:
            The function. It raises ValueError for a body that does not fit the model.

        Raises:
            ConfigurationError: msgspec does not support the model.
        """
        if model is None:
            return _loads
        try:
            # This checks the whole model. `convert` would fail at the first body.
            msgspec.json.Decoder(model)
        except TypeError as error:
            problem = f"$name cannot decode into {model!r}: {error}"
            raise ConfigurationError(problem, option="model") from error
        return lambda body: msgspec.convert(_loads(body), model, str_keys=True)


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _loads(body: bytes) -> Any:
    return json.loads(body)


@hookimpl
def leveret_serializers() -> list[SerializerSpec]:
    """Returns the plugin's serializers. Called once, when plugins are discovered."""
    return [
        SerializerSpec(
            name="$name",
            content_type="application/x-$name",
            factory=PlainSerializer,
            api_version=1,
        )
    ]
