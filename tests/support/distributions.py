"""Makes distributions with plugins that look installed, in a folder that a test puts on `sys.path`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

#: A plugin that works; what the tests break is derived from it.
PLUGIN = """
from leveret.plugins import SerializerSpec, hookimpl

class Reversing:
    def encode(self, value):
        return value[::-1].encode()

    def decoder(self, model):
        return lambda body: body.decode()[::-1]

@hookimpl
def leveret_serializers():
    return [SerializerSpec(name={name!r}, content_type={content_type!r}, factory=Reversing)]
"""


class Installed:
    """A folder of distributions, as pip would have left it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        monkeypatch.syspath_prepend(str(folder))
        # What is installed beside the tests is not of their making.
        monkeypatch.setattr(sys, "path", [str(folder), *(p for p in sys.path if "site-packages" not in p)])

    def add(
        self,
        distribution: str,
        code: str | None = None,
        *,
        plugin: str | None = None,
        module: str | None = None,
        version: str = "1.0",
        content_type: str | None = None,
        declares: dict[str, Any] | str | None = None,
    ) -> str:
        """Installs a distribution with one plugin.

        Args:
            distribution: Its name.
            code: Its module; by default a plugin with a serializer that has the plugin's name.
            plugin: The entry point's name; by default the distribution's.
            module: The module's name; by default made of the distribution's.
            version: Its version.
            content_type: What the default plugin's serializer reads.
            declares: What its `leveret.json` has for the plugin, or the file's text; None for a plugin without one.

        Returns:
            The module's name.
        """
        plugin = plugin or distribution
        module = module or f"made_for_a_test_{distribution.replace('-', '_')}"
        information = self._folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (information / "entry_points.txt").write_text(f"[leveret.plugins]\n{plugin} = {module}\n")
        if code is None:
            code = PLUGIN.format(name=plugin, content_type=content_type or f"text/x-{plugin}")
        if declares is None:
            (self._folder / f"{module}.py").write_text(code)
        else:
            package = self._folder / module
            package.mkdir()
            (package / "__init__.py").write_text(code)
            text = declares if isinstance(declares, str) else json.dumps({plugin: declares})
            (package / "leveret.json").write_bytes(text.encode("latin-1"))
        # A module of that name may be left from another test.
        self._monkeypatch.delitem(sys.modules, module, raising=False)
        return module
