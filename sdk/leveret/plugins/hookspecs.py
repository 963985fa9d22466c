"""The hooks. A plugin is a module (or object) with functions of these names, marked with `hookimpl`.

Hooks are synchronous, and none is called per message. A plugin has only the hooks that it needs. A hook function may
leave out arguments, but must not give them defaults, because pluggy never fills arguments with defaults.
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
    """The specifications of the hooks for pluggy."""

    @staticmethod
    @hookspec
    def leveret_serializers() -> Iterable[SerializerSpec | CompositeSpec]:  # type: ignore[empty-body]
        """Returns the plugin's serializers. Called once, when plugins are discovered."""

    @staticmethod
    @hookspec
    def leveret_compressors() -> Iterable[CompressorSpec]:  # type: ignore[empty-body]
        """Returns the plugin's compressors. Called once, when plugins are discovered."""

    @staticmethod
    @hookspec
    def leveret_metrics() -> Iterable[MetricsSpec]:  # type: ignore[empty-body]
        """Returns the plugin's metrics sinks. Called once, when plugins are discovered."""

    @staticmethod
    @hookspec
    def leveret_policies() -> Iterable[PolicySpec]:  # type: ignore[empty-body]
        """Returns the plugin's retry, backoff and breaker policies. Called once, when plugins are discovered."""

    @staticmethod
    @hookspec
    def leveret_connection_event(event: ConnectionEvent) -> None:
        """Called in the event loop when a connection was opened, closed, blocked, unblocked or recovered.

        It must not block. An exception is logged with the plugin's name, and has no other effect.
        """

    @staticmethod
    @hookspec
    def leveret_cli() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
        """Returns the plugin's commands. Called by `leveret` for its help, and for a command that the core lacks."""
