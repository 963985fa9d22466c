"""Values to bytes and back: the serializers that the core has, and how a consumer finds one for a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from leveret.errors import (
    BodyTooLarge,
    ConfigurationError,
    ContentTypeNotAccepted,
    DecodeFailed,
    EncodeFailed,
    TableSyntaxError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leveret._framing import Message

__all__ = ["SERIALIZERS", "BodyDecoder", "Serializer", "encode_failed", "serializer"]


class Serializer(Protocol):
    """Turns values into bodies of one content type, and back.

    Attributes:
        name: What settings call it.
        content_type: The MIME type it writes into the `content_type` property.
        aliases: Other content types whose bodies it can read.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def content_type(self) -> str: ...  # noqa: D102

    @property
    def aliases(self) -> Sequence[str]: ...  # noqa: D102

    @property
    def encode(self) -> Callable[[Any], bytes]:
        """Encodes a value; raises whatever it likes, which is wrapped in `EncodeFailed`."""
        ...

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes a body into `model`, or into plain values when it is None."""
        ...


class JSONSerializer:
    """JSON by msgspec: Struct, dataclass, TypedDict, attrs and plain values, validated against the model."""

    name = "json"
    content_type = "application/json"
    aliases = ("text/json",)

    def __init__(self) -> None:
        self.encode = msgspec.json.Encoder().encode

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """A decoder with the model's schema compiled once."""
        try:
            return msgspec.json.Decoder(Any if model is None else model).decode
        except TypeError as error:
            raise ConfigurationError(f"JSON cannot decode into {model!r}: {error}", option="model") from error


class TextSerializer:
    """Strings as UTF-8."""

    name = "text"
    content_type = "text/plain"
    aliases = ("text/plain; charset=utf-8", "text/plain;charset=utf-8")

    @staticmethod
    def encode(value: Any, /) -> bytes:
        """Encodes a str."""
        if not isinstance(value, str):
            raise TypeError(f"the text serializer takes str, not {type(value).__name__}")
        return value.encode()

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """A decoder to str."""
        if model not in (None, str):
            raise ConfigurationError(f"text decodes into str, not {model!r}", option="model")
        return bytes.decode


class BytesSerializer:
    """Bytes as they are."""

    name = "bytes"
    content_type = "application/octet-stream"
    aliases = ()

    @staticmethod
    def encode(value: Any, /) -> bytes:
        """Takes bytes, or copies a bytes-like object."""
        if type(value) is bytes:
            return value
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"the bytes serializer takes bytes, not {type(value).__name__}")
        return bytes(value)

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """A decoder that returns the body."""
        if model not in (None, bytes):
            raise ConfigurationError(f"bytes decode into bytes, not {model!r}", option="model")
        return bytes


#: The serializers of the core, by name.
SERIALIZERS: Final[dict[str, Serializer]] = {s.name: s for s in (JSONSerializer(), TextSerializer(), BytesSerializer())}


def serializer(name: str) -> Serializer:
    """Finds a serializer.

    Args:
        name: `json`, `text` or `bytes`.

    Returns:
        The serializer.

    Raises:
        ConfigurationError: There is none with this name; the text lists those there are.
    """
    try:
        return SERIALIZERS[name]
    except KeyError:
        known = ", ".join(SERIALIZERS)
        raise ConfigurationError(f"there is no serializer {name!r}; known are {known}", option="serializer") from None


def encode_failed(error: Exception, name: str, value: object) -> EncodeFailed:
    """Wraps what a serializer raised; names the type and never the value."""
    # A TypeError names types; other texts may quote the value.
    detail = str(error) if isinstance(error, TypeError) else type(error).__name__
    failure = EncodeFailed(f"the {name} serializer cannot encode a {type(value).__name__}: {detail}")
    failure.__cause__ = error
    return failure


class BodyDecoder:
    """Decodes the messages of one consumer.

    The content type chooses among the serializers that the consumer accepts; the sender alone never does. Messages
    with equal packed properties, which is to say nearly all from one publisher, are looked up once.

    Args:
        model: What values should be, for example a `msgspec.Struct` or dataclass; None for plain values.
        name: Decode every message with this serializer, whatever its content type; None to go by content type.
        accept: The content types to accept; empty for those of all serializers that can make the model.

    Raises:
        ConfigurationError: The serializer or content type is not known, or cannot make the model.
    """

    def __init__(self, model: Any = None, *, name: str | None = None, accept: Sequence[str] = ()) -> None:
        self._always: Callable[[bytes], Any] | None = None
        self._by_type: dict[str, Callable[[bytes], Any]] = {}
        self._untyped: Callable[[bytes], Any] = bytes
        self._last_properties: bytes | None = None
        self._last: Callable[[bytes], Any] | None = None
        if name is not None or model is bytes:
            self._always = serializer(name or "bytes").decoder(model)
            return
        for candidate in SERIALIZERS.values():
            wanted = [t for t in (candidate.content_type, *candidate.aliases) if not accept or t in accept]
            if not wanted:
                continue
            try:
                decode = candidate.decoder(model)
            except ConfigurationError:
                if accept:
                    raise
                continue
            self._by_type.update(dict.fromkeys(wanted, decode))
        missing = [t for t in accept if t not in self._by_type]
        if missing:
            raise ConfigurationError(f"no serializer reads {missing[0]!r}", option="accept")
        if not self._by_type:
            raise ConfigurationError(f"no serializer decodes into {model!r}", option="model")
        if model is not None:
            # The publisher did not say what it is, but the consumer's model does.
            first = next(iter(self._by_type.values()))
            self._untyped = self._by_type.get("text/plain", first) if model is str else first

    def decode(self, message: Message) -> Any:
        """Decodes a body.

        Args:
            message: The message.

        Returns:
            Its value. A message without a content type and without a model is its bytes.

        Raises:
            DecodeFailed: The body is not what the content type or the model says.
            ContentTypeNotAccepted: The content type or encoding is not accepted.
            BodyTooLarge: The body was larger than `max_body_size` and was not kept.
        """
        if message.raw_properties is not self._last_properties:
            self._last = self._always or self._find(message)
            self._last_properties = message.raw_properties
        body = message.body
        if body is None:
            raise BodyTooLarge(f"the body has {message.body_size} bytes, more than max_body_size")
        try:
            return self._last(body)  # type: ignore[misc]
        except Exception as error:
            # "Expected `int`, got `str` - at `$.amount`" is what a developer needs; other texts may quote the body.
            text = str(error)
            detail = f": {text}" if text.startswith(("Expected", "Object missing")) else ""
            raise DecodeFailed(
                f"a body of {message.body_size} bytes could not be decoded ({type(error).__name__}){detail}"
            ) from error

    def _find(self, message: Message) -> Callable[[bytes], Any]:
        # Whatever happens below, the next message is looked at afresh.
        self._last_properties = None
        try:
            encoding = message.content_encoding
        except TableSyntaxError as error:
            raise DecodeFailed(f"the properties could not be decoded: {error}") from error
        if encoding not in (None, "", "identity", "utf-8", "UTF-8"):
            raise ContentTypeNotAccepted(f"the content encoding {encoding[:80]!r} is not accepted")
        content_type = message.content_type
        if content_type is None:
            return self._untyped
        decode = self._by_type.get(content_type) or self._by_type.get(content_type.partition(";")[0].strip().lower())
        if decode is None:
            known = ", ".join(self._by_type)
            raise ContentTypeNotAccepted(
                f"the content type {content_type[:80]!r} is not accepted; accepted are {known}"
            )
        return decode
