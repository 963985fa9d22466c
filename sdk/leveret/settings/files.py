"""All settings together, and settings from TOML files."""

from __future__ import annotations

import os
from typing import Any, TypeVar

from leveret.records import dataclass, field, fields
from leveret.settings.connection import ConnectionSettings, from_outside, outside_rules
from leveret.settings.consumer import ConsumerSettings
from leveret.settings.names import refuse_unknown
from leveret.settings.process import MonitoringSettings, PluginSettings
from leveret.settings.producer import ProducerSettings
from leveret.settings.rules import Options, Rule, inside, read_table, rules_of, wrong

S = TypeVar("S", bound=Options)


def _section(kind: type[S]) -> S:
    """Declares an option that is a settings object; each has one of its own, with the defaults."""
    made: S = field(default_factory=kind, metadata={"rule": Rule(kind=kind)})
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Options):
    """All settings of an application, as a settings file holds them.

    Attributes:
        connection: The table `[leveret.connection]`.
        producer: The table `[leveret.producer]`.
        consumer: The table `[leveret.consumer]`.
        plugins: The table `[leveret.plugins]`.
        monitoring: The table `[leveret.monitoring]`.

    Example:
        >>> Settings().consumer.prefetch
        100
    """

    connection: ConnectionSettings = _section(ConnectionSettings)
    producer: ProducerSettings = _section(ProducerSettings)
    consumer: ConsumerSettings = _section(ConsumerSettings)
    plugins: PluginSettings = _section(PluginSettings)
    monitoring: MonitoringSettings = _section(MonitoringSettings)


def load(path: str | os.PathLike[str], section: str = "leveret") -> Settings:
    """Reads a TOML file.

    The tables are `[leveret.connection]` (a `url`, and options that win over it), `[leveret.connection.tls]`,
    `[leveret.producer]`, `[leveret.consumer]`, `[leveret.plugins]` and `[leveret.monitoring]`. What is absent keeps its
    default.

    Args:
        path: The file.
        section: The table that holds these tables, with dots for nested ones, such as "tool.leveret".

    Returns:
        The checked settings.

    Raises:
        ConfigurationError: The file cannot be read, is not TOML, has no such section, or has a wrong or unknown option.
    """
    import tomllib

    file = os.fspath(path)
    try:
        with open(file, "rb") as stream:
            table: Any = tomllib.load(stream)
    except OSError as error:
        raise wrong("path", f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # of TOML or of UTF-8
        raise wrong("path", f"{file}: is not TOML: {error}") from error
    with inside(file):
        for part in section.split("."):
            table = table.get(part) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            raise wrong("section", f"there is no table [{section}]")
        with inside(f"[{section}]"):
            refuse_unknown(table, [item.name for item in fields(Settings)])
            connection = read_table(table, "connection", outside_rules())
            with inside("[connection]"):
                made = from_outside(ConnectionSettings, connection)
            return Settings(
                connection=made,
                producer=ProducerSettings(**read_table(table, "producer", rules_of(ProducerSettings))),
                consumer=ConsumerSettings(**read_table(table, "consumer", rules_of(ConsumerSettings))),
                plugins=PluginSettings(**read_table(table, "plugins", rules_of(PluginSettings))),
                monitoring=MonitoringSettings(**read_table(table, "monitoring", rules_of(MonitoringSettings))),
            )
