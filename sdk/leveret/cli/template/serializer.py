"""$distribution: a serializer for Leveret.

It takes dictionaries of text and writes them as HTML forms are written, which any
language can read. Put your own format in its place: what the two functions must do is
said in `leveret.plugins.Serializer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from leveret.errors import ConfigurationError
from leveret.plugins import SerializerSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FormSerializer", "leveret_serializers"]


class FormSerializer:
    """Dictionaries of text as `key=value&key=value`, percent-encoded.

    One object serves one producer or one consumer, in one thread.
    """

    def encode(self, value: Any, /) -> bytes:
        """Encodes a dictionary of text.

        Args:
            value: The dictionary; its keys and values must be `str`.

        Returns:
            The body, which is ASCII.

        Raises:
            TypeError: It is something else.
        """
        if not isinstance(value, dict):
            raise TypeError(f"takes a dict, not {type(value).__name__}")
        for part in (part for pair in value.items() for part in pair):
            if not isinstance(part, str):
                raise TypeError(f"takes text, not {type(part).__name__}")
        return urlencode(value).encode("ascii")

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes a body.

        Args:
            model: `dict`, or None, which is the same.

        Returns:
            The function. It raises ValueError for a body that is no form.

        Raises:
            ConfigurationError: The model is something else.
        """
        if model not in (None, dict):
            problem = f"$name decodes into dict, not {model!r}"
            raise ConfigurationError(problem, option="model")
        return _decode


def _decode(body: bytes) -> dict[str, str]:
    pairs = parse_qsl(
        body.decode("ascii"),
        keep_blank_values=True,
        strict_parsing=bool(body),
        errors="strict",
    )
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is there twice")
    return value


@hookimpl
def leveret_serializers() -> list[SerializerSpec]:
    """Called once, when plugins are discovered."""
    return [
        SerializerSpec(
            name="$name",
            content_type="application/x-$name",
            factory=FormSerializer,
            api_version=1,
        )
    ]
