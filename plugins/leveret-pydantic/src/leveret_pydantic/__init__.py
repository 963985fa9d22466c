"""pydantic models for Leveret: the serializer "pydantic".

    client.producer(serializer="pydantic")  # takes models
    client.consumer("orders", Order)  # Order is a BaseModel, so pydantic decodes without being named

The serializer writes and reads JSON with the content type of the core's own JSON, which decodes all other models.
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

#: Serializes values that are not models, for example lists of models.
_ANYTHING: Final = TypeAdapter(Any).serializer
#: The beginning of pydantic's text for an unknown type, which quotes no value.
_UNKNOWN_TYPE: Final = "Unable to serialize unknown type: "


class SerializationFailed(ValueError):
    """pydantic cannot serialize a part of a value. The text has types and never values."""


class PydanticSerializer:
    """JSON by pydantic.

    A decoded value equals the encoded one if the model has the same aliases for validation and serialization, and its
    validators accept the output of its serializers.
    """

    @staticmethod
    def encode(value: Any, /) -> bytes:
        """Encodes a model, or a list, dict or plain value that may contain models, to JSON.

        Fields have their aliases, computed fields are left out, and `Json` fields are written as JSON in a string
        (pydantic's `by_alias` and `round_trip`). Values are not validated again, also if they were set without
        validation.

        Args:
            value: The value.

        Returns:
            JSON as UTF-8.

        Raises:
            TypeError: The value has a type in it that pydantic cannot serialize. The text names the type.
            SerializationFailed: The value cannot be serialized for another reason: a serializer of the model failed,
                bytes or a string are not UTF-8, or the value contains itself.
        """
        serializer = getattr(type(value), "__pydantic_serializer__", _ANYTHING)
        try:
            # No warnings: pydantic's warnings about values of the wrong type quote the values.
            body: bytes = serializer.to_json(value, by_alias=True, round_trip=True, warnings=False)
        except PydanticSerializationError as error:
            text = str(error)
        else:
            return body
        # Outside of the handler, so that no error refers to pydantic's, whose text may quote values.
        if text.startswith(_UNKNOWN_TYPE):
            raise TypeError(f"pydantic has no JSON for {text.removeprefix(_UNKNOWN_TYPE)}")
        raise SerializationFailed(f"pydantic has no JSON for something in this {type(value).__name__}")

    def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
        """Makes the function that decodes bodies into a model, with its schema built once.

        Args:
            model: Any type for `pydantic.TypeAdapter`; None for plain values.

        Returns:
            The function. It raises `ValidationFailed` for bodies that are not JSON or do not fit the model. Validation
            is strict only if the model says so.

        Raises:
            ConfigurationError: pydantic cannot make a schema for the model, for example because a name in it is not
                defined yet; `option` is `"model"`.
        """
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(Any if model is None else model)
            if not adapter.pydantic_complete:
                # Without this check, each message would fail.
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
            # Outside of the handler, so that the error does not refer to pydantic's, whose text quotes the body.
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
    """Returns the serializer "pydantic"."""
    return [SERIALIZER]
