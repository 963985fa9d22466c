"""Finds plugins, checks what they bring, and keeps it, frozen, under its names.

pluggy's own loader lets one failing import end everything, skips a second plugin with a taken name silently, and lets the
order of loading decide who wins. Here each plugin is loaded by itself, a failure is kept with its distribution, and two
plugins for one name are an error unless the settings choose.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import pluggy

from leveret.errors import (
    ConfigurationError,
    LeveretError,
    PluginConflictError,
    PluginError,
    PluginLoadError,
    PluginVersionError,
    printable,
)
from leveret.plugins import builtin
from leveret.plugins.hookspecs import PROJECT, HookSpecs
from leveret.plugins.interfaces import (
    SUPPORTED_API_VERSIONS,
    BackoffPolicy,
    CircuitBreaker,
    CommandSpec,
    CompositeSpec,
    CompressorSpec,
    ConnectionEvent,
    MetricsSpec,
    PolicySpec,
    RetryPolicy,
    SerializerSpec,
)
from leveret.settings import PluginSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from leveret.plugins.interfaces import Compressor, MetricsSink, Serializer

__all__ = ["GROUP", "PluginInfo", "PluginRegistry", "Provided"]

logger = logging.getLogger("leveret.plugins")

T = TypeVar("T")
Spec = SerializerSpec | CompositeSpec | CompressorSpec | MetricsSpec | PolicySpec | CommandSpec

#: The entry point group in which plugins are found.
GROUP: Final = "leveret.plugins"

#: What is read when plugins are discovered, and the descriptors that each hook may return.
_COLLECTED: Final[dict[str, tuple[type, ...]]] = {
    "leveret_serializers": (SerializerSpec, CompositeSpec),
    "leveret_compressors": (CompressorSpec,),
    "leveret_metrics": (MetricsSpec,),
    "leveret_policies": (PolicySpec,),
}
_POLICIES: Final[dict[str, type]] = {
    "retry": RetryPolicy,
    "backoff": BackoffPolicy,
    "circuit_breaker": CircuitBreaker,
}
#: Which option names each kind of thing.
_OPTIONS: Final = {"metrics": "sinks"}
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TOKEN: Final = r"[A-Za-z0-9!#$&^_.+-]{1,127}"  # noqa: S105 - RFC 6838 section 4.2
_CONTENT_TYPE: Final = re.compile(rf"{_TOKEN}/{_TOKEN}(?:; ?{_TOKEN}={_TOKEN})*")
_CONTENT_ENCODING: Final = re.compile(_TOKEN)
#: What to install for names that people will look for.
_FIRST_PARTY: Final = {
    **dict.fromkeys(("msgpack", "lz4", "zstd", "protobuf", "pydantic", "prometheus", "opentelemetry"), ""),
    **dict.fromkeys(("exponential", "linear", "fixed", "failure-rate"), "resilience"),
}

Status = Literal["built in", "active", "blocked", "not allowed", "failed"]


@dataclass(frozen=True, slots=True)
class Provided:
    """One thing that a plugin brings.

    Attributes:
        kind: "serializer", "compressor", "metrics", "retry", "backoff" or "circuit_breaker".
        name: Its name among its kind.
        keys: The content types or encodings that it reads, its own first.
        plugin: The plugin's name.
        origin: The plugin's distribution and version.
        spec: Its descriptor.
    """

    kind: str
    name: str
    keys: tuple[str, ...]
    plugin: str
    origin: str
    spec: Spec


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plugin that was found.

    Attributes:
        name: Its entry point's name.
        distribution: What it was installed with; empty when it was passed as an object.
        version: The distribution's version.
        entry_point: The module that its entry point names.
        status: Whether it is used.
        provides: What it brings; empty unless it is used.
        load_time: Seconds that importing it and reading its hooks took.
        error: Why it failed, or None.
    """

    name: str
    distribution: str = ""
    version: str = ""
    entry_point: str = ""
    status: Status = "active"
    provides: tuple[Provided, ...] = ()
    load_time: float = 0.0
    error: PluginError | None = None

    @property
    def origin(self) -> str:
        """The distribution and version, or that there is none."""
        return f"{self.distribution} {self.version}".strip() or f"the plugin object {self.name!r}"


class _Plugin:
    """A plugin that is being loaded: whatever goes wrong is its failure and nobody else's."""

    def __init__(self, name: str, distribution: str = "", version: str = "", entry_point: str = "") -> None:
        self.info = PluginInfo(name, distribution, version, entry_point)
        self.hooks: dict[str, Callable[..., Any]] = {}
        self.argnames: dict[str, tuple[str, ...]] = {}

    def failed(self, kind: type[PluginError], text: str) -> PluginError:
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
        """Reads which hooks a plugin has."""
        # A manager of its own: a plugin that is refused has not touched the others.
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
                self.hooks[name] = implementation.function
                self.argnames[name] = tuple(implementation.argnames)
        unmarked = [name for name in hook_names() if name not in self.hooks and callable(getattr(plugin, name, None))]
        if unmarked:
            raise self.failed(PluginLoadError, f"does not mark {unmarked[0]} with @hookimpl")
        if not self.hooks:
            raise self.failed(PluginLoadError, f"has none of the hooks {', '.join(hook_names())}")

    def collect(self, hook: str, kinds: tuple[type, ...]) -> list[Any]:
        """Calls a hook that returns descriptors, and checks them."""
        function = self.hooks.get(hook)
        if function is None:
            return []
        try:
            returned = function()
            specs = list(returned) if isinstance(returned, Iterable) else None
        except Exception as error:
            raise self.failed(PluginLoadError, f"failed in {hook}: {_describe(error)}") from error
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
        if spec.api_version not in SUPPORTED_API_VERSIONS:
            supported = ", ".join(map(str, sorted(SUPPORTED_API_VERSIONS)))
            raise self.failed(
                PluginVersionError,
                f"was written for plugin API version {spec.api_version!r} ({hook}); this core has {supported}",
            )
        problem = _problem(spec)
        if problem:
            raise self.failed(PluginLoadError, f"returned a wrong {type(spec).__name__} from {hook}: {problem}")

    def provided(self) -> tuple[Provided, ...]:
        """Everything that it brings."""
        found = []
        for hook, kinds in _COLLECTED.items():
            for spec in self.collect(hook, kinds):
                kind, keys = _kind_and_keys(spec)
                found.append(Provided(kind, spec.name, keys, self.info.name, self.info.origin, spec))
        for number, one in enumerate(found):
            for other in found[:number]:
                if one.kind == other.kind and one.name == other.name:
                    raise self.failed(PluginLoadError, f"brings two things named {one.kind} {one.name!r}")
        return tuple(found)

    def finish(self, status: Status, started: float | None = None, **fields: Any) -> PluginInfo:
        info = self.info
        self.info = PluginInfo(
            info.name,
            info.distribution,
            info.version,
            info.entry_point,
            status,
            load_time=0.0 if started is None else time.perf_counter() - started,
            **fields,
        )
        return self.info


class PluginRegistry:
    """What all plugins bring, by name. It does not change after it was made, and may be shared by clients and threads.

    Make it with `load`, or with `from_plugins` in tests; `leveret.connect(plugins=...)` takes it.

    Attributes:
        settings: What it was made with.
        plugins: All plugins that were found, built-in ones first, used or not.

    Example:
        >>> PluginRegistry.from_plugins().names("compressor")
        ('deflate', 'gzip')
    """

    __slots__ = ("_by_key", "_by_name", "_loaded", "_specific", "plugins", "settings")

    plugins: tuple[PluginInfo, ...]
    settings: PluginSettings

    def __init__(self, settings: PluginSettings, loaded: Sequence[_Plugin]) -> None:
        by_name: dict[tuple[str, str], Provided] = {}
        by_key: dict[tuple[str, str], Provided] = {}
        specific: list[Provided] = []
        used: set[str] = set()
        for plugin in loaded:
            for each in plugin.info.provides:
                _claim(by_name, (each.kind, each.name), each, settings, used)
        for each in by_name.values():
            if isinstance(each.spec, SerializerSpec) and each.spec.models is not None:
                specific.append(each)
                continue
            for key in each.keys:
                _claim(by_key, (each.kind, key), each, settings, used)
        active = {name: p for p in loaded for name in (p.info.name, p.info.distribution) if p.info.status == "active"}
        for key, choice in settings.choose.items():
            if key not in used and choice not in active and choice not in (_BUILTIN.name, PROJECT):
                raise ConfigurationError(
                    f"choose gives {printable(key, 64)!r} to {printable(choice, 64)!r}, which is no plugin in use",
                    option="choose",
                )
        set_field = object.__setattr__
        set_field(self, "settings", settings)
        set_field(self, "plugins", tuple(plugin.info for plugin in loaded))
        set_field(self, "_loaded", tuple(plugin for plugin in loaded if plugin.hooks))
        set_field(self, "_by_name", MappingProxyType(by_name))
        set_field(self, "_by_key", MappingProxyType(by_key))
        set_field(self, "_specific", tuple(specific))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a PluginRegistry does not change")

    def __repr__(self) -> str:
        return f"<PluginRegistry {', '.join(info.name for info in self.plugins if info.provides)}>"

    # ------------------------------------------------------------------ making

    @classmethod
    def load(cls, settings: PluginSettings | None = None) -> PluginRegistry:
        """Finds the installed plugins and loads those that the settings allow.

        A plugin that is not allowed, or is blocked, is not imported. One that fails is logged, kept in `plugins` with
        its error, and does not stop the others, unless `strict`.

        Args:
            settings: What to allow; None reads `LEVERET_PLUGINS` and `LEVERET_PLUGINS_BLOCK`.

        Returns:
            The registry.

        Raises:
            PluginConflictError: Two plugins claim one name, content type or encoding, and `choose` does not say which.
            PluginError: With `strict`, a plugin failed.
            ConfigurationError: The settings name a plugin that is not installed.
        """
        settings = PluginSettings.from_env() if settings is None else settings
        found: list[tuple[_Plugin, importlib.metadata.EntryPoint]] = []
        for entry in importlib.metadata.entry_points(group=GROUP):
            distribution = entry.dist
            found.append(
                (
                    _Plugin(
                        entry.name,
                        distribution.name if distribution else "",
                        distribution.version if distribution else "",
                        entry.value,
                    ),
                    entry,
                )
            )
        # Not the order of installation: it differs between machines.
        found.sort(key=lambda pair: (pair[0].info.distribution.lower(), pair[0].info.name))
        found = _one_of_each_name(found, settings)
        if settings.allow is not None:
            installed = {name for plugin, _ in found for name in (plugin.info.name, plugin.info.distribution)}
            for name in settings.allow:
                if name not in installed:
                    known = ", ".join(sorted(plugin.info.name for plugin, _ in found)) or "none"
                    raise ConfigurationError(
                        f"allow names the plugin {printable(name, 64)!r}, which is not installed; installed are {known}",
                        option="allow",
                    )
        loaded = [_load_builtin()]
        objects: dict[int, str] = {}
        for plugin, entry in found:
            names = (plugin.info.name, plugin.info.distribution)
            if any(name in settings.block for name in names):
                plugin.finish("blocked")
            elif settings.allow is not None and not any(name in settings.allow for name in names):
                plugin.finish("not allowed")
            else:
                _load(plugin, lambda entry=entry: entry.load(), settings, objects)  # type: ignore[misc]
            loaded.append(plugin)
        return cls(settings, loaded)

    @classmethod
    def from_plugins(cls, *plugins: object, settings: PluginSettings | None = None) -> PluginRegistry:
        """Makes a registry of the built-in things and these plugins, without looking at entry points; for tests.

        Args:
            *plugins: Modules or other objects with hooks.
            settings: `choose` and `strict`; here failures raise unless `strict` is false.

        Returns:
            The registry.

        Raises:
            PluginError: A plugin is wrong, or two conflict.
        """
        settings = PluginSettings(strict=True) if settings is None else settings
        loaded = [_load_builtin()]
        objects: dict[int, str] = {}
        for plugin in plugins:
            name = getattr(plugin, "__name__", None) or type(plugin).__name__
            named = _Plugin(str(name))
            _load(named, lambda plugin=plugin: plugin, settings, objects)  # type: ignore[misc]
            loaded.append(named)
        return cls(settings, loaded)

    # ------------------------------------------------------------------ looking up

    def names(self, kind: str) -> tuple[str, ...]:
        """The names of everything of one kind, sorted; see `Provided.kind`."""
        return tuple(sorted(name for each, name in self._by_name if each == kind))

    def provided(self, kind: str, name: str, *, option: str = "") -> Provided:
        """Finds something by name.

        Args:
            kind: See `Provided.kind`.
            name: Its name.
            option: The option that named it, for the error.

        Returns:
            It, with the plugin that brings it.

        Raises:
            ConfigurationError: There is none; the text lists those there are and says what is blocked or failed.
        """
        try:
            return self._by_name[kind, name]
        except KeyError:
            word = kind.replace("_", " ")
            text = f"there is no {word} {printable(name, 64)!r}; known are {', '.join(self.names(kind)) or 'none'}"
            raise ConfigurationError(text + self._hint(name), option=option or _OPTIONS.get(kind, kind)) from None

    def _hint(self, name: str) -> str:
        for info in self.plugins:
            if name in (info.name, info.distribution) and info.status not in ("active", "built in"):
                why = f": {info.error}" if info.error else ""
                return f". Its plugin ({info.origin}) is {info.status}{why}"
        if name in _FIRST_PARTY:
            return f". Install leveret-{_FIRST_PARTY[name] or name}"
        return ""

    def readers(self, kind: str) -> Mapping[str, Provided]:
        """Who reads what: the serializers by content type or the compressors by content encoding."""
        return {key: each for (its_kind, key), each in self._by_key.items() if its_kind == kind}

    def specific_serializer(self, model: Any) -> Provided | None:
        """Finds the serializer that is for a model, among those that are not for all.

        Args:
            model: The model; None is nobody's.

        Returns:
            It, or None.

        Raises:
            PluginConflictError: Two claim the model.
            PluginError: A plugin could not say.
        """
        if model is None:
            return None
        claims = []
        for each in self._specific:
            spec = each.spec
            assert isinstance(spec, SerializerSpec)
            assert spec.models is not None
            if self._call(each, "could not say whether it takes the model", spec.models, model):
                claims.append(each)
        if len(claims) > 1:
            choice = self.settings.choose.get(claims[0].keys[0])
            chosen = [each for each in claims if choice in (each.plugin, each.origin.partition(" ")[0])]
            if len(chosen) == 1:
                return chosen[0]
            raise PluginConflictError(
                f"{claims[0].origin} and {claims[1].origin} both decode into {model!r}; name one with serializer=",
                distributions=(claims[0].origin, claims[1].origin),
            )
        return claims[0] if claims else None

    # ------------------------------------------------------------------ making what plugins describe

    def make_serializer(self, provided: Provided) -> Serializer:
        """Calls a serializer's factory.

        Raises:
            PluginError: The factory failed, or made something else.
        """
        assert isinstance(provided.spec, SerializerSpec)
        made = self._call(provided, "could not be made", provided.spec.factory)
        return self._has(provided, made, ("encode", "decoder"))

    def make_compressor(self, name: str, level: int | None = None) -> tuple[Compressor, Provided]:
        """Makes a compressor.

        Args:
            name: Its name.
            level: Its level; None stands for its own default.

        Returns:
            It, and who brings it.

        Raises:
            ConfigurationError: There is none with this name, or it has no such level.
            PluginError: The factory failed, or made something else.
        """
        provided = self.provided("compressor", name)
        spec = provided.spec
        assert isinstance(spec, CompressorSpec)
        lowest, highest = spec.levels
        if level is not None and not lowest <= level <= highest:
            raise ConfigurationError(
                f"compression_level is {level}; {name} has {lowest} to {highest}", option="compression_level"
            )
        made = self._call(provided, "could not be made", spec.factory, level)
        return self._has(provided, made, ("compress", "decompress")), provided

    def make_decompressor(self, provided: Provided) -> Compressor:
        """Makes the compressor that reads an encoding, at its default level.

        Raises:
            PluginError: The factory failed, or made something else.
        """
        assert isinstance(provided.spec, CompressorSpec)
        made = self._call(provided, "could not be made", provided.spec.factory, None)
        return self._has(provided, made, ("compress", "decompress"))

    def make_sink(self, name: str) -> tuple[MetricsSink, Provided]:
        """Makes a metrics sink.

        Raises:
            ConfigurationError: There is none with this name.
            PluginError: The factory failed, or made something else.
        """
        provided = self.provided("metrics", name)
        assert isinstance(provided.spec, MetricsSpec)
        made = self._call(provided, "could not be made", provided.spec.factory)
        return self._has(provided, made, ("start", "close")), provided

    def retry_policy(self, name: str) -> RetryPolicy:
        """Makes a retry policy with its defaults; see `make_sink` for what is raised."""
        return self._policy("retry", name, RetryPolicy)

    def backoff_policy(self, name: str) -> BackoffPolicy:
        """Makes a backoff policy with its defaults; see `make_sink` for what is raised."""
        return self._policy("backoff", name, BackoffPolicy)

    def circuit_breaker(self, name: str) -> CircuitBreaker:
        """Makes a circuit breaker with its defaults; see `make_sink` for what is raised."""
        return self._policy("circuit_breaker", name, CircuitBreaker)

    def _policy(self, kind: str, name: str, wanted: type[T]) -> T:
        provided = self.provided(kind, name)
        assert isinstance(provided.spec, PolicySpec)
        made = self._call(provided, "could not be made", provided.spec.factory)
        if not isinstance(made, wanted):
            raise PluginError(
                f"the {kind} policy {name!r} of {provided.origin} made a {type(made).__name__}, not a {wanted.__name__}",
                plugin=provided.plugin,
                distribution=provided.origin,
            )
        return made

    def _call(self, provided: Provided, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except LeveretError:
            raise
        except Exception as error:
            raise PluginError(
                f"the {provided.kind} {provided.name!r} of {provided.origin} {what}: {_describe(error)}",
                plugin=provided.plugin,
                distribution=provided.origin,
            ) from error

    def _has(self, provided: Provided, made: Any, names: tuple[str, ...]) -> Any:
        for name in names:
            if not callable(getattr(made, name, None)):
                raise PluginError(
                    f"the {provided.kind} {provided.name!r} of {provided.origin} has no {name}(): its factory made a "
                    f"{type(made).__name__}",
                    plugin=provided.plugin,
                    distribution=provided.origin,
                )
        return made

    # ------------------------------------------------------------------ rare hooks

    @property
    def has_connection_hooks(self) -> bool:
        """True when some plugin wants connection events."""
        return any("leveret_connection_event" in plugin.hooks for plugin in self._loaded)

    def connection_event(self, event: ConnectionEvent) -> None:
        """Tells all plugins that want to know; what one raises is logged with its name, and the others are told."""
        for plugin in self._loaded:
            function = plugin.hooks.get("leveret_connection_event")
            if function is None:
                continue
            arguments = [event] if plugin.argnames["leveret_connection_event"] else []
            try:
                function(*arguments)
            except Exception as error:
                logger.warning(
                    "plugin %r of %s failed in leveret_connection_event(%s): %s",
                    plugin.info.name,
                    plugin.info.origin,
                    event.kind.value,
                    _describe(error),
                )

    def commands(self) -> tuple[list[tuple[PluginInfo, CommandSpec]], list[PluginError]]:
        """The commands that plugins add to `leveret`.

        Returns:
            The commands with their plugins, and what went wrong with others.
        """
        found: list[tuple[PluginInfo, CommandSpec]] = []
        errors: list[PluginError] = []
        taken: dict[str, PluginInfo] = {}
        for plugin in self._loaded:
            try:
                specs: list[CommandSpec] = plugin.collect("leveret_cli", (CommandSpec,))
            except PluginError as error:
                errors.append(error)
                continue
            for spec in specs:
                if spec.name in taken:
                    errors.append(
                        PluginConflictError(
                            f"{taken[spec.name].origin} and {plugin.info.origin} both bring the command {spec.name!r}",
                            distributions=(taken[spec.name].origin, plugin.info.origin),
                        )
                    )
                else:
                    taken[spec.name] = plugin.info
                    found.append((plugin.info, spec))
        return found, errors


# ---------------------------------------------------------------------- loading


def hook_names() -> tuple[str, ...]:
    """The names of all hooks."""
    return tuple(name for name in vars(HookSpecs) if name.startswith(f"{PROJECT}_"))


_BUILTIN: Final = PluginInfo("builtin", PROJECT, "", "leveret.plugins.builtin")


def _load_builtin() -> _Plugin:
    from leveret import __version__

    plugin = _Plugin(_BUILTIN.name, PROJECT, __version__, _BUILTIN.entry_point)
    plugin.register(builtin)
    plugin.finish("built in", provides=plugin.provided())
    return plugin


def _load(plugin: _Plugin, get: Callable[[], object], settings: PluginSettings, objects: dict[int, str]) -> None:
    started = time.perf_counter()
    try:
        try:
            found = get()
        except (Exception, SystemExit) as error:
            raise plugin.failed(PluginLoadError, f"cannot be imported: {_describe(error)}") from error
        twin = objects.setdefault(id(found), plugin.info.name)
        if twin != plugin.info.name:
            raise plugin.failed(PluginLoadError, f"is the same object as plugin {twin!r}: it is registered twice")
        plugin.register(found)
        plugin.finish("active", started, provides=plugin.provided())
    except PluginError as error:
        if settings.strict:
            raise
        plugin.hooks.clear()
        plugin.finish("failed", started, error=error)
        logger.warning("%s; Leveret goes on without it", error)


def _one_of_each_name(
    found: list[tuple[_Plugin, importlib.metadata.EntryPoint]], settings: PluginSettings
) -> list[tuple[_Plugin, importlib.metadata.EntryPoint]]:
    """Refuses two plugins with one name, unless the settings block or choose."""
    kept: dict[str, tuple[_Plugin, importlib.metadata.EntryPoint]] = {}
    for plugin, entry in found:
        info = plugin.info
        if info.distribution in settings.block or info.name not in kept:
            kept[info.name if info.name not in kept else f"{info.distribution}:{info.name}"] = (plugin, entry)
            continue
        other = kept[info.name][0].info
        if other.distribution in settings.block:
            kept[f"{other.distribution}:{other.name}"] = kept[info.name]
            kept[info.name] = (plugin, entry)
        elif info.name in settings.block:
            continue
        elif settings.choose.get(info.name) == info.distribution:
            kept[info.name] = (plugin, entry)
        elif settings.choose.get(info.name) != other.distribution:
            raise PluginConflictError(
                f"{other.origin} and {info.origin} both bring a plugin named {info.name!r}; choose or block one",
                distributions=(other.origin, info.origin),
            )
    return list(kept.values())


def _claim(
    table: dict[tuple[str, str], Provided],
    key: tuple[str, str],
    each: Provided,
    settings: PluginSettings,
    used: set[str],
) -> None:
    other = table.setdefault(key, each)
    if other is each:
        return
    kind, name = key
    choice = settings.choose.get(name)
    chosen = [one for one in (other, each) if choice in (one.plugin, one.origin.partition(" ")[0])]
    if len(chosen) != 1:
        what = "content type" if "/" in name else "name" if name in (each.name, other.name) else "content encoding"
        raise PluginConflictError(
            f"{other.origin} (plugin {other.plugin!r}) and {each.origin} (plugin {each.plugin!r}) both bring a {kind} "
            f"for the {what} {name!r}; block one, or choose with choose={{{name!r}: {each.plugin!r}}}",
            distributions=(other.origin, each.origin),
        )
    used.add(name)
    table[key] = chosen[0]


def _kind_and_keys(spec: Spec) -> tuple[str, tuple[str, ...]]:
    if isinstance(spec, SerializerSpec):
        return "serializer", (spec.content_type, *spec.aliases)
    if isinstance(spec, CompressorSpec):
        return "compressor", (spec.content_encoding, *spec.aliases)
    if isinstance(spec, PolicySpec):
        return spec.kind, ()
    return ("metrics" if isinstance(spec, MetricsSpec) else "serializer"), ()


def _problem(spec: Any) -> str:
    """What is wrong with a descriptor, or an empty string."""
    if not isinstance(spec.name, str) or not _NAME.fullmatch(spec.name):
        return f"its name is {spec.name!r}; it must be lower-case letters, digits, '-', '_' and '.', at most 64"
    functions = {"factory": True, "select": True, "load": True, "models": False}
    for name, needed in functions.items():
        function = getattr(spec, name, None)
        if hasattr(spec, name) and not callable(function) and (needed or function is not None):
            return f"its {name} is a {type(function).__name__}, which cannot be called"
    pattern = _CONTENT_TYPE if isinstance(spec, SerializerSpec) else _CONTENT_ENCODING
    keys: Any = ()
    if isinstance(spec, SerializerSpec):
        keys = (spec.content_type, *_strings(spec.aliases))
    elif isinstance(spec, CompressorSpec):
        keys = (spec.content_encoding, *_strings(spec.aliases))
        levels = spec.levels
        if not (isinstance(levels, tuple) and list(map(type, levels)) == [int, int] and levels[0] <= levels[1]):
            return f"its levels are {levels!r}; they must be (lowest, highest)"
    elif isinstance(spec, CompositeSpec):
        if not spec.parts or not all(isinstance(part, str) for part in _strings(spec.parts)):
            return "its parts must be names of serializers"
    elif isinstance(spec, PolicySpec) and spec.kind not in _POLICIES:
        return f"its kind is {spec.kind!r}; it must be one of {', '.join(_POLICIES)}"
    for key in keys:
        if not isinstance(key, str) or not pattern.fullmatch(key) or len(key) > 255:
            return f"{key!r} is not a {'content type' if pattern is _CONTENT_TYPE else 'content encoding'}"
    return ""


def _strings(value: Any) -> tuple[Any, ...]:
    # A lone string is a sequence of letters, which nobody means.
    return (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)


def _describe(error: BaseException) -> str:
    text = printable(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
