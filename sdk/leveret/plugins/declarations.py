"""Reads the file in which a plugin declares its hooks and serializers, so that the registry imports it only when used.

The file `leveret.json` lies in the package that the entry point names. It has an object for each plugin of the package,
by the name of the entry point:

    {
      "forms": {
        "hooks": ["leveret_serializers"],
        "provides": [
          {"kind": "serializer", "name": "forms", "keys": ["application/x-www-form-urlencoded"]}
        ]
      }
    }
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.plugins.plugin import PluginInfo

__all__ = ["FILE", "Declaration", "Declared", "declaration_of", "declarations_in", "differences", "written"]

FILE: Final = "leveret.json"

ProvidedKind = Literal["serializer", "compressor", "metrics", "retry", "backoff", "circuit_breaker"]
Hook = Literal[
    "leveret_serializers",
    "leveret_compressors",
    "leveret_metrics",
    "leveret_policies",
    "leveret_connection_event",
    "leveret_cli",
]


class Declared(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A serializer, compressor, metrics sink or policy.

    Attributes:
        kind: As `Provided.kind`.
        name: Its name among its kind.
        keys: The content types or encodings that it decodes, its own first.
        models_of: For a serializer for certain models: the packages that these come from. The plugin is asked about a
            model once one of them is imported.
    """

    kind: ProvidedKind
    name: str
    keys: tuple[str, ...] = ()
    models_of: tuple[str, ...] = ()


class Declaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a plugin is, as far as Leveret must know it before the plugin is used.

    Attributes:
        hooks: The names of all its hooks. A plugin with `leveret_connection_event` is imported by `connect`, one with
            `leveret_cli` by `leveret --help` and the like.
        provides: All that its other hooks return.
    """

    hooks: tuple[Hook, ...]
    provides: tuple[Declared, ...] = ()


_decode: Final = msgspec.json.Decoder(dict[str, Declaration]).decode


def declarations_in(package: str, folder: str | None) -> dict[str, Declaration]:
    """Reads what the plugins of a package declare, without importing it.

    Args:
        package: The name of a top-level package or module.
        folder: Where its distribution is installed, if known. The package lies there, too, unless it was installed in
            editable mode.

    Returns:
        The declarations by the names of the plugins; empty without a file.

    Raises:
        ValueError: The file is not JSON, or has something unknown in it.
    """
    data = None
    if folder is not None:
        with contextlib.suppress(OSError), open(f"{folder or '.'}/{package}/{FILE}", "rb", buffering=0) as file:
            data = file.read()
    if data is None:
        data = _found_by_import(package)
    return {} if data is None else _decode(data)


def _found_by_import(package: str) -> bytes | None:
    """Reads the file where an import would find the package; None when there is none."""
    import importlib.util

    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    # A loader reads out of zip files, too.
    read: Callable[[str], bytes] | None = getattr(spec and spec.loader, "get_data", None)
    for folder in (spec and spec.submodule_search_locations) or ():
        with contextlib.suppress(OSError):
            return read(os.path.join(folder, FILE)) if read is not None else None
    return None


def declaration_of(info: PluginInfo) -> Declaration:
    """Returns what an imported plugin should declare. The packages of models are those that it declares already."""
    provides = (Declared(it.kind, it.name, it.keys, it.models_of) for it in info.provides)  # type: ignore[arg-type]
    return Declaration(info.hooks, tuple(provides))  # type: ignore[arg-type]


def differences(declared: Declaration, found: PluginInfo) -> str:
    """Says in what an imported plugin differs from what it declares; an empty string when it does not."""
    problems = []
    says, has = set(declared.hooks), set(found.hooks)
    problems += [f"it has no {name}" for name in sorted(says - has)]
    problems += [f"{name} is not declared" for name in sorted(has - says)]
    things = {(it.kind, it.name): (it.keys, bool(it.models_of)) for it in declared.provides}
    real = {(it.kind, it.name): (it.keys, it.is_specific) for it in found.provides}
    problems += [f"it provides no {kind} {name!r}" for kind, name in sorted(things.keys() - real.keys())]
    problems += [f"the {kind} {name!r} is not declared" for kind, name in sorted(real.keys() - things.keys())]
    for kind, name in sorted(things.keys() & real.keys()):
        (keys, specific), (its_keys, is_specific) = things[kind, name], real[kind, name]
        if keys != its_keys:
            problems.append(f"the {kind} {name!r} has the keys {list(its_keys)}, and declares {list(keys)}")
        if specific != is_specific:
            lack = "names no" if is_specific else "names"
            problems.append(
                f"the {kind} {name!r} {lack} models_of, and is for {'certain' if is_specific else 'all'} models"
            )
    return "; ".join(problems)


def written(name: str, declaration: Declaration) -> str:
    """Returns the text of the file for one plugin."""
    return msgspec.json.format(msgspec.json.encode({name: declaration}), indent=2).decode() + "\n"
