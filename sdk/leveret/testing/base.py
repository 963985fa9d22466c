"""Base class and helpers of the kits: failures, comparing and describing values, threads and deadlines."""

from __future__ import annotations

import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
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
    "raised",
    "registry_of",
    "require",
    "same",
    "with_deadline",
]

T = TypeVar("T")

#: The name of the plugin object with which a kit registers the descriptor that it checks.
KIT_PLUGIN = "conformance"
#: Seconds after which a call counts as hanging.
DEADLINE = 60.0


class Conformance:
    """The base of all kits. pytest collects only subclasses named `Test...`, or those that set `__test__ = True`."""

    __test__ = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__test__" not in vars(cls):
            # Kits, and base classes that authors derive from them, are not collected.
            cls.__test__ = cls.__name__.startswith("Test")


# ---------------------------------------------------------------------- failing


def fail(text: str) -> NoReturn:
    """Fails the check with a text, without a traceback of the kit's code."""
    pytest.fail(text, pytrace=False)


def require(condition: object, text: str) -> None:
    """Fails the check with a text unless the condition is true."""
    if not condition:
        fail(text)


def override(kit: type, fixture: str, what: str) -> NoReturn:
    """Fails because a subclass did not override a fixture.

    Args:
        kit: The subclass.
        fixture: The fixture's name.
        what: A description of its result.
    """
    fail(
        f"{kit.__name__} must override the fixture `{fixture}`:\n\n"
        f"    @pytest.fixture\n    def {fixture}(self):\n        return ...  # {what}"
    )


def describe(value: object) -> str:
    """Returns a short description of a value for failures."""
    try:
        text = repr(value)
    except Exception:
        text = "..."
    return f"{type(value).__name__} {printable(text, 60)}"


def raised(error: BaseException) -> str:
    """Returns an exception in one line: its type, its text and where it was raised."""
    text = f"{type(error).__name__}: {printable(' '.join(str(error).split()))}".removesuffix(": ")
    for frame, line in list(traceback.walk_tb(error.__traceback__))[-1:]:
        text += f" ({Path(frame.f_code.co_filename).name}:{line}, in {frame.f_code.co_name})"
    return text


def ordinary(error: BaseException, what: str, *, recursion: bool = False) -> None:
    """Fails unless an exception is an ordinary `Exception`, which the core catches.

    Args:
        error: The exception.
        what: The call that raised it, as the beginning of a sentence.
        recursion: True: RecursionError is allowed.
    """
    if isinstance(error, KeyboardInterrupt | pytest.fail.Exception):
        raise error
    if isinstance(error, MemoryError):
        fail(f"{what} raised MemoryError: it allocates as much as the data claims; allocate only for what is there")
    if isinstance(error, RecursionError) and not recursion:
        fail(
            f"{what} raised RecursionError on data that is not nested deeply; the interface wants an ordinary Exception"
        )
    if not isinstance(error, Exception):
        fail(f"{what} raised {type(error).__name__}, which is not an Exception: it would end the program that calls it")


# ---------------------------------------------------------------------- comparing


def same(one: Any, other: Any) -> bool:
    """Compares values and their types, also in containers: True differs from 1, and 1 from 1.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# ---------------------------------------------------------------------- running


def in_threads(*functions: Callable[[], None]) -> None:
    """Runs each function in a thread of its own, all at once. Raises the first exception."""
    barrier = threading.Barrier(len(functions))

    def run(function: Callable[[], None]) -> None:
        barrier.wait(DEADLINE)
        function()

    interval = sys.getswitchinterval()
    # Frequent switches between threads make races more likely.
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(functions)) as pool:
            for future in [pool.submit(run, function) for function in functions]:
                future.result()
    finally:
        sys.setswitchinterval(interval)


def with_deadline(function: Callable[[], T], what: str, seconds: float = DEADLINE) -> T:
    """Runs a function in a thread. Fails when it does not end in time.

    Args:
        function: The function.
        what: Its description, for the failure.
        seconds: The seconds that it may take.

    Returns:
        The function's result. An exception of the function is raised here.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    # Not a pool, which would wait at exit for a thread that hangs.
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
    """A plugin with one descriptor."""

    __name__ = KIT_PLUGIN

    def __init__(self, hook: str, spec: object) -> None:
        # Set on the object, because the registry would call every hook that a class defines.
        setattr(self, hook, hookimpl(lambda: [spec]))


def registry_of(hook: str, spec: SerializerSpec | CompressorSpec | MetricsSpec | PolicySpec) -> PluginRegistry:
    """Makes a registry in which a descriptor takes precedence over the core's own.

    Args:
        hook: The hook that returns such descriptors.
        spec: The descriptor.

    Raises:
        PluginError: The descriptor is not valid.
    """
    keys: list[Any] = [spec.name, getattr(spec, "content_type", None), getattr(spec, "content_encoding", None)]
    with suppress(TypeError):
        keys.extend(getattr(spec, "aliases", ()))
    choose = dict.fromkeys((key for key in keys if isinstance(key, str)), KIT_PLUGIN)
    return PluginRegistry.from_plugins(_Hooks(hook, spec), settings=PluginSettings(strict=True, choose=choose))
