"""The plan of a comparison: cases, sizes, clients, and their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from asv_bench.compare.job import (
    CONFIRMED,
    CONSUME,
    HEADER,
    HEADERS,
    ONE_BY_ONE,
    PUBLISH,
    STEADY_CONFIRM,
    STEADY_CONSUME,
    TASKS,
    TUNED,
    Task,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

T = TypeVar("T")

SIZES: Final = (1024, 16 * 1024, 1024 * 1024)
#: The size at which all cases are run. Other sizes have only the main cases, unless `--sizes` names them.
COMMON_SIZE: Final = 1024
#: Bytes of unconfirmed bodies; windows have fewer publishings when bodies are large.
_WINDOW_BYTES: Final = 16 * 1024 * 1024
#: Bodies of one run, in all.
_RUN_BYTES: Final = 96 * 1024 * 1024
_LEAST_COUNT: Final = 10
#: The share of a run's unscaled messages that each child publishes or consumes before it measures.
_WARM_UP_SHARE: Final = 0.1
#: The share of the messages that the first round has. The first round does not count.
_FIRST_ROUND_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Something that all clients do.

    Attributes:
        name: The name on the command line.
        title: The title in tables.
        kind: One of `job.KINDS`.
        count: Messages of a run with small bodies.
        in_flight: The most unconfirmed publishings with small bodies; 0 without such a limit.
        prefetch: A consumer's prefetch.
        rate: Messages that are due each second; 0 where each client is as fast as it can be.
        every_size: Whether it is run with all sizes, or only at `COMMON_SIZE`.
    """

    name: str
    title: str
    kind: str
    count: int = 20_000
    in_flight: int = 0
    prefetch: int = 0
    rate: int = 0
    every_size: bool = False

    def messages(self, size: int, scale: float = 1.0) -> int:
        """Returns the number of messages of a run with this size."""
        return max(_LEAST_COUNT, round(min(self.count, _RUN_BYTES // max(1, size)) * scale))

    def window(self, size: int) -> int:
        """Returns the most unconfirmed publishings of this size."""
        return min(self.in_flight, max(1, _WINDOW_BYTES // max(1, size)))


def _steady(rate: int) -> tuple[Case, Case]:
    """The two cases with a steady rate; a run takes two seconds."""
    count = 2 * rate
    return (
        Case(
            name=f"steady-confirm-{rate}",
            title=f"publish to confirm at {rate:,}/s",
            kind=STEADY_CONFIRM,
            count=count,
            rate=rate,
        ),
        Case(
            name=f"steady-consume-{rate}",
            title=f"publish to consume at {rate:,}/s",
            kind=STEADY_CONSUME,
            count=count,
            prefetch=100,
            rate=rate,
        ),
    )


CASES: Final = (
    Case(name="publish", title="publish without confirms", kind=PUBLISH),
    Case(name="confirmed", title="publish, confirmed, many at once", kind=CONFIRMED, in_flight=1000, every_size=True),
    Case(name="tasks", title="publish, confirmed, 200 tasks", kind=TASKS, in_flight=200),
    Case(name="header", title="publish, 200 tasks, a constant header", kind=HEADER, in_flight=200),
    Case(name="headers", title="publish, 200 tasks, headers that differ", kind=HEADERS, in_flight=200),
    Case(name="one-by-one", title="publish, confirmed one by one", kind=ONE_BY_ONE, count=1500, in_flight=1),
    Case(
        name="consume-100", title="consume and acknowledge, prefetch 100", kind=CONSUME, prefetch=100, every_size=True
    ),
    Case(name="consume-500", title="consume and acknowledge, prefetch 500", kind=CONSUME, prefetch=500),
    *_steady(1000),
    *_steady(5000),
)
#: The cases of short tables, of the chart and of `--quick`.
MAIN_CASES: Final = (
    "confirmed",
    "tasks",
    "headers",
    "one-by-one",
    "consume-100",
    "consume-500",
    "steady-consume-1000",
)


@dataclass(frozen=True, slots=True)
class Way:
    """A way of a client to do a kind of case, as its driver describes it.

    Attributes:
        kind: One of `job.KINDS`.
        how: The parts of the client's API that it uses.
        share: Its share of the messages, up to 1.
        best: Whether it is the client's own row; the others are variants.
        cases: The names of the cases that it is for; empty for all of its kind.
    """

    kind: str
    how: str
    share: float
    best: bool
    cases: tuple[str, ...] = ()

    def fits(self, case: Case) -> bool:
        """Returns whether the client does this case in this way."""
        return self.kind == case.kind and (not self.cases or case.name in self.cases)


@dataclass(frozen=True, slots=True)
class Peer:
    """A client and what it can do.

    Attributes:
        name: The name on the command line.
        title: The title in tables.
        version: Its version, and the versions of its dependencies.
        ways: Its ways to do cases.
        not_possible: Kinds that it has no way to do, and why.
        problem: Why it cannot be run at all; None when it can.
    """

    name: str
    title: str
    version: str = ""
    ways: tuple[Way, ...] = ()
    not_possible: Mapping[str, str] | None = None
    problem: str | None = None

    @classmethod
    def described(cls, name: str, description: Mapping[str, Any]) -> Peer:
        """Makes a peer from its driver's description.

        Raises:
            KeyError: The description is not complete.
        """
        seen: set[str] = set()
        ways = []
        for entry in description["entries"]:
            kind, cases = entry["kind"], tuple(entry.get("cases", ()))
            ways.append(Way(kind, entry["how"], float(entry["share"]), kind not in seen, cases))
            seen.add(entry["kind"])
        return cls(name, description["title"], description["version"], tuple(ways), dict(description["not_possible"]))


@dataclass(frozen=True, slots=True)
class Runner:
    """A peer in one of its ways, in one cell of the plan.

    Attributes:
        peer: The peer.
        way: The way; None when the peer cannot do the case, and `problem` says why.
        problem: Why it is not run; None when it is.
    """

    peer: Peer
    way: Way | None
    problem: str | None = None

    @property
    def label(self) -> str:
        """The row's name."""
        return self.peer.title if self.way is None or self.way.best else f"{self.peer.title}: {self.way.how}"


@dataclass(frozen=True, slots=True)
class Cell:
    """A case at one size, with the runners that are compared.

    Attributes:
        case: The case.
        size: Bytes of each body.
        runners: All runners in the table's order, also those with a problem.
    """

    case: Case
    size: int
    runners: tuple[Runner, ...]

    def task(
        self, way: Way, *, first_round: bool, scale: float, host: str, port: int, queue: str, warm_up_queue: str
    ) -> Task:
        """Returns a runner's task in a round. The first round is shorter, and does not count."""
        scale *= _FIRST_ROUND_SHARE if first_round else 1.0
        return Task(
            kind=self.case.kind,
            how=way.how,
            host=host,
            port=port,
            queue=queue,
            warm_up_queue=warm_up_queue,
            count=self.case.messages(self.size, scale * way.share),
            warm_up_count=self.case.messages(self.size, _WARM_UP_SHARE * way.share),
            size=self.size,
            window=self.case.window(self.size),
            prefetch=self.case.prefetch,
            ack_every=max(1, self.case.prefetch // 4),
            rate=self.case.rate,
        )


def make_plan(
    peers: Sequence[Peer], cases: Iterable[Case], sizes: Sequence[int] | None, *, variants: bool = True
) -> list[Cell]:
    """Makes the plan.

    Args:
        peers: The clients, in the tables' order.
        cases: The cases.
        sizes: Bytes of bodies. With None it is all of `SIZES` for the main cases, and `COMMON_SIZE` for the other cases
            and for variants other than `TUNED`.
        variants: Whether variants are run.

    Returns:
        The cells. A peer that cannot be run or says why it cannot do something is in them, with the reason. A peer
        whose driver does not know a kind is left out.
    """
    plan = []
    for case in cases:
        for size in sizes or (SIZES if case.every_size else (COMMON_SIZE,)):
            runners = []
            for peer in peers:
                reason = peer.problem or (peer.not_possible or {}).get(case.kind)
                if reason is not None:
                    runners.append(Runner(peer, None, reason))
                    continue
                everything = sizes is not None or size == COMMON_SIZE
                runners += [
                    Runner(peer, way)
                    for way in peer.ways
                    if way.fits(case) and (way.best or (variants and (everything or way.how == TUNED)))
                ]
            if runners:
                plan.append(Cell(case, size, tuple(runners)))
    return plan


def rotated(everyone: Sequence[T], turn: int) -> list[T]:
    """Returns the order of a round. It changes, so that no runner always follows the load of the same other one."""
    start = turn % len(everyone) if everyone else 0
    return [*everyone[start:], *everyone[:start]]
