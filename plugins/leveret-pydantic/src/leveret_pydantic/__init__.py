"""pydantic models for Leveret: the serializer "pydantic".

    client.producer(serializer="pydantic")  # takes models
    client.consumer("orders", Order)  # Order is a BaseModel: decoded by pydantic, without naming it

It writes and reads JSON, with the content type that the core's own JSON has. Other models stay with that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from leveret.errors import ConfigurationError
from leveret.plugins import SerializerSpec, hookimpl
from leveret_pydantic._errors import ValidationFailed, schema_words, validation_failed
from leveret_pydantic._models import is_pydantic_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["SERIALIZER", "PydanticSerializer", "SerializationFailed", "ValidationFailed", "leveret_serializers"]

#: Serializes by the types of values: lists of models, for example, and what is no model.
_ANYTHING: Final = TypeAdapter(Any).serializer
#: How pydantic begins a text that names a type and quotes nothing.
_UNKNOWN_TYPE: Final = "Unable to serialize unknown type: "


class SerializationFailed(ValueError):
    """pydantic has no JSON for something in a value. Its text has types and never values."""


class PydanticSerializer:
    """JSON by pydantic.

    A value comes back equal when its model allows that: it has the same aliases for validation and serialization, and
    its serializers write what its validators take.
    """

    @staticmethod
    def encode(value: Any, /) -> bytes:
        """Encodes a model, or a list, dict or plain value that may hold some, as pydantic writes JSON.

        Fields get their aliases, computed fields are left out, and `Json` fields are written as JSON in a string
        (pydantic's `by_alias` and `round_trip`). Values are not validated again: those that were put into a model past
        its validation are written as they are.

        Args:
            value: The value.

        Returns:
            JSON as UTF-8.

        Raises:
            TypeError: It is or holds something that pydantic has no JSON for; names its type.
            SerializationFailed: It cannot be written for another reason: a serializer of the model failed, bytes or a
                string are no UTF-8, or something holds itself.
        """
        serializer = getattr(type(value), "__pydantic_serializer__", _ANYTHING)
        try:
            # pydantic's warnings about values of other types than their fields quote the values.
            body: bytes = serializer.to_json(value, by_alias=True, round_trip=True, warnings=False)
        except PydanticSerializationError as error:
            text = str(error)
        else:
            return body
        # Out here nothing holds on to pydantic's error, whose text may quote values.
        if text.startswith(_UNKNOWN_TYPE):
            raise TypeError(f"pydantic has no JSON for {text.removeprefix(_UNKNOWN_TYPE)}")
        raise SerializationFailed(f"pydantic has no JSON for something in this {type(value).__name__}")

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes bodies into a model, with its schema built once.

        Args:
            model: Whatever `pydantic.TypeAdapter` takes; None for plain values.

        Returns:
            The function. It raises `ValidationFailed` for bodies that are no JSON or not the model. Validation is lax
            or strict as the model says, which by default is lax.

        Raises:
            ConfigurationError: pydantic cannot make a schema for the model, for example because a name in it is not
                defined yet; `option` is `"model"`.
        """
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(Any if model is None else model)
            if not adapter.pydantic_complete:
                # Later it would fail for each message instead of here.
                adapter.rebuild(raise_errors=True)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ConfigurationError(f"pydantic cannot decode into {model!r}: {reason}", option="model") from error
        validate = adapter.validator.validate_json
        words = schema_words(adapter.core_schema)

        def decode(body: bytes) -> Any:
            try:
                return validate(body)
            except ValidationError as error:
                failure = validation_failed(error, words)
            # Out here nothing holds on to pydantic's error, whose text quotes the body.
            raise failure

        return decode


#: The serializer "pydantic".
SERIALIZER: Final = SerializerSpec(
    name="pydantic",
    content_type="application/json",
    factory=PydanticSerializer,
    aliases=("text/json",),
    models=is_pydantic_model,
)


@hookimpl
def leveret_serializers() -> Iterable[SerializerSpec]:
    """The serializer "pydantic"."""
    return [SERIALIZER]
