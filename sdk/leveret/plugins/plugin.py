"""A plugin that was found: what is declared of it, and, once it is imported, its hooks and descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from leveret.errors import PluginError, printable
from leveret.plugins.interfaces import (
    CommandSpec,
    CompositeSpec,
    CompressorSpec,
    MetricsSpec,
    PolicySpec,
    SerializerSpec,
)
from leveret.records import dataclass, field, replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.errors import PluginConflictError
    from leveret.plugins.declarations import Declaration

__all__ = [
    "Plugin",
    "PluginInfo",
    "Provided",
    "Spec",
    "Status",
    "comparable",
    "describe",
    "kind_and_keys",
    "normalized",
]

_SEPARATORS: Final = str.maketrans("_.", "--")

Spec = SerializerSpec | CompositeSpec | CompressorSpec | MetricsSpec | PolicySpec | CommandSpec

Status = Literal[
    "built in",
    "declared",  # not imported yet
    "active",
    "blocked",
    "not allowed",
    "not chosen",
    "conflict",
    "failed",
]


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
        is_specific: Whether it is a serializer for certain models only.
        models_of: The packages of these models, where the plugin declares them.
    """

    kind: str
    name: str
    keys: tuple[str, ...]
    plugin: str
    distribution: str
    origin: str
    is_specific: bool
    models_of: tuple[str, ...]
    _source: Plugin = field(repr=False)

    @property
    def spec(self) -> Spec:
        """Its descriptor. A plugin that is not imported yet is imported here.

        Raises:
            PluginError: The plugin could not be imported, or is not what it declares.
        """
        return self._source.spec(self.kind, self.name)

    @property
    def is_imported(self) -> bool:
        """Whether its plugin is imported."""
        return self._source.info.status != "declared"

    @property
    def error(self) -> PluginError | None:
        """The error that its plugin failed with, or None."""
        return self._source.info.error if self._source.info.status == "failed" else None

    @property
    def claims(self) -> tuple[str, ...]:
        """The normalized keys that no other plugin may have."""
        return () if self.is_specific else tuple(dict.fromkeys(map(comparable, self.keys)))

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
        status: Whether it is used, or why not. "declared": it is imported when something of it is used.
        hooks: The names of its hooks; empty unless it is used.
        provides: Its serializers, compressors, sinks and policies; empty unless it is used.
        load_time: Seconds for importing it and calling its hooks; 0 as long as it is not imported.
        error: The error that it failed with, or None.
        declares: Whether it declares what it provides, so that it is imported when it is used.
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
    declares: bool = False

    @property
    def origin(self) -> str:
        """The distribution and version; for a plugin object, its name."""
        return f"{self.distribution} {self.version}".strip() or f"the plugin object {self.name!r}"


class Plugin:
    """A plugin, imported or not.

    Args:
        name: The name of its entry point.
        get: Imports and returns it.
        seen: The plugins of the registry by the identity of what was imported; no object is a plugin twice.
        distribution: Its distribution.
        version: The distribution's version.
        entry_point: The module that its entry point names.

    Attributes:
        info: What is known of it.
        declaration: What it declares; None when it has to be imported to know.
        hooks: Its hook functions by name.
        argnames: The arguments that each hook function takes.
    """

    def __init__(
        self,
        name: str,
        get: Callable[[], object],
        seen: dict[int, Plugin],
        *,
        distribution: str = "",
        version: str = "",
        entry_point: str = "",
    ) -> None:
        self.info = PluginInfo(name, distribution, version, entry_point)
        self.declaration: Declaration | None = None
        self.hooks: dict[str, Callable[..., Any]] = {}
        self.argnames: dict[str, tuple[str, ...]] = {}
        self.get = get
        self.seen = seen
        self._specs: dict[tuple[str, str], Spec] = {}

    @property
    def names(self) -> tuple[str, str]:
        """The normalized names that settings may use for it."""
        return normalized(self.info.name), normalized(self.info.distribution)

    @property
    def where(self) -> str:
        """The plugin, its distribution and its entry point, for errors."""
        info = self.info
        place = f"plugin {info.name!r} of {info.origin}" if info.distribution else f"plugin {info.name!r}"
        return f"{place} (entry point {info.entry_point})" if info.entry_point else place

    def is_same_as(self, other: Plugin) -> bool:
        """Returns whether both are the same entry point of the same distribution."""
        mine, its = self.info, other.info
        return (mine.name, mine.distribution, mine.entry_point) == (its.name, its.distribution, its.entry_point)

    def failed(self, kind: type[PluginError], text: str) -> PluginError:
        """Makes an error that names the plugin."""
        info = self.info
        return kind(
            f"{self.where} {text}",
            plugin=info.name,
            distribution=info.distribution,
            version=info.version,
            entry_point=info.entry_point,
        )

    # ------------------------------------------------------------------ declared, imported

    def declare(self, declaration: Declaration) -> None:
        """Takes what the plugin declares in place of importing it."""
        self.declaration = declaration
        provides = (
            self._provided(it.kind, it.name, tuple(it.keys), tuple(it.models_of)) for it in declaration.provides
        )
        hooks = tuple(declaration.hooks)
        self.info = replace(self.info, status="declared", hooks=hooks, provides=tuple(provides), declares=True)

    def load(self, *, strict: bool = False) -> None:
        """Imports the plugin and calls its hooks. A failure is logged and kept, or raised when `strict`."""
        from leveret.plugins.loading import load  # with pluggy: a program without plugins needs neither

        load(self, strict=strict)

    def use(self) -> None:
        """Imports the plugin unless it is imported.

        Raises:
            PluginError: It failed.
        """
        if self.info.status == "declared":
            self.load()
        if self.info.status == "failed":
            assert self.info.error is not None
            raise self.info.error

    def spec(self, kind: str, name: str) -> Spec:
        """Returns a descriptor, for which the plugin is imported; raises as `use`."""
        self.use()
        return self._specs[kind, name]

    def keep(self, specs: list[Spec]) -> tuple[Provided, ...]:
        """Takes the descriptors that the hooks returned; returns what is provided with them."""
        found = []
        for spec in specs:
            kind, keys = kind_and_keys(spec)
            self._specs[kind, spec.name] = spec
            models = isinstance(spec, SerializerSpec) and spec.models is not None
            found.append(self._provided(kind, spec.name, keys, (), is_specific=models))
        return tuple(found)

    def _provided(
        self, kind: str, name: str, keys: tuple[str, ...], models_of: tuple[str, ...], *, is_specific: bool = False
    ) -> Provided:
        info = self.info
        specific = is_specific or bool(models_of)
        return Provided(kind, name, keys, info.name, info.distribution, info.origin, specific, models_of, self)

    def leave_out(self, status: Status) -> None:
        """Records why the plugin is not imported."""
        self.info = replace(self.info, status=status, hooks=(), provides=())

    def conflict(self, error: PluginConflictError) -> None:
        """Records that the plugin conflicts with another one. The core's own keeps its status."""
        status = self.info.status if self.info.status == "built in" else "conflict"
        self.info = replace(self.info, status=status, error=error)


def kind_and_keys(spec: Spec) -> tuple[str, tuple[str, ...]]:
    """Returns the kind of a descriptor, and the content types or encodings that it claims."""
    if isinstance(spec, SerializerSpec):
        return "serializer", (spec.content_type, *spec.aliases)
    if isinstance(spec, CompressorSpec):
        return "compressor", (spec.content_encoding, *spec.aliases)
    if isinstance(spec, PolicySpec):
        return spec.kind, ()
    return ("metrics" if isinstance(spec, MetricsSpec) else "serializer"), ()


def comparable(key: str) -> str:
    """Normalizes a content type or encoding for comparisons: ignores case and blanks (RFC 2045 section 5.1)."""
    return ";".join(part.strip().lower() for part in key.split(";"))


def normalized(name: str) -> str:
    """Normalizes the name of a plugin or distribution for comparisons (PEP 503)."""
    name = name.lower().translate(_SEPARATORS)
    while "--" in name:
        name = name.replace("--", "-")
    return name


def describe(error: BaseException) -> str:
    """Returns the error's type and text, safe to print."""
    try:
        text = printable(str(error))
    except Exception:
        text = ""  # str() of the error failed
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
