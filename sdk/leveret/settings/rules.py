"""The rules of single options: types, bounds and units, and the errors that name the option that breaks one."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from leveret.errors import ConfigurationError, printable
from leveret.records import dataclass, field, fields, replace
from leveret.settings.names import CheckedNames, refuse_unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

MIB: Final = 1024 * 1024
#: The styles of names that serializers make, in msgspec's words.
NAME_STYLES: Final = ("camel", "pascal", "kebab")
_WORDS: Final = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "Secret": "text",
    "dict": "a table",
    "Mapping": "a table",
}
_BOOLEANS: Final = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


class Secret:
    """Text that is not shown by `repr`, `str`, `format`, logs and tracebacks.

    It protects against accidents, not against code in the same process. A pickle has the text, so that settings can be
    given to another process: keep pickles of settings as you keep the password.

    Example:
        >>> password = Secret("rabbit")
        >>> f"{password} {password!r}"
        '*** ***'
        >>> password.reveal()
        'rabbit'
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"a Secret holds text, not {type(value).__name__}")
        self._value = value

    def reveal(self) -> str:
        """Returns the text itself; do not log it."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return type(self), (self._value,)


class Table(Mapping[str, T]):
    """A mapping that cannot be changed, and that pickles and copies as `MappingProxyType` does not.

    Args:
        items: The items, which are copied.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, T]) -> None:
        self._items = dict(items)

    def __getitem__(self, key: str) -> T:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)

    def __reduce__(self) -> tuple[type[Table[T]], tuple[dict[str, T]]]:
        return type(self), (self._items,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The values that an option may have. Numbers have both bounds; the bounds of text count its bytes in UTF-8."""

    kind: type
    items: Rule | None = None  # of a tuple
    optional: bool = False  # None is a value
    unit: str = ""
    minimum: float = 0
    maximum: float = float("inf")
    or_zero: bool = False  # 0 is a value, though it is below the minimum
    whole: bool = False  # a float without a fraction
    choices: tuple[object, ...] = ()
    aliases: Mapping[str, object] = field(default_factory=dict)  # words for values
    words: tuple[str, ...] = ()  # values beside those of the kind
    note: str = ""  # why the bounds are what they are
    code_only: bool = False  # refused in URLs, environment variables and files

    def check(self, name: str, value: Any) -> Any:
        """Returns the value in its own type, or raises a `ConfigurationError`; no secret is in its text."""
        if value is None and self.optional:
            return None
        if isinstance(value, str) and value in self.words:
            return value
        if self.kind is Secret and isinstance(value, (str, Secret)):
            return Secret(self.check_amount(name, value if isinstance(value, str) else value.reveal()))
        if self.kind is tuple and isinstance(value, (list, tuple)) and self.items:
            return tuple(self._check_items(name, value))
        if self.aliases and isinstance(value, str):
            value = self.aliases.get(value, value)
        allowed = (int, float) if self.kind is float else self.kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and self.kind is not bool):
            raise wrong(name, f"{name} is of type {type(value).__name__}; it must be {self.wanted()}")
        if self.choices and value not in self.choices:
            shown = repr(printable(value, 64)) if isinstance(value, str) else shown_number(value)
            raise wrong(name, f"{name} is {shown}; it must be {self.wanted()}")
        if self.kind is str and type(value) is not str:
            value = str.__str__(value)  # a member of a StrEnum is text as well
        return self.check_amount(name, value) if self.kind in (str, int, float) else value

    def _check_items(self, name: str, value: Iterable[Any]) -> Iterator[Any]:
        for number, item in enumerate(value, 1):
            with inside(f"item {number}"):
                yield self.items.check(name, item) if self.items else item

    def check_amount(self, name: str, value: Any) -> Any:
        """Checks the length of text or the size of a number."""
        amount, unit, verb, must = value, self.unit, "is", "be"
        if isinstance(value, str):
            if not is_text(value):
                raise wrong(name, f"{name} has a NUL or is not Unicode text")
            amount, unit, verb, must = len(value.encode()), "bytes in UTF-8", "has", "have"
        inside = self.minimum <= amount <= self.maximum or (self.or_zero and amount == 0)  # false for NaN
        if not inside or (self.whole and amount % 1):
            lead = "a whole number, " if self.whole else "0 or " if self.or_zero else ""
            limits = f"{lead}{shown_number(self.minimum)} to {shown_number(self.maximum)}".replace(
                " to inf", " or more"
            )
            has = f"{name} {verb} {shown_number(amount)} {unit}".rstrip()
            raise wrong(name, f"{has}; it must {must} {limits}{self.note}")
        return float(value) if self.kind is float else value

    def read(self, name: str, value: Any, *, text: bool) -> Any:
        """Checks a value from outside; `text` says that numbers and the like are still text."""
        if self.code_only:
            raise wrong(name, f"{name} can be set from code only")
        if text and self.kind is tuple:
            value = [item.strip() for item in value.split(",")] if value else []
        elif text and self.kind in (bool, int, float) and value not in (*self.aliases, *self.words):
            number = r"-?[0-9]{1,20}" if self.kind is int else r"-?[0-9]{1,20}(\.[0-9]{1,20})?"
            good = value.lower() in _BOOLEANS if self.kind is bool else re.fullmatch(number, value)
            if not good:
                raise wrong(name, f"{name} is {printable(value, 64)!r}; it must be {self.wanted()}")
            value = _BOOLEANS[value.lower()] if self.kind is bool else self.kind(value)
        return self.check(name, value)

    def wanted(self) -> str:
        """Describes the values that the option takes."""
        if self.choices:
            return " or ".join(map(repr, self.choices))
        name = self.kind.__name__
        if self.words:
            return " or ".join((_WORDS[name], *map(repr, self.words)))
        return f"a list of {self.items.wanted()}" if self.items else _WORDS.get(name, name)


def option(default: T, kind: type | None = None, *, shown: bool = True, **rule: Any) -> T:
    """Declares an option with its default and the fields of its rule; `kind` defaults to the type of the default.

    An option that is not shown is left out of `repr`: its value may show secrets.
    """
    rules = {"rule": Rule(kind=kind or type(default), optional=default is None, **rule)}
    return field(default=default, metadata=rules, repr=shown)


def seconds(default: float, minimum: float = 0.001, maximum: float = 86_400, *, whole: bool = False) -> float:
    """Declares an option in seconds; the default bounds are a millisecond and a day."""
    return option(default, unit="s", minimum=minimum, maximum=maximum, whole=whole)


def size(default: int, minimum: int = 1, maximum: int = 2**40, *, or_zero: bool = False) -> int:
    """Declares an option in bytes."""
    return option(default, unit="bytes", minimum=minimum, maximum=maximum, or_zero=or_zero)


def is_text(text: str) -> bool:
    """Returns whether AMQP's strings can carry a text: not NUL (AMQP 0-9-1 section 4.2.5.3), nor half a character."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def shown_number(value: Any) -> str:
    """Returns a number as errors show it."""
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(value) if value.bit_length() < 128 else "huge"  # str refuses more than 4300 digits


def wrong(option: str, text: str) -> ConfigurationError:
    """Makes the error for an option."""
    return ConfigurationError(text, option=option)


def rules_of(kind: type[Options]) -> Mapping[str, Rule]:
    """Returns the rules of a settings class by option; they are read once."""
    rules = _rules.get(kind)
    if rules is None:
        rules = _rules[kind] = {item.name: item.metadata["rule"] for item in fields(kind)}
    return rules


_rules: Final[dict[type[Options], Mapping[str, Rule]]] = {}


@contextlib.contextmanager
def inside(source: str) -> Iterator[None]:
    """Says in an error where the option came from; the names of nested tables are joined."""
    try:
        yield
    except ConfigurationError as error:
        raise wrong(error.option, f"{source}: {error}".replace("]: [", ".")) from None


def read_values(values: Mapping[str, Any], rules: Mapping[str, Rule], *, text: bool) -> dict[str, Any]:
    """Checks values from outside, by option; `text` says that numbers and the like are still text."""
    refuse_unknown(values, rules)
    return {name: rules[name].read(name, value, text=text) for name, value in values.items()}


def read_table(tables: Mapping[str, Any], name: str, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Checks a table of a TOML file; an absent one is empty."""
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise wrong(name, f"{name} must be a table")
    with inside(f"[{name}]"):
        return read_values(table, rules, text=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(CheckedNames):
    """The base of all settings classes: checks each option by its rule when an object is made."""

    def __post_init__(self) -> None:
        for name, rule in rules_of(type(self)).items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))
        self._check_together()

    def _check_together(self) -> None:
        """Checks options that depend on each other."""

    def replace(self, **overrides: object) -> Self:
        """Makes a copy with other values.

        Args:
            **overrides: The options to change, by name.

        Returns:
            The checked copy.

        Raises:
            ConfigurationError: An option is unknown, of the wrong type or out of range.
        """
        refuse_unknown(overrides, rules_of(type(self)))
        values: dict[str, Any] = overrides
        return replace(self, **values)
