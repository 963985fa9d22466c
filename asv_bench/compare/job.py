"""The task that a driver gets, and how the driver measures itself. A Python driver is a module with these names:

`TITLE`: the client's name in tables.
`DISTRIBUTIONS`: the distributions whose versions are shown; the first is the client itself.
`ENTRIES`: the ways to do each kind of case; the first of a kind is the client's own row, others are shown beside it.
`NOT_POSSIBLE`: the kinds that the client cannot do, and why. A client with neither entry nor reason is left out.
`connect(address)`: a context manager, asynchronous when there is a `run`.
`run(coroutine)`: runs the coroutine; only in drivers of asynchronous clients.

This module imports only the standard library, because drivers run in an environment without Leveret. The one file of
Leveret that it uses is loaded by its path, and imports only the standard library, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import resource
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from leveret.cli import measure
else:
    _FILE = Path(__file__).parents[2] / "sdk" / "leveret" / "cli" / "measure.py"
    _SPEC = importlib.util.spec_from_file_location("leveret_cli_measure", _FILE)
    measure = importlib.util.module_from_spec(_SPEC)
    sys.modules[_SPEC.name] = measure  # dataclasses look their module up
    _SPEC.loader.exec_module(measure)

TICKER: Final = Path(__file__).with_name("ticker.py")
#: The kinds of cases that are measured.
PUBLISH, CONFIRMED, TASKS, HEADER, HEADERS, ONE_BY_ONE, CONSUME, STEADY_CONFIRM, STEADY_CONSUME = KINDS = (
    "publish",
    "confirmed",
    "tasks",
    "header",
    "headers",
    "one-by-one",
    "consume",
    "steady-confirm",
    "steady-consume",
)
#: The way of an entry with settings, beside the one with default settings.
TUNED: Final = "tuned"
CONTENT_TYPE: Final = "application/octet-stream"
#: The header of all messages of a `HEADER` case.
HEADER_TABLE: Final = {"tenant": "north"}


def headers(number: int) -> dict[str, object]:
    """Returns the headers of a message of a `HEADERS` case: three entries, two of which differ between messages."""
    return {**HEADER_TABLE, "attempt": number % 5, "trace": f"{number:012}"}


#: An order in JSON; the note fills the body up to its size.
_ORDER: Final = b'{"id":100000,"customer":"C00","amount":1.5,"note":"%s"}'


def order(size: int) -> bytes:
    """Returns a body for consumers: an order in JSON of `size` bytes, or `size` other bytes when an order is longer."""
    note = size - len(_ORDER % b"")
    return _ORDER % (b"n" * note) if note >= 0 else b"x" * size


@dataclass(frozen=True, slots=True)
class Entry:
    """A way to do a kind of case.

    Attributes:
        kind: One of `KINDS`.
        function: `function(connection, job)`; a coroutine function in asynchronous drivers.
        how: The parts of the client's API that it uses, or `TUNED`, in a few words; different for each way of a kind.
        share: Its share of the messages, up to 1, so that the run of a much slower client takes no longer.
        cases: The names of the cases that it is for; empty for all of its kind.
    """

    kind: str
    function: Callable[[Any, Job], Any]
    how: str
    share: float = 1.0
    cases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Address:
    """The broker's address. User, password and virtual host are RabbitMQ's defaults."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """As an AMQP URL."""
        return f"amqp://guest:guest@{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run of one entry.

    Attributes:
        kind: One of `KINDS`.
        how: The entry of that kind.
        host: The broker's address.
        port: The broker's port.
        queue: The queue of the measured messages.
        warm_up_queue: The queue of the messages that come first and are not measured.
        count: Messages that are measured.
        warm_up_count: Messages that are not.
        size: Bytes of each body.
        window: The most unconfirmed publishings; 0 without confirms.
        prefetch: The consumer's prefetch.
        ack_every: Deliveries for each basic.ack (multiple), where the client leaves that to its user.
        rate: Messages that are due each second; 0 where each client is as fast as it can be.
        ticker: The shell command that tells when messages are due; see `ticker.py`.
    """

    kind: str
    how: str
    host: str
    port: int
    queue: str
    warm_up_queue: str
    count: int
    warm_up_count: int
    size: int
    window: int = 0
    prefetch: int = 0
    ack_every: int = 0
    rate: int = 0
    ticker: str = shlex.join([sys.executable, str(TICKER)])

    def arguments(self) -> list[str]:
        """Returns the arguments of a program, which `parse` reads."""
        return [f"{name}={value}" for name, value in dataclasses.asdict(self).items()]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """Reads the arguments that `arguments` returned.

        Raises:
            ValueError: An argument is not `name=value` with a name of this class. The text names it.
        """
        values: dict[str, Any] = {}
        names = {f.name: f.type for f in dataclasses.fields(cls)}
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if not equals or name not in names:
                raise ValueError(f"a task has no argument {argument!r}")
            values[name] = int(value) if names[name] == "int" else value
        return cls(**values)

    @property
    def address(self) -> Address:
        """The broker's address."""
        return Address(self.host, self.port)

    def warm_up(self) -> Job:
        """Returns the job of the warm-up messages."""
        return Job(self, self.warm_up_queue, self.warm_up_count)

    def job(self) -> Job:
        """Returns the job of the measured messages."""
        return Job(self, self.queue, self.count)


@dataclass(slots=True)
class Job:
    """The messages that a driver's function publishes or consumes.

    Attributes:
        task: The task that it belongs to.
        queue: The messages' queue.
        count: The number of messages.
        body: The body of each.
        latencies: Seconds of each message; the driver fills it when messages go one by one or at a steady rate.
        figures: The figures, once the context of `measured` has ended.
    """

    task: Task
    queue: str
    count: int
    latencies: list[float] = field(default_factory=list)
    figures: dict[str, float] | None = None
    body: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.body = b"x" * self.task.size

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Measures the `with` block. Connections and channels are opened before; docs/comparison.md has its end."""
        if self.figures is not None:
            raise RuntimeError("a job is measured once")
        measure.reset_peak_rss()
        cpu, wall = cpu_seconds(), time.perf_counter()
        yield
        self.figures = {
            "messages": self.count,
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": cpu_seconds() - cpu,
            "peak_rss_bytes": measure.peak_rss_bytes(),
        }
        if self.latencies:
            ordered = sorted(self.latencies)
            self.figures["latency_p50_s"] = measure.percentile(ordered, 50)
            self.figures["latency_p99_s"] = measure.percentile(ordered, 99)

    def check(self, *, messages: int, size: int | None = None) -> None:
        """Fails the run when the driver counted another number than the task has.

        Args:
            messages: Messages that were received or confirmed.
            size: Bytes of all received bodies; None where nothing was received.

        Raises:
            RuntimeError: A number differs. The text has both numbers.
        """
        if messages != self.count:
            raise RuntimeError(f"{messages} messages were counted where {self.count} were due")
        if size is not None and size != self.count * self.task.size:
            raise RuntimeError(f"the bodies had {size} bytes in all, not {self.count} x {self.task.size}")


def cpu_seconds() -> float:
    """Returns the user and system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
