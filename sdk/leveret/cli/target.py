"""Finds the app of `leveret run MODULE:APP`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

from leveret.app.app import App
from leveret.cli.failures import CommandFailed
from leveret.errors import LeveretError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["load"]

_LONGEST_REASON: Final = 1000


def load(target: str) -> App:
    """Imports a module from the current directory or the Python path, and returns the app in it.

    Args:
        target: `module:attribute`; both may have dots.

    Returns:
        The app.

    Raises:
        CommandFailed: There is no such module or attribute, the attribute is not an app, or importing the module
            failed. The text says which, and suggests a similar name.
    """
    module_name, colon, attribute = target.partition(":")
    if re.search(r"[/\\]|\.py$", module_name):
        meant = re.sub(r"\.py$", "", module_name).strip("./\\").replace("/", ".").replace("\\", ".")
        raise CommandFailed(f"{target!r} names a file; write MODULE:ATTRIBUTE, {meant}:{attribute or 'app'}")
    if not colon or not all(name.isidentifier() for name in (*module_name.split("."), *attribute.split("."))):
        hint = f", for example {target}:app" if all(map(str.isidentifier, target.split("."))) else ""
        raise CommandFailed(f"{target!r} is not MODULE:ATTRIBUTE{hint}")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _import(module_name)
    passed = module_name
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise CommandFailed(f"{passed!r} has no attribute {name!r}{_meant(name, _names(found))}") from None
        passed += f"{'.' if passed != module_name else ':'}{name}"
    if not isinstance(found, App):
        what = f"class {found.__name__}" if inspect.isclass(found) else f"of type {type(found).__name__}"
        apps = [name for name, value in vars(sys.modules[module_name]).items() if isinstance(value, App)]
        hint = f"; did you mean {module_name}:{apps[0]}?" if len(apps) == 1 else ""
        raise CommandFailed(f"{target!r} is {what}, not a leveret.App{hint}")
    return found


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (name == missing or name.startswith(f"{missing}.")):
            parent, _, last = missing.rpartition(".")
            paths = getattr(sys.modules.get(parent), "__path__", []) if parent else [os.getcwd()]
            prefix = f"{parent}." if parent else ""
            others = [prefix + module.name for module in pkgutil.iter_modules(paths)]
            raise CommandFailed(f"there is no module {missing!r}{_meant(prefix + last, others)}") from None
        # The module itself failed: show its author where.
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
        if own and not isinstance(error, LeveretError):
            sys.stderr.write("".join(traceback.StackSummary.from_list(own).format()))
        place = f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""
        reason = printable(f"{type(error).__name__}: {error}", _LONGEST_REASON)
        raise CommandFailed(f"module {name!r} cannot be imported: {reason}{place}") from error


def _names(holder: object) -> list[str]:
    # If there are apps, suggest only these.
    names = [name for name in dir(holder) if not name.startswith("_")]
    apps = [name for name in names if isinstance(inspect.getattr_static(holder, name, None), App)]
    return apps or names


def _meant(name: str, others: Iterable[str]) -> str:
    others = list(others)
    nearest = difflib.get_close_matches(name, others, 1)
    if nearest:
        return f"; did you mean {nearest[0]!r}?"
    return ""
