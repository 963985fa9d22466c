"""The results of `leveret bench`, as the table and the page show them, and as JSON keeps them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from leveret.cli.bench.baseline import Baseline
from leveret.cli.machine import Machine
from leveret.cli.stage import Broker
from leveret.errors import printable

__all__ = ["Between", "Curve", "ForeignFileError", "Report", "Row", "Series", "Settings", "read_report"]

#: Raised when a field changes its meaning or goes; a file of another version is refused.
_SCHEMA: Final = 1
_LONGEST_LIST: Final = 10_000
_LONGEST_ERROR: Final = 300

#: From where to where a latency is measured.
Between = Literal["publish to confirm", "publish to consume"]
#: Figures are not negative, and small enough to be drawn.
Value = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
Count = Annotated[int, msgspec.Meta(ge=0, le=10**12)]
Values = Annotated[list[Value], msgspec.Meta(max_length=_LONGEST_LIST)]


class ForeignFileError(Exception):
    """A file is not what `leveret bench --json` writes, or was written by a version that differs too much."""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Samples of one run, from its beginning on. All lists have one item for each sample.

    Attributes:
        seconds: When it was taken.
        messages: How many messages were done.
        client_cpu_s: CPU time of the client so far.
        broker_cpu_s: CPU time of the broker so far; empty where it cannot be measured.
        rss_mib: The client's resident memory; empty where it cannot be measured.
        network_mb: Megabytes sent and received so far; empty without a broker.
    """

    seconds: Values
    messages: Values
    client_cpu_s: Values
    broker_cpu_s: Values
    rss_mib: Values
    network_mb: Values

    def __post_init__(self) -> None:
        """Refuses lists of different lengths."""
        lengths = {len(values) for values in msgspec.structs.astuple(self)}
        if len(lengths - {0}) > 1 or len(self.seconds) != max(lengths):
            raise ValueError("the lists of a series differ in length")


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution of latencies.

    Attributes:
        measured: From where to where.
        samples: How many latencies there were.
        percent: Percentages of the samples, ascending.
        ms: For each the milliseconds that so many do not exceed.
    """

    measured: Between
    samples: Annotated[int, msgspec.Meta(ge=1, le=10**12)]
    percent: Annotated[list[Annotated[float, msgspec.Meta(ge=0, le=100)]], msgspec.Meta(max_length=_LONGEST_LIST)]
    ms: Values

    def __post_init__(self) -> None:
        """Refuses lists of different lengths."""
        if len(self.percent) != len(self.ms):
            raise ValueError("the lists of a curve differ in length")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One way of doing one benchmark, with its figures.

    Attributes:
        name: The benchmark's name.
        variant: "default", "given" (options of the command), "tuned", "json" or "msgpack".
        how: What it does, and with which settings.
        messages: Messages of each run.
        baseline: The guide's rate for this benchmark; None where it states none.
        median: The median of each figure over the runs. Names carry the units; None is what cannot be measured.
        runs: The figures of each run; empty when it was skipped.
        series: Samples of the run with the middle rate.
        latency: The latencies of that run.
        skipped: Why it was not measured; empty when it was.
    """

    name: str
    variant: str
    how: str
    messages: Count
    baseline: Value | None
    median: dict[str, Value | None]
    runs: list[dict[str, Value | None]]
    series: Series | None = None
    latency: Curve | None = None
    skipped: str = ""

    @property
    def rate(self) -> float | None:
        """The median rate, in messages per second."""
        return self.median.get("rate_msgs_per_s")

    @property
    def rates(self) -> list[float]:
        """The rate of each run, ascending."""
        return sorted(rate for run in self.runs if (rate := run.get("rate_msgs_per_s")) is not None)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of the command.

    Attributes:
        count: Messages of each run.
        smallest_body_bytes: Bytes of the smallest body in JSON.
        largest_body_bytes: Bytes of the largest.
        batch_size: Messages of a batch; None where each row has its own.
        prefetch: The prefetch of consumers; None where each row has its own.
        concurrency: Consumers of concurrent-consume.
        confirms: Whether publishing waits for confirms.
        queue_type: `classic` or `quorum`.
        repeat: Runs of each row.
        paced_messages: Messages that measure publish to consume.
        paced_rate_msgs_per_s: Their rate.
    """

    count: Count
    smallest_body_bytes: Count
    largest_body_bytes: Count
    batch_size: Count | None
    prefetch: Count | None
    concurrency: Count
    confirms: bool
    queue_type: str
    repeat: Count
    paced_messages: Count
    paced_rate_msgs_per_s: Count


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a run of `leveret bench` found.

    Attributes:
        made_at: When it ended.
        machine: The machine and the versions.
        broker: The broker; None when no benchmark needed one.
        settings: The options.
        baseline: The guide's baseline.
        benchmarks: The rows, in the guide's order.
        schema: The version of this form.
    """

    made_at: Annotated[datetime, msgspec.Meta(tz=True)]
    machine: Machine
    broker: Broker | None
    settings: Settings
    baseline: Baseline
    benchmarks: list[Row]
    schema: Literal[1] = _SCHEMA

    @property
    def when(self) -> str:
        """When it ended, for a reader."""
        return f"{self.made_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

    def as_dict(self) -> dict[str, Any]:
        """Returns what JSON keeps."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made

    def named(self) -> dict[tuple[str, str], Row]:
        """Returns the rows that were measured, by benchmark and variant."""
        return {(row.name, row.variant): row for row in self.benchmarks if not row.skipped}


class _Form(msgspec.Struct):
    schema: int


def read_report(file: str) -> Report:
    """Reads a file that `leveret bench --json` wrote.

    Raises:
        ForeignFileError: It cannot be read, is not such a file, or is one of another version.
    """
    try:
        data = Path(file).read_bytes()
        form = msgspec.json.decode(data, type=_Form)
        if form.schema != _SCHEMA:
            raise ForeignFileError(
                f"{file} was written in form {form.schema}; this version of leveret reads form {_SCHEMA}"
            )
        return msgspec.json.decode(data, type=Report)
    except OSError as error:
        raise ForeignFileError(f"cannot read {file}: {error.strerror}") from error
    except (msgspec.MsgspecError, RecursionError) as error:
        text = printable(str(error), _LONGEST_ERROR)
        raise ForeignFileError(f"{file} is no file that `leveret bench --json` wrote: {text}") from error
