"""Runs what the documentation shows: every Python block as a program of its own, every command as far as it exists.

Links within the documentation are followed, too.

Blocks say ``amqp://guest:guest@localhost``; here that becomes a live embedded broker.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from tests.support.paths import ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
    ROOT / "asv_bench" / "README.md",
]
BLOCK = re.compile(r"^```(?P<fence>[^\n`]+)\n(?P<code>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
DOCUMENTED_URL = "amqp://guest:guest@localhost"
TIMEOUT = 30.0


class Block(NamedTuple):
    place: str
    fence: str
    code: str


def blocks() -> list[Block]:
    found = []
    for page in filter(Path.exists, PAGES):
        text = page.read_text()
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(f"{page.relative_to(ROOT)}:{line}", match["fence"].strip(), match["code"]))
    return found


def split_commands(line: str) -> list[list[str]]:
    """Splits a line of shell into its commands, and each into words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";|&"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def commands() -> list[tuple[str, list[str]]]:
    """Returns (place, words) of each command in shell blocks; in console blocks only of lines after a prompt."""
    found = []
    for block in blocks():
        if block.fence not in {"sh", "bash", "console"}:
            continue
        lines = block.code.replace("\\\n", " ").splitlines()
        if block.fence == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        for line in lines:
            for words in split_commands(line):
                while words and re.fullmatch(r"\w+=.*", words[0]):  # VARIABLE=value before the command
                    words.pop(0)
                if words and Path(words[0]).name in {"leveret", "make"}:
                    found.append((block.place, words))
    return found


def test_python_blocks_are_all_run() -> None:
    others = {
        block.place: block.fence for block in blocks() if block.fence.startswith("py") and block.fence != "python"
    }
    assert others == {}, "a Python block is a whole program, and is run: its fence says `python` and no more"


@pytest.mark.parametrize("block", [pytest.param(b, id=b.place) for b in blocks() if b.fence == "python"])
async def test_python_block_runs_as_printed(block: Block, tmp_path: Path) -> None:
    from leveret.broker import EmbeddedBroker

    async with EmbeddedBroker() as broker:
        program = tmp_path / "program.py"
        program.write_text(block.code.replace(DOCUMENTED_URL, f"amqp://{urlsplit(broker.url).netloc}"))
        output = tmp_path / "output.txt"
        with output.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, program, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT
            )
        what = "failed"
        try:
            await asyncio.wait_for(process.wait(), TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
            what = f"did not end within {TIMEOUT} s"
    assert process.returncode == 0, f"{block.place} {what}; it printed:\n{output.read_text()}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
async def test_example_runs(path: Path) -> None:
    from leveret.broker import EmbeddedBroker

    async with EmbeddedBroker() as broker:
        process = await asyncio.create_subprocess_exec(
            sys.executable, path, broker.url, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await asyncio.wait_for(process.communicate(), TIMEOUT)
    assert process.returncode == 0, f"{path.name} failed:\n{output.decode()}"
    assert output


@cache
def help_of(*command: str) -> str:
    leveret = Path(sys.executable).with_name("leveret")
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [leveret, *command, "--help"], env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, f"leveret {' '.join(command)} --help failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def test_commands_of_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for place, (program, *words) in commands():
        words = list(itertools.takewhile(lambda word: not re.match(r"\d?[<>]|&$", word), words))
        if Path(program).name == "make":
            wanted = {word for word in words if "=" not in word and not word.startswith("-")}
            assert wanted <= targets, f"{place}: no such target: make {' '.join(wanted - targets)}"
        else:
            printed = help_of(*itertools.takewhile(lambda word: not word.startswith("-"), words))
            options = {word.partition("=")[0] for word in words if word.startswith("--")}
            unknown = {option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", printed)}
            assert not unknown, f"{place}: `leveret {' '.join(words)}` has no {', '.join(unknown)}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f"{target}: there is no such file"
        assert not anchor or anchor in anchors(to), f"{target}: there is no such heading"
