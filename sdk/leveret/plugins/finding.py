"""Finds the entry points of plugins among the installed distributions, even if one of these is broken.

`importlib.metadata` does the same, and is slow to import for a script that publishes one message. It is used where
distributions may lie elsewhere than in folders: in zip files, or where a finder of its own looks for them.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Final

from leveret.errors import printable
from leveret.plugins.plugin import describe, normalized
from leveret.records import dataclass

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import Distribution

__all__ = ["GROUP", "EntryPoint", "entry_points"]

logger = logging.getLogger("leveret.plugins")

#: The entry point group of plugins.
GROUP: Final = "leveret.plugins"
_GROUP: Final = GROUP.encode()


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """The entry point of a plugin.

    Attributes:
        name: The plugin's name.
        value: The module, or the module and an attribute of it: `module:attribute`.
        distribution: The name of its distribution; empty if that cannot be read.
        version: The distribution's version; empty if that cannot be read.
        folder: The folder that the distribution is installed in; None if it is not in a folder.
    """

    name: str
    value: str
    distribution: str = ""
    version: str = ""
    folder: str | None = None

    @property
    def module(self) -> str:
        """The name of the module."""
        return self.value.partition("[")[0].partition(":")[0].strip()

    def load(self) -> object:
        """Imports the module; returns it, or its attribute."""
        found: object = importlib.import_module(self.module)
        attribute = self.value.partition("[")[0].partition(":")[2].strip()
        for name in attribute.split(".") if attribute else ():
            found = getattr(found, name)
        return found


def entry_points() -> list[EntryPoint]:
    """Returns the entry points of all plugins. A distribution that cannot be read is logged and left out."""
    warnings: dict[str, None] = {}  # each once: a folder may be on the path twice
    others = any(hasattr(it, "find_distributions") for it in sys.meta_path if it is not PathFinder)
    find = _by_finders if others or any(map(os.path.isfile, sys.path)) else _in_folders
    found = list(find(warnings))
    for text in warnings:
        logger.warning("%s", text)
    return found


def _in_folders(warnings: dict[str, None]) -> Iterator[EntryPoint]:
    names: set[str] = set()
    for folder in sys.path:
        try:
            children = os.listdir(folder or ".")
        except (OSError, ValueError):
            continue  # an entry of the path that is not there, or is no path
        for child in children:
            kind = child[-10:].lower()
            if kind == ".dist-info" or kind.endswith(".egg-info"):
                stem = child
            elif kind == "egg-info" and folder.lower().endswith(".egg"):
                stem = os.path.basename(folder)
            else:
                continue
            name = stem.rpartition(".")[0].partition("-")[0].lower().replace("-", "_").replace(".", "_")
            # The first distribution on the path hides others of its name, as with imports.
            if name in names:
                continue
            if name:
                names.add(name)
            information = f"{folder or '.'}/{child}"
            try:
                with open(f"{information}/entry_points.txt", "rb", buffering=0) as file:
                    content = file.read()
            except OSError:
                continue
            if _GROUP not in content:
                continue
            distribution, version = _said(information)
            if not name and distribution:
                name = normalized(distribution).replace("-", "_")
                if name in names:
                    continue
                names.add(name)
            try:
                for key, value in _entries(content):
                    yield EntryPoint(key, value, distribution, version, folder)
            except ValueError as error:
                _warn(warnings, distribution, folder, error)


def _entries(content: bytes) -> list[tuple[str, str]]:
    """Reads the names and values of our group (PyPA, "Entry points specification").

    Raises:
        ValueError: It is not UTF-8, or a line of the group is no entry point.
    """
    found: list[tuple[str, str]] = []
    section = ""
    for each in content.decode().splitlines():
        line = each.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line.strip("[]")
        elif section == GROUP and line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            if not equals:
                raise ValueError(f"{printable(line, 64)!r} is no entry point")
            found.append((name.strip(), value.strip()))
    return found


def _said(information: str) -> tuple[str, str]:
    """Reads the name and version of a distribution; both are empty if they cannot be read."""
    said = {"name": "", "version": ""}
    for file in ("METADATA", "PKG-INFO"):
        try:
            with open(os.path.join(information, file), encoding="utf-8") as lines:
                for line in lines:
                    field, colon, value = line.partition(":")
                    if not colon:
                        break  # the fields end at an empty line
                    if field.lower() in said:
                        said[field.lower()] = value.strip()
                    if all(said.values()):
                        break
        except (OSError, ValueError):
            continue
        break
    return said["name"], said["version"]


def _by_finders(warnings: dict[str, None]) -> Iterator[EntryPoint]:
    import importlib.metadata

    names: set[str] = set()
    distributions = iter(importlib.metadata.distributions())
    while True:
        try:
            distribution = next(distributions, None)
        except Exception as error:  # the type of the error depends on the finder and on the Python version
            warnings[f"some of the installed distributions cannot be listed: {describe(error)}"] = None
            return
        if distribution is None:
            return
        name, version = _field(distribution, "Name"), _field(distribution, "Version")
        if normalized(name) in names:
            continue
        if name:
            names.add(normalized(name))
        try:
            for entry in distribution.entry_points.select(group=GROUP):
                yield EntryPoint(entry.name, entry.value, name, version)
        except Exception as error:
            try:
                folder = str(distribution.locate_file(""))
            except Exception:
                folder = "an unknown folder"
            _warn(warnings, name, folder, error)


def _field(distribution: Distribution, name: str) -> str:
    """Returns a field of a distribution's metadata; empty if it is missing or cannot be read."""
    try:
        metadata = distribution.metadata
        # Looking up a missing field is deprecated and will raise KeyError.
        return metadata[name] if metadata and name in metadata else ""
    except Exception:  # whatever a finder of its own raises
        return ""


def _warn(warnings: dict[str, None], name: str, folder: str, error: Exception) -> None:
    where = f"{printable(name, 64) or 'without a name'} in {printable(folder, 1000)}"
    warnings[f"the distribution {where} cannot be read: {describe(error)}; plugins in it are not used"] = None
