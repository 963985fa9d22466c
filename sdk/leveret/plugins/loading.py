"""Loads one plugin and checks the descriptors that its hooks return. An error fails this plugin only."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal

import pluggy

from leveret.errors import PluginConflictError, PluginError, PluginLoadError, PluginVersionError, printable
from leveret.plugins import builtin
from leveret.plugins.hookspecs import PROJECT, HookSpecs
from leveret.plugins.interfaces import (
    SERIALIZER_OPTIONS,
    SUPPORTED_API_VERSIONS,
    CommandSpec,
    CompositeSpec,
    CompressorSpec,
    MetricsSpec,
    PolicySpec,
    SerializerSpec,
)
from leveret.records import dataclass, replace
from leveret.settings.functions import is_async

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import Distribution, EntryPoint

__all__ = [
    "Plugin",
    "PluginInfo",
    "Provided",
    "Spec",
    "comparable",
    "describe",
    "hook_names",
    "normalized",
    "said_by",
    "said_of",
]

logger = logging.getLogger("leveret.plugins")

Spec = SerializerSpec | CompositeSpec | CompressorSpec | MetricsSpec | PolicySpec | CommandSpec

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

Status = Literal["built in", "active", "blocked", "not allowed", "not chosen", "conflict", "failed"]


@dataclass(frozen=True, slots=True)
class Provided:
    """A serializer, compressor, metrics sink or policy that a plugin provides.

    Attributes:
        kind: "serializer", "compressor", "metrics", "retry", "backoff" or "circuit_breaker".
        name: Its name among its kind.
        keys: The content types or encodings that it decodes, its own first.
        plugin: The plugin's name.
        distribution: The plugin's distribution.
        origin: The distribution with its version, for texts.
        spec: Its descriptor.
    """

    kind: str
    name: str
    keys: tuple[str, ...]
    plugin: str
    distribution: str
    origin: str
    spec: Spec

    @property
    def claims(self) -> tuple[str, ...]:
        """The normalized keys that no other plugin may have."""
        if isinstance(self.spec, SerializerSpec) and self.spec.models is not None:
            return ()
        return tuple(dict.fromkeys(map(comparable, self.keys)))

    def is_of(self, plugin: str | None) -> bool:
        """Returns whether `plugin` names the plugin or the distribution that provides it."""
        return plugin is not None and normalized(plugin) in (normalized(self.plugin), normalized(self.distribution))


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plugin that was found.

    Attributes:
        name: The name of its entry point.
        distribution: Its distribution; empty when it was passed as an object.
        version: The distribution's version.
        entry_point: The module that its entry point names.
        status: Whether it is used, or why not.
        hooks: The names of its hooks; empty unless it is used.
        provides: Its serializers, compressors, sinks and policies; empty unless it is used.
        load_time: Seconds for importing it and calling its hooks.
        error: The error that it failed with, or None.
    """

    name: str
    distribution: str = ""
    version: str = ""
    entry_point: str = ""
    status: Status = "active"
    hooks: tuple[str, ...] = ()
    provides: tuple[Provided, ...] = ()
    load_time: float = 0.0
    error: PluginError | None = None

    @property
    def origin(self) -> str:
        """The distribution and version; for a plugin object, its name."""
        return f"{self.distribution} {self.version}".strip() or f"the plugin object {self.name!r}"


class Plugin:
    """A plugin that is being loaded."""

    def __init__(self, name: str, distribution: str = "", version: str = "", entry_point: str = "") -> None:
        self.info = PluginInfo(name, distribution, version, entry_point)
        self.hooks: dict[str, Callable[..., Any]] = {}
        self.argnames: dict[str, tuple[str, ...]] = {}

    @property
    def names(self) -> tuple[str, str]:
        """The normalized names that settings may use for it."""
        return normalized(self.info.name), normalized(self.info.distribution)

    def is_same_as(self, other: Plugin) -> bool:
        """Returns whether both are the same entry point of the same distribution."""
        mine, its = self.info, other.info
        return (mine.name, mine.distribution, mine.entry_point) == (its.name, its.distribution, its.entry_point)

    def failed(self, kind: type[PluginError], text: str) -> PluginError:
        """Makes an error that names the plugin."""
        info = self.info
        place = f"plugin {info.name!r} of {info.origin}" if info.distribution else f"plugin {info.name!r}"
        if info.entry_point:
            place += f" (entry point {info.entry_point})"
        return kind(
            f"{place} {text}",
            plugin=info.name,
            distribution=info.distribution,
            version=info.version,
            entry_point=info.entry_point,
        )

    def register(self, plugin: object) -> None:
        """Finds the hook functions of a plugin.

        Raises:
            PluginLoadError: A hook is not valid, or there is none.
        """
        # Each plugin has a manager of its own, so that a refused plugin does not affect others.
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(HookSpecs)
        try:
            manager.register(plugin, self.info.name)
            manager.check_pending()
        except pluggy.PluginValidationError as error:
            known = ", ".join(hook_names())
            raise self.failed(PluginLoadError, f"has a wrong hook: {error}; the hooks are {known}") from error
        for name in hook_names():
            for implementation in getattr(manager.hook, name).get_hookimpls():
                if implementation.hookwrapper or implementation.wrapper:
                    raise self.failed(PluginLoadError, f"wraps {name}; hooks cannot be wrapped")
                if name in self.hooks:
                    raise self.failed(PluginLoadError, f"has two functions for {name}")
                if is_async(implementation.function):
                    raise self.failed(PluginLoadError, f"has an `async def` {name}; hooks are not awaited")
                self.hooks[name] = implementation.function
                self.argnames[name] = tuple(implementation.argnames)
        unmarked = [name for name in hook_names() if name not in self.hooks and callable(getattr(plugin, name, None))]
        if unmarked:
            raise self.failed(PluginLoadError, f"does not mark {unmarked[0]} with @hookimpl")
        if not self.hooks:
            raise self.failed(PluginLoadError, f"has none of the hooks {', '.join(hook_names())}")

    def collect(self, hook: str, kinds: tuple[type, ...]) -> list[Any]:
        """Calls a hook that returns descriptors, checks these, and returns them."""
        function = self.hooks.get(hook)
        if function is None:
            return []
        try:
            returned = function()
            specs = list(returned) if isinstance(returned, Iterable) else None
        except Exception as error:
            raise self.failed(PluginLoadError, f"failed in {hook}: {describe(error)}") from error
        wanted = " or ".join(kind.__name__ for kind in kinds)
        if specs is None:
            raise self.failed(
                PluginLoadError, f"returned {type(returned).__name__} from {hook}, not an iterable of {wanted}"
            )
        for spec in specs:
            if not isinstance(spec, kinds):
                raise self.failed(PluginLoadError, f"returned a {type(spec).__name__} from {hook}, not a {wanted}")
            self._check(hook, spec)
        return specs

    def _check(self, hook: str, spec: Any) -> None:
        if not isinstance(spec.api_version, int) or spec.api_version not in SUPPORTED_API_VERSIONS:
            supported = ", ".join(map(str, sorted(SUPPORTED_API_VERSIONS)))
            raise self.failed(
                PluginVersionError,
                f"was written for plugin API version {spec.api_version!r} ({hook}); this version of leveret supports "
                f"{supported}",
            )
        problem = _problem(spec)
        if problem:
            raise self.failed(PluginLoadError, f"returned a wrong {type(spec).__name__} from {hook}: {problem}")

    def provided(self) -> tuple[Provided, ...]:
        """Calls the hooks, and returns everything that the plugin provides."""
        found = []
        for hook, kinds in _COLLECTED.items():
            for spec in self.collect(hook, kinds):
                kind, keys = _kind_and_keys(spec)
                found.append(
                    Provided(kind, spec.name, keys, self.info.name, self.info.distribution, self.info.origin, spec)
                )
        for number, one in enumerate(found):
            for other in found[:number]:
                if one.kind == other.kind and one.name == other.name:
                    raise self.failed(PluginLoadError, f"provides two {one.kind}s named {one.name!r}")
                shared = set(one.claims) & set(other.claims)
                if one.kind == other.kind and shared:
                    raise self.failed(PluginLoadError, f"provides two {one.kind}s for {min(shared)!r}")
        return tuple(found)

    def load(self, get: Callable[[], object], *, strict: bool, seen: dict[int, str]) -> None:
        """Imports the plugin and calls its hooks. A failure is logged and kept, or raised when `strict`."""
        started = time.perf_counter()
        try:
            try:
                found = get()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise self.failed(PluginLoadError, f"cannot be imported: {describe(error)}") from error
            if id(found) in seen:
                raise self.failed(PluginLoadError, f"is the object of plugin {seen[id(found)]!r}, registered twice")
            seen[id(found)] = self.info.name
            self.register(found)
            provided = self.provided()
            loaded = time.perf_counter() - started
            self.info = replace(
                self.info, status="active", hooks=tuple(self.hooks), provides=provided, load_time=loaded
            )
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            # BaseException: a plugin must not end the program, for example with SystemExit.
            failure = raised
            if not isinstance(failure, PluginError):
                failure = self.failed(PluginLoadError, f"failed: {describe(raised)}")
                failure.__cause__ = raised
            if strict:
                raise failure from failure.__cause__
            self.hooks.clear()
            self.info = replace(self.info, status="failed", error=failure, load_time=time.perf_counter() - started)
            logger.warning("%s; the plugin is not used", failure)

    def load_builtin(self) -> Plugin:
        """Loads the core's own plugin."""
        self.register(builtin)
        self.info = replace(self.info, status="built in", hooks=tuple(self.hooks), provides=self.provided())
        return self

    def leave_out(self, status: Status) -> None:
        """Records why the plugin is not imported."""
        self.info = replace(self.info, status=status)

    def conflict(self, error: PluginConflictError) -> None:
        """Records that the plugin conflicts with another one. The core's own keeps its status."""
        status = self.info.status if self.info.status == "built in" else "conflict"
        self.info = replace(self.info, status=status, error=error)


def hook_names() -> tuple[str, ...]:
    """Returns the names of all hooks."""
    return tuple(name for name in vars(HookSpecs) if name.startswith(f"{PROJECT}_"))


def _kind_and_keys(spec: Spec) -> tuple[str, tuple[str, ...]]:
    if isinstance(spec, SerializerSpec):
        return "serializer", (spec.content_type, *spec.aliases)
    if isinstance(spec, CompressorSpec):
        return "compressor", (spec.content_encoding, *spec.aliases)
    if isinstance(spec, PolicySpec):
        return spec.kind, ()
    return ("metrics" if isinstance(spec, MetricsSpec) else "serializer"), ()


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


def comparable(key: str) -> str:
    """Normalizes a content type or encoding for comparisons: ignores case and blanks (RFC 2045 section 5.1)."""
    return ";".join(part.strip().lower() for part in key.split(";"))


def said_of(entry: EntryPoint, field: str) -> str:
    """Returns a field of the metadata of an entry point's distribution; empty if it cannot be read."""
    return said_by(entry.dist, field) if entry.dist is not None else ""


def said_by(distribution: Distribution, field: str) -> str:
    """Returns a field of a distribution's metadata; empty if it is missing or cannot be read."""
    try:
        metadata = distribution.metadata
        # Looking up a missing field is deprecated and will raise KeyError.
        return metadata[field] if metadata and field in metadata else ""
    except (
        Exception
    ):  # FileNotFoundError from Python 3.15 on, UnicodeDecodeError, or whatever a finder of its own raises
        return ""


def normalized(name: str) -> str:
    """Normalizes the name of a plugin or distribution for comparisons (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def describe(error: BaseException) -> str:
    """Returns the error's type and text, safe to print."""
    try:
        text = printable(str(error))
    except Exception:
        text = ""  # str() of the error failed
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
