"""What the kits share: their base class, how they fail, and how they compare and describe values."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pytest

from leveret.errors import printable
from leveret.plugins.hookspecs import hookimpl
from leveret.plugins.registry import PluginRegistry
from leveret.settings import PluginSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.plugins.interfaces import CompressorSpec, MetricsSpec, PolicySpec, SerializerSpec

__all__ = [
    "KIT_PLUGIN",
    "Conformance",
    "describe",
    "fail",
    "in_threads",
    "ordinary",
    "override",
    "registry_of",
    "require",
    "same",
    "with_deadline",
]

T = TypeVar("T")

#: The name of the plugin object through which a kit registers what it checks.
KIT_PLUGIN = "conformance"
#: Seconds after which something that should have ended long ago is taken for hanging.
DEADLINE = 60.0


class Conformance:
    """The base of all kits. Only subclasses named `Test...` are collected, unless they set `__test__` themselves."""

    __test__ = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__test__" not in vars(cls):
            # The kits themselves, and what authors derive from them to derive from again, are no tests.
            cls.__test__ = cls.__name__.startswith("Test")


# ---------------------------------------------------------------------- failing


def fail(text: str) -> NoReturn:
    """Fails the check with this text and no traceback: what matters is the plugin's code, not the kit's."""
    pytest.fail(text, pytrace=False)


def require(condition: object, text: str) -> None:
    """Fails the check with this text unless the condition holds."""
    if not condition:
        fail(text)


def override(kit: type, fixture: str, what: str) -> NoReturn:
    """Fails because a subclass did not override a fixture.

    Args:
        kit: The subclass.
        fixture: The fixture's name.
        what: What it should return.
    """
    fail(
        f"{kit.__name__} must override the fixture `{fixture}`:\n\n"
        f"    @pytest.fixture\n    def {fixture}(self):\n        return ...  # {what}"
    )


def describe(value: object) -> str:
    """A short text that tells a developer which value of a table is meant."""
    try:
        text = repr(value)
    except Exception:
        text = "..."
    return f"{type(value).__name__} {printable(text, 60)}"


def ordinary(error: BaseException, what: str, *, recursion: bool = False) -> None:
    """Fails unless an error is one that code which calls plugins can be expected to catch.

    Args:
        error: What was raised.
        what: What raised it, as the beginning of a sentence.
        recursion: A RecursionError is fine: the interpreter's limit is a limit.
    """
    if isinstance(error, KeyboardInterrupt | pytest.fail.Exception):
        raise error
    if isinstance(error, MemoryError):
        fail(f"{what} raised MemoryError: it allocates by what foreign data claims; allocate by what is there")
    if isinstance(error, RecursionError) and not recursion:
        fail(
            f"{what} raised RecursionError on data that is not nested deeply; the interface wants an ordinary Exception"
        )
    if not isinstance(error, Exception):
        fail(f"{what} raised {type(error).__name__}, which is no Exception: it would end the program that calls it")


# ---------------------------------------------------------------------- comparing


def same(one: Any, other: Any) -> bool:
    """Compares with types: True is not 1, and 1 is not 1.0, in containers neither."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# ---------------------------------------------------------------------- running


def in_threads(*functions: Callable[[], None]) -> None:
    """Runs functions in a thread each, at once, and raises what the first of them raised."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], None]) -> None:
        barrier.wait(DEADLINE)
        function()

    interval = sys.getswitchinterval()
    # Threads that change places often meet more often, too.
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(functions)) as pool:
            for future in [pool.submit(run, function) for function in functions]:
                future.result()
    finally:
        sys.setswitchinterval(interval)


def with_deadline(function: Callable[[], T], what: str, seconds: float = DEADLINE) -> T:
    """Runs a function in a thread, and fails when it does not end in time.

    Args:
        function: What to run.
        what: What it is, for the text.
        seconds: How long to wait.

    Returns:
        What it returns; what it raises is raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    # Not a pool: it would wait for a thread that hangs when the process ends.
    thread = threading.Thread(target=run, daemon=True, name=f"conformance: {what}")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        fail(f"{what} did not end within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]


# ---------------------------------------------------------------------- registering


class _Hooks:
    """A plugin that brings one thing, for a registry of its own."""

    __name__ = KIT_PLUGIN

    def __init__(self, hook: str, spec: object) -> None:
        # The other hooks must not be there at all: a plugin that has them is asked for more.
        setattr(self, hook, hookimpl(lambda: [spec]))


def registry_of(hook: str, spec: SerializerSpec | CompressorSpec | MetricsSpec | PolicySpec) -> PluginRegistry:
    """Makes a registry in which this descriptor wins over what the core brings.

    Args:
        hook: The hook that returns such descriptors.
        spec: The descriptor.

    Returns:
        The registry.

    Raises:
        PluginError: The descriptor is wrong.
    """
    keys: list[Any] = [spec.name, getattr(spec, "content_type", None), getattr(spec, "content_encoding", None)]
    with suppress(TypeError):
        keys.extend(getattr(spec, "aliases", ()))
    choose = dict.fromkeys((key for key in keys if isinstance(key, str)), KIT_PLUGIN)
    return PluginRegistry.from_plugins(_Hooks(hook, spec), settings=PluginSettings(strict=True, choose=choose))
