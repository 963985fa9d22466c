"""The options of producers and consumers that serializers take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leveret.errors import ConfigurationError
from leveret.plugins.interfaces import SERIALIZER_OPTIONS, SerializerSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from leveret.plugins.registry import Provided
    from leveret.settings import ConsumerSettings, ProducerSettings

__all__ = ["check_options_taken", "serializer_options"]


def serializer_options(settings: ProducerSettings | ConsumerSettings) -> dict[str, object]:
    """Returns the options for serializers that are set."""
    values = {name: getattr(settings, name) for name in SERIALIZER_OPTIONS}
    return {name: value for name, value in values.items() if value}


def check_options_taken(options: Mapping[str, object], serializers: Iterable[Provided], who: str) -> None:
    """Refuses options that none of some serializers takes.

    Args:
        options: The options that are set.
        serializers: The serializers.
        who: What they are, for the error.

    Raises:
        ConfigurationError: No serializer takes an option; it is named.
    """
    taken = {name for each in serializers if isinstance(each.spec, SerializerSpec) for name in each.spec.options}
    for name, value in options.items():
        if name not in taken:
            raise ConfigurationError(f"{name} is {value!r}, which is not for {who}", option=name)
