"""Settings: frozen objects that check each option when they are made.

This room knows only `errors` and `message`, and opens TOML files only: the transport reads certificates and makes the
TLS context. An option is a field with a rule (`rules`); its value comes from code, a URL (`addresses`), environment
variables (`environment`) or a TOML file (`files`), under the same name everywhere, and a value that is unknown,
mistyped or out of range is a `ConfigurationError` that names the option. No message passes here: producers,
consumers and connections read their options when they are made.
"""

from __future__ import annotations

from leveret.settings.addresses import Endpoint
from leveret.settings.connection import ConnectionSettings, TLSSettings
from leveret.settings.consumer import ConsumerSettings
from leveret.settings.files import Settings, load
from leveret.settings.process import GcSettings, MonitoringSettings, PluginSettings
from leveret.settings.producer import ProducerSettings
from leveret.settings.rules import Secret

__all__ = [
    "ConnectionSettings",
    "ConsumerSettings",
    "Endpoint",
    "GcSettings",
    "MonitoringSettings",
    "PluginSettings",
    "ProducerSettings",
    "Secret",
    "Settings",
    "TLSSettings",
    "load",
]
