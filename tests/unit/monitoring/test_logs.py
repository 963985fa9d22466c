"""`setup_logging` sets up the log of a program in one line, for people or for machines."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

import leveret
from leveret.monitoring import logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def plain_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A root logger without handlers, as a new program has it."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr(logs, "_ours", None)
    yield
    for handler in root.handlers:
        handler.close()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_one_line_shows_the_log_of_the_program_and_of_leveret(capsys: pytest.CaptureFixture[str]) -> None:
    leveret.setup_logging()
    logging.getLogger("shop").info("begun")
    logging.getLogger("leveret.app").info("connected")
    logging.getLogger("leveret.app").debug("details")
    written = capsys.readouterr().err
    assert "shop: begun" in written
    assert "leveret.app: connected" in written
    assert "details" not in written


def test_json_lines_have_what_came_with_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERET_PROCESS", "3")
    file = tmp_path / "shop.log"
    leveret.setup_logging("DEBUG", format="json", file=file)
    logger = logging.getLogger("leveret.monitoring")
    logger.debug("report %d", 1, extra={"leveret_report": {"published": 2}, "odd": object})
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("failed")
    first, second = lines(file)
    assert (first["level"], first["logger"], first["message"]) == ("DEBUG", "leveret.monitoring", "report 1")
    assert first["leveret_report"] == {"published": 2}
    assert first["process_index"] == 3
    assert first["odd"] == str(object)
    assert first["time"].endswith("Z")
    assert "ValueError: no" in second["exception"]


def test_a_further_call_replaces_the_handler_of_the_call_before(tmp_path: Path) -> None:
    mine = logging.NullHandler()
    logging.getLogger().addHandler(mine)
    leveret.setup_logging(file=tmp_path / "first.log")
    leveret.setup_logging(file=tmp_path / "second.log")
    logging.getLogger("shop").warning("begun")
    assert (tmp_path / "first.log").read_text() == ""
    assert "begun" in (tmp_path / "second.log").read_text()
    assert mine in logging.getLogger().handlers


def test_a_file_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    file = tmp_path / "shop.log"
    leveret.setup_logging(file=file)
    logging.getLogger("shop").warning("first")
    file.rename(tmp_path / "shop.log.1")
    logging.getLogger("shop").warning("second")
    assert "second" in file.read_text()


@pytest.mark.parametrize(
    ("options", "option"),
    [({"format": "xml"}, "format"), ({"level": "LOUD"}, "level"), ({"file": "/nowhere/shop.log"}, "file")],
)
def test_what_is_wrong_is_named(options: dict[str, Any], option: str) -> None:
    before = list(logging.getLogger().handlers)
    with pytest.raises(leveret.LeveretError) as raised:
        leveret.setup_logging(**options)
    assert getattr(raised.value, "option", None) == option
    assert logging.getLogger().handlers == before


@pytest.mark.parametrize(("text", "index"), [("", 0), ("0", 0), ("7", 7), ("-1", 0), ("x", 0)])
def test_process_index_is_what_the_environment_says(text: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERET_PROCESS", text)
    assert leveret.App("amqp://localhost").process_index == index
