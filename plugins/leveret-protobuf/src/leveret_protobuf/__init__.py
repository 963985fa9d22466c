"""Protocol Buffers bodies for Leveret: the serializer "protobuf".

    client.producer(serializer="protobuf")  # takes generated messages
    client.consumer("orders", Order)  # Order is a generated message class

A consumer names the messages that it accepts, as one class or as `MessageTypes`. A body cannot choose another.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from google.protobuf import any_pb2
from google.protobuf.message import EncodeError, Message

from leveret.errors import CodecError, ConfigurationError
from leveret.plugins import SerializerSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["SERIALIZER", "InvalidMessage", "MessageTypes", "ProtobufSerializer", "leveret_serializers"]


class InvalidMessage(CodecError):
    """A message lacks required fields, or its type is not registered.

    The text names types and fields, and never values.
    """


class MessageTypes:
    """A model for queues with several kinds of messages. Each body is a `google.protobuf.Any`.

    An `Any` has the name of its message's type. The name chooses among the registered classes only, and is never looked
    up in a descriptor pool. The part after the last "/" counts, which is the type's full name.

    Args:
        *classes: Generated message classes, at least one, with different full names.

    Attributes:
        by_name: The classes by their full names.

    Raises:
        ConfigurationError: There is no class, an argument is not a generated message class, or two have the same full
            name; `option` is `"model"`.

    Example:
        >>> from google.protobuf.timestamp_pb2 import Timestamp
        >>> MessageTypes(Timestamp)
        MessageTypes(google.protobuf.Timestamp)
    """

    __slots__ = ("by_name",)

    by_name: Mapping[str, type[Message]]

    def __init__(self, *classes: type[Message]) -> None:
        by_name: dict[str, type[Message]] = {}
        for each in classes:
            if not _is_message_class(each):
                raise ConfigurationError(
                    f"MessageTypes takes generated protobuf message classes, not {each!r}", option="model"
                )
            name = each.DESCRIPTOR.full_name
            if by_name.setdefault(name, each) is not each:
                raise ConfigurationError(f"MessageTypes got two message classes named {name}", option="model")
        if not by_name:
            raise ConfigurationError("MessageTypes takes at least one message class and got none", option="model")
        self.by_name = MappingProxyType(by_name)

    def __repr__(self) -> str:
        return f"MessageTypes({', '.join(self.by_name)})"


class ProtobufSerializer:
    """Protocol Buffers in their binary form.

    Within one program equal messages have equal bytes, because maps are written in the order of their keys. Other
    versions of protobuf, languages or schemas may write other bytes, so do not sign or compare bodies across them.
    """

    @staticmethod
    def encode(value: Any, /) -> bytes:
        """Encodes a generated message.

        protobuf does not limit the depth here, but decoders refuse messages that are nested more than 100 deep.

        Args:
            value: The message.

        Returns:
            The message's bytes, without a length before them.

        Raises:
            TypeError: The value is not a protobuf message.
            InvalidMessage: The message lacks required fields.
            google.protobuf.message.EncodeError: protobuf cannot encode it, for example because it is too large.
        """
        if not isinstance(value, Message):
            raise TypeError(f"the protobuf serializer takes generated protobuf messages, not {type(value).__name__}")
        try:
            return value.SerializeToString(deterministic=True)
        except EncodeError:
            if value.IsInitialized():
                raise
        # Outside of the handler, so that the error does not refer to protobuf's, whose text quotes keys of maps.
        raise _incomplete(value)

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes bodies into a message class, or into the classes of `MessageTypes`.

        Args:
            model: A generated message class, or `MessageTypes`.

        Returns:
            The function. It raises `google.protobuf.message.DecodeError` for bodies that are malformed, truncated or
            nested more than 100 deep, and `InvalidMessage` for messages that lack required fields or are not
            registered.

        Raises:
            ConfigurationError: The model is None or has another type; `option` is `"model"`.
        """
        if isinstance(model, MessageTypes):
            return _any_decoder(model)
        if _is_message_class(model):
            return _body_decoder(model)
        raise ConfigurationError(
            f"protobuf decodes into a generated message class or leveret_protobuf.MessageTypes, not {model!r}",
            option="model",
        )


def _is_message_class(model: object) -> TypeGuard[type[Message]]:
    # The base class Message itself has no descriptor.
    return isinstance(model, type) and issubclass(model, Message) and model.DESCRIPTOR is not None


def _body_decoder(model: type[Message]) -> Callable[[bytes], Message]:
    parse = model.FromString
    if not _has_required(model):
        return parse

    def decode(body: bytes) -> Message:
        message = parse(body)
        # Parsing does not check required fields.
        if not message.IsInitialized():
            raise _incomplete(message)
        return message

    return decode


def _any_decoder(types: MessageTypes) -> Callable[[bytes], Message]:
    parse = any_pb2.Any.FromString
    decoders = {name: _body_decoder(each) for name, each in types.by_name.items()}
    expected = f"Expected a google.protobuf.Any that holds one of {', '.join(decoders)}"

    def decode(body: bytes) -> Message:
        message = parse(body)
        _, slash, name = message.type_url.rpartition("/")
        decode_value = decoders.get(name) if slash else None
        if decode_value is None:
            # Without the name in the body, because bodies are not quoted.
            raise InvalidMessage(expected)
        return decode_value(message.value)

    return decode


def _has_required(model: type[Message]) -> bool:
    """Returns whether a message, or one in it, has required fields. Others need no check for each body."""
    waiting = [model.DESCRIPTOR]
    seen = {model.DESCRIPTOR.full_name}
    while waiting:
        each = waiting.pop()
        # Extensions may be defined later, and may have required fields.
        if each.is_extendable:
            return True
        for field in each.fields:
            if field.is_required:
                return True
            held = field.message_type
            if held is not None and held.full_name not in seen:
                seen.add(held.full_name)
                waiting.append(held)
    return False


def _incomplete(message: Message) -> InvalidMessage:
    # Not protobuf's own list of missing fields, which walks the whole message and quotes keys of maps.
    descriptor = message.DESCRIPTOR
    missing = [field.name for field in descriptor.fields if field.is_required and not message.HasField(field.name)]
    what = f"missing are {', '.join(missing)}" if missing else "a nested message lacks some"
    return InvalidMessage(f"Expected all required fields of {descriptor.full_name}: {what}")


#: The serializer "protobuf".
SERIALIZER: Final = SerializerSpec(
    name="protobuf",
    content_type="application/x-protobuf",
    factory=ProtobufSerializer,
    aliases=("application/protobuf", "application/vnd.google.protobuf"),
)


@hookimpl
def leveret_serializers() -> Iterable[SerializerSpec]:
    """Returns the serializer "protobuf"."""
    return [SERIALIZER]
