"""MessagePack bodies for Leveret: the serializer "msgpack".

    client.producer(serializer="msgpack")  # takes plain values, Struct, dataclass, attrs, ...
    client.consumer("orders", Order)  # goes by the content type

Bodies are what `msgpack.packb` writes, which any language can read.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack  # type: ignore[import-untyped]
import msgspec

from leveret.errors import ConfigurationError, EncodeFailed
from leveret.plugins import SerializerSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["SERIALIZER", "MessagePackSerializer", "leveret_serializers"]

_BINARY: Final = (bytes, bytearray, memoryview)
#: What MessagePack can say and JSON cannot: the packer gets these as they are, not as text.
_NATIVE: Final = (*_BINARY, datetime, msgpack.Timestamp)
#: A packer keeps its buffer, which grows to twice the largest body. It is replaced after a body of more than this.
_LARGE: Final = 1 << 20
#: The option with which msgpack turns timestamps into aware datetimes, in UTC.
_AS_DATETIME: Final = 3


class MessagePackSerializer:
    """MessagePack by the `msgpack` library, with typed values and models by msgspec.

    Plain values become exactly what `msgpack.packb` makes of them. Other values are first made plain as msgspec does it
    for JSON, except that bytes stay bytes.

    * Aware datetimes are timestamps (extension type -1), exact to the microsecond. They come back in UTC.
    * Naive datetimes are text (ISO 8601): MessagePack has no time without a place. A model's `datetime` makes them
      datetimes again.
    * Keys of maps have to be str or bytes when a body is read, as is explained at `decoder`. In a Struct, dataclass or
      attrs object, keys that are numbers are written as text, and a model's `dict[int, ...]` makes them numbers again.
      In a plain dict they are written as numbers, for readers that take those.
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
            EncodeFailed: It holds something else, or in a typed object a dict with other keys than text and numbers.
            OverflowError: It holds an int that is below -2**63 or above 2**64 - 1.
            ValueError: It is nested too deep.
        """
        body = self._pack(value)
        if len(body) > _LARGE:
            self._pack = _packer()
        return body

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes bodies.

        Bodies are foreign data, so these are refused: bytes that are missing or left over; keys of maps that are
        neither str nor bytes, because a sender can choose numbers that collide in a dict; extension types other than
        timestamps, because nobody knows what they mean. When a key is there twice, the last one counts, as in JSON.

        Args:
            model: What msgspec can convert to, for example a Struct or dataclass; values are not coerced ("1" is no
                int). None for plain values.

        Returns:
            The function.

        Raises:
            ConfigurationError: msgspec cannot convert to this model; `option` is `"model"`.
        """
        if model is None:
            return _decode
        try:
            # convert() would say so at the first message only.
            msgspec.msgpack.Decoder(model)
        except TypeError as error:
            raise ConfigurationError(f"MessagePack cannot decode into {model!r}: {error}", option="model") from error

        def decode(body: bytes) -> Any:
            # Text is text here: with bytes among the built-in types, it is not taken for base64.
            return msgspec.convert(_decode(body), model, builtin_types=_BINARY, str_keys=True)

        return decode


def _packer() -> Callable[[Any], bytes]:
    # A packer that raised has emptied its buffer, and can be used again.
    packer = msgpack.Packer(default=_plain, use_bin_type=True, datetime=True)
    pack: Callable[[Any], bytes] = packer.pack
    return pack


def _plain(value: Any) -> Any:
    """Makes something of what the packer cannot write. Naive datetimes and integers out of range come here, too."""
    if type(value) is datetime:
        return value.isoformat()
    try:
        return msgspec.to_builtins(value, builtin_types=_NATIVE, str_keys=True)
    except TypeError as error:
        raise EncodeFailed(str(error)) from error  # msgspec's text names types only


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"the body holds {len(data)} bytes of the extension type {code}, which is not known")


#: Reads over one object, and raises when bytes are missing or left over, without making anything of it.
_check: Final = msgspec.msgpack.Decoder(msgspec.Raw).decode

#: The lengths that it allows for strings, binaries, arrays, maps and extensions follow from the body's own length.
_unpack: Final = partial(
    msgpack.unpackb, raw=False, timestamp=_AS_DATETIME, strict_map_key=True, ext_hook=_refuse_extension
)


def _decode(body: bytes) -> Any:
    # unpackb makes each list as long as its header claims, up to the body's length, before it has seen an item: 1,024
    # lists in each other, 5 bytes each, would take 8,192 times the body's length. In a body that is known to be whole,
    # every item that is claimed has at least one byte.
    _check(body)
    return _unpack(body)


#: The serializer "msgpack".
SERIALIZER: Final = SerializerSpec(
    name="msgpack",
    content_type="application/msgpack",
    factory=MessagePackSerializer,
    aliases=("application/x-msgpack", "application/vnd.msgpack"),
    api_version=1,
)


@hookimpl
def leveret_serializers() -> Iterable[SerializerSpec]:
    """The serializer "msgpack"."""
    return [SERIALIZER]
