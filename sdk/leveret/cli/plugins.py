"""The commands `leveret plugins list`, `check` and `new`."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from leveret import __version__
from leveret.cli.failures import CommandFailed
from leveret.cli.output import STDOUT, check_writable, console, write_json
from leveret.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from leveret.cli.plugin_checks import Finding
    from leveret.plugins import PluginRegistry
    from leveret.plugins.registry import PluginInfo

__all__ = ["plugins"]

#: `leveret.cli.template.KINDS` has the same names.
_KINDS: Final = ("serializer", "compressor", "metrics", "policy")
#: The names that a distribution may have (PyPA, "Names and normalization").
_DISTRIBUTION: Final = re.compile(r"[A-Z0-9]|[A-Z0-9][A-Z0-9._-]*[A-Z0-9]", re.IGNORECASE)
_PREFIX: Final = "leveret-"
#: The longest name in a descriptor.
_LONGEST_NAME: Final = 64
_STYLES: Final = {
    "failed": "red",
    "conflict": "red",
    "blocked": "yellow",
    "not allowed": "yellow",
    "not chosen": "yellow",
}


@click.group()
def plugins() -> None:
    """List the installed plugins, check one, or write a new one."""
    # The commands print errors themselves, so logged ones are dropped.
    logging.getLogger("leveret").addHandler(logging.NullHandler())


# ---------------------------------------------------------------------- list


@plugins.command("list")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write the list as JSON to this file; '-': stdout.",
)
@click.option("--strict", is_flag=True, help="Exit with status 1 when a plugin cannot be used.")
def list_plugins(json_file: str | None, strict: bool) -> None:
    """Show all installed plugins, used or not, and what each provides.

    LEVERET_PLUGINS_ALLOW and LEVERET_PLUGINS_BLOCK choose the plugins that are used, as in every program.
    """
    from leveret.plugins import PluginRegistry
    from leveret.settings import PluginSettings

    check_writable(json_file, "--json")
    settings = PluginSettings.from_env()
    # Strict settings would raise the first failure, and the list would not be shown.
    registry = PluginRegistry.survey(settings.replace(strict=False))
    rows = _rows(registry)
    if json_file != STDOUT:
        screen = console()
        screen.print(_table(rows))
    if json_file is not None:
        write_json(json_file, {"leveret": __version__, "plugins": rows})
    conflicts = [row["error"] for row in rows if row["status"] == "conflict"]
    if conflicts:
        # A program that loads these plugins does not start.
        raise CommandFailed(f"{conflicts[0]}. To leave one out, set LEVERET_PLUGINS_BLOCK to its name")
    if (strict or settings.strict) and any(row["error"] for row in rows):
        raise SystemExit(1)


def _rows(registry: PluginRegistry) -> list[dict[str, Any]]:
    """Returns an object for each plugin, ready for JSON."""
    commands, errors = registry.commands()
    rows = [_row(info) for info in registry.plugins]
    for info, row in zip(registry.plugins, rows, strict=True):
        row["provides"] += [
            {"kind": "command", "name": spec.name, "keys": []} for owner, spec in commands if owner is info
        ]
        for error in errors:
            mine = (error.plugin, error.distribution) == (info.name, info.distribution)
            if mine or info.origin in getattr(error, "distributions", ()):
                row["error"] = str(error)
    return rows


def _row(info: PluginInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "status": info.status,
        "distribution": info.distribution,
        "version": info.version,
        "entry_point": info.entry_point,
        "hooks": list(info.hooks),
        "provides": [{"kind": each.kind, "name": each.name, "keys": list(each.keys)} for each in info.provides],
        "load_time_ms": round(info.load_time * 1000, 3),
        "error": None if info.error is None else str(info.error),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("plugin", "status", "distribution", "version"):
        table.add_column(heading, no_wrap=True)
    table.add_column("provides", overflow="fold", ratio=1)
    table.add_column("load ms", justify="right", no_wrap=True)
    for row in rows:
        provides = Text("\n".join(map(_in_words, row["provides"])))
        if row["error"] is not None:
            provides.append(("\n" if provides else "") + printable(row["error"], 1000), style=_STYLES["failed"])
        status = Text(row["status"], style=_STYLES.get(row["status"], "green"))
        names = [Text(printable(str(row[name]), 64)) for name in ("name", "distribution", "version")]
        loaded = f"{row['load_time_ms']:.1f}" if row["load_time_ms"] else "-"
        table.add_row(names[0], status, *names[1:], provides or Text(", ".join(row["hooks"]) or "-"), loaded)
    return table


def _in_words(provided: dict[str, Any]) -> str:
    keys = ", ".join(provided["keys"])
    return f"{provided['kind'].replace('_', ' ')} {provided['name']}" + (f" ({keys})" if keys else "")


# ---------------------------------------------------------------------- check


@plugins.command()
@click.argument("name")
@click.option("--quiet", is_flag=True, help="Show no progress bar.")
@click.pass_context
def check(context: click.Context, name: str, quiet: bool) -> None:
    """Check the installed plugin NAME, or all plugins of the distribution NAME: metadata, conflicts, conformance.

    The conformance kits need pytest. The exit status is 1 when a check failed; a property that could not be checked is
    not a failure.
    """
    from rich.progress import BarColumn, Progress, TextColumn

    from leveret.cli.plugin_checks import STATUSES, checks

    command = context.find_root().command
    assert isinstance(command, click.Group)
    steps = checks(name, command.commands)
    counts = dict.fromkeys(STATUSES, 0)
    screen = console(stderr=True)
    progress = Progress(
        BarColumn(10),
        TextColumn("{task.description}", markup=False),
        console=screen,
        # Drawn by this thread: the kits fork, which is not safe in a process with a thread that draws.
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=quiet or not screen.is_terminal,
    )
    bar = progress.add_task("", total=len(steps))
    for step in steps:

        def tell(text: str, plugin: str = step.plugin) -> None:
            progress.update(bar, description=f"{plugin}: {text}", refresh=True)

        # The bar is removed before findings are printed. Older versions of rich end a hidden one with an empty line.
        with contextlib.nullcontext() if progress.disable else progress:
            tell(step.title)
            results = step.run(tell)
        progress.advance(bar)
        for result in results:
            counts[result.status] += 1
            _print_result(step.plugin, result)
    click.echo(", ".join(f"{count} {status}" for status, count in counts.items()))
    if counts["failed"]:
        raise SystemExit(1)


def _print_result(plugin: str, result: Finding) -> None:
    style = {"ok": "green", "failed": "red", "not checked": "yellow"}[result.status]
    line = f"{plugin}  {result.title}"
    if text := " ".join(result.text.split()):
        line += f": {text}"
    click.echo(f"{click.style(f'{result.status:11}', fg=style)}  {printable(line, 2000)}")


# ---------------------------------------------------------------------- new


@plugins.command()
@click.argument("name")
@click.option("--kind", required=True, type=click.Choice(_KINDS), help="What the plugin provides.")
@click.option(
    "--directory",
    default=".",
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder in which the folder leveret-NAME is made.",
)
def new(name: str, kind: str, directory: Path) -> None:
    """Write a working plugin with tests: the distribution leveret-NAME, in a new folder of that name.

    Existing files are never overwritten.
    """
    from leveret.cli.template import KINDS, files

    name = _plugin_name(name, kind)
    folder = directory / f"{_PREFIX}{name}"
    try:
        if folder.exists() and not folder.is_dir():
            raise CommandFailed(f"{folder} exists and is not a folder; nothing was written")
        if folder.exists() and any(folder.iterdir()):
            raise CommandFailed(f"{folder} exists and is not empty; nothing was written")
        for path, text in files(name, kind).items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x", encoding="utf-8", newline="\n") as stream:
                stream.write(text)
    except OSError as error:
        raise CommandFailed(f"cannot write {error.filename or folder}: {error.strerror}") from error
    click.echo(f"Wrote a {KINDS[kind].what} to {folder}. Next:\n")
    for command in (
        f"cd {shlex.quote(str(folder))}",
        "pip install --editable . --group test",
        "pytest",
        f"leveret plugins check {name}",
    ):
        click.echo(f"  {command}")


def _plugin_name(name: str, kind: str) -> str:
    """Returns the plugin's name: the distribution's name without `leveret-`.

    Raises:
        click.BadParameter: The name is not valid, or the core uses it.
    """
    from leveret.plugins import PluginRegistry

    if not _DISTRIBUTION.fullmatch(name):
        raise click.BadParameter(
            f"{printable(name, 64)!r} is not a valid name for a distribution. Use letters, digits, '-', '_' and '.', "
            "with a letter or digit at both ends",
            param_hint="NAME",
        )
    plugin = re.sub(r"[-_.]+", "-", name).lower().removeprefix(_PREFIX)
    if len(plugin) > _LONGEST_NAME:
        raise click.BadParameter(
            f"{printable(plugin, 64)!r} has {len(plugin)} characters; at most {_LONGEST_NAME} are allowed",
            param_hint="NAME",
        )
    core = PluginRegistry.from_plugins()
    taken = {*core.names("retry" if kind == "policy" else kind), *(info.name for info in core.plugins)}
    if plugin in taken:
        raise click.BadParameter(f"leveret itself provides {plugin!r}; choose another name", param_hint="NAME")
    return plugin
