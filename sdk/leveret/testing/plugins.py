"""Runs the kits for everything that a plugin provides, outside of its own tests, for `leveret plugins check`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from leveret.errors import PluginError
from leveret.plugins.declarations import FILE, declaration_of, written
from leveret.plugins.interfaces import CompositeSpec, SerializerSpec
from leveret.testing.base import raised
from leveret.testing.breakers import CircuitBreakerConformance
from leveret.testing.compressors import CompressorConformance
from leveret.testing.metrics import MetricsConformance
from leveret.testing.policies import BackoffConformance, RetryConformance
from leveret.testing.serializers import SerializerConformance, plain_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leveret.plugins.interfaces import Serializer
    from leveret.plugins.registry import PluginRegistry, Provided
    from leveret.testing.base import Conformance

__all__ = ["CheckResult", "check_plugin"]

#: The kit of each kind; see `leveret.plugins.registry.Provided.kind`.
_KITS: Final[dict[str, type[Conformance]]] = {
    "serializer": SerializerConformance,
    "compressor": CompressorConformance,
    "metrics": MetricsConformance,
    "retry": RetryConformance,
    "backoff": BackoffConformance,
    "circuit_breaker": CircuitBreakerConformance,
}
_DECLARES: Final = "is what it declares"
#: The fixtures that only a plugin's author can write, and why.
_UNKNOWN: Final = {
    "read": "the kit cannot know how to read what the sink exports",
    "make_breaker": "the kit cannot know how to give the breaker another clock",
    "breaker": "the kit cannot know how to give the breaker another clock",
}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check.

    Attributes:
        kind: "serializer", "compressor", "metrics", "retry", "backoff", "circuit_breaker" or "plugin".
        name: The name of the serializer, compressor, sink, policy or plugin.
        check: The check, in words.
        passed: Whether it passed; None when it did not run.
        message: The failure, or why the check did not run; empty when it passed.
    """

    kind: str
    name: str
    check: str
    passed: bool | None
    message: str = ""


def check_plugin(
    registry: PluginRegistry, plugin_name: str, on_result: Callable[[CheckResult], None] | None = None
) -> list[CheckResult]:
    """Runs the conformance kits for everything that a plugin provides. It takes seconds.

    An installed plugin must be what its `leveret.json` declares. That it has none is reported as not checked, with the
    text of the file to write.

    Some checks need a fixture that only the plugin's author can write, for example to read the exports of a sink. These
    are reported as not checked, with the reason. In the plugin's own tests a subclass of the kit runs them.

    Args:
        registry: The registry that has the plugin, which is imported.
        plugin_name: The plugin's name.
        on_result: Called with each result as soon as it is known.

    Returns:
        All results, in the order of the checks.

    Raises:
        ConfigurationError: The registry has no active plugin of this name.
    """
    results = []
    for result in _checks(registry, plugin_name):
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results


def _checks(registry: PluginRegistry, name: str) -> Iterator[CheckResult]:
    try:
        info = registry.imported(name)
    except PluginError as error:
        yield CheckResult("plugin", name, _DECLARES, False, str(error))
        return
    if info.declares:
        yield CheckResult("plugin", name, _DECLARES, True)
    elif info.distribution and info.status != "built in":
        text = written(name, declaration_of(info))
        place = f"{info.entry_point.partition(':')[0].partition('.')[0]}/{FILE}"
        why = f"it declares nothing, so each `connect` imports it, used or not. Write {place}: {text}"
        yield CheckResult("plugin", name, _DECLARES, None, why)
    for provided in info.provides:
        yield from _check(provided)


def _check(provided: Provided) -> Iterator[CheckResult]:
    kit, kind, name = _KITS[provided.kind], provided.kind, provided.name
    if isinstance(provided.spec, CompositeSpec):
        parts = ", ".join(provided.spec.parts)
        yield CheckResult(kind, name, "conformance", None, f"it encodes nothing itself; its parts are {parts}")
        return
    fixtures: dict[str, Any] = {"spec": provided.spec}
    missing = dict(_UNKNOWN)
    if isinstance(provided.spec, SerializerSpec):
        values, why = _values(provided.spec)
        if values:
            fixtures["values"] = values
        else:
            missing["values"] = why
        if values and why:
            yield CheckResult(kind, name, "takes all plain values", None, why)
    for method, check in _checks_of(kit):
        needed = [each for each in inspect.signature(check).parameters if each not in ("self", *fixtures)]
        title = method.removeprefix("test_").replace("_", " ")
        if needed:
            why = next(missing[each] for each in needed if each in missing)
            yield CheckResult(kind, name, title, None, f"{why}; subclass {kit.__name__} in the plugin's tests")
        else:
            yield CheckResult(kind, name, title, *_run(check, kit, fixtures))


def _checks_of(kit: type[Conformance]) -> Iterator[tuple[str, Callable[..., None]]]:
    for name, member in vars(kit).items():
        if name.startswith("test_") and inspect.isfunction(member):
            yield name, member


def _run(check: Callable[..., None], kit: type[Conformance], fixtures: dict[str, Any]) -> tuple[bool | None, str]:
    """Runs a check as pytest would; returns whether it passed, and its message."""
    passed, text = _attempt(check, kit(), fixtures)
    if passed is False and "prefixes_are_refused" in text:
        # Only the author knows whether, in this format, the beginning of a body can be a complete body.
        lenient = kit()
        vars(lenient)["prefixes_are_refused"] = False
        if _attempt(check, lenient, fixtures)[0]:
            return None, text
    return passed, text


def _attempt(check: Callable[..., None], instance: Conformance, fixtures: dict[str, Any]) -> tuple[bool | None, str]:
    try:
        check(instance, **{name: fixtures[name] for name in inspect.signature(check).parameters if name != "self"})
    except pytest.fail.Exception as failure:
        return False, str(failure)
    except pytest.skip.Exception as skipped:
        return None, str(skipped)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return False, f"the check was ended by {raised(error)}"
    return True, ""


# ---------------------------------------------------------------------- values


def _values(spec: SerializerSpec) -> tuple[list[tuple[Any, Any]], str]:
    """Returns the default values that a serializer accepts, and a text: which it refuses, or why there are none."""
    if spec.models is not None:
        return [], "it is for certain models only, which the kit cannot know"
    taken: list[tuple[Any, Any]] = []
    refused: list[str] = []
    try:
        serializer = spec.factory()
    except Exception as error:
        return [], f"it could not be made ({type(error).__name__})"
    for value, model in plain_values():
        if _takes(serializer, value, model):
            taken.append((value, model))
        else:
            refused.append(type(value).__name__)
    if not refused:
        return taken, ""
    if not taken:
        # A serializer for bytes only. Other serializers may accept bytes and decode them to text, as JSON's do.
        taken = [(value, None) for value in (b"", b"\x00\xffbytes", bytes(5000)) if _takes(serializer, value, None)]
    kinds = ", ".join(dict.fromkeys(refused))
    if not taken:
        return [], f"it takes none of the usual values ({kinds}), and the kit cannot know others"
    mine = ", ".join(dict.fromkeys(type(value).__name__ for value, _ in taken))
    return taken, f"it does not take {kinds}; checked with {mine} alone"


def _takes(serializer: Serializer, value: Any, model: Any) -> bool:
    try:
        serializer.encode(value)
        serializer.decoder(model)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return False
    return True
