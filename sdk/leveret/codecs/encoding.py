"""Encodes values into bodies: serializer and compressor are looked up once and then called directly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from leveret.codecs.forms import Form
from leveret.errors import CodecError, ConfigurationError, EncodeFailed, PluginError, printable
from leveret.plugins.interfaces import CompositeSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.plugins.interfaces import Compressor
    from leveret.plugins.registry import PluginRegistry, Provided
    from leveret.settings import ProducerSettings

__all__ = ["BodyEncoder"]

#: Consumers refuse bodies that grow more than this by default (`max_decompression_ratio`), so a producer sends such a
#: body uncompressed.
_MAX_RATIO: Final = 200


class BodyEncoder:
    """Encodes the values of one producer.

    A producer whose bodies all have one form calls `encode`, which is the serializer's own function. With a compressor
    or a composite serializer it calls `pack` instead.

    Args:
        registry: The registry that has the serializers and compressors.
        settings: Settings that name the serializer and the compressor.

    Attributes:
        name: The serializer's name.
        form: The form of every body; None when forms differ and `pack` returns the form of each.
        encode: The serializer's function.

    Raises:
        ConfigurationError: The serializer, compressor or level does not exist.
        PluginError: The plugin failed to make the serializer or compressor.
    """

    def __init__(self, registry: PluginRegistry, settings: ProducerSettings) -> None:
        provided = registry.provided("serializer", settings.serializer)
        self.name = provided.name
        self._origin = provided.origin
        self._trusted = provided.plugin == "builtin"
        self._select: Callable[[Any], str] | None = None
        self._parts: dict[str, tuple[Callable[[Any], bytes], Form]] = {}
        self._compressor: Compressor | None = None
        self._compressor_name = settings.compressor or ""
        self._threshold = settings.compression_threshold
        self._ratio = settings.compression_ratio
        if isinstance(provided.spec, CompositeSpec):
            for part in provided.spec.parts:
                self._parts[part] = self._part(registry, registry.provided("serializer", part))
            self._select = provided.spec.select
            self._compressor_name = settings.compressor or provided.spec.compressor or ""
            self.encode: Callable[[Any], bytes] = self._encode_part
        else:
            self.encode, self._form = self._part(registry, provided)
        if self._compressor_name:
            compressed_by = registry.provided("compressor", self._compressor_name)
            self._compressor = registry.make_compressor(compressed_by, settings.compression_level)
            self._encoding = compressed_by.keys[0]
            self._compressor_origin = compressed_by.origin
        elif settings.compression_level is not None:
            raise ConfigurationError("compression_level needs a compressor", option="compression_level")
        self.form = None if self._select or self._compressor else self._form

    @staticmethod
    def _part(registry: PluginRegistry, provided: Provided) -> tuple[Callable[[Any], bytes], Form]:
        if isinstance(provided.spec, CompositeSpec):
            raise ConfigurationError(
                f"the composite serializer {provided.name!r} cannot be a part of another composite serializer",
                option="serializer",
            )
        return registry.make_serializer(provided).encode, Form(provided.keys[0])

    def _encode_part(self, value: Any) -> bytes:
        return self._choose(value)[0](value)

    def _choose(self, value: Any) -> tuple[Callable[[Any], bytes], Form]:
        if self._select is None:
            return self.encode, self._form
        part = self._select(value)
        try:
            return self._parts[part]
        except (KeyError, TypeError):
            known = ", ".join(self._parts)
            raise PluginError(
                f"the serializer {self.name!r} of {self._origin} chose {printable(str(part), 64)!r}; its parts are "
                f"{known}"
            ) from None

    def pack(self, value: Any, *, compress: bool = True) -> tuple[bytes, Form, int]:
        """Encodes a value, and compresses the body when it is large enough and compression makes it smaller.

        Args:
            value: The value.
            compress: False: never compresses.

        Returns:
            The body, its form, and its size before compression; the size is -1 when the body is not compressed.

        Raises:
            EncodeFailed: The serializer or the compressor failed.
        """
        try:
            encode, form = self._choose(value)
            body = encode(value)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise self.failed(error, value)  # noqa: B904 - it has its cause
        if type(body) is not bytes:
            raise self.not_bytes(body)
        size = len(body)
        if self._compressor is None or not compress or size <= self._threshold:
            return body, form, -1
        try:
            compressed = self._compressor.compress(body)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise EncodeFailed(
                f"the {self._compressor_name} compressor ({self._compressor_origin}) failed on {size} bytes: "
                f"{type(error).__name__}"
            ) from error
        if type(compressed) is not bytes:
            raise EncodeFailed(
                f"the {self._compressor_name} compressor ({self._compressor_origin}) returned "
                f"{type(compressed).__name__}, not bytes"
            )
        if not size / _MAX_RATIO <= len(compressed) < self._ratio * size:
            return body, form, -1
        return compressed, Form(form.content_type, self._encoding), size

    def failed(self, error: BaseException, value: object) -> EncodeFailed:
        """Returns the `EncodeFailed` for an exception of the serializer; it names the value's type, not the value."""
        # Texts of other exceptions may quote the value. TypeErrors of the core's serializers name types only, and a
        # plugin that raises a CodecError promises that its text has nothing of the value.
        trusted = isinstance(error, CodecError | PluginError) or (isinstance(error, TypeError) and self._trusted)
        detail = str(error) if trusted else type(error).__name__
        failure = EncodeFailed(
            f"the {self.name} serializer ({self._origin}) cannot encode a {type(value).__name__}: {detail}"
        )
        failure.__cause__ = error
        return failure

    def not_bytes(self, body: object) -> EncodeFailed:
        """Returns the `EncodeFailed` for a serializer that did not return bytes."""
        return EncodeFailed(f"the {self.name} serializer ({self._origin}) returned {type(body).__name__}, not bytes")
