"""The commands that plugins add to `leveret`.

Finding them imports the plugins that have commands, and those that do not declare whether they have any. That happens
only for `leveret --help`, for completion, and for a command that the core does not have. A plugin that fails leaves a
note, and never keeps a command of the core from running.
"""

from __future__ import annotations

import importlib.metadata
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from leveret.errors import LeveretError, printable

if TYPE_CHECKING:
    from collections.abc import Container

    from leveret.plugins import CommandSpec

__all__ = ["ExtensibleGroup", "PluginCommand", "PluginCommands"]

#: `leveret.plugins.registry.GROUP`; importing that module would load half of the core for `leveret --help`.
GROUP: Final = "leveret.plugins"
_LONGEST_HELP: Final = 200


class PluginCommand(click.Command):
    """A plugin's command. It is loaded when it runs or its help is shown.

    Args:
        spec: The command's description.
        origin: The plugin's distribution and version.
    """

    def __init__(self, spec: CommandSpec, origin: str) -> None:
        text = printable(str(spec.help).strip(), _LONGEST_HELP)
        super().__init__(spec.name, help=text, short_help=f"{text} [{origin}]")
        self._spec = spec
        self._origin = origin

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Loads the plugin's command and returns its context, so that click runs the loaded command."""
        try:
            command = self._load()
        except click.ClickException:
            if not extra.get("resilient_parsing"):
                raise
            return super().make_context(info_name, [], parent, **extra)  # completion has nothing to add
        return command.make_context(info_name, args, parent, **extra)

    def _load(self) -> click.Command:
        try:
            command = self._spec.load()
        except (Exception, SystemExit) as error:
            text = printable(f"{type(error).__name__}: {error}")
            raise click.ClickException(f"command {self.name!r} of {self._origin} cannot be loaded: {text}") from error
        if not isinstance(command, click.Command):
            raise click.ClickException(
                f"command {self.name!r} of {self._origin} cannot be loaded: it is a {type(command).__name__}, not a "
                "click.Command"
            )
        return command


def _may_be_some() -> bool:
    """Whether a plugin is installed, found without loading anything; true when that cannot be said so simply."""
    try:
        return bool(importlib.metadata.entry_points(group=GROUP))
    except Exception:  # a broken distribution, which the registry leaves out
        return True


@dataclass(frozen=True, slots=True)
class PluginCommands:
    """The commands of plugins.

    Attributes:
        commands: The commands by name.
        notes: One line for each plugin or command that cannot be used.
    """

    commands: dict[str, PluginCommand] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, taken: Container[str]) -> PluginCommands:
        """Collects the commands of the installed plugins. Errors become notes.

        Args:
            taken: The names of the core's commands, which take precedence.
        """
        found = cls()
        if not _may_be_some():
            return found
        # The notes tell the same as the log.
        logging.getLogger("leveret").addHandler(logging.NullHandler())
        try:
            found._read(taken)
        except LeveretError as error:
            found.notes.append(printable(str(error), 1000))
        except Exception as error:
            found.notes.append(printable(f"plugins cannot be loaded: {type(error).__name__}: {error}", 1000))
        return found

    def _read(self, taken: Container[str]) -> None:
        from leveret.plugins import PluginRegistry

        registry = PluginRegistry.load()
        specs, errors = registry.commands()
        failed = [info.error for info in registry.plugins if info.error]
        self.notes.extend(dict.fromkeys(printable(str(error), 1000) for error in (*failed, *errors)))
        for info, spec in specs:
            if spec.name in taken:
                self.notes.append(
                    f"command {spec.name!r} of {info.origin} is not used: leveret has a command of that name"
                )
            else:
                self.commands[spec.name] = PluginCommand(spec, info.origin)


class ExtensibleGroup(click.Group):
    """A click group that lists its own commands first, then those of plugins."""

    def added(self, ctx: click.Context) -> PluginCommands:
        """Returns the commands of plugins, which are collected once for each run."""
        found: PluginCommands | None = ctx.meta.get(__name__)
        if found is None:
            found = ctx.meta[__name__] = PluginCommands.read(self.commands)
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands."""
        return [*super().list_commands(ctx), *sorted(self.added(ctx).commands)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Finds a command, first in the core, then in plugins."""
        return super().get_command(ctx, cmd_name) or self.added(ctx).commands.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command of a command line. The error for an unknown command names a plugin that failed."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            notes = self.added(ctx).notes
            if not notes:
                raise
            text = f"{error.format_message()} Not all plugins could be loaded: {notes[0]}. See: leveret plugins list"
            raise click.UsageError(text, ctx=ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands, and the notes on plugins that cannot be used."""
        super().format_commands(ctx, formatter)
        if notes := self.added(ctx).notes:
            with formatter.section("Plugins that cannot be used, or not wholly"):
                for note in notes:
                    formatter.write_text(note)
