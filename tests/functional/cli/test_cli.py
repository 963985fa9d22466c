"""The `leveret` command, as far as it needs no broker: options and errors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from leveret.cli import main
from leveret.cli.app import app
from leveret.cli.bench.command import NAMES
from leveret.cli.bench.suite import BENCHMARKS
from leveret.cli.failures import reported, uninterrupted
from leveret.cli.measure import cpu_of_process_ns
from leveret.cli.orders import least_size
from leveret.cli.process import BrokerProcess, BrokerStartError
from leveret.errors import ConfigurationError

#: No broker listens there.
NOWHERE = "amqp://guest:guest@127.0.0.1:1"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="leveret", terminal_width=100)


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.stdout for command in ("bench", "broker", "demo", "info", "run"))


def test_help_of_bench_lists_the_benchmarks_and_options() -> None:
    printed = run("bench", "--help").stdout
    options = [
        *("broker", "count", "size", "settings", "batch-size", "prefetch", "concurrency", "confirms", "no-confirms"),
        *("queue-type", "repeat", "json", "html", "compare", "quiet"),
    ]
    assert all(f"\n  {name} " in printed for name in NAMES)
    assert all(f"--{option} " in printed for option in options)


def test_version_is_the_package_s() -> None:
    from leveret import __version__

    assert run("--version").stdout == f"leveret, version {__version__}\n"


def test_info_names_versions_and_compiled_modules() -> None:
    lines = dict(line.split(maxsplit=1) for line in run("info").stdout.splitlines())
    assert {"leveret", "python", "uvloop", "pamqp", "msgspec"} <= lines.keys()
    assert all(
        Path(lines[f"leveret.{name}"]).exists() for name in ("wire.buffers", "wire.reader", "publishing.publisher")
    )
    assert "event" in lines


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_command_names_the_extra_when_it_is_not_installed(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert missing in error
    assert "pip install 'leveret[cli]'" in error
    assert error.count("\n") == 1


def test_unknown_benchmark_is_refused_with_those_there_are() -> None:
    result = run("bench", "basic-publsh")
    assert result.exit_code == 2
    assert "'basic-publsh'" in result.stderr
    assert all(name in result.stderr for name in NAMES)


def test_names_in_options_are_the_benchmarks() -> None:
    assert BENCHMARKS == NAMES


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--size", "-1"), "--size"),
        (("--size", str(2**40)), "--size"),
        (("--count", "0"), "--count"),
        (("--count", "many"), "--count"),
        (("--prefetch", "65536"), "--prefetch"),
        (("--batch-size", "0"), "--batch-size"),
        (("--concurrency", "0"), "--concurrency"),
        (("--repeat", "0"), "--repeat"),
        (("--queue-type", "stream"), "--queue-type"),
        (("--settings", "best"), "--settings"),
        (("--compare", "/nonexistent"), "--compare"),
        (("--html", "a.html", "--json", "a.html"), "--html"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_option_out_of_range_is_refused_by_name(arguments: tuple[str, ...], named: str) -> None:
    result = run("bench", *arguments)
    assert result.exit_code == 2
    assert named in result.stderr


def test_size_below_the_least_is_refused_with_the_least() -> None:
    least = least_size(50)
    result = run("bench", "serialization", "--count", "50", "--size", str(least - 1))
    assert result.exit_code == 2
    assert f"the least is {least} bytes" in result.stderr
    assert run("bench", "serialization", "--count", "50", "--size", str(least)).exit_code == 0


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("place", ["missing/file", "file/below", "folder"])
def test_file_that_cannot_be_written_is_refused_at_once(option: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    result = run("bench", "--broker", NOWHERE, option, str(tmp_path / place))
    assert result.exit_code == 2
    assert option in result.stderr
    assert "connect" not in result.stderr, "nothing was begun"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "missing required field `schema`"),
        ('{"schema": 99}', "was written in form 99"),
        ("no json", "is no file that `leveret bench --json` wrote"),
    ],
)
def test_earlier_file_of_another_kind_is_refused_at_once(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "earlier.json"
    file.write_text(content)
    result = run("bench", "--broker", NOWHERE, "--compare", str(file))
    assert result.exit_code == 2
    assert "--compare" in result.stderr
    assert said in " ".join(result.stderr.split())
    assert "connect" not in result.stderr, "nothing was begun"


@pytest.mark.parametrize("command", ["bench", "demo"])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://guest:secret@127.0.0.1:1", "cannot connect to 127.0.0.1:1"),
        ("http://guest:secret@127.0.0.1", "amqp://"),
        ("amqp://guest:secret@localhost:port", "endpoints"),
        ("amqp://guest:secret@localhost/?heartbeet=3", "heartbeet"),
    ],
)
def test_broker_that_cannot_be_used_is_one_line_without_traceback(command: str, url: str, said: str) -> None:
    result = run(command, "--broker", url, "--count", "10")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert "secret" not in result.stderr


def test_serialization_needs_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    result = run("bench", "serialization", "--count", "1234", "--size", "1024", "--repeat", "3", "--json", "-")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert figures["broker"] is None
    assert figures["settings"]["smallest_body_bytes"] == figures["settings"]["largest_body_bytes"] == 1024
    assert [row["variant"] for row in figures["benchmarks"]] == ["json", "msgpack"]
    for row in figures["benchmarks"]:
        assert (row["name"], row["messages"], len(row["runs"])) == ("serialization", 1234, 3)
        assert row["median"]["rate_msgs_per_s"] > 0
    json_bytes, msgpack_bytes = (row["median"]["body_bytes"] for row in figures["benchmarks"])
    assert json_bytes == 1024
    assert msgpack_bytes < 1024
    assert "serialization" in result.stderr  # the table, out of the JSON's way
    assert "1,024 bytes" in result.stderr


def test_serializer_that_is_not_there_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEVERET_PLUGINS_BLOCK", "msgpack")
    page = tmp_path / "page.html"
    result = run("bench", "serialization", "--count", "100", "--repeat", "2", "--json", "-", "--html", str(page))
    assert result.exit_code == 0
    first, second = json.loads(result.stdout)["benchmarks"]
    assert (first["variant"], first["skipped"], len(first["runs"])) == ("json", "", 2)
    assert (second["variant"], second["runs"], second["median"]) == ("msgpack", [], {})
    assert "there is no serializer 'msgpack'" in second["skipped"]
    assert "not measured: there is no serializer 'msgpack'" in " ".join(result.stderr.split())
    assert "not measured: there is no serializer &#x27;msgpack&#x27;" in page.read_text()


def test_quiet_json_on_stdout_is_alone() -> None:
    result = run("bench", "serialization", "--count", "10", "--json", "-", "--quiet")
    assert json.loads(result.stdout)
    assert result.stderr == ""


def test_broker_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BrokerStartError, match="did not start"), BrokerProcess():
        pass
    result = run("bench", "--count", "10")
    assert result.exit_code == 1
    assert "did not start" in result.stderr


def test_interrupt_ends_with_the_status_of_shells() -> None:
    with pytest.raises(SystemExit) as ended, reported():
        raise KeyboardInterrupt
    assert ended.value.code == 130


def test_interrupt_waits_for_what_must_not_be_interrupted() -> None:
    steps = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            steps.append("after the signal")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_reported_errors_are_click_errors_and_others_stay() -> None:
    with pytest.raises(click.ClickException, match="two\\\\nlines"), reported():
        raise ConfigurationError("two\nlines")
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_cpu_of_another_process_is_its_own() -> None:
    # It spins until its standard input ends, and says when it has spun for 50 ms.
    code = "import time\nwhile time.process_time() < 0.05: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        cpu = cpu_of_process_ns(child.pid)
        child.communicate(b"\n")
    assert cpu is None or 50_000_000 <= cpu < 10**10
    assert cpu is not None or sys.platform != "linux"
