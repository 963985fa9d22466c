"""Declarations: a plugin that declares what it is, is imported when it is used, and has to be what it declares."""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, get_args

import pytest
from tests.support.distributions import PLUGIN, Installed

import leveret
from leveret.broker import EmbeddedBroker
from leveret.errors import ConfigurationError, ContentTypeNotAccepted, PluginConflictError, PluginLoadError
from leveret.plugins import PluginRegistry
from leveret.plugins.declarations import Declaration, Hook, ProvidedKind, declaration_of, written
from leveret.plugins.loading import hook_names
from leveret.plugins.registry import Provided
from leveret.settings import PluginSettings
from leveret.testing import check_plugin

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    return Installed(tmp_path, monkeypatch)


def declares(name: str, *keys: str, **more: Any) -> dict[str, Any]:
    provides = [{"kind": "serializer", "name": name, "keys": keys or (f"text/x-{name}",), **more}]
    return {"hooks": ["leveret_serializers"], "provides": provides}


def status(registry: PluginRegistry, name: str = "lazy") -> str:
    return next(info.status for info in registry.plugins if info.name == name)


def lazy(installed: Installed, code: str | None = None, **more: Any) -> str:
    """Installs the plugin "lazy", with a serializer of that name."""
    return installed.add("leveret-lazy", code, plugin="lazy", **{"declares": declares("lazy"), **more})


def test_a_plugin_is_imported_when_something_of_it_is_named(installed: Installed) -> None:
    module = lazy(installed)
    registry = PluginRegistry.load(PluginSettings())
    (info,) = registry.plugins[1:]
    assert (info.status, info.hooks, info.load_time) == ("declared", ("leveret_serializers",), 0)
    assert [(it.kind, it.name, it.keys) for it in info.provides] == [("serializer", "lazy", ("text/x-lazy",))]
    assert "lazy" in registry.names("serializer")
    assert registry.readers("serializer")["text/x-lazy"].name == "lazy"
    assert module not in sys.modules
    made = registry.make_serializer(registry.provided("serializer", "lazy"))
    assert made.encode("abc") == b"cba"
    assert status(registry) == "active"
    assert registry.plugins[1].load_time > 0


@pytest.mark.parametrize(
    "how", [{"settings": PluginSettings(strict=True)}, {"at_once": True}], ids=["strict", "at once"]
)
def test_all_plugins_are_imported_at_once_when_that_is_wanted(installed: Installed, how: dict[str, Any]) -> None:
    lazy(installed)
    assert status(PluginRegistry.load(**{"settings": PluginSettings(), **how})) == "active"


async def test_a_message_of_its_content_type_imports_a_plugin(installed: Installed) -> None:
    module = lazy(installed)
    async with (
        EmbeddedBroker() as broker,
        leveret.connect(broker.url, plugins=PluginRegistry.load(PluginSettings())) as client,
    ):
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer() as producer, client.consumer("q") as consumer:
            for body, content_type in ((b'"first"', "application/json"), (b"dnoces", "text/x-lazy")):
                await producer.publish(body, "q", content_type=content_type)
            seen = []
            async for message in consumer:
                seen.append((message.value, module in sys.modules))
                message.ack()
                if len(seen) == 2:
                    break
    assert seen == [("first", False), ("second", True)]


async def test_a_message_does_not_choose_a_plugin_that_decodes_unsafely(installed: Installed) -> None:
    code = PLUGIN.format(name="lazy", content_type="text/x-lazy").replace("factory=", "safe=False, factory=")
    lazy(installed, code)
    registry = PluginRegistry.load(PluginSettings())
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer() as producer, client.consumer("q") as consumer:
            await producer.publish(b"cba", "q", content_type="text/x-lazy")
            async for message in consumer:
                with pytest.raises(ContentTypeNotAccepted, match="'text/x-lazy' is not accepted"):
                    _ = message.value
                message.ack()
                break
    assert status(registry) == "active"


MODEL_PLUGIN = PLUGIN.replace("factory=", "models=lambda model: model.__name__ == 'Special', factory=")


def test_a_plugin_is_asked_about_models_of_packages_that_are_imported(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = MODEL_PLUGIN.format(name="lazy", content_type="application/json")
    wanted = declares("lazy", "application/json", models_of=["package_of_models"])
    module = lazy(installed, code, declares=wanted)
    registry = PluginRegistry.load(PluginSettings())
    special = type("Special", (), {})
    assert registry.specific_serializer(special) is None
    assert module not in sys.modules
    monkeypatch.setitem(sys.modules, "package_of_models", pytest)
    found = registry.specific_serializer(special)
    assert found is not None
    assert found.name == "lazy"


def test_a_plugin_with_events_is_imported_by_each_program_and_one_with_commands_by_the_command(
    installed: Installed,
) -> None:
    event = "from leveret.plugins import hookimpl\n@hookimpl\ndef leveret_connection_event(event): ...\n"
    installed.add("leveret-event", event, plugin="event", declares={"hooks": ["leveret_connection_event"]})
    command = (
        "from leveret.plugins import CommandSpec, hookimpl\n"
        "@hookimpl\ndef leveret_cli(): return [CommandSpec(name='c', help='', load=int)]\n"
    )
    module = installed.add("leveret-command", command, plugin="command", declares={"hooks": ["leveret_cli"]})
    registry = PluginRegistry.load(PluginSettings())
    assert (status(registry, "event"), status(registry, "command")) == ("active", "declared")
    assert module not in sys.modules
    (found,), errors = registry.commands()
    assert (found[1].name, errors) == ("c", [])


def test_two_plugins_for_one_content_type_are_an_error_without_being_imported(installed: Installed) -> None:
    modules = [
        installed.add(f"leveret-{name}", plugin=name, declares=declares(name, "text/x-both")) for name in ("one", "two")
    ]
    with pytest.raises(PluginConflictError, match="text/x-both"):
        PluginRegistry.load(PluginSettings())
    assert not sys.modules.keys() & set(modules)


def test_what_a_plugin_brings_is_gone_when_importing_it_fails(
    installed: Installed, caplog: pytest.LogCaptureFixture
) -> None:
    lazy(installed, "raise ImportError('no such library')")
    registry = PluginRegistry.load(PluginSettings())
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"no serializer 'lazy'; known are .* is failed: .*such library"):
            registry.provided("serializer", "lazy")
    assert len(caplog.records) == 1
    assert "lazy" not in registry.names("serializer")
    assert "text/x-lazy" not in registry.readers("serializer")
    with pytest.raises(PluginLoadError, match="no such library"):
        PluginRegistry.load(PluginSettings(strict=True))


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (declares("lazy", "text/x-other"), "'lazy' has the keys ['text/x-lazy'], and declares ['text/x-other']"),
        (declares("other"), "it provides no serializer 'other'; the serializer 'lazy' is not declared"),
        (declares("lazy", models_of=["json"]), "the serializer 'lazy' names models_of, and is for all models"),
        ({**declares("lazy"), "hooks": []}, "leveret_serializers is not declared"),
        ({**declares("lazy"), "hooks": ["leveret_serializers", "leveret_cli"]}, "it has no leveret_cli"),
    ],
)  # fmt: skip
def test_a_plugin_that_is_not_what_it_declares_is_refused(
    installed: Installed, declared: dict[str, Any], text: str
) -> None:
    lazy(installed, declares=declared)
    registry = PluginRegistry.load(PluginSettings(), at_once=True)
    error = registry.plugins[1].error
    assert isinstance(error, PluginLoadError)
    assert "plugin 'lazy' of leveret-lazy 1.0" in str(error)
    assert "is not what its leveret.json declares: " in str(error)
    assert text in str(error)
    assert "lazy" not in registry.names("serializer")


@pytest.mark.parametrize(
    "text", ["{", '{"lazy": {"hooks": ["leveret_serialisers"]}}', '{"lazy": {"hook": []}}', "\xff"]
)
def test_a_declaration_that_cannot_be_read_is_ignored(
    installed: Installed, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    lazy(installed, declares=text)
    assert status(PluginRegistry.load(PluginSettings())) == "active"
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "plugin 'lazy' of leveret-lazy 1.0 (entry point made_for_a_test_leveret_lazy) "
    )
    assert "has a wrong leveret.json, which is ignored: " in record.getMessage()


def test_declarations_are_found_where_an_import_finds_the_package(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = lazy(installed)
    elsewhere = tmp_path / "elsewhere"  # as with `pip install --editable`
    elsewhere.mkdir()
    shutil.move(tmp_path / module, elsewhere)
    monkeypatch.syspath_prepend(str(elsewhere))
    registry = PluginRegistry.load(PluginSettings())
    assert status(registry) == "declared"
    assert registry.imported("lazy").status == "active"


def test_plugins_in_a_zip_file_are_found_with_what_they_declare(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = lazy(installed)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for folder in (module, "leveret_lazy-1.0.dist-info"):
            for path in (tmp_path / folder).iterdir():
                archive.write(path, f"{folder}/{path.name}")
            shutil.rmtree(tmp_path / folder)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "all.zip"), *sys.path])
    registry = PluginRegistry.load(PluginSettings())
    assert status(registry) == "declared"
    assert registry.imported("lazy").version == "1.0"


def test_plugins_are_found_where_a_finder_of_its_own_looks_for_them(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy(installed)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    shutil.move(tmp_path / "leveret_lazy-1.0.dist-info", hidden)

    class Finder:
        @staticmethod
        def find_spec(*arguments: object) -> None:
            return None

        @staticmethod
        def find_distributions(context: Any) -> Any:
            return PathFinder.find_distributions(type(context)(name=context.name, path=[str(hidden)]))

    assert [info.name for info in PluginRegistry.load(PluginSettings()).plugins] == ["builtin"]
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert status(PluginRegistry.load(PluginSettings())) == "declared"


def test_a_kit_says_what_to_declare(installed: Installed) -> None:
    installed.add("leveret-eager", plugin="eager")
    results = check_plugin(PluginRegistry.load(PluginSettings()), "eager")
    (hint,) = (result for result in results if result.kind == "plugin")
    assert (hint.name, hint.check, hint.passed) == ("eager", "is what it declares", None)
    place, text = hint.message.split("Write ")[1].split(": ", 1)
    assert place == "made_for_a_test_leveret_eager/leveret.json"
    assert json.loads(text) == json.loads(json.dumps({"eager": declares("eager")}))


def test_a_kit_fails_a_plugin_that_is_not_what_it_declares(installed: Installed) -> None:
    lazy(installed, declares=declares("lazy", "text/x-other"))
    (result,) = check_plugin(PluginRegistry.load(PluginSettings()), "lazy")
    assert (result.kind, result.passed) == ("plugin", False)
    assert "declares ['text/x-other']" in result.message


def test_what_can_be_declared_is_what_there_is() -> None:
    assert get_args(Hook) == hook_names()
    assert set(re.findall(r'"(\w+)"', Provided.__doc__ or "")) == set(get_args(ProvidedKind))


def test_each_installed_plugin_of_ours_declares_what_it_is() -> None:
    registry = PluginRegistry.load(PluginSettings(), at_once=True)
    ours = [info for info in registry.plugins if info.distribution.startswith("leveret-")]
    assert len(ours) == 8
    for info in ours:
        assert (info.status, info.declares, info.error) == ("active", True, None)
        assert isinstance(declaration_of(info), Declaration)
        assert json.loads(written(info.name, declaration_of(info)))[info.name]["hooks"] == list(info.hooks)


def test_a_refused_plugin_is_refused_again(installed: Installed) -> None:
    declares = {
        "hooks": ["leveret_serializers", "leveret_cli"],
        "provides": [{"kind": "serializer", "name": "lazy", "keys": ["text/x-lazy"]}],
    }
    installed.add("leveret-lazy", plugin="lazy", declares=declares)
    registry = PluginRegistry.load(PluginSettings())
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="there is no serializer 'lazy'"):
            registry.provided("serializer", "lazy")
