"""The hooks. A plugin is a module (or object) with functions of these names, marked with `hookimpl`.

All of them are synchronous, run rarely and never for a message. Leave out those that a plugin does not need. Arguments
may be left out, too, but do not give them defaults: pluggy would never fill those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leveret.plugins.interfaces import (
        CommandSpec,
        CompositeSpec,
        CompressorSpec,
        ConnectionEvent,
        MetricsSpec,
        PolicySpec,
        SerializerSpec,
    )

__all__ = ["PROJECT", "HookSpecs", "hookimpl", "hookspec"]

PROJECT: Final = "leveret"

hookspec = pluggy.HookspecMarker(PROJECT)

#: Marks a plugin's hook functions.
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """The hooks, as pluggy wants to see them."""

    @staticmethod
    @hookspec
    def leveret_serializers() -> Iterable[SerializerSpec | CompositeSpec]:  # type: ignore[empty-body]
        """Called once, when plugins are discovered: the plugin's serializers."""

    @staticmethod
    @hookspec
    def leveret_compressors() -> Iterable[CompressorSpec]:  # type: ignore[empty-body]
        """Called once, when plugins are discovered: the plugin's compressors."""

    @staticmethod
    @hookspec
    def leveret_metrics() -> Iterable[MetricsSpec]:  # type: ignore[empty-body]
        """Called once, when plugins are discovered: the plugin's metrics sinks."""

    @staticmethod
    @hookspec
    def leveret_policies() -> Iterable[PolicySpec]:  # type: ignore[empty-body]
        """Called once, when plugins are discovered: the plugin's retry, backoff and circuit breaker policies."""

    @staticmethod
    @hookspec
    def leveret_connection_event(event: ConnectionEvent) -> None:
        """Called in the event loop when a connection was opened, closed, blocked, unblocked or recovered.

        It must not block. What it raises is logged with the plugin's name, and changes nothing.
        """

    @staticmethod
    @hookspec
    def leveret_cli() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
        """Called when the `leveret` command has to know, as for its help or a command not its own: the commands."""
