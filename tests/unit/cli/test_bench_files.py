"""`leveret bench --json` writes what `--compare` reads; other files are refused with what is wrong with them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.bench import curve, report, row, series

from leveret.cli.bench.comparison import change
from leveret.cli.bench.results import ForeignFileError, read_report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def written(path: Path, data: Any) -> str:
    path.write_text(json.dumps(data))
    return str(path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    made = report([row(series=series(), latency=curve()), row("batch-publish", "tuned", skipped="not here")])
    assert read_report(written(tmp_path / "a.json", made.as_dict())) == made
    assert list(made.named()) == [("basic-publish", "default")]


def test_later_additions_to_the_form_are_ignored(tmp_path: Path) -> None:
    data = report().as_dict() | {"weather": "fine"}
    assert read_report(written(tmp_path / "a.json", data)) == report()


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(report([row(series=series(), latency=curve())]).as_dict()))
    change(data)
    return data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "Expected `object`"),
        ({"name": "something else"}, "missing required field `schema`"),
        (changed(lambda data: data.update(schema=2)), "was written in form 2"),
        (changed(lambda data: data.pop("machine")), "missing required field `machine`"),
        (changed(lambda data: data["benchmarks"][0]["median"].update(rate_msgs_per_s=-1)), "`float` >= 0"),
        (changed(lambda data: data["benchmarks"][0]["median"].update(rate_msgs_per_s=1e300)), "<= 1"),
        (changed(lambda data: data["benchmarks"][0]["series"]["seconds"].pop()), "the lists of a series differ"),
        (changed(lambda data: data["benchmarks"][0]["series"].update(seconds=[])), "the lists of a series differ"),
        (changed(lambda data: data["benchmarks"][0]["latency"]["ms"].pop()), "the lists of a curve differ"),
        (changed(lambda data: data["machine"].update(memory_bytes=10**30)), "machine.memory_bytes"),
        (changed(lambda data: data.update(made_at="yesterday")), "made_at"),
        (changed(lambda data: data.update(made_at="2026-01-01T00:00:00")), "timezone"),
    ],
)
def test_foreign_file_is_refused_with_what_is_wrong(data: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError) as caught:
        read_report(written(tmp_path / "a.json", data))
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "a.json"))
    assert said in text


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1, "a": ' + b"[" * 100_000])
def test_file_that_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ForeignFileError, match="is no file that `leveret bench --json` wrote"):
        read_report(str(file))


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match=r"cannot read .*: Is a directory"):
        read_report(str(tmp_path))


@pytest.mark.parametrize(
    ("now", "earlier", "text"),
    [
        (110.0, 100.0, "+10 %"),
        (50.0, 100.0, "-50 %"),
        (100.1, 100.0, "0 %"),
        (None, 1.0, ""),
        (1.0, None, ""),
        (1.0, 0.0, ""),
        (123_456.0, 1.0, "+12,345,500 %"),
    ],
)
def test_change_is_in_per_cent(now: float | None, earlier: float | None, text: str) -> None:
    assert change(now, earlier) == text
