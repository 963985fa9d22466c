"""Finds the entry points of plugins among the installed distributions, even if one of these is broken."""

from __future__ import annotations

import importlib.metadata
import logging
from typing import Final

from leveret.errors import printable
from leveret.plugins.loading import describe, normalized, said_by

__all__ = ["GROUP", "entry_points"]

logger = logging.getLogger("leveret.plugins")

#: The entry point group of plugins.
GROUP: Final = "leveret.plugins"


def entry_points() -> list[importlib.metadata.EntryPoint]:
    """Returns the entry points of all plugins. A distribution that cannot be read is logged and left out."""
    try:
        return list(importlib.metadata.entry_points(group=GROUP))
    except Exception:  # one broken distribution fails the call; the type of the error depends on the Python version
        return _one_by_one()


def _one_by_one() -> list[importlib.metadata.EntryPoint]:
    """Does what `importlib.metadata.entry_points` does, distribution by distribution. It is slower."""
    found: list[importlib.metadata.EntryPoint] = []
    names: set[str] = set()
    warnings: dict[str, None] = {}  # each once: a folder may be on the path twice
    distributions = iter(importlib.metadata.distributions())
    while True:
        try:
            distribution = next(distributions, None)
        except Exception as error:
            warnings[f"some of the installed distributions cannot be listed: {describe(error)}"] = None
            break
        if distribution is None:
            break
        name = normalized(said_by(distribution, "Name"))
        # The first distribution on the path hides others of its name, as with imports.
        if name in names:
            continue
        if name:
            names.add(name)
        try:
            found.extend(distribution.entry_points.select(group=GROUP))
        except Exception as error:
            text = f"the distribution {_where(distribution, name)} cannot be read: {describe(error)}"
            warnings[f"{text}; plugins in it are not used"] = None
    for text in warnings:
        logger.warning("%s", text)
    return found


def _where(distribution: importlib.metadata.Distribution, name: str) -> str:
    try:
        folder = printable(str(distribution.locate_file("")), 1000)
    except Exception:
        folder = "an unknown folder"
    return f"{printable(name, 64) or 'without a name'} in {folder}"
