"""The registry of plugins: finds them, checks for conflicts, freezes, and makes what they describe.

A plugin that declares in a file what it is (`declarations`) is imported when something of it is used. One that declares
nothing is imported when the registry is made, because only then is it known what it brings.

pluggy's own loader stops at the first failing import, silently skips a second plugin of the same name, and lets the
order of loading decide. Here each plugin is loaded by itself, a failure is kept with its distribution, and two plugins
for one name are an error unless the settings choose.
"""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from leveret.errors import ConfigurationError, PluginConflictError, PluginError, printable
from leveret.plugins import builtin
from leveret.plugins.declarations import FILE, Declaration, declarations_in
from leveret.plugins.finding import GROUP, entry_points
from leveret.plugins.interfaces import (
    BackoffPolicy,
    BreakerPolicy,
    CompressorSpec,
    ConnectionEvent,
    MetricsSpec,
    PolicySpec,
    RetryPolicy,
    SerializerSpec,
)
from leveret.plugins.plugin import Plugin, PluginInfo, Provided, describe, normalized
from leveret.records import dataclass, replace
from leveret.settings import PluginSettings
from leveret.settings.functions import is_async, methods_of
from leveret.settings.names import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from leveret.plugins.finding import EntryPoint
    from leveret.plugins.interfaces import CommandSpec, Compressor, MetricsSink, MetricsSource, Serializer

    #: Conflicts, each with the names and distributions of the plugins that are to be marked.
    Conflicts = list[tuple[PluginConflictError, set[tuple[str, str]]]]

__all__ = ["GROUP", "PluginInfo", "PluginRegistry", "Provided"]

logger = logging.getLogger("leveret.plugins")

#: The option that names each kind, where it differs from the kind.
_OPTIONS: Final = {"metrics": "sinks"}
#: The distribution to install for each name of the first-party plugins.
_FIRST_PARTY: Final = {
    **{
        name: f"leveret-{name}"
        for name in ("msgpack", "lz4", "zstd", "protobuf", "pydantic", "prometheus", "opentelemetry")
    },
    **dict.fromkeys(("exponential", "linear", "fixed", "failure-rate"), "leveret-resilience"),
}

#: The hooks for which a plugin is imported before anything of it is named.
_EVENT: Final = "leveret_connection_event"
_COMMANDS: Final = "leveret_cli"

#: Registries by settings and import path, and the most of them.
_shared: dict[tuple[object, ...], PluginRegistry] = {}
_MOST_SHARED: Final = 16


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PluginRegistry:
    """The serializers, compressors, sinks, policies and commands of all plugins. Clients may share it.

    What it has does not change, except that plugins are imported when they are used, and that what belongs to a plugin
    that fails then is no longer there.

    `connect` takes the `shared` one. Make another with `load`, or in tests with `from_plugins`, and pass it to
    `leveret.connect(plugins=...)`.

    Attributes:
        settings: The settings that it was made with.

    Example:
        >>> PluginRegistry.from_plugins().names("compressor")
        ('deflate', 'gzip')
    """

    settings: PluginSettings
    _found: tuple[Plugin, ...]
    _by_name: Mapping[tuple[str, str], Provided]
    _by_key: Mapping[tuple[str, str], Provided]
    _specific: tuple[Provided, ...]

    def __repr__(self) -> str:
        return f"<PluginRegistry {', '.join(info.name for info in self.plugins if info.provides)}>"

    @property
    def plugins(self) -> tuple[PluginInfo, ...]:
        """All plugins that were found, used or not; the built-in one first."""
        return tuple(plugin.info for plugin in self._found)

    # ------------------------------------------------------------------ making

    @classmethod
    def load(cls, settings: PluginSettings | None = None, *, at_once: bool = False) -> PluginRegistry:
        """Finds the installed plugins that the settings allow.

        A plugin that is blocked or not allowed is never imported. One that declares in its `leveret.json` what it
        provides is imported when something of it is used; the others are imported here. A plugin that fails is logged
        and kept in `plugins` with its error. A distribution that cannot be read is logged and left out.

        Args:
            settings: The plugins to allow, block and choose; None reads `LEVERET_PLUGINS_ALLOW`, `..._BLOCK` and
                `..._STRICT`. With `strict`, all plugins are imported here, and one that fails is an error.
            at_once: True imports all plugins here.

        Returns:
            The registry.

        Raises:
            PluginConflictError: Two plugins claim one name, content type or encoding, and `choose` names neither.
            PluginError: With `strict`, a plugin failed.
            ConfigurationError: The settings name a plugin that is not installed.
        """
        return cls._installed(settings, None, at_once=at_once)

    @classmethod
    def shared(cls, settings: PluginSettings | None = None) -> PluginRegistry:
        """Returns the registry of these settings, which is loaded once per process; `connect` uses it.

        Plugins that are installed later are not in it, unless they are in a folder that was added to `sys.path`
        since.

        Args:
            settings: As for `load`.

        Returns:
            The registry.

        Raises:
            PluginConflictError, PluginError, ConfigurationError: As `load`; the next call tries again.
        """
        settings = PluginSettings.from_env() if settings is None else settings
        key = (settings.allow, settings.block, settings.strict, *sorted(settings.choose.items()), *sys.path)
        registry = _shared.get(key)
        if registry is None:
            registry = cls.load(settings)
            if len(_shared) == _MOST_SHARED:
                _shared.clear()
            _shared[key] = registry
        return registry

    @classmethod
    def survey(cls, settings: PluginSettings | None = None) -> PluginRegistry:
        """Imports the installed plugins as `load` does, but raises for no conflict, for a list of all plugins.

        Plugins that conflict have the status "conflict" and the error; one that bears the name of another is not
        imported. What two of them provide for one name is not in the registry, so it is not for use by a client.

        Args:
            settings: As for `load`.

        Returns:
            The registry.

        Raises:
            PluginError: With `strict`, a plugin failed.
            ConfigurationError: The settings name a plugin that is not installed.
        """
        return cls._installed(settings, [], at_once=True)

    @classmethod
    def _installed(
        cls, settings: PluginSettings | None, conflicts: Conflicts | None, *, at_once: bool
    ) -> PluginRegistry:
        """Finds the installed plugins; collects conflicts, or raises the first when `conflicts` is None."""
        settings = PluginSettings.from_env() if settings is None else settings
        found: list[tuple[Plugin, EntryPoint]] = []
        seen: dict[int, Plugin] = {}
        for entry in entry_points():
            plugin = Plugin(
                entry.name,
                entry.load,
                seen,
                distribution=entry.distribution,
                version=entry.version,
                entry_point=entry.value,
            )
            # An interrupted pip may leave a second folder with the same metadata.
            if not any(plugin.is_same_as(other) for other, _ in found):
                found.append((plugin, entry))
        # Sorted, because the order of installation differs between machines.
        found.sort(key=lambda pair: (pair[0].info.distribution.lower(), pair[0].info.name))
        plugins = [plugin for plugin, _ in found]
        _leave_out(plugins, settings, conflicts)
        for plugin, entry in found:
            if plugin.info.status != "active":
                continue
            declaration = _declaration(plugin, entry)
            if declaration is not None:
                plugin.declare(declaration)
            if declaration is None or at_once or settings.strict or _EVENT in declaration.hooks:
                plugin.load(strict=settings.strict)
        return cls._of(settings, [_builtin(), *plugins], conflicts)

    @classmethod
    def from_plugins(cls, *plugins: object, settings: PluginSettings | None = None) -> PluginRegistry:
        """Makes a registry of the built-in plugin and these plugins, for tests. It reads no entry points.

        Args:
            *plugins: Modules or other objects with hooks.
            settings: Settings with `choose` and `strict`. By default `strict` is true, and failures raise.

        Returns:
            The registry.

        Raises:
            PluginError: A plugin is not valid, or two conflict.
        """
        settings = PluginSettings(strict=True) if settings is None else settings
        loaded = [_builtin()]
        seen: dict[int, Plugin] = {}
        for plugin in plugins:
            named = Plugin(str(getattr(plugin, "__name__", type(plugin).__name__)), partial(_same, plugin), seen)
            named.load(strict=settings.strict)
            loaded.append(named)
        return cls._of(settings, loaded, None)

    @classmethod
    def _of(cls, settings: PluginSettings, plugins: Sequence[Plugin], conflicts: Conflicts | None) -> PluginRegistry:
        named: defaultdict[tuple[str, str], list[Provided]] = defaultdict(list)
        for plugin in plugins:
            for each in plugin.info.provides:
                named[each.kind, each.name].append(each)
        by_name = _chosen(named, settings, conflicts)
        specific: list[Provided] = []
        keyed: defaultdict[tuple[str, str], list[Provided]] = defaultdict(list)
        for each in by_name.values():
            if each.is_specific:
                specific.append(each)
                continue
            for key in each.claims:
                keyed[each.kind, key].append(each)
        known = {name for plugin in plugins for name in plugin.names}
        for key, choice in settings.choose.items():
            if normalized(choice) not in known:
                raise ConfigurationError(
                    f"choose assigns {printable(key, 64)!r} to {printable(choice, 64)!r}, which is not installed",
                    option="choose",
                )
        by_key = _chosen(keyed, settings, conflicts)
        for error, names in conflicts or ():
            for plugin in plugins:
                if (plugin.info.name, plugin.info.distribution) in names:
                    plugin.conflict(error)
        return cls(
            settings,
            tuple(plugins),
            MappingProxyType(by_name),
            MappingProxyType(by_key),
            tuple(specific),
        )

    # ------------------------------------------------------------------ looking up

    def names(self, kind: str) -> tuple[str, ...]:
        """Returns the sorted names of one kind; see `Provided.kind`."""
        return tuple(sorted(name for (each, name), it in self._by_name.items() if each == kind and it.error is None))

    def provided(self, kind: str, name: str, *, option: str = "") -> Provided:
        """Looks something up by kind and name, and imports its plugin.

        Args:
            kind: See `Provided.kind`.
            name: The name.
            option: The option that named it, for the error.

        Raises:
            ConfigurationError: The name is not known. The text lists the known names, and tells if a plugin of this
                name is blocked, failed or not installed.
        """
        found = self._by_name.get((kind, name))
        if found is not None and _usable(found):
            return found
        word = kind.replace("_", " ")
        known = self.names(kind)
        text = f"there is no {word} {printable(name, 64)!r}; known are {', '.join(known) or 'none'}"
        hint = self._hint(name if found is None else found.plugin)
        if not hint and (meant := suggestion(name, (*known, *_FIRST_PARTY))):
            hint = f". Did you mean {meant!r}?" + ("" if meant in known else self._hint(meant).rstrip("."))
        raise ConfigurationError(text + hint, option=option or _OPTIONS.get(kind, kind))

    def imported(self, plugin: str) -> PluginInfo:
        """Imports a plugin unless it is imported.

        Args:
            plugin: The plugin's name.

        Returns:
            What is known of it then.

        Raises:
            ConfigurationError: There is no such plugin, or it is not used.
            PluginError: It cannot be imported, or is not what it declares.
        """
        for each in self._found:
            if each.info.name == plugin and each.info.status in ("declared", "active", "built in"):
                each.use()
                return each.info
        found = ", ".join(f"{info.name} ({info.status})" for info in self.plugins)
        raise ConfigurationError(
            f"there is no active plugin {printable(plugin, 64)!r}; this registry has {found}", option="plugin"
        )

    def _hint(self, name: str) -> str:
        for info in self.plugins:
            if name in (info.name, info.distribution) and info.status not in ("active", "built in", "declared"):
                why = f": {info.error}" if info.error else ""
                return f". Its plugin ({info.origin}) is {info.status}{why}"
        if name in _FIRST_PARTY:
            return f". Install {_FIRST_PARTY[name]}"
        return ""

    def readers(self, kind: str) -> Mapping[str, Provided]:
        """Returns the serializers by content type, or the compressors by content encoding, in lower case."""
        return {key: each for (its_kind, key), each in self._by_key.items() if its_kind == kind and each.error is None}

    def specific_serializer(self, model: Any) -> Provided | None:
        """Finds the serializer for a model among the serializers for certain models.

        Args:
            model: The model; for None there is no such serializer.

        Returns:
            The serializer, or None.

        Raises:
            PluginConflictError: Two serializers claim the model.
        """
        if model is None:
            return None
        claims = []
        for each in self._specific:
            # A model of a package that is not imported does not exist.
            if not each.is_imported and sys.modules.keys().isdisjoint(each.models_of):
                continue
            if not _usable(each):
                continue
            spec = each.spec
            assert isinstance(spec, SerializerSpec)
            assert spec.models is not None
            try:
                if spec.models(model):
                    claims.append(each)
            except Exception as error:
                # A model can be any class of an application; a plugin that fails on it does not get it.
                logger.warning("%s failed to tell whether it supports %r: %s", each.origin, model, describe(error))
        if len(claims) > 1:
            chosen = [each for each in claims if each.is_of(self.settings.choose.get(claims[0].keys[0]))]
            if len(chosen) == 1:
                return chosen[0]
            raise PluginConflictError(
                f"{claims[0].origin} and {claims[1].origin} both decode into {model!r}; name one with serializer=",
                distributions=(claims[0].origin, claims[1].origin),
            )
        return claims[0] if claims else None

    # ------------------------------------------------------------------ calling factories

    def make_serializer(self, provided: Provided, options: Mapping[str, object] | None = None) -> Serializer:
        """Calls a serializer's factory.

        Args:
            provided: The serializer.
            options: The options of a producer or consumer; the factory gets those that it takes.

        Raises:
            PluginError: The factory failed, or did not return a serializer.
        """
        assert isinstance(provided.spec, SerializerSpec)
        taken = {name: value for name, value in (options or {}).items() if name in provided.spec.options}
        made = self._call(provided, "could not be made", partial(provided.spec.factory, **taken))
        _check_has(provided, made, ("encode", "decoder"))
        return cast("Serializer", made)

    def make_compressor(self, provided: Provided, level: int | None = None) -> Compressor:
        """Calls a compressor's factory.

        Args:
            provided: The compressor.
            level: The level; None for the compressor's own default.

        Raises:
            ConfigurationError: The compressor has no such level.
            PluginError: The factory failed, or did not return a compressor.
        """
        spec = provided.spec
        assert isinstance(spec, CompressorSpec)
        lowest, highest = spec.levels
        if level is not None and not lowest <= level <= highest:
            raise ConfigurationError(
                f"compression_level is {level}; {provided.name} has {lowest} to {highest}", option="compression_level"
            )
        made = self._call(provided, "could not be made", spec.factory, level)
        _check_has(provided, made, ("compress", "decompress"))
        return cast("Compressor", made)

    def make_sink(self, name: str) -> tuple[MetricsSink, Provided]:
        """Makes a metrics sink.

        Raises:
            ConfigurationError: No sink has this name.
            PluginError: The factory failed, or did not return a sink.
        """
        provided = self.provided("metrics", name)
        assert isinstance(provided.spec, MetricsSpec)
        made = self._call(provided, "could not be made", provided.spec.factory)
        _check_has(provided, made, ("start", "close"))
        return made, provided

    def renderer(self) -> Callable[[MetricsSource], tuple[str, bytes]] | None:
        """Returns what writes metrics as text for HTTP, of the first sink by name that can; None if none can."""
        specs = [it.spec for (kind, _), it in self._by_name.items() if kind == "metrics" and _usable(it)]
        able = [it for it in specs if isinstance(it, MetricsSpec) and it.render is not None]
        return min(able, key=lambda spec: spec.name).render if able else None

    def retry_policy(self, name: str) -> RetryPolicy:
        """Makes a retry policy with its defaults; raises like `make_sink`."""
        return cast("RetryPolicy", self._policy("retry", name, RetryPolicy))

    def backoff_policy(self, name: str) -> BackoffPolicy:
        """Makes a backoff policy with its defaults; raises like `make_sink`."""
        return cast("BackoffPolicy", self._policy("backoff", name, BackoffPolicy))

    def circuit_breaker(self, name: str) -> BreakerPolicy:
        """Makes a circuit breaker with its defaults; raises like `make_sink`."""
        return cast("BreakerPolicy", self._policy("circuit_breaker", name, BreakerPolicy))

    def _policy(self, kind: str, name: str, wanted: type) -> object:
        provided = self.provided(kind, name)
        assert isinstance(provided.spec, PolicySpec)
        made = self._call(provided, "could not be made", provided.spec.factory)
        if not isinstance(made, wanted):
            raise PluginError(
                f"the {kind} {name!r} of {provided.origin} is a {type(made).__name__}, which is no {wanted.__name__}",
                plugin=provided.plugin,
                distribution=provided.distribution,
            )
        _check_has(provided, made, methods_of(wanted))
        return made

    def _call(self, provided: Provided, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(
                f"the {provided.kind} {provided.name!r} of {provided.origin} {what}: {describe(error)}",
                plugin=provided.plugin,
                distribution=provided.distribution,
            ) from error

    # ------------------------------------------------------------------ rare hooks

    def connection_event(self, event: ConnectionEvent) -> None:
        """Calls `leveret_connection_event` of all plugins that have it. Errors are logged with the plugin's name."""
        for plugin in self._found:
            function = plugin.hooks.get(_EVENT)
            if function is None:
                continue
            arguments = [event] if plugin.argnames[_EVENT] else []
            try:
                function(*arguments)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                logger.warning(
                    "plugin %r of %s failed in leveret_connection_event(%s): %s",
                    plugin.info.name,
                    plugin.info.origin,
                    event.kind.value,
                    describe(error),
                )

    def commands(self) -> tuple[list[tuple[PluginInfo, CommandSpec]], list[PluginError]]:
        """Collects the commands that plugins add to `leveret`. Plugins with commands are imported.

        Returns:
            The commands with their plugins, and the errors of other plugins.
        """
        found: list[tuple[PluginInfo, CommandSpec]] = []
        errors: list[PluginError] = []
        taken: dict[str, PluginInfo] = {}
        from leveret.plugins.interfaces import CommandSpec
        from leveret.plugins.loading import collect

        for plugin in self._found:
            if _COMMANDS not in plugin.info.hooks:
                continue
            try:
                plugin.use()
                specs: list[CommandSpec] = collect(plugin, _COMMANDS, (CommandSpec,))
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


# ---------------------------------------------------------------------- which plugins


def _builtin() -> Plugin:
    from leveret import __version__

    place = builtin.__name__
    plugin = Plugin("builtin", lambda: builtin, {}, distribution="leveret", version=__version__, entry_point=place)
    provides = plugin.keep([*builtin.leveret_serializers(), *builtin.leveret_compressors()])
    hooks = ("leveret_serializers", "leveret_compressors")
    plugin.info = replace(plugin.info, status="built in", hooks=hooks, provides=provides)
    return plugin


def _same(plugin: object) -> object:
    return plugin


def _declaration(plugin: Plugin, entry: EntryPoint) -> Declaration | None:
    """Reads what a plugin declares; None when it has to be imported to know."""
    try:
        return declarations_in(entry.module.partition(".")[0], entry.folder).get(plugin.info.name)
    except ValueError as error:
        logger.warning("%s has a wrong %s, which is ignored: %s", plugin.where, FILE, describe(error))
        return None


def _usable(provided: Provided) -> bool:
    """Imports the plugin that provides something; False when that fails, which is logged."""
    try:
        return provided.spec is not None
    except PluginError:
        return False


def _add(conflicts: Conflicts | None, error: PluginConflictError, names: set[tuple[str, str]]) -> None:
    """Notes a conflict of plugins, which are meant by their names and distributions, or raises its error."""
    if conflicts is None:
        raise error
    conflicts.append((error, names))


def _leave_out(plugins: Sequence[Plugin], settings: PluginSettings, conflicts: Conflicts | None) -> None:
    """Marks the plugins that are not to be imported."""
    known = {name for plugin in plugins for name in plugin.names}
    for name in settings.allow or ():
        if normalized(name) not in known:
            installed = ", ".join(sorted(plugin.info.name for plugin in plugins)) or "none"
            raise ConfigurationError(
                f"allow names the plugin {printable(name, 64)!r}, which is not installed; installed are {installed}",
                option="allow",
            )
    block = set(map(normalized, settings.block))
    allow = None if settings.allow is None else set(map(normalized, settings.allow))
    for name in block - known:
        logger.info("block names the plugin %r, which is not installed", printable(name, 64))
    named: defaultdict[str, list[Plugin]] = defaultdict(list)
    for plugin in plugins:
        if not block.isdisjoint(plugin.names):
            plugin.leave_out("blocked")
        elif allow is not None and allow.isdisjoint(plugin.names):
            plugin.leave_out("not allowed")
        else:
            named[plugin.info.name].append(plugin)
    for name, twins in named.items():
        chosen = twins
        if len(twins) > 1:
            choice = normalized(settings.choose.get(name, ""))
            chosen = [plugin for plugin in twins if normalized(plugin.info.distribution) == choice]
        if len(chosen) != 1:
            one, other = (plugin.info.origin for plugin in twins[:2])
            conflict = PluginConflictError(
                f"{one} and {other} both bring a plugin named {name!r}; block or choose one of the distributions",
                distributions=(one, other),
            )
            _add(conflicts, conflict, set())
            for plugin in twins:
                plugin.conflict(conflict)
            continue
        for plugin in twins:
            if plugin is not chosen[0]:
                plugin.leave_out("not chosen")


def _chosen(
    candidates: Mapping[tuple[str, str], Sequence[Provided]], settings: PluginSettings, conflicts: Conflicts | None
) -> dict[tuple[str, str], Provided]:
    """Returns one candidate for each name or key. The settings choose among several."""
    table = {}
    for (kind, name), claims in candidates.items():
        chosen = list(claims)
        if len(claims) > 1:
            chosen = [each for each in claims if each.is_of(settings.choose.get(name))]
        if len(chosen) != 1:
            one, other = claims[:2]
            conflict = PluginConflictError(
                f"{one.origin} (plugin {one.plugin!r}) and {other.origin} (plugin {other.plugin!r}) both bring a "
                f"{kind} for {name!r}; block one of them, or choose, as with choose={{{name!r}: {other.plugin!r}}}",
                distributions=(one.origin, other.origin),
            )
            _add(conflicts, conflict, {(each.plugin, each.distribution) for each in claims})
            continue
        table[kind, name] = chosen[0]
    return table


def _check_has(provided: Provided, made: object, names: Iterable[str]) -> None:
    problem = ""
    for name in names:
        if not callable(getattr(made, name, None)):
            problem = f"has no {name}(): its factory made a {type(made).__name__}"
        elif is_async(getattr(made, name)):
            problem = f"has an `async def` {name}(), which is not awaited"
        if problem:
            raise PluginError(
                f"the {provided.kind} {provided.name!r} of {provided.origin} {problem}",
                plugin=provided.plugin,
                distribution=provided.distribution,
            )
