"""The methods of AMQP 0-9-1, packed and unpacked.

pamqp is the catalogue: its classes name every method, its arguments, their wire types and its replies. The bytes are
packed by our own codec, because pamqp refuses exchange names that RabbitMQ takes (over 127 bytes, or with a space),
cuts table keys at 128 bytes with only a log line, and reads tables from the network without limits.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pamqp import base
from pamqp.commands import INDEX_MAPPING, Basic, Channel, Confirm, Connection, Exchange, Queue, Tx

from leveret.errors import RemoteProtocolError, TableSyntaxError
from leveret.records import dataclass
from leveret.wire.decoding import decode_arguments
from leveret.wire.encoding import encode_method

if TYPE_CHECKING:
    from leveret.wire.runs import MethodFrame

__all__ = [
    "PROTOCOL_HEADER",
    "Basic",
    "Channel",
    "Confirm",
    "Connection",
    "Exchange",
    "Method",
    "MethodSpec",
    "Queue",
    "Tx",
    "decode",
    "encode",
    "make",
    "method_name",
    "not_utf8",
    "spec_of",
]

#: What a client sends first (AMQP 0-9-1 section 4.2.2).
PROTOCOL_HEADER: Final = b"AMQP\x00\x00\x09\x01"

#: Any method; its arguments are attributes.
Method = base.Frame

M = TypeVar("M", bound=base.Frame)

_LETTERS: Final = {
    "bit": "t",
    "octet": "o",
    "short": "h",
    "long": "l",
    "longlong": "q",
    "shortstr": "s",
    "longstr": "S",
    "table": "T",
}


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A method, as far as the codec needs to know it.

    Attributes:
        name: For example `queue.declare`.
        class_id: For example 50.
        method_id: For example 10.
        fields: The names of the arguments.
        types: One letter for each argument; see `encode_method`.
        replies: The methods that answer it, for example `Queue.DeclareOk`.
        defaults: The value of each argument that is not given.
    """

    name: str
    class_id: int
    method_id: int
    fields: tuple[str, ...]
    types: str
    replies: tuple[str, ...]
    defaults: tuple[Any, ...]


_SPECS: dict[int, MethodSpec] = {}


def spec_of(cls: type[Method]) -> MethodSpec:
    """The `MethodSpec` of a method class."""
    spec = _SPECS.get(cls.index)
    if spec is None:
        spec = _SPECS[cls.index] = _read_catalogue(cls)
    return spec


def _read_catalogue(cls: type[Method]) -> MethodSpec:
    fields = tuple(cls.attributes())
    parameters = inspect.signature(cls.__init__).parameters if fields else {}
    class_name, _, method = cls.name.partition(".")
    return MethodSpec(
        # DeclareOk -> declare-ok
        name=f"{class_name.lower()}.{''.join('-' + c.lower() if c.isupper() else c for c in method).lstrip('-')}",
        class_id=cls.index >> 16,
        method_id=cls.index & 0xFFFF,
        fields=fields,
        types="".join(_LETTERS[cls.amqp_type(field)] for field in fields),
        replies=tuple(cls.valid_responses),
        defaults=tuple(parameters[field].default for field in fields),
    )


def method_name(class_id: int, method_id: int) -> str:
    """A printable name such as `queue.declare`, also for ids that do not exist."""
    cls = INDEX_MAPPING.get(class_id << 16 | method_id)
    return spec_of(cls).name if cls else f"{class_id}.{method_id}"


def make(cls: type[M], **values: object) -> M:
    """Makes a method object.

    Args:
        cls: For example `Queue.Declare`.
        **values: Its arguments; those left out have the specification's defaults.

    Returns:
        The method. Nothing is checked but the names; `encode` checks the values.

    Raises:
        TypeError: The method has no such argument.
    """
    spec = spec_of(cls)
    method = cls.__new__(cls)
    for field, default in zip(spec.fields, spec.defaults, strict=True):
        setattr(method, field, values.pop(field, default))
    if values:
        raise TypeError(f"{spec.name} has no argument {', '.join(sorted(values))}")
    return method


def encode(channel: int, method: Method) -> bytes:
    """Packs a method into a frame.

    Args:
        channel: The channel number.
        method: From `make`.

    Returns:
        The whole frame.

    Raises:
        EncodeFailed: An argument does not fit; the text names method and argument.
    """
    spec = spec_of(type(method))
    values = tuple(getattr(method, field) for field in spec.fields)
    return encode_method(channel, spec.class_id, spec.method_id, spec.types, values, spec.name, spec.fields)


def not_utf8(method: Method) -> str:
    """Finds a short string that is no UTF-8, for which RabbitMQ ends the connection (501).

    RabbitMQ looks at all methods but those with content: an exchange or routing key of basic.publish may be any bytes.

    Args:
        method: From `make` or `decode`.

    Returns:
        The name of the first such argument, or an empty string.
    """
    spec = spec_of(type(method))
    for field, letter in zip(spec.fields, spec.types, strict=True):
        value = getattr(method, field)
        if letter == "s" and isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                return field
        elif letter == "s" and isinstance(value, (bytes, bytearray, memoryview)):
            try:
                bytes(value).decode()
            except UnicodeDecodeError:
                return field
    return ""


def decode(frame: MethodFrame, *, max_table_depth: int = 32, max_table_entries: int = 16384) -> Method:
    """Unpacks a method frame.

    Args:
        frame: From the frame reader.
        max_table_depth: How many tables may stand in each other.
        max_table_entries: How many values the tables may hold together.

    Returns:
        The method, with long strings as str (bytes that are not UTF-8 as surrogate escapes).

    Raises:
        RemoteProtocolError: No such method (reply code 503).
        TableSyntaxError: The arguments are malformed or over a limit (reply code 502).
    """
    cls: type[Method] | None = INDEX_MAPPING.get(frame.class_id << 16 | frame.method_id)
    if cls is None:
        raise RemoteProtocolError(
            f"the peer sent method {frame.class_id}.{frame.method_id} on channel {frame.channel}, which AMQP 0-9-1 "
            "does not have"
        )
    spec = spec_of(cls)
    try:
        values = decode_arguments(spec.types, frame.payload, max_depth=max_table_depth, max_entries=max_table_entries)
    except TableSyntaxError as error:
        raise TableSyntaxError(f"{spec.name} on channel {frame.channel}: {error}") from error
    method = cls.__new__(cls)
    for field, letter, value in zip(spec.fields, spec.types, values, strict=True):
        setattr(method, field, value.decode("utf-8", "surrogateescape") if letter == "S" else value)
    return method
