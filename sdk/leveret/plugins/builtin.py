"""The core's own plugin: the serializers JSON, text, bytes, empty and hybrid, the compressors gzip and deflate."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from leveret.errors import BodyTooLarge, ConfigurationError
from leveret.plugins.interfaces import SERIALIZER_OPTIONS, CompositeSpec, CompressorSpec, SerializerSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from leveret.plugins.field_names import FieldNames
    from leveret.plugins.interfaces import Serializer

__all__ = [
    "BytesSerializer",
    "EmptySerializer",
    "JSONSerializer",
    "RenamingJSONSerializer",
    "TextSerializer",
    "ZlibCompressor",
    "leveret_compressors",
    "leveret_serializers",
]


class JSONSerializer:
    """JSON by msgspec: Struct, dataclass, TypedDict, attrs and plain values, validated against the model."""

    def __init__(self) -> None:
        self.encode = msgspec.json.Encoder().encode

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Returns a decoder that has compiled the model's schema."""
        if model is None:
            return msgspec.json.Decoder().decode
        try:
            decode = msgspec.json.Decoder(model).decode
            foreign = _foreign_class(model)
        except TypeError as error:
            raise ConfigurationError(f"JSON cannot decode into {model!r}: {error}", option="model") from error
        if foreign is not None:
            raise ConfigurationError(
                f"JSON cannot decode into {model!r}: msgspec does not support the type {foreign!r}", option="model"
            )
        return decode


class RenamingJSONSerializer(JSONSerializer):
    """JSON with other names for fields, or without fields that are None; see `FieldNames`.

    Args:
        names: What is renamed and left out.
    """

    def __init__(self, names: FieldNames) -> None:
        super().__init__()
        write, plain = self.encode, names.plain
        self._names = names
        self._write = write
        self.encode = lambda value: write(plain(value))

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Returns a decoder that reads both names of each field; plain values keep the names that they come with."""
        decode = super().decoder(model)
        name_fields = None if model is None else self._names.reader(model)
        if name_fields is None:
            return decode
        # Through JSON again, so that values are checked as without new names. Numbers stay the text that they are.
        read = msgspec.json.Decoder(float_hook=_number_as_it_is).decode
        write = self._write
        return lambda body: decode(write(name_fields(read(body))))


def _number_as_it_is(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


def _json(*, rename: str | None = None, omit_none: bool = False) -> JSONSerializer:
    if rename is None and not omit_none:
        return JSONSerializer()
    from leveret.plugins.field_names import FieldNames

    return RenamingJSONSerializer(FieldNames(rename, omit_none=omit_none))


def _foreign_class(model: Any) -> type | None:
    """Finds a class that msgspec does not support. Without this check, decoding the first message would fail."""
    import msgspec.inspect

    todo: list[Any] = [msgspec.inspect.type_info(model)]
    seen: set[int] = set()
    while todo:
        node = todo.pop()
        if isinstance(node, msgspec.inspect.CustomType):
            return node.cls
        if id(node) in seen or not isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field | tuple):
            continue
        seen.add(id(node))
        if isinstance(node, tuple):
            todo.extend(node)
        elif not (isinstance(node, msgspec.inspect.Field) and not node.required):
            todo.extend(getattr(node, name, None) for name in node.__struct_fields__)
    return None


class TextSerializer:
    """Strings as UTF-8."""

    @staticmethod
    def encode(value: Any, /) -> bytes:
        """Encodes a str."""
        if not isinstance(value, str):
            raise TypeError(f"the text serializer takes str, not {type(value).__name__}")
        return value.encode()

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Returns a decoder to str."""
        if model not in (None, str):
            raise ConfigurationError(f"text decodes into str, not {model!r}", option="model")
        return bytes.decode


class BytesSerializer:
    """Bytes, unchanged."""

    @staticmethod
    def encode(value: Any, /) -> bytes:
        """Returns bytes unchanged, and copies other bytes-like objects."""
        if type(value) is bytes:
            return value
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"the bytes serializer takes bytes, not {type(value).__name__}")
        return bytes(value)

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Returns a decoder that returns the body."""
        if model not in (None, bytes):
            raise ConfigurationError(f"bytes decode into bytes, not {model!r}", option="model")
        return bytes


class EmptySerializer:
    """None, as an empty body."""

    @staticmethod
    def encode(value: Any, /) -> bytes:
        """Encodes None."""
        if value is not None:
            raise TypeError(f"the empty serializer takes None, not {type(value).__name__}")
        return b""

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Returns a decoder to None, for any model."""
        return _nothing


def _nothing(body: bytes) -> None:
    if body:
        raise ValueError("an empty message has a body")


def _hybrid_part(value: Any) -> str:
    if value is None:
        return "empty"
    return "json" if isinstance(value, bool | int | float | str) else "msgpack"


def _fieldless(name: str, content_type: str, make: Callable[[], Serializer]) -> SerializerSpec:
    """Describes a serializer of values without fields: whatever is said of fields is true of them."""
    return SerializerSpec(name=name, content_type=content_type, factory=lambda **_: make(), options=SERIALIZER_OPTIONS)


def leveret_serializers() -> Iterable[SerializerSpec | CompositeSpec]:
    """Returns JSON, text, bytes, empty, and the guide's hybrid of empty, JSON and MessagePack."""
    return [
        SerializerSpec(
            name="json",
            content_type="application/json",
            factory=_json,
            aliases=("text/json",),
            options=SERIALIZER_OPTIONS,
        ),
        _fieldless("text", "text/plain", TextSerializer),
        _fieldless("bytes", "application/octet-stream", BytesSerializer),
        _fieldless("empty", "application/x-empty", EmptySerializer),
        CompositeSpec(name="hybrid", parts=("empty", "json", "msgpack"), select=_hybrid_part, compressor="lz4"),
    ]


# ---------------------------------------------------------------------- compressors

_GZIP: Final = 16 + zlib.MAX_WBITS  # zlib's manual, deflateInit2: 16 more writes and reads a gzip header
_FASTEST: Final = 1
#: Bodies up to this size are decompressed at once, larger ones in chunks of this size.
_CHUNK: Final = 256 * 1024


class ZlibCompressor:
    """gzip (RFC 1952) or zlib's format (RFC 1950), which HTTP calls deflate.

    Args:
        wbits: The format, as zlib's `wbits`.
        level: 0 (no compression) to 9 (smallest); None is 1, the fastest.
    """

    def __init__(self, wbits: int, level: int | None) -> None:
        self._wbits = wbits
        self._level = _FASTEST if level is None else level

    def compress(self, data: bytes, /) -> bytes:
        """Compresses into one stream with its trailer."""
        return zlib.compress(data, self._level, self._wbits)

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        """Decompresses one stream; see `leveret.plugins.Compressor`."""
        if len(data) <= _CHUNK:
            stream = zlib.decompressobj(self._wbits)
            # One byte above the limit distinguishes a body of exactly that size from one that is too large.
            most = min(max_size, _CHUNK)
            body = stream.decompress(data, most + 1)
            if len(body) <= most:
                _check_end(stream.eof, stream.unused_data)
                return body
            if most == max_size:
                raise _too_large(max_size)
            del stream, body
        return self._decompress_large(data, max_size)

    def _decompress_large(self, data: bytes, max_size: int) -> bytes:
        """Decompresses with little more memory than `max_size`.

        zlib joins its output blocks, for which it needs their size twice, and copies its unread input. So the body is
        made of chunks, or decompressed a second time when its size is known.
        """
        stream = zlib.decompressobj(self._wbits)
        chunks: list[bytes] = []
        size = 0
        for start in range(0, len(data), _CHUNK):
            rest = data[start : start + _CHUNK]
            while not stream.eof:
                chunk = stream.decompress(rest, _CHUNK)
                rest = stream.unconsumed_tail
                size += len(chunk)
                if size > max_size:
                    raise _too_large(max_size)
                if 2 * size <= max_size:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                if not rest and len(chunk) < _CHUNK:
                    break
            if stream.eof:
                _check_end(True, stream.unused_data or data[start + _CHUNK :])
                break
        _check_end(stream.eof, b"")
        # With the known size zlib allocates a single block.
        return b"".join(chunks) if chunks else zlib.decompress(data, self._wbits, size)


def _too_large(max_size: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body decompresses to more than {max_size} bytes")


def _check_end(ended: bool, behind: bytes) -> None:
    if not ended:
        raise ValueError("the compressed body is cut off")
    if behind:
        raise ValueError(f"{len(behind)} bytes or more follow the compressed body")


def _gzip(level: int | None) -> ZlibCompressor:
    return ZlibCompressor(_GZIP, level)


def _deflate(level: int | None) -> ZlibCompressor:
    return ZlibCompressor(zlib.MAX_WBITS, level)


def leveret_compressors() -> Iterable[CompressorSpec]:
    """Returns gzip and deflate, which every language supports."""
    return [
        CompressorSpec(name="gzip", content_encoding="gzip", factory=_gzip, levels=(0, 9), aliases=("x-gzip",)),
        CompressorSpec(name="deflate", content_encoding="deflate", factory=_deflate, levels=(0, 9)),
    ]
