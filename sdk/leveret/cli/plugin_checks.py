"""The checks of `leveret plugins check`: metadata, imports, loading, conflicts, and the conformance kits."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from leveret.cli.failures import CommandFailed
from leveret.errors import PluginConflictError, PluginVersionError, printable
from leveret.plugins import SUPPORTED_API_VERSIONS, PluginRegistry
from leveret.plugins.finding import GROUP, entry_points
from leveret.plugins.plugin import normalized
from leveret.settings import PluginSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from leveret.plugins.finding import EntryPoint
    from leveret.plugins.registry import PluginInfo

__all__ = ["STATUSES", "Check", "Finding", "checks"]

Status = Literal["ok", "failed", "not checked"]
STATUSES: Final[tuple[Status, ...]] = ("ok", "failed", "not checked")

#: Modules whose interfaces are promised to plugins. Tests of plugins may use `leveret.testing`, too.
_PROMISED: Final = ("leveret.plugins", "leveret.errors", "leveret.message")
_CORE: Final = "leveret"


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of a check.

    Attributes:
        title: The property that was checked.
        status: "ok", "failed", or "not checked".
        text: The details: what is right or wrong, or why it was not checked.
    """

    title: str
    status: Status
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """A check that can be run.

    Attributes:
        plugin: The plugin's name.
        title: What the check looks at.
        run: Runs the check and returns one or more findings. It takes a function that it tells its progress.
    """

    plugin: str
    title: str
    run: Callable[[Callable[[str], None]], list[Finding]]


def checks(name: str, core_commands: Collection[str]) -> list[Check]:
    """Makes the checks of a plugin, or of all plugins of a distribution.

    Args:
        name: The name of a plugin or distribution.
        core_commands: The names of the commands that Leveret itself brings.

    Returns:
        The checks. None of them has run.

    Raises:
        CommandFailed: No such plugin or distribution is installed.
    """
    entries = entry_points()
    wanted = normalized(name)
    found = [entry for entry in entries if entry.name == name or normalized(entry.distribution) == wanted]
    if not found:
        raise CommandFailed(_unknown(name, entries))
    steps = []
    for entry in found:
        subject = _Subject(entry, core_commands)
        parts = (subject.metadata, subject.imports, subject.loading, subject.conflicts, subject.conformance)
        steps += [Check(entry.name, part.__name__, part) for part in parts]
    return steps


def _unknown(name: str, entries: Iterable[EntryPoint]) -> str:
    installed = ", ".join(sorted(entry.name for entry in entries)) or "none"
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return f"no plugin or distribution {printable(name, 64)!r} is installed; installed plugins are {installed}"
    shown = distribution.name or printable(name, 64)
    return (
        f"the distribution {shown} has no plugin: it declares no entry point in the group {GROUP!r}; installed "
        f"plugins are {installed}"
    )


class _Subject:
    """The plugin that is checked."""

    def __init__(self, entry: EntryPoint, core_commands: Collection[str]) -> None:
        self._entry = entry
        self._core_commands = core_commands
        self._package = entry.module.partition(".")[0]

    # ------------------------------------------------------------------ metadata

    def metadata(self, tell: Callable[[str], None]) -> list[Finding]:
        """Checks the distribution's entry point, version and requirements, and that the package has py.typed."""
        entry = self._entry
        results = [Finding("entry point", "ok", f"{entry.name} = {entry.value}")]
        if entry.version:
            results.append(Finding("version", "ok", f"{entry.distribution} {entry.version}"))
        else:
            results.append(Finding("version", "failed", "the distribution has no version"))
        ours = [each for each in self._requirements() if normalized(re.split(r"[^\w.-]", each, maxsplit=1)[0]) == _CORE]
        if ours:
            results.append(Finding("requirement", "ok", ours[0]))
        else:
            wanted = (
                'the distribution does not require leveret; add it to its dependencies, for example "leveret>=0.1,<0.2"'
            )
            results.append(Finding("requirement", "failed", wanted))
        if any((folder / "py.typed").is_file() for folder in self._folders):
            results.append(Finding("types", "ok", f"{self._package}/py.typed"))
        else:
            wanted = f"there is no {self._package}/py.typed, so type checkers ignore its annotations (PEP 561)"
            results.append(Finding("types", "failed", wanted))
        return results

    def _requirements(self) -> list[str]:
        try:
            return importlib.metadata.distribution(self._entry.distribution).requires or []
        except (ImportError, OSError, ValueError):  # its metadata are not there, or cannot be read
            return []

    @cached_property
    def _folders(self) -> list[Path]:
        """The folders of its package; empty for a single module."""
        spec = importlib.util.find_spec(self._package)
        return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]

    def imports(self, tell: Callable[[str], None]) -> list[Finding]:
        """Searches its sources for imports of modules that are not promised. Dynamic imports are not found."""
        sources = list(self._sources())
        if not sources:
            return [Finding("imports", "not checked", "its Python sources are not installed")]
        wrong = []
        for path, shown in sources:
            try:
                tree = ast.parse(path.read_bytes())
            except (OSError, SyntaxError, ValueError) as error:
                return [Finding("imports", "not checked", f"{shown} cannot be read: {error}")]
            wrong += [f"{module} ({shown}:{line})" for module, line in _unpromised(tree)]
        if wrong:
            text = f"plugins may import {', '.join(_PROMISED)} only, but it imports {', '.join(sorted(wrong))}"
            return [Finding("imports", "failed", text)]
        return [Finding("imports", "ok", f"of Leveret only {', '.join(_PROMISED)}")]

    def _sources(self) -> Iterator[tuple[Path, str]]:
        for folder in self._folders:
            for path in sorted(folder.rglob("*.py")):
                inside = path.relative_to(folder)
                if "tests" not in inside.parts and not inside.name.startswith(("test_", "conftest")):
                    yield path, f"{self._package}/{inside.as_posix()}"
        if not self._folders:
            spec = importlib.util.find_spec(self._package)
            if spec is not None and spec.has_location and str(spec.origin).endswith(".py"):
                yield Path(str(spec.origin)), f"{self._package}.py"

    # ------------------------------------------------------------------ loading

    @cached_property
    def _alone(self) -> PluginRegistry | PluginConflictError:
        """The registry of the core and this distribution, or the error when these conflict."""
        try:
            return PluginRegistry.load(
                PluginSettings(allow=(self._entry.distribution or self._entry.name,)), at_once=True
            )
        except PluginConflictError as error:
            return error

    def _info(self, registry: PluginRegistry) -> PluginInfo:
        name, distribution = self._entry.name, self._entry.distribution
        return next(info for info in registry.plugins if (info.name, info.distribution) == (name, distribution))

    def loading(self, tell: Callable[[str], None]) -> list[Finding]:
        """Imports the plugin and calls its hooks."""
        registry = self._alone
        if isinstance(registry, PluginConflictError):
            return [Finding("loading", "not checked", "it conflicts with another plugin, see below")]
        info = self._info(registry)
        supported = ", ".join(map(str, sorted(SUPPORTED_API_VERSIONS)))
        if isinstance(info.error, PluginVersionError):
            return [Finding("API version", "failed", str(info.error))]
        if info.error is not None:
            return [Finding("loading", "failed", str(info.error))]
        provides = ", ".join(f"{each.kind.replace('_', ' ')} {each.name!r}" for each in info.provides)
        versions = ", ".join(sorted({str(each.spec.api_version) for each in info.provides})) or "none named"
        return [
            Finding("loading", "ok", provides or "its hooks provide nothing that the conformance kits check"),
            Finding("API version", "ok", f"{versions}; this version of leveret supports {supported}"),
        ]

    def conflicts(self, tell: Callable[[str], None]) -> list[Finding]:
        """Loads the plugin together with all other plugins that the environment's settings allow."""
        alone = self._alone
        if isinstance(alone, PluginConflictError):
            return [Finding("conflicts", "failed", str(alone))]
        mine = self._info(alone)
        if mine.error is not None:
            return [Finding("conflicts", "not checked", "it does not load")]
        environment = PluginSettings.from_env()
        allow = environment.allow if environment.allow is None else (*environment.allow, mine.name)
        block = tuple(name for name in environment.block if name not in (mine.name, mine.distribution))
        try:
            registry = PluginRegistry.load(
                environment.replace(strict=False, allow=allow, block=block, choose={}), at_once=True
            )
        except PluginConflictError as error:
            if mine.origin in error.distributions:
                return [Finding("conflicts", "failed", str(error))]
            return [Finding("conflicts", "not checked", f"other plugins conflict: {error}")]
        problems = self._command_problems(registry)
        if problems:
            return [Finding("conflicts", "failed", "; ".join(problems))]
        others = sum(info.status == "active" for info in registry.plugins) - 1
        return [Finding("conflicts", "ok", f"none with leveret and {others} other plugins")]

    def _command_problems(self, registry: PluginRegistry) -> list[str]:
        mine = self._info(registry)
        commands, errors = registry.commands()
        problems = [
            str(error)
            for error in errors
            if (error.plugin, error.distribution) == (mine.name, mine.distribution)
            or mine.origin in getattr(error, "distributions", ())
        ]
        for info, spec in commands:
            if info is mine and spec.name in self._core_commands:
                problems.append(f"leveret has a command {spec.name!r} of its own; the plugin's is not used")
        return problems

    # ------------------------------------------------------------------ conformance

    def conformance(self, tell: Callable[[str], None]) -> list[Finding]:
        """Runs the conformance kits for the plugin's serializers, compressors, sinks and policies."""
        registry = self._alone
        if isinstance(registry, PluginConflictError) or self._info(registry).error is not None:
            return [Finding("conformance", "not checked", "it does not load")]
        if importlib.util.find_spec("pytest") is None:
            return [Finding("conformance", "not checked", "pytest is not installed; run: pip install pytest")]
        from leveret.testing import CheckResult, check_plugin

        def title(result: CheckResult) -> str:
            return f"{result.kind.replace('_', ' ')} {result.name!r}, {result.check}"

        statuses: dict[bool | None, Status] = {True: "ok", False: "failed", None: "not checked"}
        found = check_plugin(registry, self._entry.name, lambda result: tell(title(result)))
        findings = [Finding(title(result), statuses[result.passed], result.message) for result in found]
        if all(result.kind == "plugin" for result in found):
            text = "the plugin provides nothing that has a conformance kit"
            findings.append(Finding("conformance", "not checked", text))
        return findings


def _unpromised(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yields the imported modules of Leveret that are not promised to plugins, and their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == _CORE:
            names = [f"{_CORE}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == _CORE and name not in _PROMISED:
                yield name, node.lineno
