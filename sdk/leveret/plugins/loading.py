"""Imports one plugin and checks its hooks and the descriptors that they return. An error fails this plugin only."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import pluggy

from leveret.errors import PluginError, PluginLoadError, PluginVersionError
from leveret.plugins.declarations import FILE, differences
from leveret.plugins.hookspecs import PROJECT, HookSpecs
from leveret.plugins.interfaces import (
    SERIALIZER_OPTIONS,
    SUPPORTED_API_VERSIONS,
    CompositeSpec,
    CompressorSpec,
    MetricsSpec,
    PolicySpec,
    SerializerSpec,
)
from leveret.plugins.plugin import describe
from leveret.records import replace
from leveret.settings.functions import is_async

if TYPE_CHECKING:
    from leveret.plugins.plugin import Plugin, Provided, Spec

__all__ = ["collect", "hook_names", "load"]

logger = logging.getLogger("leveret.plugins")

#: The hooks that are called when plugins are discovered, and the descriptors that each may return.
_COLLECTED: Final[dict[str, tuple[type, ...]]] = {
    "leveret_serializers": (SerializerSpec, CompositeSpec),
    "leveret_compressors": (CompressorSpec,),
    "leveret_metrics": (MetricsSpec,),
    "leveret_policies": (PolicySpec,),
}
_POLICY_KINDS: Final = ("retry", "backoff", "circuit_breaker")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TOKEN: Final = r"[A-Za-z0-9!#$&^_.+-]{1,127}"  # noqa: S105 - RFC 6838 section 4.2
_CONTENT_TYPE: Final = re.compile(rf"{_TOKEN}/{_TOKEN}(?:; ?{_TOKEN}={_TOKEN})*")
_CONTENT_ENCODING: Final = re.compile(_TOKEN)


def load(plugin: Plugin, *, strict: bool) -> None:
    """Imports a plugin and calls its hooks. A failure is logged and kept, or raised when `strict`."""
    started = time.perf_counter()
    declared = plugin.info.provides
    try:
        try:
            found = plugin.get()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise plugin.failed(PluginLoadError, f"cannot be imported: {describe(error)}") from error
        other = plugin.seen.setdefault(id(found), plugin)
        if other is not plugin:
            raise plugin.failed(PluginLoadError, f"is the object of plugin {other.info.name!r}, registered twice")
        _register(plugin, found)
        provides = _provides(plugin)
        loaded = time.perf_counter() - started
        info = replace(plugin.info, status="active", hooks=tuple(plugin.hooks), provides=provides, load_time=loaded)
        if plugin.declaration is not None:
            if problem := differences(plugin.declaration, info):
                raise plugin.failed(PluginLoadError, f"is not what its {FILE} declares: {problem}")
            info = replace(info, provides=declared)  # which the registry has already
        plugin.info = info
    except KeyboardInterrupt:
        raise
    except BaseException as raised:
        # BaseException: a plugin must not end the program, for example with SystemExit.
        failure = raised
        if not isinstance(failure, PluginError):
            failure = plugin.failed(PluginLoadError, f"failed: {describe(raised)}")
            failure.__cause__ = raised
        if strict:
            raise failure from failure.__cause__
        plugin.hooks.clear()
        spent = time.perf_counter() - started
        plugin.info = replace(plugin.info, status="failed", hooks=(), provides=(), error=failure, load_time=spent)
        logger.warning("%s; the plugin is not used", failure)


def _register(plugin: Plugin, found: object) -> None:
    """Finds the hook functions of a plugin.

    Raises:
        PluginLoadError: A hook is not valid, or there is none.
    """
    # Each plugin has a manager of its own, so that a refused plugin does not affect others.
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    try:
        manager.register(found, plugin.info.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = ", ".join(hook_names())
        raise plugin.failed(PluginLoadError, f"has a wrong hook: {error}; the hooks are {known}") from error
    for name in hook_names():
        for implementation in getattr(manager.hook, name).get_hookimpls():
            if implementation.hookwrapper or implementation.wrapper:
                raise plugin.failed(PluginLoadError, f"wraps {name}; hooks cannot be wrapped")
            if name in plugin.hooks:
                raise plugin.failed(PluginLoadError, f"has two functions for {name}")
            if is_async(implementation.function):
                raise plugin.failed(PluginLoadError, f"has an `async def` {name}; hooks are not awaited")
            plugin.hooks[name] = implementation.function
            plugin.argnames[name] = tuple(implementation.argnames)
    unmarked = [name for name in hook_names() if name not in plugin.hooks and callable(getattr(found, name, None))]
    if unmarked:
        raise plugin.failed(PluginLoadError, f"does not mark {unmarked[0]} with @hookimpl")
    if not plugin.hooks:
        raise plugin.failed(PluginLoadError, f"has none of the hooks {', '.join(hook_names())}")


def collect(plugin: Plugin, hook: str, kinds: tuple[type, ...]) -> list[Any]:
    """Calls a hook that returns descriptors, checks these, and returns them."""
    function = plugin.hooks.get(hook)
    if function is None:
        return []
    try:
        returned = function()
        specs = list(returned) if isinstance(returned, Iterable) else None
    except Exception as error:
        raise plugin.failed(PluginLoadError, f"failed in {hook}: {describe(error)}") from error
    wanted = " or ".join(kind.__name__ for kind in kinds)
    if specs is None:
        raise plugin.failed(
            PluginLoadError, f"returned {type(returned).__name__} from {hook}, not an iterable of {wanted}"
        )
    for spec in specs:
        if not isinstance(spec, kinds):
            raise plugin.failed(PluginLoadError, f"returned a {type(spec).__name__} from {hook}, not a {wanted}")
        _check(plugin, hook, spec)
    return specs


def _check(plugin: Plugin, hook: str, spec: Any) -> None:
    if not isinstance(spec.api_version, int) or spec.api_version not in SUPPORTED_API_VERSIONS:
        supported = ", ".join(map(str, sorted(SUPPORTED_API_VERSIONS)))
        raise plugin.failed(
            PluginVersionError,
            f"was written for plugin API version {spec.api_version!r} ({hook}); this version of leveret supports "
            f"{supported}",
        )
    problem = _problem(spec)
    if problem:
        raise plugin.failed(PluginLoadError, f"returned a wrong {type(spec).__name__} from {hook}: {problem}")


def _provides(plugin: Plugin) -> tuple[Provided, ...]:
    """Calls the hooks, and returns everything that the plugin provides."""
    specs: list[Spec] = []
    for hook, kinds in _COLLECTED.items():
        specs += collect(plugin, hook, kinds)
    found = plugin.keep(specs)
    for number, one in enumerate(found):
        for other in found[:number]:
            if one.kind == other.kind and one.name == other.name:
                raise plugin.failed(PluginLoadError, f"provides two {one.kind}s named {one.name!r}")
            shared = set(one.claims) & set(other.claims)
            if one.kind == other.kind and shared:
                raise plugin.failed(PluginLoadError, f"provides two {one.kind}s for {min(shared)!r}")
    return found


def hook_names() -> tuple[str, ...]:
    """Returns the names of all hooks."""
    return tuple(name for name in vars(HookSpecs) if name.startswith(f"{PROJECT}_"))


def _problem(spec: Any) -> str:
    """Returns the problem of a descriptor, or an empty string."""
    if not isinstance(spec.name, str) or not _NAME.fullmatch(spec.name):
        return f"its name is {spec.name!r}; it must be lower-case letters, digits, '-', '_' and '.', at most 64"
    text: object = getattr(spec, "help", "")
    if not isinstance(text, str):
        return f"its help is a {type(text).__name__}, not text"
    functions = {"factory": True, "select": True, "load": True, "models": False}
    for name, needed in functions.items():
        function = getattr(spec, name, None)
        if hasattr(spec, name) and not callable(function) and (needed or function is not None):
            return f"its {name} is a {type(function).__name__}, which cannot be called"
        if is_async(function):
            return f"its {name} is an `async def`, and it is not awaited"
    for name in ("aliases", "parts", "options"):
        texts = getattr(spec, name, ())
        good = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
        if not good or (name == "parts" and hasattr(spec, name) and not texts):
            return f"its {name} are {texts!r}; they must be a list of text"
    if unknown := set(getattr(spec, "options", ())) - set(SERIALIZER_OPTIONS):
        return f"its options are {sorted(unknown)!r}; they must be of {', '.join(SERIALIZER_OPTIONS)}"
    compressor: object = getattr(spec, "compressor", None)
    if not isinstance(compressor, str | None):
        return f"its compressor is a {type(compressor).__name__}, not a name or None"
    safe: object = getattr(spec, "safe", True)
    if not isinstance(safe, bool):
        return f"its safe is a {type(safe).__name__}, not a bool"
    if isinstance(spec, SerializerSpec):
        return _key_problem("content type", _CONTENT_TYPE, spec.content_type, *spec.aliases)
    if isinstance(spec, CompressorSpec):
        levels: object = spec.levels
        if not (isinstance(levels, tuple) and list(map(type, levels)) == [int, int] and levels[0] <= levels[1]):
            return f"its levels are {levels!r}; they must be (lowest, highest)"
        return _key_problem("content encoding", _CONTENT_ENCODING, spec.content_encoding, *spec.aliases)
    if isinstance(spec, PolicySpec) and spec.kind not in _POLICY_KINDS:
        return f"its kind is {spec.kind!r}; it must be one of {', '.join(_POLICY_KINDS)}"
    return ""


def _key_problem(what: str, pattern: re.Pattern[str], *keys: object) -> str:
    for key in keys:
        if not isinstance(key, str) or not pattern.fullmatch(key) or len(key) > 255:
            return f"{key!r} is not a {what}"
    return ""
