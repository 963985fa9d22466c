"""The registry: plugins are found, checked and kept; what is wrong with one is said with its name and stays with it."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.distributions import PLUGIN, Installed
from tests.support.plugins import plugin

from leveret.errors import ConfigurationError, PluginConflictError, PluginError, PluginLoadError, PluginVersionError
from leveret.plugins import (
    CompositeSpec,
    CompressorSpec,
    ConnectionEvent,
    ConnectionEventKind,
    MetricsSpec,
    PluginRegistry,
    PolicySpec,
    SerializerSpec,
)
from leveret.settings import PluginSettings

if TYPE_CHECKING:
    from pathlib import Path

#: A factory that nothing calls.
REPR: Any = repr


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    return Installed(tmp_path, monkeypatch)


def status(registry: PluginRegistry) -> dict[str, str]:
    return {info.name: info.status for info in registry.plugins}


def test_core_things_are_there_when_nothing_is_installed(installed: Installed) -> None:
    registry = PluginRegistry.load(PluginSettings())
    assert status(registry) == {"builtin": "built in"}
    assert registry.names("serializer") == ("bytes", "empty", "hybrid", "json", "text")
    assert registry.names("compressor") == ("deflate", "gzip")


def test_plugins_are_found_with_their_distribution_when_they_are_installed(installed: Installed) -> None:
    module = installed.add("leveret-backward", plugin="backward", version="2.5")
    registry = PluginRegistry.load(PluginSettings())
    info = registry.plugins[-1]
    assert (info.name, info.distribution, info.version, info.entry_point, info.status) == (
        "backward", "leveret-backward", "2.5", module, "active",
    )  # fmt: skip
    assert [(each.kind, each.name, each.keys) for each in info.provides] == [
        ("serializer", "backward", ("text/x-backward",))
    ]
    assert info.load_time > 0
    made = registry.make_serializer(registry.provided("serializer", "backward"))
    assert made.decoder(None)(made.encode("abc")) == "abc"


def test_the_shared_registry_is_made_once_for_settings_and_import_path(installed: Installed) -> None:
    registry = PluginRegistry.shared(PluginSettings(block=("first",)))
    assert PluginRegistry.shared(PluginSettings(block=("first",))) is registry
    assert PluginRegistry.shared(PluginSettings(block=("second",))) is not registry
    assert PluginRegistry.shared(PluginSettings(block=("first",), strict=True)) is not registry


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PluginSettings(allow=("one",)), {"one": "active", "two": "not allowed"}),
        (PluginSettings(allow=("leveret-two",)), {"one": "not allowed", "two": "active"}),
        (PluginSettings(allow=()), {"one": "not allowed", "two": "not allowed"}),
        (PluginSettings(block=("one",)), {"one": "blocked", "two": "active"}),
        (PluginSettings(allow=("one", "two"), block=("leveret-one",)), {"one": "blocked", "two": "active"}),
        (PluginSettings(block=("never-installed",)), {"one": "active", "two": "active"}),
    ],
)
def test_plugins_are_not_imported_when_the_settings_leave_them_out(
    installed: Installed, settings: PluginSettings, expected: dict[str, str]
) -> None:
    modules = {name: installed.add(f"leveret-{name}", plugin=name) for name in ("one", "two")}
    registry = PluginRegistry.load(settings)
    assert status(registry) == {"builtin": "built in", **expected}
    assert {name: module in sys.modules for name, module in modules.items()} == {
        name: state == "active" for name, state in expected.items()
    }


def test_what_an_interrupted_installation_left_is_no_second_plugin(installed: Installed, tmp_path: Path) -> None:
    installed.add("leveret-one", plugin="one")
    shutil.copytree(tmp_path / "leveret_one-1.0.dist-info", tmp_path / "~everet_one-1.0.dist-info")
    (tmp_path / "empty-1.0.dist-info").mkdir()
    (tmp_path / "empty-1.0.dist-info" / "entry_points.txt").write_text("[leveret.plugins]\nnameless = no_such_module\n")
    registry = PluginRegistry.load(PluginSettings())
    assert status(registry) == {"builtin": "built in", "nameless": "failed", "one": "active"}


def write(folder: Path, **files: bytes) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / {"entries": "entry_points.txt", "metadata": "METADATA"}[name]).write_bytes(content)


NAMED = b"Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n"


@pytest.mark.parametrize(
    ("folder", "files", "said"),
    [
        (".dist-info", {}, None),
        ("-1.0.dist-info", {"entries": b"[console_scripts]\nx = x:x\n"}, None),
        ("broken-1.0.dist-info", {"metadata": NAMED, "entries": b"[console_scripts]\nx\n"}, None),
        ("broken-1.0.dist-info", {"metadata": NAMED, "entries": b"[leveret.plugins]\nx\n"}, "broken"),
        ("broken-1.0.dist-info", {"metadata": NAMED, "entries": b"[leveret.plugins]\nx = \xff\n"}, "broken"),
        ("broken-1.0.dist-info", {"metadata": b"\xff", "entries": b"[leveret.plugins]\nx\n"}, "without a name"),
    ],
    ids=[
        "no name in its folder",
        "no name, and entry points",
        "broken elsewhere",
        "no entry point",
        "not UTF-8",
        "nothing readable",
    ],
)
def test_a_broken_distribution_is_left_out_and_keeps_no_plugin_from_being_found(
    installed: Installed,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    folder: str,
    files: dict[str, bytes],
    said: str | None,
) -> None:
    write(tmp_path / folder, **files)
    installed.add("leveret-one", plugin="one")
    assert status(PluginRegistry.load(PluginSettings(strict=True))) == {"builtin": "built in", "one": "active"}
    warned = [record.getMessage() for record in caplog.records]
    if said is None:  # nothing of it had to be read but its folder's name
        assert warned == []
    else:
        (text,) = warned
        assert text.startswith(f"the distribution {said} in {tmp_path} cannot be read: ")
        assert text.endswith("; plugins in it are not used")


def test_the_first_of_two_distributions_with_one_name_hides_the_other_beside_a_broken_one(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / ".dist-info")
    behind = tmp_path / "behind"
    behind.mkdir()
    Installed(behind, monkeypatch).add("leveret-one", plugin="one", version="0.9")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    installed.add("leveret-one", plugin="one")
    registry = PluginRegistry.load(PluginSettings())
    assert [(info.name, info.version, info.status) for info in registry.plugins[1:]] == [("one", "1.0", "active")]


@pytest.mark.parametrize("metadata", [None, b"\xff", b""], ids=["missing", "not UTF-8", "empty"])
def test_a_plugin_is_loaded_when_its_distribution_says_nothing_of_itself(
    installed: Installed, tmp_path: Path, metadata: bytes | None
) -> None:
    installed.add("leveret-one", plugin="one")
    (tmp_path / "leveret_one-1.0.dist-info" / "METADATA").unlink()
    if metadata is not None:
        (tmp_path / "leveret_one-1.0.dist-info" / "METADATA").write_bytes(metadata)
    registry = PluginRegistry.load(PluginSettings())
    assert [(info.name, info.distribution, info.status) for info in registry.plugins[1:]] == [("one", "", "active")]


def test_environment_chooses_when_there_are_no_settings(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        installed.add(name)
    monkeypatch.setenv("LEVERET_PLUGINS_ALLOW", "one,two")
    monkeypatch.setenv("LEVERET_PLUGINS_BLOCK", "two")
    assert status(PluginRegistry.load()) == {
        "builtin": "built in", "one": "active", "three": "not allowed", "two": "blocked",
    }  # fmt: skip


def test_a_plugin_that_is_allowed_but_not_installed_is_an_error(installed: Installed) -> None:
    installed.add("msgpack")
    with pytest.raises(ConfigurationError, match="'msgpak', which is not installed; installed are msgpack") as caught:
        PluginRegistry.load(PluginSettings(allow=("msgpak",)))
    assert caught.value.option == "allow"


BROKEN = {
    "raises at import": ("raise RuntimeError('no such library')", "cannot be imported: RuntimeError: no such library"),
    "exits at import": ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
    "is not Python": ("def", "cannot be imported: SyntaxError"),
    "has no hooks": ("x = 1", "has none of the hooks leveret_serializers"),
    "misspells a hook": (
        PLUGIN.format(name="x", content_type="text/x").replace("leveret_serializers", "leveret_serialisers"),
        "leveret_serialisers",
    ),
    "forgets the mark": (
        PLUGIN.format(name="x", content_type="text/x").replace("@hookimpl", ""),
        "does not mark leveret_serializers with @hookimpl",
    ),
    "takes arguments nobody passes": (
        PLUGIN.format(name="x", content_type="text/x").replace("leveret_serializers()", "leveret_serializers(core)"),
        "has a wrong hook",
    ),
    "wraps a hook": (
        PLUGIN.format(name="x", content_type="text/x")
        .replace("@hookimpl", "@hookimpl(wrapper=True)")
        .replace("return [", "yield ["),
        "wraps leveret_serializers; hooks cannot be wrapped",
    ),
    "raises in a hook": (
        PLUGIN.format(name="x", content_type="text/x").replace("return [", "raise KeyError; return ["),
        "failed in leveret_serializers: KeyError",
    ),
    "returns no iterable": (
        PLUGIN.format(name="x", content_type="text/x").replace("return [", "return 7; return ["),
        "returned int from leveret_serializers, not an iterable of SerializerSpec or CompositeSpec",
    ),
    "returns a wrong type": (
        PLUGIN.format(name="x", content_type="text/x").replace("return [", "return ['msgpack']; return ["),
        "returned a str from leveret_serializers, not a SerializerSpec or CompositeSpec",
    ),
    "is of another API version": (
        PLUGIN.format(name="x", content_type="text/x").replace("factory=", "api_version=99, factory="),
        "was written for plugin API version 99 (leveret_serializers); this version of leveret supports 1",
    ),
    "has a bad name": (
        PLUGIN.format(name="Not A Name", content_type="text/x"),
        "its name is 'Not A Name'; it must be lower-case letters",
    ),
    "has a bad content type": (
        PLUGIN.format(name="x", content_type="msgpack"),
        "'msgpack' is not a content type",
    ),
    "names one thing twice": (
        PLUGIN.format(name="x", content_type="text/x").replace("return [", "return 2 * ["),
        "provides two serializers named 'x'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_the_others_go_on_when_a_plugin(installed: Installed, caplog: pytest.LogCaptureFixture, what: str) -> None:
    code, text = BROKEN[what]
    installed.add("leveret-broken", code, plugin="broken", version="0.3")
    installed.add("leveret-works", plugin="works")

    registry = PluginRegistry.load(PluginSettings())

    assert status(registry) == {"builtin": "built in", "broken": "failed", "works": "active"}
    error = registry.plugins[1].error
    assert isinstance(error, PluginLoadError | PluginVersionError)
    assert isinstance(error, PluginVersionError) == (what == "is of another API version")
    assert (error.plugin, error.distribution, error.version) == ("broken", "leveret-broken", "0.3")
    assert text in str(error)
    assert "plugin 'broken' of leveret-broken 0.3 (entry point made_for_a_test_leveret_broken)" in str(error)
    assert [record.getMessage() for record in caplog.records] == [f"{error}; the plugin is not used"]
    assert "works" in registry.names("serializer")


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_is_an_error_when_strict(installed: Installed, what: str) -> None:
    code, text = BROKEN[what]
    installed.add("leveret-broken", code, plugin="broken")
    with pytest.raises(PluginError) as caught:
        PluginRegistry.load(PluginSettings(strict=True))
    assert text in str(caught.value)


def test_asking_for_something_of_a_failed_plugin_says_why(installed: Installed) -> None:
    installed.add("leveret-msgpack", "raise ImportError('no msgpack')", plugin="msgpack")
    with pytest.raises(ConfigurationError, match=r"no serializer 'msgpack'; known are .*is failed: .*no msgpack"):
        PluginRegistry.load(PluginSettings()).provided("serializer", "msgpack")


def test_asking_for_a_plugin_that_is_not_installed_says_what_to_install(installed: Installed) -> None:
    with pytest.raises(ConfigurationError, match="Install leveret-zstd"):
        PluginRegistry.load(PluginSettings()).provided("compressor", "zstd")


def serializer(name: str = "reversing", **fields: Any) -> SerializerSpec:
    return SerializerSpec(**{"name": name, "content_type": f"text/x-{name}", "factory": object, **fields})


def test_one_object_registered_twice_is_refused() -> None:
    twice = plugin(serializers=[serializer()])
    with pytest.raises(PluginLoadError, match="is the object of plugin 'tested', registered twice"):
        PluginRegistry.from_plugins(twice, twice)


@pytest.mark.parametrize(
    ("hooks", "text"),
    [
        ({"serializers": [serializer(factory=None)]}, "its factory is a NoneType, which cannot be called"),
        ({"serializers": [serializer(aliases="text/x")]}, "its aliases are 'text/x'; they must be a list of text"),
        ({"serializers": [serializer(aliases=[7])]}, "its aliases are [7]; they must be a list of text"),
        ({"serializers": [serializer(options="rename")]}, "its options are 'rename'; they must be a list of text"),
        (
            {"serializers": [serializer(options=["rename", "indent"])]},
            "its options are ['indent']; they must be of rename, omit_none",
        ),
        ({"serializers": [CompositeSpec(name="c", parts="json", select=repr)]}, "its parts are 'json'"),
        ({"serializers": [serializer(aliases=["text"])]}, "'text' is not a content type"),
        ({"serializers": [serializer(models=7)]}, "its models is a int, which cannot be called"),
        ({"serializers": [CompositeSpec(name="c", parts=(), select=repr)]}, "its parts are ()"),
        ({"compressors": [CompressorSpec(name="c", content_encoding="c c", factory=REPR, levels=(1, 2))]}, "'c c' is"),
        ({"compressors": [CompressorSpec(name="c", content_encoding="c", factory=REPR, levels=(2, 1))]}, "its levels"),
        ({"policies": [PolicySpec(kind="luck", name="c", factory=object)]}, "its kind is 'luck'"),  # type: ignore[arg-type]
        ({"metrics": [MetricsSpec(name="", factory=object)]}, "its name is ''"),  # type: ignore[arg-type]
    ],
)
def test_a_descriptor_is_checked_when_it_is_returned(hooks: dict[str, Any], text: str) -> None:
    with pytest.raises(PluginLoadError) as caught:
        PluginRegistry.from_plugins(plugin(**hooks))
    assert text in str(caught.value)


def test_two_plugins_with_one_name_are_an_error_that_names_both(installed: Installed) -> None:
    installed.add("leveret-fast", plugin="msgpack", version="1.1")
    installed.add("leveret-small", plugin="msgpack", version="2.2")
    with pytest.raises(PluginConflictError, match=r"leveret-fast 1\.1 and leveret-small 2\.2 both bring a plugin"):
        PluginRegistry.load(PluginSettings())

    for choice in ("leveret-fast", "leveret-small"):
        registry = PluginRegistry.load(PluginSettings(choose={"msgpack": choice}))
        chosen = {info.distribution: info.status for info in registry.plugins[1:]}
        assert chosen.pop(choice) == "active"
        assert list(chosen.values()) == ["not chosen"]
    registry = PluginRegistry.load(PluginSettings(block=("leveret-fast",)))
    assert [info.status for info in registry.plugins[1:]] == ["blocked", "active"]


@pytest.mark.parametrize("content_type", ["text/x-one", "application/json"])
def test_two_serializers_for_one_content_type_are_an_error_unless_the_settings_choose(
    installed: Installed, content_type: str
) -> None:
    installed.add("leveret-one", plugin="one")
    installed.add("leveret-two", plugin="two", content_type=content_type)
    with pytest.raises(PluginConflictError) as caught:
        PluginRegistry.load(PluginSettings())
    other = "leveret-one 1.0" if content_type == "text/x-one" else caught.value.distributions[0]
    assert caught.value.distributions == (other, "leveret-two 1.0")
    for named in (*caught.value.distributions, content_type, "choose"):
        assert named in str(caught.value)

    registry = PluginRegistry.load(PluginSettings(choose={content_type: "two"}))
    assert registry.readers("serializer")[content_type].plugin == "two"


def test_two_things_of_one_name_are_an_error_unless_the_settings_choose() -> None:
    fast, small = (
        plugin(
            name, compressors=[CompressorSpec(name="gzip", content_encoding=f"x-{name}", factory=REPR, levels=(1, 9))]
        )
        for name in ("fast", "small")
    )
    with pytest.raises(PluginConflictError, match=r"plugin 'builtin'.*plugin 'fast'.*compressor for 'gzip'"):
        PluginRegistry.from_plugins(fast)
    registry = PluginRegistry.from_plugins(fast, settings=PluginSettings(choose={"gzip": "fast"}, strict=True))
    assert registry.provided("compressor", "gzip").plugin == "fast"
    for choice in ("builtin", "fast", "small"):
        registry = PluginRegistry.from_plugins(fast, small, settings=PluginSettings(choose={"gzip": choice}))
        assert registry.provided("compressor", "gzip").plugin == choice


def test_a_choice_of_a_plugin_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="'gzip' to 'zopfli', which is not installed") as caught:
        PluginRegistry.from_plugins(settings=PluginSettings(choose={"gzip": "zopfli"}))
    assert caught.value.option == "choose"


def test_serializers_for_certain_models_share_a_content_type() -> None:
    class Mine: ...

    class Yours: ...

    mine = serializer("mine", content_type="application/json", models=lambda model: model is Mine)
    both = serializer("both", content_type="application/json", models=lambda model: model in (Mine, Yours))
    registry = PluginRegistry.from_plugins(plugin("one", serializers=[mine]), plugin("two", serializers=[both]))

    assert registry.readers("serializer")["application/json"].name == "json"
    assert registry.specific_serializer(None) is None
    assert registry.specific_serializer(int) is None
    found = registry.specific_serializer(Yours)
    assert found is not None
    assert found.name == "both"
    with pytest.raises(PluginConflictError, match="both decode into"):
        registry.specific_serializer(Mine)


def test_a_registry_does_not_change() -> None:
    registry = PluginRegistry.from_plugins()
    with pytest.raises(dataclasses.FrozenInstanceError):
        registry.plugins = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        registry._by_name["serializer", "x"] = None  # type: ignore[index]


def test_registries_are_independent_of_each_other() -> None:
    assert "reversing" in PluginRegistry.from_plugins(plugin(serializers=[serializer()])).names("serializer")
    assert "reversing" not in PluginRegistry.from_plugins().names("serializer")


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (lambda: 1 / 0, "could not be made: ZeroDivisionError: division by zero"),
        (object, "has no encode(): its factory made a object"),
    ],
)
def test_a_factory_that_fails_is_an_error_that_names_the_plugin(factory: Any, text: str) -> None:
    registry = PluginRegistry.from_plugins(plugin("maker", serializers=[serializer(factory=factory)]))
    with pytest.raises(PluginError) as caught:
        registry.make_serializer(registry.provided("serializer", "reversing"))
    assert str(caught.value) == f"the serializer 'reversing' of the plugin object 'maker' {text}"


def test_a_policy_of_the_wrong_interface_is_an_error() -> None:
    registry = PluginRegistry.from_plugins(
        plugin(policies=[PolicySpec(kind="retry", name="never", factory=lambda: "never")])  # type: ignore[arg-type,return-value]
    )
    with pytest.raises(
        PluginError, match="the retry 'never' of the plugin object 'tested' is a str, which is no Retry"
    ):
        registry.retry_policy("never")


@pytest.mark.parametrize("level", [-1, 10])
def test_a_level_that_a_compressor_does_not_have_is_an_error(level: int) -> None:
    registry = PluginRegistry.from_plugins()
    with pytest.raises(ConfigurationError, match=f"compression_level is {level}; gzip has 0 to 9") as caught:
        registry.make_compressor(registry.provided("compressor", "gzip"), level)
    assert caught.value.option == "compression_level"


def test_a_plugin_that_fails_in_an_event_is_logged_and_the_next_is_told(caplog: pytest.LogCaptureFixture) -> None:
    told: list[ConnectionEvent] = []

    def fail(event: ConnectionEvent) -> None:
        raise ValueError("not today")

    def tell(event: ConnectionEvent) -> None:
        told.append(event)

    registry = PluginRegistry.from_plugins(
        plugin("first", connection_event=fail), plugin("second", connection_event=tell)
    )
    event = ConnectionEvent(kind=ConnectionEventKind.OPENED, connection_name="billing (publish)")
    registry.connection_event(event)
    assert told == [event]
    assert "plugin 'first'" in caplog.text
    assert "leveret_connection_event(opened): ValueError: not today" in caplog.text


LINES = {
    "is no Exception": "class Panic(BaseException): ...\nraise Panic",
    "cannot be printed": "class E(Exception):\n  def __str__(self): raise RuntimeError\nraise E",
    "has attributes that raise": (
        "def __getattr__(name): raise RuntimeError(name)\n@hookimpl\ndef leveret_metrics(): return []"
    ),
    "ends the program in a hook": "@hookimpl\ndef leveret_serializers(): raise SystemExit",
    "has a version that cannot be hashed": "@hookimpl\ndef leveret_serializers():\n  return [spec(api_version=[1])]",
    "has aliases that raise": (
        "def late():\n  yield 'text/y'\n  raise RuntimeError\n"
        "@hookimpl\ndef leveret_serializers(): return [spec(aliases=late())]"
    ),
    "brings two for one content type": (
        "@hookimpl\ndef leveret_serializers(): return [spec(), spec(name='y')]"  # which nobody could choose between
    ),
    "has aliases that can be read once": (
        "@hookimpl\ndef leveret_serializers(): return [spec(aliases=(each for each in ['text/y']))]"
    ),
    "has two functions for one hook": (
        "@hookimpl\ndef leveret_serializers(): return [spec()]\n"
        "@hookimpl(specname='leveret_serializers')\ndef more(): return [spec(name='y', content_type='text/y')]"
    ),
    "has an event hook that has to be awaited": "@hookimpl\nasync def leveret_connection_event(event): ...",
}


@pytest.mark.parametrize("what", LINES)
def test_it_alone_is_left_out_when_a_plugin(installed: Installed, what: str) -> None:
    head = (
        "from leveret.plugins import SerializerSpec, hookimpl\n"
        "def spec(name='x', content_type='text/x', **options):\n"
        "  return SerializerSpec(name=name, content_type=content_type, factory=int, **options)\n"
    )
    installed.add("good")
    installed.add("bad", head + LINES[what])
    registry = PluginRegistry.load(PluginSettings())
    assert {info.name: info.status for info in registry.plugins[1:]} == {"good": "active", "bad": "failed"}


@pytest.mark.parametrize("name", ["my-good-plugin", "My_Good_Plugin", "my.good.plugin"])
@pytest.mark.parametrize("option", ["allow", "block"])
def test_a_distribution_is_meant_when_its_name_is_spelled_in_another_way(
    installed: Installed, option: str, name: str
) -> None:
    installed.add("My-Good.Plugin", plugin="good", module="made_for_a_test_good")
    registry = PluginRegistry.load(PluginSettings(**{option: [name]}))  # type: ignore[arg-type]
    assert registry.plugins[1].status == ("active" if option == "allow" else "blocked")
