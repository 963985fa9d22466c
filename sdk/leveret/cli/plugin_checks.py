"""What `leveret plugins check` looks at: a plugin's metadata, its imports, its conflicts, and the conformance kits."""

from __future__ import annotations

import ast
import dataclasses
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
from leveret.plugins.loading import normalized, said_by, said_of
from leveret.settings import PluginSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from importlib.metadata import EntryPoint

    from leveret.plugins.registry import PluginInfo

__all__ = ["STATUSES", "Check", "Result", "checks"]

Status = Literal["ok", "failed", "not checked"]
STATUSES: Final[tuple[Status, ...]] = ("ok", "failed", "not checked")

#: What is promised to plugins. Their tests may use `leveret.testing`, too.
_PROMISED: Final = ("leveret.plugins", "leveret.errors", "leveret.message")
_CORE: Final = "leveret"


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found.

    Attributes:
        title: What was checked.
        status: "ok", "failed", or "not checked".
        text: What was found, what is wrong, or why it was not checked.
    """

    title: str
    status: Status
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """Something to check.

    Attributes:
        plugin: The plugin's name.
        title: What is checked.
        run: Checks it, and returns one or more results. It takes a function that is told what it is at.
    """

    plugin: str
    title: str
    run: Callable[[Callable[[str], None]], list[Result]]


def checks(name: str) -> list[Check]:
    """Finds what to check.

    Args:
        name: A plugin or a distribution, which may have several plugins.

    Returns:
        The checks, none of which has run.

    Raises:
        CommandFailed: There is no such plugin.
    """
    entries = entry_points()
    wanted = normalized(name)
    found = [entry for entry in entries if entry.name == name or normalized(said_of(entry, "Name")) == wanted]
    if not found:
        raise CommandFailed(_unknown(name, entries))
    steps = []
    for entry in found:
        subject = _Subject(entry)
        parts = (subject.metadata, subject.imports, subject.loading, subject.conflicts, subject.conformance)
        steps += [Check(entry.name, part.__name__, part) for part in parts]
    return steps


def _unknown(name: str, entries: Iterable[EntryPoint]) -> str:
    installed = ", ".join(sorted(entry.name for entry in entries)) or "none"
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return f"no plugin or distribution {printable(name, 64)!r} is installed; installed plugins are {installed}"
    shown = said_by(distribution, "Name") or printable(name, 64)
    return (
        f"the distribution {shown} is no plugin: it has no entry point in the group {GROUP!r}; installed plugins are "
        f"{installed}"
    )


class _Subject:
    """A plugin that is checked."""

    def __init__(self, entry: EntryPoint) -> None:
        self._entry = entry
        self._package = entry.module.partition(".")[0]

    # ------------------------------------------------------------------ metadata

    def metadata(self, tell: Callable[[str], None]) -> list[Result]:
        """Looks at what the distribution says of itself, and whether it is typed."""
        entry = self._entry
        results = [Result("entry point", "ok", f"{entry.name} = {entry.value}")]
        if version := said_of(entry, "Version"):
            results.append(Result("version", "ok", f"{said_of(entry, 'Name')} {version}"))
        else:
            results.append(Result("version", "failed", "the distribution has no version"))
        ours = [each for each in self._requirements() if normalized(re.split(r"[^\w.-]", each, maxsplit=1)[0]) == _CORE]
        if ours:
            results.append(Result("requirement", "ok", ours[0]))
        else:
            wanted = (
                'the distribution does not require leveret; its dependencies want, for example, "leveret>=0.1,<0.2"'
            )
            results.append(Result("requirement", "failed", wanted))
        if any((folder / "py.typed").is_file() for folder in self._folders):
            results.append(Result("types", "ok", f"{self._package}/py.typed"))
        else:
            wanted = f"there is no {self._package}/py.typed: type checkers ignore its annotations (PEP 561)"
            results.append(Result("types", "failed", wanted))
        return results

    def _requirements(self) -> list[str]:
        distribution = self._entry.dist
        try:
            return (distribution and distribution.requires) or []
        except (OSError, ValueError):  # its metadata are not there, or cannot be read
            return []

    @cached_property
    def _folders(self) -> list[Path]:
        """Where its package lies; empty for a single module."""
        spec = importlib.util.find_spec(self._package)
        return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]

    def imports(self, tell: Callable[[str], None]) -> list[Result]:
        """Reads its sources for imports of what is not promised; imports that are made otherwise are not seen."""
        sources = list(self._sources())
        if not sources:
            return [Result("imports", "not checked", "its sources are not there")]
        wrong = []
        for path, shown in sources:
            try:
                tree = ast.parse(path.read_bytes())
            except (OSError, SyntaxError, ValueError) as error:
                return [Result("imports", "not checked", f"{shown} cannot be read: {error}")]
            wrong += [f"{module} ({shown}:{line})" for module, line in _unpromised(tree)]
        if wrong:
            text = f"only {', '.join(_PROMISED)} are promised to plugins, but it imports {', '.join(sorted(wrong))}"
            return [Result("imports", "failed", text)]
        return [Result("imports", "ok", f"nothing of Leveret but {', '.join(_PROMISED)}")]

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
        """The registry of the core and this distribution; an error when they conflict."""
        try:
            return PluginRegistry.load(PluginSettings(allow=(said_of(self._entry, "Name") or self._entry.name,)))
        except PluginConflictError as error:
            return error

    def _info(self, registry: PluginRegistry) -> PluginInfo:
        name, distribution = self._entry.name, said_of(self._entry, "Name")
        return next(info for info in registry.plugins if (info.name, info.distribution) == (name, distribution))

    def loading(self, tell: Callable[[str], None]) -> list[Result]:
        """Imports it, and calls its hooks."""
        registry = self._alone
        if isinstance(registry, PluginConflictError):
            return [Result("loading", "not checked", "it conflicts, see below")]
        info = self._info(registry)
        supported = ", ".join(map(str, sorted(SUPPORTED_API_VERSIONS)))
        if isinstance(info.error, PluginVersionError):
            return [Result("API version", "failed", str(info.error))]
        if info.error is not None:
            return [Result("loading", "failed", str(info.error))]
        brings = ", ".join(f"{each.kind.replace('_', ' ')} {each.name!r}" for each in info.provides)
        versions = ", ".join(sorted({str(each.spec.api_version) for each in info.provides})) or "none named"
        return [
            Result("loading", "ok", brings or "its hooks bring nothing that the kits check"),
            Result("API version", "ok", f"{versions}; this core has {supported}"),
        ]

    def conflicts(self, tell: Callable[[str], None]) -> list[Result]:
        """Loads it together with all other plugins that the environment allows."""
        alone = self._alone
        if isinstance(alone, PluginConflictError):
            return [Result("conflicts", "failed", str(alone))]
        mine = self._info(alone)
        if mine.error is not None:
            return [Result("conflicts", "not checked", "it does not load")]
        environment = PluginSettings.from_env()
        allow = environment.allow if environment.allow is None else (*environment.allow, mine.name)
        block = tuple(name for name in environment.block if name not in (mine.name, mine.distribution))
        try:
            registry = PluginRegistry.load(
                dataclasses.replace(environment, strict=False, allow=allow, block=block, choose={})
            )
        except PluginConflictError as error:
            if mine.origin in error.distributions:
                return [Result("conflicts", "failed", str(error))]
            return [Result("conflicts", "not checked", f"others conflict: {error}")]
        problems = self._command_problems(registry)
        if problems:
            return [Result("conflicts", "failed", "; ".join(problems))]
        others = sum(info.status == "active" for info in registry.plugins) - 1
        return [Result("conflicts", "ok", f"none with the core, nor with {others} other plugins")]

    def _command_problems(self, registry: PluginRegistry) -> list[str]:
        from leveret.cli.app import app

        mine = self._info(registry)
        commands, errors = registry.commands()
        problems = [
            str(error)
            for error in errors
            if (error.plugin, error.distribution) == (mine.name, mine.distribution)
            or mine.origin in getattr(error, "distributions", ())
        ]
        for info, spec in commands:
            if info is mine and spec.name in app.commands:
                problems.append(f"the core has a command {spec.name!r}, and wins")
        return problems

    # ------------------------------------------------------------------ conformance

    def conformance(self, tell: Callable[[str], None]) -> list[Result]:
        """Runs the conformance kits of what it brings."""
        registry = self._alone
        if isinstance(registry, PluginConflictError) or self._info(registry).error is not None:
            return [Result("conformance", "not checked", "it does not load")]
        if importlib.util.find_spec("pytest") is None:
            return [Result("conformance", "not checked", "pytest is not installed; run: pip install pytest")]
        from leveret.testing import CheckResult, check_plugin

        def title(result: CheckResult) -> str:
            return f"{result.kind.replace('_', ' ')} {result.name!r}, {result.check}"

        statuses: dict[bool | None, Status] = {True: "ok", False: "failed", None: "not checked"}
        found = check_plugin(registry, self._entry.name, lambda result: tell(title(result)))
        if not found:
            return [Result("conformance", "not checked", "there is no kit for what it brings")]
        return [Result(title(result), statuses[result.passed], result.message) for result in found]


def _unpromised(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The modules of Leveret that are imported but not promised, and their lines."""
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
