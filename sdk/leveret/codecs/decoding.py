"""Decodes bodies into values: the content type and encoding choose among decoders that are bound once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from leveret.codecs.forms import NO_ENCODINGS, media_types
from leveret.codecs.options import check_options_taken, serializer_options
from leveret.errors import (
    BodyTooLarge,
    CodecError,
    ConfigurationError,
    ContentTypeNotAccepted,
    DecodeFailed,
    LeveretError,
    PluginError,
    TableSyntaxError,
    printable,
)
from leveret.plugins.interfaces import CompositeSpec, SerializerSpec
from leveret.plugins.plugin import comparable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from leveret.plugins.interfaces import Compressor
    from leveret.plugins.registry import PluginRegistry, Provided
    from leveret.settings import ConsumerSettings
    from leveret.wire.message import Message

__all__ = ["BodyDecoder"]


class _BoundDecoder(NamedTuple):
    """The functions that decode bodies of one content type and encoding.

    Attributes:
        decode: Decodes a body. It takes a memoryview, too, when `body_view_size` is set.
        serializer: The serializer's name and distribution, for errors.
        decompress: Decompresses a body before `decode`, or None.
        plain: Does both in one step, for a bytes object. Its errors say nothing that a user should see.
    """

    decode: Callable[[Any], Any]
    serializer: str
    decompress: Callable[[Any], bytes] | None = None
    plain: Callable[[bytes], Any] | None = None


def _detail(error: BaseException) -> str:
    """Returns the text of an error that quotes nothing of the body, or an empty string."""
    if isinstance(error, CodecError):
        return f": {printable(str(error), 500)}"  # plugins promise that its text has nothing of the body
    if type(error) is not msgspec.ValidationError:
        return ""
    # Such as "Expected `int`, got `str` - at `$.amount`".
    text = str(error)
    return f": {text}" if text.startswith(("Expected", "Object missing")) else ""


def _unchanged(body: bytes | memoryview) -> bytes | memoryview:
    return body


def _bytes_of(body: bytes | memoryview) -> bytes:
    """Returns the bytes object behind a view. Copies nothing, as the frame reader makes views of whole objects."""
    if type(body) is bytes:
        return body
    assert type(body) is memoryview
    try:
        whole = body.obj
    except ValueError as error:
        raise DecodeFailed("the body was released before it was decoded") from error
    return whole if type(whole) is bytes and len(whole) == body.nbytes else bytes(body)


def _taking_views(decode: Callable[[bytes], Any]) -> Callable[[bytes | memoryview], Any]:
    """Wraps a function of bytes so that it takes memoryviews, too."""
    return lambda body: decode(_bytes_of(body))


class BodyDecoder:
    """Decodes the messages of one consumer.

    A message's content type chooses among the serializers that the consumer accepts; a sender cannot choose another.
    The lookup is done once for consecutive messages with the same packed properties.

    With `body_view_size` bodies may be memoryviews. The serializer `bytes` without a model returns them as they are.
    Other serializers and decompressors get the bytes object behind the view, without a copy.

    Args:
        registry: The registry that has the serializers and compressors.
        model: The type of the values, for example a `msgspec.Struct` or dataclass; None for plain values.
        settings: Settings that name the serializer or the accepted content types, and limit decompression.

    Raises:
        ConfigurationError: The serializer or content type does not exist, cannot decode into the model, or does not
            take an option.
        PluginError: The plugin failed to make the serializer.
    """

    def __init__(self, registry: PluginRegistry, model: Any, settings: ConsumerSettings) -> None:
        self._registry = registry
        self._options = serializer_options(settings)
        self._max_size = settings.max_decompressed_size
        self._max_ratio = settings.max_decompression_ratio
        self._raw = settings.serializer == "bytes"
        # Decided once, so that without views no further call is needed for each body.
        self._views = settings.body_view_size is not None
        self._always: _BoundDecoder | None = None
        self._by_type: dict[str, _BoundDecoder] = {}
        #: The serializers whose plugins are imported with the first message of their content type.
        self._unbound: dict[str, Provided] = {}
        self._model = model
        self._untyped = _BoundDecoder(self._bytes_decoder(model), "bytes")
        self._decompressors: dict[str, Compressor] = {}
        self._encodings: Mapping[str, Provided] = registry.readers("compressor")
        self._last_properties: bytes | None = None
        self._last: _BoundDecoder = self._untyped
        name, accept = settings.serializer, settings.accept
        specific: Provided | None = None
        if name is not None and accept:
            raise ConfigurationError(
                "set either serializer or accept: a consumer with serializer ignores the content type", option="accept"
            )
        if name is None and model is bytes:
            self._by_type = dict.fromkeys(map(comparable, accept), self._untyped)
            self._always = None if accept else self._untyped
            return
        named = None if name is None else registry.provided("serializer", name, option="serializer")
        if named is not None and not isinstance(named.spec, CompositeSpec):
            check_options_taken(self._options, [named], f"the {named.name} serializer ({named.origin})")
            self._always = self._bind_serializer(named, model)
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
            for content_type in accept:
                found = next((each for each in media_types(content_type) if each in readers), None)
                if found is None:
                    raise ConfigurationError(f"no serializer reads {printable(content_type, 80)!r}", option="accept")
                # Parameters are ignored, unless a serializer has registered them. A suffix such as "+json" says how to
                # read this type; it accepts no other type with the suffix.
                key = comparable(content_type)
                kind = key.partition(";")[0]
                wanted[found if found in (key, kind) else kind] = readers[found]
            readers = wanted
        if not accept and named is None:
            self._unbound = {key: it for key, it in readers.items() if not it.is_imported}
        bound = {key: it for key, it in readers.items() if key not in self._unbound}
        self._bind_readers(bound, model, bool(accept), specific)
        if all(readers[key].name == "empty" for key in self._by_type):
            # The model may be one that only a plugin makes.
            self._bind_readers(self._unbound, model, False, specific)
            self._unbound = {}
        # The serializer `empty` fits every model, so it does not show that the model can be decoded.
        bodies = {key: decode for key, decode in self._by_type.items() if readers[key].name != "empty"} or self._by_type
        if not bodies or (bodies is self._by_type and not accept):
            raise ConfigurationError(f"no serializer decodes into {model!r}", option="model")
        chosen = [readers[key] for key in bodies] if specific is None else [specific]
        check_options_taken(self._options, chosen, f"what decodes into {model!r}")
        if model is not None:
            # For messages without a content type the consumer's model decides.
            first = bodies.get("application/json") or next(iter(bodies.values()))
            self._untyped = bodies.get("text/plain", first) if model is str else first

    def _bytes_decoder(self, model: Any) -> Callable[[Any], Any]:
        if not self._views:
            return bytes
        return _bytes_of if model is bytes else _unchanged

    def _bind_readers(
        self, readers: Mapping[str, Provided], model: Any, accepted: bool, specific: Provided | None
    ) -> None:
        made: dict[str, _BoundDecoder | None] = {}
        for content_type, provided in readers.items():
            try:
                spec = provided.spec
            except PluginError:
                if accepted:
                    raise
                continue  # logged, and left out as a plugin that fails when the registry is made
            assert isinstance(spec, SerializerSpec)
            if not accepted and not spec.safe:
                continue
            if provided.name not in made:
                try:
                    made[provided.name] = self._bind_serializer(provided, model)
                except ConfigurationError:
                    if accepted or provided is specific:
                        raise
                    made[provided.name] = None
            reader = made[provided.name]
            if reader is not None:
                self._by_type[content_type] = reader

    def _bind_serializer(self, provided: Provided, model: Any) -> _BoundDecoder:
        who = f"the {provided.name} serializer ({provided.origin})"
        serializer = self._registry.make_serializer(provided, self._options)
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
            decode = _taking_views(decode)
        return _BoundDecoder(decode, who)

    def decode(self, message: Message) -> Any:
        """Decodes the body of a message.

        Args:
            message: The message.

        Returns:
            The value. Without a content type and without a model it is the body itself.

        Raises:
            DecodeFailed: The body does not fit the content type, content encoding or model.
            ContentTypeNotAccepted: The content type or encoding is not accepted.
            BodyTooLarge: The body was larger than `max_body_size` and was not kept, or decompresses to more than
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
            # BaseException: a serializer that raises one must not end the consumer.
            raise DecodeFailed(
                f"a body of {message.body_size} bytes could not be decoded by {reader.serializer} "
                f"({type(error).__name__}){_detail(error)}"
            ) from error

    def plain(self, message: Message) -> Callable[[bytes], Any] | None:
        """Returns the function that decodes bodies of messages with the same packed properties as this message.

        Args:
            message: The message that was decoded last.

        Returns:
            The serializer's own function, with the decompressor before it, or None when `decode` has more to do. When
            it raises, `decode` raises an error that says why.
        """
        reader = self._last
        if message.raw_properties is not self._last_properties:
            return None
        return reader.decode if reader.decompress is None else reader.plain

    def _find(self, message: Message) -> _BoundDecoder:
        # If this raises, the next message is looked up again.
        self._last_properties = None
        if self._raw:
            assert self._always is not None
            return self._always
        try:
            encoding = comparable(message.content_encoding or "")
        except TableSyntaxError as error:
            raise DecodeFailed(f"the properties could not be decoded: {error}") from error
        reader = self._always or self._by_content_type(message.content_type)
        return reader if encoding in NO_ENCODINGS else self._decompressing(encoding, reader)

    def _by_content_type(self, content_type: str | None) -> _BoundDecoder:
        if content_type is None:
            return self._untyped
        kinds = list(media_types(content_type))
        for key in kinds:
            if key in self._unbound:
                self._bind_late(self._unbound[key])
        reader = next((self._by_type[key] for key in kinds if key in self._by_type), None)
        if reader is None:
            known = ", ".join((*self._by_type, *self._unbound))
            raise ContentTypeNotAccepted(
                f"the content type {printable(content_type, 80)!r} is not accepted; accepted are {known}"
            )
        return reader

    def _bind_late(self, provided: Provided) -> None:
        """Binds a serializer whose plugin was not imported; content types that it cannot decode are not accepted."""
        mine = {key: it for key, it in self._unbound.items() if it is provided}
        self._unbound = {key: it for key, it in self._unbound.items() if it is not provided}
        try:
            self._bind_readers(mine, self._model, False, None)
        except LeveretError as error:
            raise DecodeFailed(str(error)) from error

    def _decompressing(self, encoding: str, reader: _BoundDecoder) -> _BoundDecoder:
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

        decode = reader.decode

        def plain(data: bytes) -> Any:
            limit = int(len(data) * max_ratio)
            if limit > max_size:
                limit = max_size
            body = decompress(data, limit)
            if type(body) is not bytes or len(body) > limit:
                raise DecodeFailed(f"{who} broke its limit")
            return decode(body)

        return _BoundDecoder(decode, reader.serializer, _taking_views(limited) if self._views else limited, plain)
