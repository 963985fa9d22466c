"""Settings from environment variables."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar, Self

from leveret.records import dataclass
from leveret.settings.names import unknown
from leveret.settings.rules import Options, inside, rules_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from leveret.settings.rules import Rule


def read_environment(
    environ: Mapping[str, str] | None, prefix: str, rules: Mapping[str, Rule], others: Iterable[str] = ()
) -> dict[str, Any]:
    """Reads the options of a family of variables.

    Args:
        environ: The variables; None means those of the process.
        prefix: What the family's names begin with.
        rules: The rules of the options.
        others: Names behind the prefix that belong to other families; those that end in "_" are prefixes themselves.

    Returns:
        The checked values by option.

    Raises:
        ConfigurationError: A variable of the family is unknown or wrong.
    """
    not_mine = [prefix + name for name in others]
    families = tuple(name for name in not_mine if name.endswith("_"))
    known = {prefix + name.upper(): name for name in rules}
    values = {}
    for variable, text in (os.environ if environ is None else environ).items():
        if variable.startswith(prefix) and not variable.startswith(families) and variable not in not_mine:
            if variable not in known:
                name = variable.removeprefix(prefix).lower()
                raise unknown(name, rules, given=variable, shown=lambda name: prefix + name.upper())
            name = known[variable]
            with inside(variable):
                values[name] = rules[name].read(name, text, text=True)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Section(Options):
    """The base of settings that have a family of environment variables of their own."""

    _family: ClassVar[str]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, prefix: str = "LEVERET_") -> Self:
        """Makes settings from the variables `LEVERET_PRODUCER_<OPTION>`, `LEVERET_CONSUMER_<OPTION>` and so on.

        Args:
            environ: The variables; None means those of the process.
            prefix: What stands before `PRODUCER_`, `CONSUMER_` or `MONITORING_`.

        Returns:
            The checked settings.

        Raises:
            ConfigurationError: One of these variables is unknown or wrong.
        """
        return cls(**read_environment(environ, prefix + cls._family, rules_of(cls)))
