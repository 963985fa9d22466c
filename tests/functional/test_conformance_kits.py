"""The conformance kits: what the core brings passes them, and everything that is broken is caught by its own check."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree as ET

import msgspec
import pytest
from tests.support.broken_plugins import breakers, compressors, policies, serializers, sinks
from tests.support.paths import ROOT

from leveret import testing
from leveret.errors import ConfigurationError
from leveret.plugins import CompressorSpec, MetricsSpec, PluginRegistry, PolicySpec, SerializerSpec, builtin, hookimpl
from leveret.plugins.interfaces import CompositeSpec, ConnectionEvent
from leveret.testing import CheckResult, CompressorConformance, SerializerConformance, check_plugin
from leveret.testing.base import same, with_deadline
from leveret.testing.child import MiB, in_child, peak_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLUGINS = (serializers, compressors, sinks, policies, breakers)
CASES: dict[str, Any] = {name: each for module in PLUGINS for name, each in vars(module).items()}
KITS = [
    testing.SerializerConformance,
    testing.CompressorConformance,
    testing.MetricsConformance,
    testing.RetryConformance,
    testing.BackoffConformance,
    testing.CircuitBreakerConformance,
]
SERIALIZERS = {spec.name: spec for spec in builtin.leveret_serializers() if isinstance(spec, SerializerSpec)}
COMPRESSORS = {spec.name: spec for spec in builtin.leveret_compressors()}
BROKEN: dict[str, Any] = {name: each for name, each in CASES.items() if name.startswith("TestBroken")}
SOUND: dict[str, Any] = {name: each for name, each in CASES.items() if name.startswith("TestSound")}

# ---------------------------------------------------------------------- what the core brings


class TestJSON(SerializerConformance):
    @pytest.fixture
    def spec(self) -> SerializerSpec:
        return SERIALIZERS["json"]


class TestText(SerializerConformance):
    @pytest.fixture
    def spec(self) -> SerializerSpec:
        return SERIALIZERS["text"]

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        return [("", None), ("x", str), ("Grüße \U0001f407", str), ("long " * 10_000, None)]


class TestBytes(SerializerConformance):
    @pytest.fixture
    def spec(self) -> SerializerSpec:
        return SERIALIZERS["bytes"]

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        return [(b"", None), (b"\x00\xff", bytes), (bytes(10_000), bytes)]


class TestEmpty(SerializerConformance):
    @pytest.fixture
    def spec(self) -> SerializerSpec:
        return SERIALIZERS["empty"]

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        return [(None, None)]


class TestGzip(CompressorConformance):
    @pytest.fixture
    def spec(self) -> CompressorSpec:
        return COMPRESSORS["gzip"]


class TestDeflate(CompressorConformance):
    @pytest.fixture
    def spec(self) -> CompressorSpec:
        return COMPRESSORS["deflate"]


# ---------------------------------------------------------------------- what is broken


class Outcome(NamedTuple):
    kind: str
    text: str


def file_of(kit: type) -> str | None:
    return sys.modules[kit.__module__].__file__


def run_pytest(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def read_report(path: Path) -> dict[tuple[str, str], Outcome]:
    found = {}
    for case in ET.parse(path).iter("testcase"):
        name = case.get("classname", "").rpartition(".")[2]
        problems = [child for child in case if child.tag in {"failure", "error", "skipped"}]
        text = "".join((each.get("message") or "") + (each.text or "") for each in problems)
        found[name, case.get("name", "")] = Outcome(problems[0].tag if problems else "passed", text)
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Outcome]:
    """How the checks ended: all of what is sound, and of what is broken those that should catch it."""
    report = tmp_path_factory.mktemp("kits") / "report.xml"
    wanted = [f"{file_of(each)}::{name}::{each.caught_by}" for name, each in BROKEN.items()]
    wanted += [f"{file_of(each)}::{name}" for name, each in SOUND.items()]
    done = run_pytest(f"--junitxml={report}", *wanted)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    return read_report(report)


@pytest.mark.parametrize("name", BROKEN)
def test_check_catches_what_it_is_meant_for_when_a_plugin_is_broken(
    name: str, outcomes: dict[tuple[str, str], Outcome]
) -> None:
    outcome = outcomes[name, BROKEN[name].caught_by]
    assert outcome.kind in {"failure", "error"}, f"{BROKEN[name].caught_by} passed"
    assert BROKEN[name].because in outcome.text


@pytest.mark.parametrize("name", SOUND)
def test_all_checks_pass_when_a_plugin_is_sound(name: str, outcomes: dict[tuple[str, str], Outcome]) -> None:
    found = {check: outcome for (its_name, check), outcome in outcomes.items() if its_name == name}
    checks = {check for check in dir(SOUND[name]) if check.startswith("test_") and getattr(SOUND[name], check)}
    assert found.keys() == checks
    bad = {check: outcome for check, outcome in found.items() if outcome.kind != "passed"}
    if name == "TestSoundUnsafeSerializer":
        assert all(outcome.kind == "skipped" and "could run code" in outcome.text for outcome in bad.values())
        assert "test_random_bodies_raise_ordinary_exceptions" in bad
    else:
        assert bad == {}


@pytest.mark.parametrize("kit", KITS, ids=lambda kit: kit.__name__)
def test_every_check_of_a_kit_catches_something(kit: type) -> None:
    checks = {name for name in vars(kit) if name.startswith("test_")}
    caught = {each.caught_by for each in BROKEN.values() if issubclass(each, kit)}
    assert checks - caught == set()


# ---------------------------------------------------------------------- collecting


def test_kits_are_not_collected_when_only_imported() -> None:
    files = [str(module.__file__) for module in PLUGINS]
    done = run_pytest("--collect-only", "-o", "python_classes=*Conformance Broken* Test*", *files)
    classes = {line.split("::")[1] for line in done.stdout.splitlines() if line.count("::") == 2}
    assert classes == BROKEN.keys() | SOUND.keys()


def test_subclass_decides_itself_when_it_says_so() -> None:
    class Checks(SerializerConformance):
        __test__ = True

    class TestLater(SerializerConformance):
        __test__ = False

    class TestMore(Checks):
        pass

    assert (Checks.__test__, TestLater.__test__, TestMore.__test__) == (True, False, True)


def test_import_says_what_to_install_when_pytest_is_missing() -> None:
    program = "import sys; sys.modules['pytest'] = None; import leveret.testing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "leveret.testing needs pytest, which is not installed: pip install pytest"
    )


def test_names_are_loaded_when_used() -> None:
    assert set(testing.__all__) <= set(dir(testing))
    assert all(getattr(testing, name) for name in testing.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = testing.nothing


# ---------------------------------------------------------------------- how the kits look at things


@pytest.mark.parametrize(
    ("one", "other"), [(True, 1), (1, 1.0), ([1], [True]), ({"a": [0]}, {"a": [False]}), ((1,), [1]), ({}, {"a": 1})]
)
def test_values_differ_when_their_types_do(one: object, other: object) -> None:
    assert same(one, one)
    assert not same(one, other)


def test_child_is_reported_when_it_crashes() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"^dying crashed the process \(SIGKILL\)$"):
        in_child(lambda: os.kill(os.getpid(), signal.SIGKILL), "dying")


def test_child_is_killed_when_it_hangs() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"^sleeping did not end within 0\.2 s$"):
        in_child(lambda: time.sleep(600), "sleeping", seconds=0.2)


def test_child_is_reported_when_it_exits_or_raises() -> None:
    def leave() -> None:
        os._exit(3)

    def stop() -> None:
        sys.exit(0)

    with pytest.raises(pytest.fail.Exception, match="ended the process with status 3"):
        in_child(leave, "leaving")
    with pytest.raises(pytest.fail.Exception, match="SystemExit: 0"):
        in_child(stop, "stopping")
    with pytest.raises(pytest.fail.Exception, match=r"^what was found$"):
        in_child(lambda: pytest.fail("what was found"), "failing")


def test_child_s_memory_is_its_own_when_it_takes_much() -> None:
    def take() -> None:
        before = peak_memory()
        assert len(bytearray(b"x") * (50 * MiB)) == 50 * MiB
        assert peak_memory() - before >= 45 * MiB

    in_child(take, "taking memory")
    in_child(take, "taking it again")
    with pytest.raises(pytest.fail.Exception, match="MemoryError"):
        in_child(lambda: bytearray(64 << 30).clear(), "taking too much")


def test_deadline_fails_when_a_call_hangs() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"^start did not end within 0\.1 s$"):
        with_deadline(lambda: time.sleep(1), "start", 0.1)


# ---------------------------------------------------------------------- check_plugin


class Plugin:
    """A plugin object that brings what it is given."""

    def __init__(self, **hooks: list[Any]) -> None:
        self.__name__ = "under-test"
        for name, specs in hooks.items():
            setattr(self, f"leveret_{name}", hookimpl(lambda specs=specs: specs))


def check(on_result: Callable[[CheckResult], None] | None = None, **hooks: list[Any]) -> list[CheckResult]:
    return check_plugin(PluginRegistry.from_plugins(Plugin(**hooks)), "under-test", on_result)


def failed(results: list[CheckResult]) -> set[str]:
    return {result.check for result in results if result.passed is False}


def unchecked(results: list[CheckResult]) -> dict[str, str]:
    return {result.check: result.message for result in results if result.passed is None}


def test_check_plugin_passes_what_the_core_brings() -> None:
    results = check_plugin(PluginRegistry.from_plugins(), "builtin")
    assert failed(results) == set()
    assert {(result.kind, result.name) for result in results} == {
        *(("serializer", name) for name in (*SERIALIZERS, "hybrid")),
        *(("compressor", name) for name in COMPRESSORS),
    }
    reasons = {result.name: result.message for result in results if result.passed is None}
    assert reasons.keys() == {"text", "bytes", "empty", "hybrid"}
    assert reasons["text"].startswith("it does not take NoneType, bool")
    assert reasons["bytes"].endswith("checked with bytes alone")
    assert all(result.message == "" for result in results if result.passed)


def test_check_plugin_fails_when_a_plugin_is_broken() -> None:
    serializer = SerializerSpec(
        name="broken", content_type="application/x-broken", factory=serializers.RefusesModelsWithTypeError
    )
    compressor = CompressorSpec(
        name="broken", content_encoding="x-broken", factory=compressors.IgnoresTruncation, levels=(0, 9)
    )
    seen: list[CheckResult] = []
    results = check(seen.append, serializers=[serializer], compressors=[compressor])
    assert failed(results) == {
        "unknown models are refused with configuration error",
        "cut off frames are refused",
        "bad bodies are refused by a consumer",
    }
    assert seen == results
    assert all(result.message for result in results if not result.passed)


def test_check_plugin_does_not_judge_prefixes_when_the_format_may_allow_them() -> None:
    class Lines(serializers.JSONSerializer):
        """A list is a line for each item, so that the first lines are a list, too."""

        def encode(self, value: Any) -> bytes:
            items = value if isinstance(value, list) else [value]
            return b"".join(msgspec.json.encode(item) + b"\n" for item in items)

        def decoder(self, model: Any, /) -> Callable[[bytes], Any]:
            if model is not None:
                raise ConfigurationError("it takes no model", option="model")
            return lambda body: [msgspec.json.decode(line) for line in body.splitlines()]

    results = check(serializers=[SerializerSpec(name="lines", content_type="text/x-lines", factory=Lines)])
    assert "set `prefixes_are_refused = False`" in unchecked(results)["cut off bodies are refused"]


def test_check_plugin_says_what_it_cannot_check_when_only_the_author_knows() -> None:
    results = check(
        serializers=[
            SerializerSpec(
                name="special",
                content_type="application/json",
                factory=serializers.JSONSerializer,
                models=lambda model: False,
            ),
            CompositeSpec(name="both", parts=("json", "empty"), select=lambda value: "json"),
        ],
        metrics=[MetricsSpec(name="sink", factory=lambda: sinks.SoundSink(sinks.Page()))],
        policies=[
            PolicySpec(kind="circuit_breaker", name="breaker", factory=breakers.SoundBreaker),
            PolicySpec(kind="retry", name="retry", factory=policies.SoundRetry),
            PolicySpec(kind="backoff", name="backoff", factory=policies.SoundBackoff),
        ],
    )
    assert failed(results) == set()
    of = {
        name: unchecked([result for result in results if result.name == name])
        for name in ("special", "both", "sink", "breaker", "retry", "backoff")
    }
    assert of["special"]["encode returns bytes"].startswith("it is for certain models only")
    assert of["both"] == {"conformance": "it encodes nothing itself; its parts are json, empty"}
    assert "subclass MetricsConformance" in of["sink"]["counters never fall"]
    assert "pulls only when asked" not in of["sink"]
    assert of["breaker"]["is closed at first"].startswith("the kit cannot know how to give the breaker another clock")
    assert "descriptor is accepted by the registry" not in of["breaker"]
    assert of["retry"] == of["backoff"] == {}


def test_check_plugin_names_what_is_there_when_the_plugin_is_not() -> None:
    with pytest.raises(ConfigurationError, match=r"no active plugin 'other'; this registry has builtin \(built in\)"):
        check_plugin(PluginRegistry.from_plugins(), "other")


def test_check_plugin_finds_nothing_when_no_kit_is_for_it() -> None:
    class Listener:
        __name__ = "under-test"

        @hookimpl
        def leveret_connection_event(self, event: ConnectionEvent) -> None:
            pass

    assert check_plugin(PluginRegistry.from_plugins(Listener()), "under-test") == []


async def test_check_plugin_works_when_an_event_loop_runs() -> None:
    spec = SerializerSpec(
        name="sound",
        content_type="application/x-sound",
        factory=serializers.JSONSerializer,
        aliases=("text/x-sound",),
    )
    results = check(serializers=[spec])
    assert results
    assert all(result.passed for result in results)
