"""The files that `leveret plugins new` writes.

Beside this module is a module for each kind of plugin, which is linted and type-checked like all others. It becomes the
`__init__.py` of the new package. It is not imported but read as text, in which `$name` and others are replaced.
"""

from __future__ import annotations

import importlib.resources
import re
import string
from dataclasses import dataclass
from typing import Final

from leveret import __version__
from leveret.plugins.declarations import Declaration, Declared, Hook, ProvidedKind, written

__all__ = ["KINDS", "Kind", "files", "module_name"]


_TEST: Final = """\
from __future__ import annotations

import pytest
from leveret.plugins import $spec
from leveret.testing import $kit

from $module import $hook


class TestConformance($kit):
    @pytest.fixture
    def spec(self) -> $spec:
        (spec,) = $hook()
        return spec
"""

_METRICS_TEST: Final = """\
from __future__ import annotations

from collections.abc import Callable

import pytest
from leveret.plugins import $spec
from leveret.testing import $kit

from $module import $hook, read


class TestConformance($kit):
    counters_go_on = False  # counters of closed clients are dropped

    @pytest.fixture
    def spec(self) -> $spec:
        (spec,) = $hook()
        return spec

    @pytest.fixture
    def read(self) -> Callable[[], dict[tuple[str, tuple[str, ...]], float]]:
        return read
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """The texts that differ between the kinds of plugins.

    Attributes:
        what: The name of the kind for users.
        hook: The hook.
        spec: The descriptor that the hook returns.
        kit: The conformance kit.
        provides: The kind of what the plugin provides; see `leveret.plugins.registry.Provided`.
        keys: The content types or encodings that it decodes.
        dependencies: The dependencies beside Leveret.
        test: The test module.
        settings: The line of the README's program that makes the client's settings.
        connect: The arguments of `leveret.connect` in that program.
        producer: The arguments of the producer in that program.
    """

    what: str
    hook: Hook
    spec: str
    kit: str
    provides: ProvidedKind
    keys: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    test: str = _TEST
    settings: str = ""
    connect: str = ""
    producer: str = ""


KINDS: Final = {
    "serializer": Kind(
        what="serializer",
        hook="leveret_serializers",
        spec="SerializerSpec",
        kit="SerializerConformance",
        provides="serializer",
        keys=("application/x-$name",),
        dependencies=("msgspec>=0.19",),
        producer='serializer="$name"',
    ),
    "compressor": Kind(
        what="compressor",
        hook="leveret_compressors",
        spec="CompressorSpec",
        kit="CompressorConformance",
        provides="compressor",
        keys=("x-$name",),
        producer='compressor="$name"',
    ),
    "metrics": Kind(
        what="metrics sink",
        hook="leveret_metrics",
        spec="MetricsSpec",
        kit="MetricsConformance",
        provides="metrics",
        test=_METRICS_TEST,
        settings='\n    settings = leveret.MonitoringSettings(sinks=["$name"])',
        connect=", monitoring=settings",
    ),
    "policy": Kind(
        what="retry policy",
        hook="leveret_policies",
        spec="PolicySpec",
        kit="RetryConformance",
        provides="retry",
        producer='retry="$name"',
    ),
}

#: Comments for Leveret's own linting only, for which `leveret` is a first-party package.
_NOQA: Final = re.compile(r"  # noqa: .*$", re.MULTILINE)

_PYPROJECT: Final = """\
[build-system]
requires = ["setuptools>=77.0.1"]
build-backend = "setuptools.build_meta"

[project]
name = "$distribution"
version = "0.1.0"
description = "A $what for Leveret, the RabbitMQ messaging SDK."
readme = "README.md"
license = "MIT"
authors = [{ name = "The $distribution developers" }]
keywords = ["amqp", "leveret", "messaging", "rabbitmq"]
requires-python = ">=3.11"
classifiers = [
    "Development Status :: 3 - Alpha",
    "Framework :: AsyncIO",
    "Intended Audience :: Developers",
    "Programming Language :: Python :: 3",
    "Typing :: Typed",
]
dependencies = [$dependencies]

[project.entry-points."leveret.plugins"]
$name = "$module"

[dependency-groups]
test = ["pytest>=9"]

[tool.setuptools.packages.find]
where = ["src"]

[tool.setuptools.package-data]
"*" = ["leveret.json", "py.typed"]
"""

_CHANGELOG: Final = """\
# Changelog

The form is that of [Keep a Changelog](https://keepachangelog.com/en/1.1.0/), the versions are
[semantic](https://semver.org/spec/v2.0.0.html).

## [0.1.0] - Unreleased

### Added

- The $what `$name`.
"""

_README: Final = """\
# $distribution

A $what for Leveret, the RabbitMQ messaging SDK. It is used when it is installed and named:

```sh
pip install $distribution
```

```python
import leveret

URL = "amqp://guest:guest@localhost"


async def main() -> None:$settings
    async with leveret.connect(URL$connect) as client:
        await client.declare(leveret.Topology().queue("greetings"))
        async with client.producer($producer) as producer:
            await producer.publish({"hello": "world"}, "greetings")
        async with client.consumer("greetings") as consumer:
            async for message in consumer:
                print(message.value)
                message.ack()
                break
        await client.delete_queue("greetings")


leveret.run(main())
```

## Working on it

```sh
pip install --editable . --group test
pytest
leveret plugins check $name
```

The tests run Leveret's conformance kit, which checks what every $what must do. `leveret plugins check` runs the kit as
well, and checks the metadata.
"""


def module_name(name: str) -> str:
    """Returns the module name of a plugin."""
    return "leveret_" + name.replace("-", "_")


def files(name: str, kind: str) -> dict[str, str]:
    """Makes the files of a plugin.

    Args:
        name: The plugin's name: lower-case letters, digits and single `-`.
        kind: One of `KINDS`.

    Returns:
        The text of each file, by its path in the new folder.
    """
    its = KINDS[kind]
    module = module_name(name)
    words = {
        "name": name,
        "module": module,
        "distribution": f"leveret-{name}",
        "dependencies": ", ".join(f'"{each}"' for each in (_leveret(), *its.dependencies)),
        "what": its.what,
        "hook": its.hook,
        "spec": its.spec,
        "kit": its.kit,
    }
    words |= {key: string.Template(getattr(its, key)).substitute(words) for key in ("settings", "connect", "producer")}
    source = importlib.resources.files(__name__).joinpath(f"{kind}.py").read_text(encoding="utf-8")
    source = _NOQA.sub("", source)
    texts = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        "CHANGELOG.md": _CHANGELOG,
        f"src/{module}/__init__.py": source,
        f"src/{module}/leveret.json": _declaration(name, its),
        f"src/{module}/py.typed": "",
        f"tests/test_{module}.py": its.test,
    }
    return {path: string.Template(text).substitute(words) for path, text in texts.items()}


def _declaration(name: str, its: Kind) -> str:
    """Returns what the plugin declares, so that it is imported when it is used."""
    keys = tuple(string.Template(key).substitute(name=name) for key in its.keys)
    return written(name, Declaration((its.hook,), (Declared(its.provides, name, keys),)))


def _leveret() -> str:
    """Returns the requirement for the versions of Leveret that are compatible with this one."""
    major, minor = (int(part) for part in __version__.split(".")[:2])
    return f"leveret>={major}.{minor},<{f'0.{minor + 1}' if major == 0 else major + 1}"
