"""`leveret run` finds its app, refuses wrong options in one line, and says what it is doing."""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from rich.console import Console
from tests.support.snapshots import snapshot

from leveret.app.board import Board
from leveret.cli.app import app
from leveret.cli.failures import CommandFailed
from leveret.cli.serve import RunOptions, start_log
from leveret.cli.summary import Summary
from leveret.cli.target import load
from leveret.monitoring.health import Health

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = """
import leveret

class Holder:
    app = leveret.App("amqp://localhost", name="inner")

orders_app = leveret.App("amqp://localhost", name="orders")
number = 5
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "lev_orders.py").write_text(MODULE)
    (tmp_path / "lev_package").mkdir()
    (tmp_path / "lev_package" / "__init__.py").write_text("")
    (tmp_path / "lev_package" / "consumers.py").write_text(MODULE)
    (tmp_path / "lev_two.py").write_text(MODULE + "other_app = leveret.App('amqp://localhost')\n")
    (tmp_path / "lev_needs.py").write_text("import leveret\nimport lev_missing_dependency\n")
    (tmp_path / "lev_broken.py").write_text("password = 'hush'\n\n\n1 / 0\n")
    (tmp_path / "lev_wrong.py").write_text("import leveret\nleveret.App('amqp://app:hush@localhost?heartbet=3')\n")
    (tmp_path / "lev_exits.py").write_text("raise SystemExit('enough')\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("lev_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("lev_orders:orders_app", "orders"),
        ("lev_orders:Holder.app", "inner"),
        ("lev_package.consumers:orders_app", "orders"),
    ],
)
def test_app_is_found_in_the_current_directory(target: str, name: str) -> None:
    assert load(target).name == name


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("lev_order:orders_app", "there is no module 'lev_order'; did you mean 'lev_orders'?"),
        ("lev_pakage.consumers:app", "there is no module 'lev_pakage'; did you mean 'lev_package'?"),
        (
            "lev_package.consumer:app",
            "there is no module 'lev_package.consumer'; did you mean 'lev_package.consumers'?",
        ),
        ("zzzz:app", "there is no module 'zzzz'"),
        ("lev_orders:order_app", "'lev_orders' has no attribute 'order_app'; did you mean 'orders_app'?"),
        ("lev_orders:Holder.ap", "'lev_orders:Holder' has no attribute 'ap'; did you mean 'app'?"),
        ("lev_orders:zzzz", "'lev_orders' has no attribute 'zzzz'"),
        (
            "lev_orders:number",
            "'lev_orders:number' is of type int, not a leveret.App; did you mean lev_orders:orders_app?",
        ),
        ("lev_two:number", "'lev_two:number' is of type int, not a leveret.App"),
        (
            "lev_orders:Holder",
            "'lev_orders:Holder' is class Holder, not a leveret.App; did you mean lev_orders:orders_app?",
        ),
        ("lev_orders", "'lev_orders' is not MODULE:ATTRIBUTE, for example lev_orders:app"),
        ("lev_orders:", "'lev_orders:' is not MODULE:ATTRIBUTE"),
        (":app", "':app' is not MODULE:ATTRIBUTE"),
        ("..lev_orders:app", "'..lev_orders:app' is not MODULE:ATTRIBUTE"),
        ("", "'' is not MODULE:ATTRIBUTE"),
        (
            "lev_orders.py:orders_app",
            "'lev_orders.py:orders_app' names a file; write MODULE:ATTRIBUTE, lev_orders:orders_app",
        ),
        ("./a/b.py", "'./a/b.py' names a file; write MODULE:ATTRIBUTE, a.b:app"),
    ],
)
def test_what_is_no_app_is_named_with_what_may_have_been_meant(target: str, said: str) -> None:
    with pytest.raises(CommandFailed) as raised:
        load(target)
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("lev_needs", "ModuleNotFoundError: No module named 'lev_missing_dependency' (lev_needs.py, line 2)"),
        ("lev_broken", "ZeroDivisionError: division by zero (lev_broken.py, line 4)"),
        ("lev_exits", "SystemExit: enough (lev_exits.py, line 1)"),
    ],
)
def test_module_that_fails_says_where(module: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandFailed) as raised:
        load(f"{module}:app")
    assert str(raised.value) == f"module {module!r} cannot be imported: {said}"
    assert f"{module}.py" in capsys.readouterr().err


def test_option_that_is_wrong_in_a_module_is_one_line_without_the_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandFailed, match="unknown option 'heartbet'") as raised:
        load("lev_wrong:app")
    assert "hush" not in str(raised.value)
    assert capsys.readouterr().err == ""


def test_help_says_how_it_ends() -> None:
    printed = CliRunner().invoke(app, ["run", "--help"], prog_name="leveret", terminal_width=100).stdout
    assert "MODULE:APP" in printed
    assert all(f"--{option}" in printed for option in ("processes", "drain-timeout", "health", "log-file", "quiet"))
    assert "second signal" in " ".join(printed.split())
    assert "worker-fd" not in printed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--processes", "0"), "--processes"),
        (("--drain-timeout", "0"), "--drain-timeout"),
        (("--drain-timeout", "nan"), "--drain-timeout"),
        ((), "MODULE:APP"),
    ],
)
def test_option_out_of_range_is_refused_by_name(arguments: tuple[str, ...], named: str) -> None:
    target = ("lev_orders:orders_app",) if arguments else ()
    result = CliRunner().invoke(app, ["run", *arguments, *target], prog_name="leveret")
    assert result.exit_code != 0
    assert named.strip("-").replace("-", "_") in result.stderr.replace("-", "_")


# ---------------------------------------------------------------------- the line about it


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_terminal_gets_one_line_that_is_drawn_again() -> None:
    clock = Clock()
    board = Board("shop:app", 2, clock)
    screen = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Summary("shop:app", screen=screen, clock=clock) as summary:
        for second in range(1, 7):
            clock.now = float(second)
            for process in (0, 1):
                board.update(
                    snapshot(
                        process,
                        deliveries=750 * second,
                        deliveries_acked=500 * second,
                        handler_errors=2,
                        deliveries_unsettled=7,
                    )
                )
            board.tick()
            summary.tick(board)
        board.ended(1)
        board.tick()
        summary.tick(board)
    written = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "shop:app: 2 processes, 1,500 deliveries/s, 1,000 acked/s, 4 failures, 14 unsettled, 0 restarts" in written
    assert "shop:app: 1 of 2 processes, not ready: process 1: has ended, and is started again, " in written
    assert "4 failures, 7 unsettled, 1 restarts" in written
    assert written.count("\n") <= 2


def test_elsewhere_a_report_is_logged_each_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "leveret")
    clock = Clock()
    board = Board("shop:app", 1, clock)
    screen = Console(file=io.StringIO(), width=200)
    with Summary("shop:app", screen=screen, clock=clock) as summary:
        for second in range(1, 125):
            clock.now = float(second)
            board.update(snapshot(0, deliveries=second, deliveries_acked=second))
            board.tick()
            summary.tick(board)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    for message in caplog.messages:
        assert message.startswith(
            "1 process, 1 deliveries/s, 1 acked/s, 0 failures, 0 unsettled, 0 restarts; shop:app, 60.0 s: consumed 60 "
        )
    assert screen.file.getvalue() == ""  # type: ignore[attr-defined]


def test_no_failures_are_counted_while_nothing_is_connected(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    board = Board("shop:app", 1, clock)
    reasons = ("the app is not connected yet",)
    with Summary("shop:app", screen=Console(file=io.StringIO()), clock=clock) as summary:
        clock.now = 61.0
        board.update(snapshot(0, health=Health(ready=False, live=True, reasons=reasons), connections_open=0))
        board.tick()
        summary.tick(board)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages[0].startswith("1 process, not ready: the app is not connected yet, 0 restarts; ")


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_summary_says_nothing(terminal: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "leveret")
    clock = Clock()
    board = Board("shop:app", 1, clock)
    screen = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    with Summary("shop:app", enabled=False, screen=screen, clock=clock) as summary:
        clock.now = 100.0
        summary.tick(board)
    assert caplog.messages == []
    assert screen.file.getvalue() == ""  # type: ignore[attr-defined]


@pytest.fixture
def plain_logging(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """Loggers without handlers, as a new process has them."""
    root = logging.getLogger()
    monkeypatch.setattr(logging.getLogger("leveret"), "handlers", [])
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    return root


def test_logs_are_shown_unless_the_app_has_chosen_otherwise(plain_logging: logging.Logger) -> None:
    plain_logging.handlers.clear()  # pytest's
    start_log(RunOptions(target="shop:app", quiet=True))
    start_log(RunOptions(target="shop:app"))
    assert len(plain_logging.handlers) == 1
    assert plain_logging.level == logging.WARNING


def test_log_option_wins_over_what_the_app_has_chosen(plain_logging: logging.Logger, tmp_path: Path) -> None:
    chosen = logging.NullHandler()
    plain_logging.addHandler(chosen)
    start_log(RunOptions(target="shop:app", log_file=str(tmp_path / "run.log"), log_format="json"))
    logging.getLogger("leveret.run").info("begun")
    assert chosen in plain_logging.handlers
    assert '"message": "begun"' in (tmp_path / "run.log").read_text()
