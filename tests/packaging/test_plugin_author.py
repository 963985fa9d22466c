"""The way of a plugin's author, and of its users, from an empty folder to messages, in environments of their own."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import aio_pika
import lz4.frame
import msgpack
import pytest
import zstandard
from tests.support.packaging import Environment, run_or_fail
from tests.support.paths import ROOT

from leveret.broker import EmbeddedBroker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGE = ROOT / "docs" / "plugins" / "write-a-serializer.md"
PROGRAM = ROOT / "examples" / "msgpack_lz4.py"
DOCUMENTED_URL = "amqp://guest:guest@localhost"


def plugins_of(environment: Environment) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(environment("leveret", "plugins", "list", "--json", "-"))["plugins"]}


async def run_with_broker(environment: Environment, program: str, folder: Path) -> str:
    """Runs a program of the documentation with an embedded broker; returns what it printed."""
    file = folder / "program.py"
    async with EmbeddedBroker() as broker:
        file.write_text(program.replace(DOCUMENTED_URL, broker.url))
        return await asyncio.to_thread(run_or_fail, environment.python, "-I", file, cwd=folder)


# ---------------------------------------------------------------------- leveret plugins new


@pytest.fixture(scope="session")
def demo(author: Environment) -> Path:
    """The folder of a new serializer, which is installed."""
    author("leveret", "plugins", "new", "demo", "--kind", "serializer")
    folder = author.folder / "leveret-demo"
    author.install("--no-build-isolation", "--no-deps", folder)
    return folder


def test_new_serializer_passes_its_own_tests(author: Environment, demo: Path) -> None:
    assert re.search(r"^\d+ passed", author("python", "-m", "pytest", "-q", cwd=demo).splitlines()[-1])


def test_new_serializer_is_listed_when_it_is_installed(author: Environment, demo: Path) -> None:
    row = plugins_of(author)["demo"]
    assert (row["status"], row["distribution"], row["version"]) == ("active", "leveret-demo", "0.1.0")
    assert row["provides"] == [{"kind": "serializer", "name": "demo", "keys": ["application/x-demo"]}]
    assert "serializer demo (application/x-demo)" in author("leveret", "plugins", "list")


def test_new_serializer_passes_all_checks_when_it_is_installed(author: Environment, demo: Path) -> None:
    printed = author("leveret", "plugins", "check", "demo").splitlines()
    assert re.fullmatch(r"\d\d+ ok, 0 failed, 0 not checked", printed[-1])


async def test_new_serializer_carries_messages_when_it_is_installed(
    author: Environment, demo: Path, tmp_path: Path
) -> None:
    program = (demo / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert 'serializer="demo"' in program
    assert await run_with_broker(author, program, tmp_path) == "{'hello': 'world'}"


def test_next_steps_of_a_new_plugin_work_as_printed(author: Environment) -> None:
    printed = author("leveret", "plugins", "new", "stepwise", "--kind", "policy")
    folder = author.folder
    steps = [shlex.split(line) for line in printed.splitlines() if line.startswith("  ")]
    assert [step[0] for step in steps] == ["cd", "pip", "pytest", "leveret"]
    for step in steps:
        if step[0] == "cd":
            folder = author.folder / step[1]
        else:
            run_or_fail(author.programs / step[0], *step[1:], cwd=folder)
    assert plugins_of(author)["stepwise"]["status"] == "active"


# ---------------------------------------------------------------------- write a serializer in 20 lines


def files_of_page() -> dict[str, str]:
    """The page's files: the blocks that follow a line with nothing but a file's name."""
    return dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="session")
def forms(author: Environment) -> Path:
    """The folder with the page's files, after the page's commands."""
    folder = author.folder / "forms"
    for name, text in files_of_page().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "src" / "leveret_forms" / "py.typed").touch()
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        run_or_fail(author.programs / program, *arguments, cwd=folder)
    return folder


def test_page_has_all_files() -> None:
    wanted = {"src/leveret_forms/__init__.py", "pyproject.toml", "tests/test_forms.py", "animals.py"}
    wanted.add("src/leveret_forms/leveret.json")
    assert set(files_of_page()) == wanted


def test_page_keeps_to_20_lines() -> None:
    lines = files_of_page()["src/leveret_forms/__init__.py"].splitlines()
    assert len([line for line in lines if line.strip()]) <= 20


def test_commands_of_the_page_work_as_printed(author: Environment, forms: Path) -> None:
    row = plugins_of(author)["forms"]
    assert (row["status"], row["distribution"]) == ("active", "leveret-forms")


async def test_serializer_of_the_page_carries_messages(author: Environment, forms: Path, tmp_path: Path) -> None:
    printed = await run_with_broker(author, (forms / "animals.py").read_text(), tmp_path)
    assert printed == "application/x-www-form-urlencoded {'name': 'Lepus', 'legs': '4'}"


def test_serializer_of_the_page_works_as_a_wheel(author: Environment, forms: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(forms, tmp_path / "forms", ignore=shutil.ignore_patterns("*.egg-info", "build"))
    author.install("--no-build-isolation", "--no-deps", "--target", tmp_path / "site", copy)
    assert (tmp_path / "site" / "leveret_forms" / "py.typed").is_file()


# ---------------------------------------------------------------------- what users install


def unpack_zstd(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)


def unpack_with(program: str, body: bytes) -> bytes:
    return subprocess.run([program, "-d", "-c"], input=body, capture_output=True, check=True).stdout


def test_example_has_20_lines_at_most() -> None:
    lines = PROGRAM.read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 20


@pytest.mark.parametrize(
    ("compressor", "unpack"), [("lz4", lz4.frame.decompress), ("zstd", unpack_zstd), ("gzip", gzip.decompress)]
)
async def test_bodies_are_plain_msgpack_in_a_plain_frame(
    messaging: Environment, tmp_path: Path, compressor: str, unpack: Callable[[bytes], bytes]
) -> None:
    program = PROGRAM.read_text()
    assert 'compressor="lz4"' in program
    file = tmp_path / "program.py"
    file.write_text(program.replace('compressor="lz4"', f'compressor="{compressor}"'))
    async with EmbeddedBroker() as broker, await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("hutch", "fanout", durable=True)
        tap = await channel.declare_queue("tap")
        await tap.bind(exchange)
        printed = await asyncio.to_thread(run_or_fail, messaging.python, "-I", file, broker.url, cwd=tmp_path)
        message = await tap.get(no_ack=True)
    assert printed == f"application/msgpack {compressor} 1000"
    assert (message.content_type, message.content_encoding) == ("application/msgpack", compressor)
    assert len(message.body) < 500
    packed = unpack(message.body)
    assert msgpack.unpackb(packed) == {"id": 1, "carrots": ["nantaise"] * 1000}
    if tool := shutil.which(compressor):
        assert unpack_with(tool, message.body) == packed
