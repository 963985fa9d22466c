"""Names of options: refusing unknown ones, with the name that the caller may have meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

from leveret.errors import ConfigurationError, printable
from leveret.records import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

__all__ = ["CheckedNames", "arguments_of", "refuse_unknown", "suggestion", "unknown"]

#: The names in AMQP, RabbitMQ's tools and other clients of what has another name here. Spelling does not lead from one
#: to the other: of the options of a connection, "name" is nearest to "username".
_OTHER_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "auto_ack": ("ack",),
    "auto_reconnect": ("auto_recovery",),
    "codec": ("serializer",),
    "compress": ("compressor",),
    "compression": ("compressor",),
    "connection_name": ("client_name",),
    "connection_timeout": ("connect_timeout",),
    "format": ("serializer",),
    "host": ("endpoints",),
    "hostname": ("endpoints",),
    "hosts": ("endpoints",),
    "key": ("routing_key",),
    "login": ("username",),
    "max_workers": ("concurrency",),
    "name": ("client_name",),
    "no_ack": ("ack",),
    "port": ("endpoints",),
    "prefetch_count": ("prefetch",),
    "qos": ("prefetch",),
    "reconnect": ("auto_recovery",),
    "retry_policy": ("retry",),
    "socket": ("unix_socket",),
    "ssl": ("tls",),
    "timeout": ("publish_timeout", "connect_timeout", "processing_timeout", "confirm_timeout"),
    "topic": ("routing_key",),
    "ttl": ("expiration", "message_ttl"),
    "user": ("username",),
    "vhost": ("virtual_host",),
    "workers": ("concurrency",),
}
#: How alike two names are at least, of 1, to be taken for one.
_ALIKE: Final = 0.6
#: No option has a longer name.
_LONGEST: Final = 64


def suggestion(name: str, known: Iterable[str]) -> str:
    """Finds the known name that a caller may have meant.

    Args:
        name: The name that was given.
        known: The names that exist.

    Returns:
        The name, or an empty string when none is like it.
    """
    import difflib

    known = list(known)
    if word := _other_word(name, known):
        return word
    lower = {each.lower(): each for each in known}
    nearest = difflib.get_close_matches(name[:_LONGEST].lower(), lower, 1, _ALIKE)
    return lower[nearest[0]] if nearest else ""


def _other_word(name: str, known: Collection[str]) -> str:
    return next((word for word in _OTHER_WORDS.get(name.lower(), ()) if word in known), "")


def unknown(
    name: str,
    known: Collection[str],
    *,
    what: str = "unknown option",
    given: str = "",
    shown: Callable[[str], str] = str,
) -> ConfigurationError:
    """Makes the error for a name that is no option; its text has the option that is meant, or the class that has it.

    Args:
        name: The name.
        known: The names of the options.
        what: What the text begins with.
        given: The name as the caller wrote it; `name` by default.
        shown: Returns a known name as the caller would write it, for example that of an environment variable.
    """
    given = given or name
    meant = suggestion(name, known)
    hint = f"; did you mean {shown(meant)!r}?" if meant else ""
    owners = sorted({cls.__name__ for cls in _classes(CheckedNames) if name in _names_of(cls) and _is_settings(cls)})
    if owners and meant != name and not _other_word(name, known):
        hint = f"; it is an option of {' and '.join(owners)}"
    return ConfigurationError(f"{what} {printable(given, _LONGEST)!r}{hint}", option=given)


def refuse_unknown(names: Iterable[str], known: Collection[str], *, what: str = "unknown option") -> None:
    """Raises the error of `unknown` for the first name that is no option.

    Args:
        names: The names that were given.
        known: The names of the options.
        what: What the text begins with.

    Raises:
        ConfigurationError: A name is unknown.
    """
    for name in names:
        if name not in known:
            raise unknown(name, known, what=what)


def arguments_of(function: Callable[..., object]) -> list[str]:
    """Returns the names of a function's arguments, without those that stand for any number."""
    import inspect

    any_number = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [it.name for it in inspect.signature(function).parameters.values() if it.kind not in any_number]


def _classes(base: type) -> Iterator[type]:
    subclasses: list[type] = base.__subclasses__()
    for cls in subclasses:
        yield cls
        yield from _classes(cls)


def _is_settings(cls: type) -> bool:
    return cls.__module__.startswith("leveret.settings.")


def _names_of(cls: Any) -> list[str]:
    if hasattr(cls, "__record__"):
        return [item.name for item in fields(cls)]
    # A class with options that has an `__init__` of its own.
    return arguments_of(cls.__init__)[1:] if "__init__" in vars(cls) else []


class CheckedNames:
    """The base of dataclasses that take options by name: a wrong name is a `ConfigurationError` that suggests one."""

    __slots__ = ()

    def __new__(cls, *positional: Any, **options: Any) -> Self:
        """Checks the names before the dataclass's own `__init__` does, whose error would be a bare TypeError."""
        known = _names_of(cls)
        refuse_unknown(options, known, what=f"{cls.__name__} has no option")
        if positional and known and hasattr(cls, "__record__") and all(it.kw_only for it in fields(cls)):  # type: ignore[arg-type]
            raise ConfigurationError(
                f"{cls.__name__} takes its options by name, such as {cls.__name__}({known[0]}=...), not a "
                f"{type(positional[0]).__name__}"
            )
        return object.__new__(cls)
