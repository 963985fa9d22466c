"""The outputs of the commands: a console, and files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["STDOUT", "check_writable", "console", "write_json", "write_text"]

#: The value of `--json` that stands for standard output.
STDOUT: Final = "-"


def console(*, stderr: bool = False) -> Console:
    """Makes a console; files and pipes are 120 characters wide."""
    from rich.console import Console

    made = Console(stderr=stderr)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        # Rich would assume 80 characters, and tables would wrap.
        made.width = 120
    return made


def check_writable(file: str | None, option: str) -> None:
    """Refuses a file that cannot be written, before the command begins its work.

    Args:
        file: The file; None and `STDOUT` are fine.
        option: The option that named it, for the error.
    """
    if file is not None and file != STDOUT:
        path = Path(file)
        if not (
            os.access(path, os.W_OK) if path.exists() else path.parent.is_dir() and os.access(path.parent, os.W_OK)
        ):
            raise click.BadParameter(f"cannot write {file}", param_hint=option)


def write_json(file: str, data: Any) -> None:
    """Writes JSON to a file, or to standard output for `-`."""
    text = json.dumps(data, indent=2)
    if file == STDOUT:
        click.echo(text)
    else:
        write_text(file, text + "\n")


def write_text(file: str, text: str) -> None:
    """Writes a file in UTF-8."""
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.FileError(file, error.strerror) from error
