"""Values to bytes and back: serializer and compressor, chosen once and then called directly."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from leveret.errors import (
    BodyTooLarge,
    CodecError,
    ConfigurationError,
    ContentTypeNotAccepted,
    DecodeFailed,
    EncodeFailed,
    LeveretError,
    PluginError,
    TableSyntaxError,
    printable,
)
from leveret.plugins.interfaces import CompositeSpec, SerializerSpec
from leveret.plugins.loading import comparable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from leveret.plugins.interfaces import Compressor
    from leveret.plugins.registry import PluginRegistry, Provided
    from leveret.settings import ConsumerSettings, ProducerSettings
    from leveret.wire.message import Message

__all__ = ["ORIGINAL_SIZE", "BodyDecoder", "BodyEncoder", "Form", "OriginalSize"]

#: The header that tells the size of a compressed body before compression, in bytes.
ORIGINAL_SIZE: Final = "original-size"
#: Consumers refuse bodies that grow more than this by default (`max_decompression_ratio`), so producers send them as
#: they are.
_MAX_RATIO: Final = 200
#: Encodings that change nothing; the last are what some clients write for text.
_NO_ENCODINGS: Final = frozenset({"", "identity", "utf-8", "us-ascii", "binary"})


class Form(NamedTuple):
    """What a body is; bodies of one form share their properties."""

    content_type: str
    content_encoding: str | None = None


class BodyEncoder:
    """Encodes the values of one producer.

    A producer whose bodies all have one form calls `encode`, which is the serializer's own function. Otherwise, with a
    compressor or a composite serializer, it calls `pack`.

    Args:
        registry: Where serializers and compressors come from.
        settings: Names them.

    Attributes:
        name: The serializer's name.
        form: The form of every body, or None when `pack` tells it for each.
        encode: The serializer's function.

    Raises:
        ConfigurationError: There is no such serializer or compressor, or level.
        PluginError: One of them could not be made.
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
            raise ConfigurationError("compression_level is of no use without a compressor", option="compression_level")
        self.form = None if self._select or self._compressor else self._form

    @staticmethod
    def _part(registry: PluginRegistry, provided: Provided) -> tuple[Callable[[Any], bytes], Form]:
        if isinstance(provided.spec, CompositeSpec):
            raise ConfigurationError(
                f"the serializer {provided.name!r} chooses among others and cannot be a part itself",
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
                f"the serializer {self.name!r} of {self._origin} chose {printable(str(part), 64)!r}, which is none of "
                f"its parts {known}"
            ) from None

    def pack(self, value: Any, *, compress: bool = True) -> tuple[bytes, Form, int]:
        """Encodes a value, and compresses it when that is worth it.

        Args:
            value: What the serializer takes.
            compress: False leaves the body as it is.

        Returns:
            The body, its form, and its size before compression, or -1 when it is not compressed.

        Raises:
            EncodeFailed: The serializer or the compressor refused it.
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
        """Wraps what a serializer raised; names the type and never the value."""
        # The core's own TypeErrors name types, and who raises a codec error has promised it. Other texts may quote the
        # value.
        trusted = isinstance(error, CodecError | PluginError) or (isinstance(error, TypeError) and self._trusted)
        detail = str(error) if trusted else type(error).__name__
        failure = EncodeFailed(
            f"the {self.name} serializer ({self._origin}) cannot encode a {type(value).__name__}: {detail}"
        )
        failure.__cause__ = error
        return failure

    def not_bytes(self, body: object) -> EncodeFailed:
        """The error of a serializer that returned something else."""
        return EncodeFailed(f"the {self.name} serializer ({self._origin}) returned {type(body).__name__}, not bytes")


class _Reader(NamedTuple):
    """A bound decoder, and whose it is."""

    # They take a view, too, when the decoder was made for views.
    decode: Callable[[Any], Any]
    who: str
    decompress: Callable[[Any], bytes] | None = None


def _detail(error: BaseException) -> str:
    """The text of an error where it is known to have nothing of the body, or an empty string."""
    if isinstance(error, CodecError):
        return f": {printable(str(error), 500)}"  # chosen by the plugin, which promises it
    if type(error) is not msgspec.ValidationError:
        return ""
    # "Expected `int`, got `str` - at `$.amount`" is what a developer needs.
    text = str(error)
    return f": {text}" if text.startswith(("Expected", "Object missing")) else ""


def _as_it_came(body: bytes | memoryview) -> bytes | memoryview:
    return body


def _whole(body: bytes | memoryview) -> bytes:
    """The bytes object that a view shows the whole of, which the frame reader takes care of: nothing is copied."""
    if type(body) is bytes:
        return body
    assert type(body) is memoryview
    try:
        whole = body.obj
    except ValueError as error:
        raise DecodeFailed("the body was released before it was decoded") from error
    return whole if type(whole) is bytes and len(whole) == body.nbytes else bytes(body)


def _of_whole(decode: Callable[[bytes], Any]) -> Callable[[bytes | memoryview], Any]:
    """A function of bytes as one that takes a view of them."""
    return lambda body: decode(_whole(body))


class BodyDecoder:
    """Decodes the messages of one consumer.

    The content type chooses among the serializers that the consumer accepts; the sender alone never does. Messages
    with equal packed properties, which is to say nearly all from one publisher, are looked up once.

    With `body_view_size` bodies may be memoryviews. The serializer `bytes` without a model returns them as they are;
    other serializers and decompressors are given the bytes object behind them, which costs no copy.

    Args:
        registry: Where serializers and compressors come from.
        model: What values should be, for example a `msgspec.Struct` or dataclass; None for plain values.
        settings: Name a serializer or content types, and limit decompression.

    Raises:
        ConfigurationError: The serializer or content type is not known, or cannot make the model.
        PluginError: A serializer could not be made.
    """

    def __init__(self, registry: PluginRegistry, model: Any, settings: ConsumerSettings) -> None:
        self._registry = registry
        self._max_size = settings.max_decompressed_size
        self._max_ratio = settings.max_decompression_ratio
        self._raw = settings.serializer == "bytes"
        # Decided here: bodies that are bytes anyway are decoded without another call.
        self._views = settings.body_view_size is not None
        self._always: _Reader | None = None
        self._by_type: dict[str, _Reader] = {}
        self._untyped = _Reader(self._bytes_decoder(model), "bytes")
        self._decompressors: dict[str, Compressor] = {}
        self._encodings: Mapping[str, Provided] = registry.readers("compressor")
        self._last_properties: bytes | None = None
        self._last: _Reader = self._untyped
        name, accept = settings.serializer, settings.accept
        specific: Provided | None = None
        if name is not None and accept:
            raise ConfigurationError(
                "accept is of no use with serializer: the one goes by content type, the other does not", option="accept"
            )
        if name is None and model is bytes:
            self._by_type = dict.fromkeys(map(comparable, accept), self._untyped)
            self._always = None if accept else self._untyped
            return
        named = None if name is None else registry.provided("serializer", name, option="serializer")
        if named is not None and not isinstance(named.spec, CompositeSpec):
            self._always = self._reader(named, model)
            return
        readers = dict(registry.readers("serializer"))
        if named is not None:
            assert isinstance(named.spec, CompositeSpec)
            parts = [registry.provided("serializer", part) for part in named.spec.parts]
            readers = {key: part for part in parts for key in part.claims}
        elif (specific := registry.specific_serializer(model)) is not None:
            readers.update(dict.fromkeys(map(comparable, specific.keys), specific))
        if accept:
            wanted: dict[str, Provided] = {}
            for key in map(comparable, accept):
                # Parameters do not matter, unless a serializer has registered them.
                kind = key if key in readers else key.partition(";")[0]
                if kind not in readers:
                    raise ConfigurationError(f"no serializer reads {printable(key, 80)!r}", option="accept")
                wanted[kind] = readers[kind]
            readers = wanted
        self._bind(readers, model, bool(accept), specific)
        # What has no body fits every model, and says nothing about it.
        bodies = {key: decode for key, decode in self._by_type.items() if readers[key].name != "empty"} or self._by_type
        if not bodies or (bodies is self._by_type and not accept):
            raise ConfigurationError(f"no serializer decodes into {model!r}", option="model")
        if model is not None:
            # The publisher did not say what it is, but the consumer's model does.
            first = bodies.get("application/json") or next(iter(bodies.values()))
            self._untyped = bodies.get("text/plain", first) if model is str else first

    def _bytes_decoder(self, model: Any) -> Callable[[Any], Any]:
        if not self._views:
            return bytes
        return _whole if model is bytes else _as_it_came

    def _bind(self, readers: Mapping[str, Provided], model: Any, accepted: bool, specific: Provided | None) -> None:
        made: dict[str, _Reader | None] = {}
        for content_type, provided in readers.items():
            assert isinstance(provided.spec, SerializerSpec)
            if not accepted and not provided.spec.safe:
                continue
            if provided.name not in made:
                try:
                    made[provided.name] = self._reader(provided, model)
                except ConfigurationError:
                    if accepted or provided is specific:
                        raise
                    made[provided.name] = None
            reader = made[provided.name]
            if reader is not None:
                self._by_type[content_type] = reader

    def _reader(self, provided: Provided, model: Any) -> _Reader:
        who = f"the {provided.name} serializer ({provided.origin})"
        serializer = self._registry.make_serializer(provided)
        try:
            decode = serializer.decoder(model)
        except (ConfigurationError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise PluginError(
                f"{who} failed to make a decoder: {type(error).__name__}",
                plugin=provided.plugin,
                distribution=provided.distribution,
            ) from error
        if provided.plugin == "builtin" and provided.name == "bytes":
            decode = self._bytes_decoder(model)
        elif self._views:
            decode = _of_whole(decode)
        return _Reader(decode, who)

    def decode(self, message: Message) -> Any:
        """Decodes a body.

        Args:
            message: The message.

        Returns:
            Its value. A message without a content type and without a model is its body.

        Raises:
            DecodeFailed: The body is not what the content type, content encoding or model says.
            ContentTypeNotAccepted: The content type or encoding is not accepted.
            BodyTooLarge: The body was larger than `max_body_size` and was not kept, or would be larger than
                `max_decompressed_size` or `max_decompression_ratio` allow.
        """
        if message.raw_properties is not self._last_properties:
            self._last = self._find(message)
            self._last_properties = message.raw_properties
        body = message.body
        if body is None:
            raise BodyTooLarge(f"the body has {message.body_size} bytes, more than max_body_size")
        reader = self._last
        if reader.decompress is not None:
            body = reader.decompress(body)
        try:
            return reader.decode(body)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            # Also what is no Exception: one message must not end the consumer.
            raise DecodeFailed(
                f"a body of {message.body_size} bytes could not be decoded by {reader.who} "
                f"({type(error).__name__}){_detail(error)}"
            ) from error

    def plain(self, message: Message) -> Callable[[bytes], Any] | None:
        """What decodes the bodies of messages with the packed properties of this one, which was decoded last.

        Returns:
            The serializer's own function, or None when `decode` has more to do than to call it.
        """
        reader = self._last
        known = message.raw_properties is self._last_properties
        return reader.decode if known and reader.decompress is None else None

    def _find(self, message: Message) -> _Reader:
        # Whatever happens below, the next message is looked at afresh.
        self._last_properties = None
        if self._raw:
            assert self._always is not None
            return self._always
        try:
            encoding = comparable(message.content_encoding or "")
        except TableSyntaxError as error:
            raise DecodeFailed(f"the properties could not be decoded: {error}") from error
        reader = self._always or self._by_content_type(message.content_type)
        return reader if encoding in _NO_ENCODINGS else self._decompressing(encoding, reader)

    def _by_content_type(self, content_type: str | None) -> _Reader:
        if content_type is None:
            return self._untyped
        key = comparable(content_type)
        reader = self._by_type.get(key) or self._by_type.get(key.partition(";")[0])
        if reader is None:
            known = ", ".join(self._by_type)
            raise ContentTypeNotAccepted(
                f"the content type {printable(content_type, 80)!r} is not accepted; accepted are {known}"
            )
        return reader

    def _decompressing(self, encoding: str, reader: _Reader) -> _Reader:
        provided = self._encodings.get(encoding)
        if provided is None:
            known = ", ".join(self._encodings)
            raise ContentTypeNotAccepted(
                f"the content encoding {printable(encoding, 80)!r} is not accepted; accepted are {known}"
            )
        compressor = self._decompressors.get(provided.name)
        if compressor is None:
            try:
                compressor = self._registry.make_compressor(provided)
            except LeveretError as error:
                raise DecodeFailed(str(error)) from error
            self._decompressors[provided.name] = compressor
        decompress, max_size, max_ratio = compressor.decompress, self._max_size, self._max_ratio
        who = f"the {provided.name} compressor ({provided.origin})"

        def limited(data: bytes) -> bytes:
            limit = min(max_size, int(len(data) * max_ratio))
            try:
                body = decompress(data, limit)
            except BodyTooLarge:
                raise BodyTooLarge(
                    f"a compressed body of {len(data)} bytes decompresses to more than {limit} bytes "
                    f"(max_decompressed_size {max_size}, max_decompression_ratio {max_ratio:g})"
                ) from None
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                raise DecodeFailed(
                    f"{who} could not decompress a body of {len(data)} bytes ({type(error).__name__})"
                ) from error
            if type(body) is not bytes or len(body) > limit:
                found = f"{len(body)} bytes" if type(body) is bytes else type(body).__name__
                raise DecodeFailed(f"{who} returned {found}; it must return at most {limit} bytes")
            return body

        return _Reader(reader.decode, reader.who, _of_whole(limited) if self._views else limited)


class OriginalSize:
    """Packed properties with an `original-size` header whose number changes from message to message.

    Args:
        pack: Packs the properties with a given number in that header.
    """

    __slots__ = ("_after", "_before")

    def __init__(self, pack: Callable[[int], bytes]) -> None:
        # The number is eight bytes wide whatever its value (the header is a FieldValue of type "l"), and the only
        # thing in which these two differ.
        zeros, ones = pack(0), pack(-1)
        at = next(i for i, (zero, one) in enumerate(zip(zeros, ones, strict=True)) if zero != one)
        self._before, self._after = zeros[:at], zeros[at + 8 :]

    def of(self, size: int) -> bytes:
        """The properties of a body that had `size` bytes before compression."""
        return self._before + _LONGLONG.pack(size) + self._after


_LONGLONG: Final = struct.Struct(">q")
