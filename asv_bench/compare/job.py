"""What a driver is asked to do, and how it measures itself. A Python driver is a module with these names:

`TITLE`: the client's name in tables. `DISTRIBUTIONS`: whose versions are shown; the first is the client itself.
`ENTRIES`: the ways to do each kind of case; the first of a kind is the client's best, the others are shown beside it.
`NOT_POSSIBLE`: kinds that the client has no way to do, and why.
`connect(address)`: a context manager, asynchronous when there is a `run`; `run(coroutine)`: for asynchronous clients.

Imports nothing but the standard library, because it runs in several environments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

#: The four things that are measured.
PUBLISH, CONFIRMED, ONE_BY_ONE, CONSUME = KINDS = ("publish", "confirmed", "one-by-one", "consume")
CONTENT_TYPE: Final = "application/octet-stream"


#: An order in JSON, without what makes it as long as it shall be.
_ORDER: Final = b'{"id":100000,"customer":"C00","amount":1.5,"note":"%s"}'


def order(size: int) -> bytes:
    """What consumers take: an order in JSON of so many bytes, or bytes without a meaning where it is too long."""
    note = size - len(_ORDER % b"")
    return _ORDER % (b"n" * note) if note >= 0 else b"x" * size


@dataclass(frozen=True, slots=True)
class Entry:
    """A way to do a kind of case.

    Attributes:
        kind: One of `KINDS`.
        function: `function(connection, job)`; a coroutine function in asynchronous drivers.
        how: What of the client's API it uses, in a few words; different for each way of a kind.
        share: How much of the messages it gets, up to 1: a client that is very much slower takes no longer then.
    """

    kind: str
    function: Callable[[Any, Job], Any]
    how: str
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the broker is. User, password and virtual host are RabbitMQ's defaults."""

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
        how: Which entry of that kind.
        host: The broker's address.
        port: The broker's port.
        queue: Where the measured messages go to or come from.
        warm_up_queue: The same for those that come first and are not measured.
        count: Messages that are measured.
        warm_up_count: Messages that are not.
        size: Bytes of each body.
        window: How many publishings may be unconfirmed; 0 without confirms.
        prefetch: Of a consumer.
        ack_every: One basic.ack (multiple) for so many deliveries, where the client leaves that to its user.
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

    def arguments(self) -> list[str]:
        """As arguments of a program, which `parse` reads."""
        return [f"{name}={value}" for name, value in dataclasses.asdict(self).items()]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Self:
        """Reads what `arguments` wrote.

        Raises:
            ValueError: One is not `name=value` with a name of this class; the text names it.
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
        """Where the broker is."""
        return Address(self.host, self.port)

    def warm_up(self) -> Job:
        """The messages that come first."""
        return Job(self, self.warm_up_queue, self.warm_up_count)

    def job(self) -> Job:
        """The messages that are measured."""
        return Job(self, self.queue, self.count)


@dataclass(slots=True)
class Job:
    """What a driver's function gets: some messages to publish or consume.

    Attributes:
        task: What it belongs to.
        queue: Where the messages go to or come from.
        count: How many.
        body: The body of each.
        latencies: To be filled when messages go one by one: seconds of each.
        figures: What was measured, once `measured` was left.
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
        """Encloses what counts. Connections and channels are opened before; see docs/comparison.md for its end."""
        if self.figures is not None:
            raise RuntimeError("a job is measured once")
        reset_peak_rss()
        cpu, wall = cpu_seconds(), time.perf_counter()
        yield
        self.figures = {
            "messages": self.count,
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": cpu_seconds() - cpu,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        if self.latencies:
            ordered = sorted(self.latencies)
            self.figures["latency_p50_s"] = statistics.median_low(ordered)
            self.figures["latency_p99_s"] = ordered[-(-len(ordered) * 99 // 100) - 1]

    def check(self, *, messages: int, size: int | None = None) -> None:
        """Fails the run when something else was counted than what was asked for.

        Args:
            messages: How many messages were seen or confirmed.
            size: Bytes of all their bodies; None where nothing was received.

        Raises:
            RuntimeError: Always with both numbers.
        """
        if messages != self.count:
            raise RuntimeError(f"{messages} messages were counted where {self.count} were due")
        if size is not None and size != self.count * self.task.size:
            raise RuntimeError(f"the bodies had {size} bytes in all, not {self.count} x {self.task.size}")


def cpu_seconds() -> float:
    """User and system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# The next two are also in leveret.cli.measure, which the other clients' environment does not have.


def reset_peak_rss() -> None:
    """Makes `peak_rss_bytes` start over, where the kernel can (Linux: proc(5), clear_refs)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_rss_bytes() -> int:
    """The most memory that this process had since `reset_peak_rss`."""
    # Not ru_maxrss on Linux: it begins with the memory of the process that started this one (execve keeps it).
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): bytes there, KiB elsewhere
