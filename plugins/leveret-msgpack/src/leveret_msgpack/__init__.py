"""MessagePack bodies for Leveret: the serializer "msgpack".

    client.producer(serializer="msgpack")  # takes plain values, Struct, dataclass, attrs, ...
    client.consumer("orders", Order)  # decodes by the content type

Bodies are the output of `msgpack.packb`, which other languages can read.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack
import msgspec

from leveret.errors import ConfigurationError, EncodeFailed
from leveret.plugins import FieldNames, SerializerSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["SERIALIZER", "MessagePackSerializer", "RenamingMessagePackSerializer", "leveret_serializers"]

_BINARY: Final = (bytes, bytearray, memoryview)
#: Types that MessagePack supports and JSON does not. The packer gets them unchanged, not as text.
_NATIVE: Final = (*_BINARY, datetime, msgpack.Timestamp)
#: A packer keeps its buffer, which grows to twice the largest body. It is replaced after a body of more than this.
_LARGE: Final = 1 << 20
#: With bytes as a built-in type, msgspec does not decode text as base64.
_convert: Final[Callable[[Any, Any], Any]] = partial(msgspec.convert, builtin_types=_BINARY, str_keys=True)
#: The option with which msgpack turns timestamps into aware datetimes, in UTC.
_AS_DATETIME: Final = 3


class MessagePackSerializer:
    """MessagePack by the `msgpack` library, with typed values and models by msgspec.

    Plain values are encoded as by `msgpack.packb`. Other values are first converted to plain values as msgspec does for
    JSON, except that bytes stay bytes.

    * Aware datetimes are timestamps (extension type -1), exact to the microsecond. They are decoded in UTC.
    * Naive datetimes are text (ISO 8601), because MessagePack has no time without a time zone. A model's `datetime`
      converts them back.
    * Decoded maps must have keys that are str or bytes; `decoder` tells why. In a Struct, dataclass or attrs object,
      number keys are written as text, and a model's `dict[int, ...]` converts them back. In a plain dict they are
      written as numbers, for other readers.
    """

    def __init__(self) -> None:
        self._pack: Callable[[Any], bytes] = _packer()

    def encode(self, value: Any, /) -> bytes:
        """Encodes a value.

        Args:
            value: None, bool, int of 64 bits, float, str, bytes, bytearray, memoryview, datetime, list, tuple or dict,
                nested at most 1,024 deep, or what msgspec can make such values of: Struct, dataclass, attrs, TypedDict,
                NamedTuple, Enum, UUID, Decimal, date, time, timedelta, set and frozenset.

        Returns:
            One MessagePack object.

        Raises:
            EncodeFailed: The value has another type in it, or a typed object has a dict with keys that are neither text
                nor numbers.
            OverflowError: An int in it is below -2**63 or above 2**64 - 1.
            ValueError: The value is nested too deeply.
        """
        body = self._pack(value)
        if len(body) > _LARGE:
            self._pack = _packer()
        return body

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes bodies.

        Bodies are untrusted, so the function refuses missing or surplus bytes; map keys that are neither str nor bytes,
        because a sender can choose numbers that collide in a dict; and extension types other than timestamps. If a key
        occurs twice, the last value counts, as in JSON.

        Args:
            model: A type that msgspec can convert to, for example a Struct or dataclass; None for plain values. Values
                are not coerced: "1" is not accepted for an int.

        Returns:
            The function.

        Raises:
            ConfigurationError: msgspec cannot convert to this model; `option` is `"model"`.
        """
        if model is None:
            return _decode
        try:
            # Without this check, convert() would fail at the first message.
            msgspec.msgpack.Decoder(model)
        except TypeError as error:
            raise ConfigurationError(f"MessagePack cannot decode into {model!r}: {error}", option="model") from error

        return lambda body: _convert(_decode(body), model)


class RenamingMessagePackSerializer(MessagePackSerializer):
    """MessagePack with other names for fields, or without fields that are None.

    Args:
        rename: See `leveret.plugins.FieldNames`.
        omit_none: Likewise.
    """

    def __init__(self, rename: str | None, *, omit_none: bool) -> None:
        super().__init__()
        self._names = FieldNames(rename, omit_none=omit_none, builtin_types=_NATIVE)

    def encode(self, value: Any, /) -> bytes:
        """Encodes a value, as `MessagePackSerializer` does.

        Raises:
            EncodeFailed: As there, or two fields get the same name.
            OverflowError, ValueError: As there.
            TypeError: msgspec does not support a type in it.
        """
        return super().encode(self._names.plain(value))

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes bodies: it reads both names of each field.

        Without a model names stay as they come. Otherwise as `MessagePackSerializer`.
        """
        decode = super().decoder(model)
        name_fields = None if model is None else self._names.reader(model)
        if name_fields is None:
            return decode

        def decode_named(body: bytes) -> Any:
            return _convert(name_fields(_decode(body)), model)

        return decode_named


def _packer() -> Callable[[Any], bytes]:
    # A packer that raised an error can be used again, because it clears its buffer.
    packer = msgpack.Packer(default=_plain, use_bin_type=True, datetime=True)
    pack: Callable[[Any], bytes] = packer.pack
    return pack


def _plain(value: Any) -> Any:
    """Converts a value that the packer cannot write. It also gets naive datetimes and integers out of range."""
    if type(value) is datetime:
        return value.isoformat()
    try:
        return msgspec.to_builtins(value, builtin_types=_NATIVE, str_keys=True)
    except TypeError as error:
        raise EncodeFailed(str(error)) from error  # msgspec's text names types only


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"the body has {len(data)} bytes of the unknown extension type {code}")


#: Checks that a body is one complete object, without decoding it.
_check: Final = msgspec.msgpack.Decoder(msgspec.Raw).decode

#: `unpackb` limits the lengths of strings, binaries, arrays, maps and extensions by the length of the body.
_unpack: Final = partial(
    msgpack.unpackb, raw=False, timestamp=_AS_DATETIME, strict_map_key=True, ext_hook=_refuse_extension
)


def _decode(body: bytes) -> Any:
    # unpackb allocates each list with the length in its header, up to the body's length, before it reads an item: 1,024
    # nested lists of 5 bytes each would take 8,192 times the body's length. In a complete body each item has at least
    # one byte.
    _check(body)
    return _unpack(body)


def _serializer(*, rename: str | None = None, omit_none: bool = False) -> MessagePackSerializer:
    if rename is None and not omit_none:
        return MessagePackSerializer()
    return RenamingMessagePackSerializer(rename, omit_none=omit_none)


#: The serializer "msgpack".
SERIALIZER: Final = SerializerSpec(
    name="msgpack",
    content_type="application/msgpack",
    factory=_serializer,
    aliases=("application/x-msgpack", "application/vnd.msgpack"),
    options=("rename", "omit_none"),
    api_version=1,
)


@hookimpl
def leveret_serializers() -> Iterable[SerializerSpec]:
    """Returns the serializer "msgpack"."""
    return [SERIALIZER]
