"""docs/settings.md lists every option with its default, as the settings classes have them."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import TYPE_CHECKING

import pytest
from tests.support.paths import ROOT

from leveret import settings

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture(scope="module")
def options() -> ModuleType:
    spec = importlib.util.spec_from_file_location("options", ROOT / "tools" / "options.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_lists_all_options_as_they_are(options: ModuleType) -> None:
    page = options.PAGE.read_text()
    assert options.filled(page) == page, "run .venv/bin/python tools/options.py"


def test_every_settings_class_is_listed(options: ModuleType) -> None:
    public = {getattr(settings, name) for name in settings.__all__ if name.endswith("Settings")}
    assert set(options.CLASSES) == public - {settings.Settings}  # which only holds the others


def test_every_option_is_described_in_its_class(options: ModuleType) -> None:
    for cls in options.CLASSES:
        assert list(options.descriptions(cls)) == [field.name for field in dataclasses.fields(cls)], cls.__name__


def test_a_changed_default_is_noticed(options: ModuleType) -> None:
    page = options.PAGE.read_text()
    row = "| `prefetch` | 100 |"
    assert row in page
    assert options.filled(page.replace(row, "| `prefetch` | 10 |")) == page
