"""The settings that a call of `Client.producer` or `Client.consumer` chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from leveret.errors import ConfigurationError
from leveret.settings.names import arguments_of, refuse_unknown
from leveret.settings.rules import Options, rules_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Chosen"]

S = TypeVar("S", bound=Options)

#: The most sets of options that are kept.
_KEPT: Final = 64
#: Values of these types are kept; others may be large, or change.
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


class Chosen(Generic[S]):
    """Makes settings out of the client's own and the single options of a call.

    A producer may be made for each request, always with the same options. What these gave is kept, so that they are
    checked once.

    Args:
        default: The client's own settings.
        method: What is called: an unknown option may be a misspelt argument of it.
    """

    def __init__(self, default: S, method: Callable[..., object]) -> None:
        self._default = default
        self._method = method
        self._made: dict[tuple[object, ...], S] = {}

    def settings(self, given: S | None, options: dict[str, Any]) -> S:
        """Returns the settings for a call.

        Args:
            given: The settings of the call; the client's own by default.
            options: Single options over them.

        Raises:
            ConfigurationError: An option is unknown, of the wrong type or out of range, or the settings are of another
                class.
        """
        if given is not None:
            kind = type(self._default)
            if not isinstance(given, kind):
                raise ConfigurationError(
                    f"settings is a {type(given).__name__}; it must be {kind.__name__}", option="settings"
                )
            return self._replaced(given, options) if options else given
        if not options:
            return self._default
        if not _PLAIN.issuperset(map(type, options.values())):
            return self._replaced(self._default, options)
        # With the types: True is equal to 1, and not allowed in its place.
        key = (*options, *options.values(), *map(type, options.values()))
        made = self._made.get(key)
        if made is None:
            made = self._replaced(self._default, options)
            if len(self._made) >= _KEPT:
                self._made.clear()
            self._made[key] = made
        return made

    def _replaced(self, settings: S, options: dict[str, Any]) -> S:
        rules = rules_of(type(settings))
        if not rules.keys() >= options.keys():
            refuse_unknown(options, (*rules, *arguments_of(self._method)))
        return settings.replace(**options)
