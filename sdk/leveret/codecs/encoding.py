"""Encodes values into bodies: serializer and compressor are looked up once and then called directly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from leveret.codecs.compressing import BodyCompressor
from leveret.codecs.forms import NO_ENCODINGS, media_types
from leveret.codecs.options import check_options_taken, serializer_options
from leveret.errors import CodecError, ConfigurationError, EncodeFailed, PluginError, printable
from leveret.plugins.interfaces import CompositeSpec
from leveret.plugins.plugin import comparable

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.plugins.registry import PluginRegistry, Provided
    from leveret.settings import ProducerSettings

__all__ = ["BodyEncoder"]

_BYTES: Final = (bytes, bytearray, memoryview)
#: How many content types that callers give are remembered.
_KEPT: Final = 256


class BodyEncoder:
    """Encodes the values of one producer.

    A producer whose bodies all have one content type calls `encode`, which is the serializer's own function. With a
    composite serializer it asks `choose` for each value.

    Args:
        registry: The registry that has the serializers and compressors.
        settings: Settings that name the serializer and the compressor.

    Attributes:
        name: The serializer's name.
        content_type: The content type of every body, none of which is compressed; None when bodies differ.
        encode: The serializer's function.
        part: The same with its content type; None when a composite serializer chooses for each value.
        compressor: Compresses bodies; None without compression.

    Raises:
        ConfigurationError: The serializer, compressor or level does not exist, or the serializer does not take an
            option.
        PluginError: The plugin failed to make the serializer or compressor.
    """

    def __init__(self, registry: PluginRegistry, settings: ProducerSettings) -> None:
        provided = registry.provided("serializer", settings.serializer)
        self.name = provided.name
        self._origin = provided.origin
        self._trusted = provided.plugin == "builtin"
        self._select: Callable[[Any], str]
        self.part: tuple[Callable[[Any], bytes], str] | None = None
        self._parts: dict[str, tuple[Callable[[Any], bytes], str]] = {}
        self._registry = registry
        self._misfits: dict[tuple[str | None, str | None], str | None] = {}
        self._options = serializer_options(settings)
        compressor = settings.compressor
        if isinstance(provided.spec, CompositeSpec):
            self._serializers = [registry.provided("serializer", part) for part in provided.spec.parts]
            for part in self._serializers:
                self._parts[part.name] = self._part(part)
            self._select = provided.spec.select
            compressor = compressor or provided.spec.compressor
            self.encode: Callable[[Any], bytes] = self._encode_part
        else:
            self._serializers = [provided]
            self.part = self._part(provided)
            self.encode = self.part[0]
        check_options_taken(self._options, self._serializers, f"the {self.name} serializer ({self._origin})")
        if not compressor and settings.compression_level is not None:
            raise ConfigurationError("compression_level needs a compressor", option="compression_level")
        self.compressor = _compressor(registry, compressor, settings) if compressor else None
        self.content_type = self.part[1] if self.part and not self.compressor else None

    def _part(self, provided: Provided) -> tuple[Callable[[Any], bytes], str]:
        if isinstance(provided.spec, CompositeSpec):
            raise ConfigurationError(
                f"the composite serializer {provided.name!r} cannot be a part of another composite serializer",
                option="serializer",
            )
        return self._registry.make_serializer(provided, self._options).encode, provided.keys[0]

    def _encode_part(self, value: Any) -> bytes:
        return self.choose(value)[0](value)

    def choose(self, value: Any) -> tuple[Callable[[Any], bytes], str]:
        """Returns the function of the serializer for a value, and the content type that it makes.

        Raises:
            PluginError: The composite serializer chose a part that it does not have.
        """
        if self.part is not None:
            return self.part
        part = self._select(value)
        try:
            return self._parts[part]
        except (KeyError, TypeError):
            known = ", ".join(self._parts)
            raise PluginError(
                f"the serializer {self.name!r} of {self._origin} chose {printable(str(part), 64)!r}; its parts are "
                f"{known}"
            ) from None

    def misfit(self, content_type: object, content_encoding: object) -> str | None:
        """Compares a content type and encoding that the caller gives with what the serializer makes.

        Bytes are then the body itself. Other values are encoded by the serializer, so the type must not be that of
        another serializer, and the encoding must not be that of a compressor: consumers could not decode the message.

        Args:
            content_type: The content type that the caller gives, or None.
            content_encoding: The content encoding that the caller gives, or None.

        Returns:
            None when the caller gives neither; an empty string when the bodies of the serializer may have them; or why
            only bytes may have them.
        """
        if not isinstance(content_type, str | None) or not isinstance(content_encoding, str | None):
            return ""  # refused when the properties are packed
        key = content_type, content_encoding
        if key not in self._misfits:
            if len(self._misfits) >= _KEPT:
                self._misfits.clear()
            self._misfits[key] = self._find_misfit(content_type, content_encoding)
        return self._misfits[key]

    def _find_misfit(self, content_type: str | None, content_encoding: str | None) -> str | None:
        if content_type is not None:
            kinds = list(media_types(content_type))
            own = {comparable(key) for name in self._serializers for key in name.keys}
            readers = self._registry.readers("serializer")
            maker = next((readers[kind] for kind in kinds if kind in readers), None)
            if maker is not None and own.isdisjoint(kinds):
                return (
                    f"content_type {printable(content_type, 80)!r} is that of the {maker.name} serializer, and the "
                    f"{self.name} serializer makes {self._serializers[0].keys[0]}; choose serializer={maker.name!r}, "
                    "or give the body itself as bytes, which are sent as they are"
                )
        if content_encoding is not None:
            compressor = self._registry.readers("compressor").get(comparable(content_encoding))
            if compressor is not None and comparable(content_encoding) not in NO_ENCODINGS:
                return (
                    f"content_encoding {printable(content_encoding, 80)!r} says that the body is compressed already; "
                    f"choose compressor={compressor.name!r}, or give the compressed body as bytes, which are sent as "
                    "they are"
                )
        return None if content_type is None and content_encoding is None else ""

    def given(self, value: object, misfit: str | None) -> bytes | None:
        """Returns the body of a value whose content type or encoding the caller gives, if it is bytes; otherwise None.

        Args:
            value: The value.
            misfit: What `misfit` returned.

        Raises:
            EncodeFailed: The value is not bytes, and the serializer makes another content type.
        """
        if misfit is None:
            return None
        if isinstance(value, _BYTES):
            return bytes(value)
        if misfit:
            raise EncodeFailed(f"a {type(value).__name__} cannot be sent: {misfit}")
        return None

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


def _compressor(registry: PluginRegistry, name: str, settings: ProducerSettings) -> BodyCompressor:
    provided = registry.provided("compressor", name)
    return BodyCompressor(
        registry.make_compressor(provided, settings.compression_level).compress,
        name=name,
        origin=provided.origin,
        encoding=provided.keys[0],
        threshold=settings.compression_threshold,
        ratio=settings.compression_ratio,
        max_size=settings.max_body_size,
        max_uncompressed=settings.max_uncompressed_size,
    )
