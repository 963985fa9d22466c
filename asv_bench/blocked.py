"""Measures the client's memory while the broker takes no publishings for a minute: `make blocked`.

Publishers go on at full rate. In some runs the broker blocks them (connection.blocked), in the others it stops reading
the socket. The embedded broker runs in a process of its own. Fails when the client's resident memory grows by more than
the settings allow (`max_outstanding_bytes` + `write_high_watermark`) plus 10 %.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asv_bench.programs import choose, execute, judge, progress_bars, read_sizes, screen
from rich.table import Table

import leveret
from leveret.cli.measure import peak_rss_bytes, reset_peak_rss

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from multiprocessing.connection import Connection as Pipe

MEBIBYTE: Final = 1024 * 1024
#: `max_outstanding_bytes` of producers. Less than the default, so that growth beyond it shows early.
OUTSTANDING: Final = 16 * MEBIBYTE
WATERMARK: Final = MEBIBYTE
#: By how much resident memory may grow.
ALLOWED: Final = round((OUTSTANDING + WATERMARK) * 1.1)
#: Bytes that the client collects for one write.
WRITE: Final = 64 * 1024
#: Bytes that `publish_batch` encodes and writes before it checks again whether it may write.
CHUNK: Final = MEBIBYTE
#: Tasks that await `publish`.
TASKS: Final = 1000
#: No queue is bound to this exchange, so the broker drops every message.
EXCHANGE: Final = "leveret.blocked"
#: `confirm_timeout` in seconds. Publishings fail after it, and publishers try again.
PATIENCE: Final = 2.0
#: Seconds between two looks at the bytes that wait for the socket.
INTERVAL: Final = 0.01


# ---------------------------------------------------------------------- the broker


def serve(pipe: Pipe) -> None:
    """Runs an embedded broker. Sends its URL on the pipe, and blocks publishers after a message from the pipe."""

    async def run() -> None:
        from leveret.broker import EmbeddedBroker

        async with EmbeddedBroker() as broker:
            told = asyncio.Event()
            asyncio.get_running_loop().add_reader(pipe.fileno(), told.set)
            pipe.send(broker.url)
            await told.wait()
            told.clear()
            pipe.recv()
            broker.block()
            pipe.send("blocked")
            await told.wait()

    with contextlib.suppress(EOFError, KeyboardInterrupt):
        leveret.run(run())


class Peer:
    """A broker in a process of its own. Use it with `with`.

    Attributes:
        url: The broker's URL.
    """

    def __enter__(self) -> Peer:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        self.url: str = self._pipe.recv()
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()  # SIGKILL also ends a stopped process
        self._process.join()

    def block(self) -> None:
        """Blocks publishers: the broker sends connection.blocked and stops reading from them."""
        self._pipe.send("block")
        self._pipe.recv()

    def fall_silent(self) -> None:
        """Stops the broker's process: it reads nothing any more, and the connection stays open."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)


OBSTACLES: Final[dict[str, Callable[[Peer], None]]] = {"blocked": Peer.block, "silent": Peer.fall_silent}


# ---------------------------------------------------------------------- publishers


class Publisher:
    """Publishes bodies without end, and ignores failed publishings.

    Attributes:
        tries: Bodies offered so far.
    """

    def __init__(self, producer: leveret.Producer, size: int) -> None:
        self.tries = 0
        self.producer = producer
        self._size = size
        self._go = asyncio.Event()
        self._own = self._new()

    def start(self) -> None:
        """Lets `keep_trying` begin."""
        self._go.set()

    def _new(self) -> bytes:
        return b"x" * self._size

    def same_body(self) -> bytes:
        """Returns the same body each time, as a caller that tries again does."""
        self.tries += 1
        return self._own

    def new_body(self) -> bytes:
        """Returns a new body."""
        self.tries += 1
        return self._new()

    def new_bodies(self) -> Iterator[bytes]:
        """Yields new bodies without end."""
        while True:
            yield self.new_body()

    async def keep_trying(self, once: Callable[[Publisher], Awaitable[object]]) -> None:
        """Calls `once` again and again."""
        while True:
            await self._go.wait()
            with contextlib.suppress(leveret.PublishError):
                await once(self)


async def nowait(publisher: Publisher) -> None:
    """Calls `publish_nowait` until it refuses, then yields to the event loop once."""
    try:
        while True:
            publisher.producer.publish_nowait(publisher.new_body(), "blocked")
    except leveret.BackpressureError:
        await asyncio.sleep(0)


async def one(publisher: Publisher) -> None:
    """Publishes one body and waits for its confirm."""
    await publisher.producer.publish(publisher.same_body(), "blocked")


async def endless(publisher: Publisher) -> None:
    """Publishes an iterable that has no end."""
    await publisher.producer.publish_batch(publisher.new_bodies(), "blocked")


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to publish.

    Attributes:
        title: The name in the table.
        once: The function that each task calls again and again.
        tasks: The number of tasks.
        step: Bytes that it may write beyond the watermark, besides one body.
    """

    title: str
    once: Callable[[Publisher], Awaitable[object]]
    tasks: int = 1
    step: int = WRITE


KINDS: Final = {
    "nowait": Kind("publish_nowait, again at once when refused", nowait, step=OUTSTANDING),
    "publish": Kind(f"{TASKS:,} tasks await publish", one, TASKS),
    "batch": Kind("publish_batch of an endless iterable", endless, step=CHUNK),
}


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one run.

    Attributes:
        obstacle: `blocked` or `silent`.
        kind: One of `KINDS`.
        size: Bytes of a body.
        tries: Bodies that were offered while the broker took none.
        growth: The most bytes by which resident memory grew.
        pending: The most bytes that waited for the socket.
    """

    obstacle: str
    kind: str
    size: int
    tries: int
    growth: int
    pending: int

    @property
    def problem(self) -> str | None:
        """The limit that was exceeded; None when all limits were kept."""
        if self.growth > ALLOWED:
            return f"memory grew by {self.growth / MEBIBYTE:.1f} MiB; {ALLOWED / MEBIBYTE:.1f} are allowed"
        most = WATERMARK + KINDS[self.kind].step + self.size
        if self.pending > most:
            return f"{self.pending / MEBIBYTE:.1f} MiB waited for the socket; {most / MEBIBYTE:.1f} are allowed"
        return None


async def hold_back(peer: Peer, obstacle: str, kind: str, size: int, seconds: float) -> Result:
    """Lets publishers run against an obstacle."""
    async with contextlib.AsyncExitStack() as stack:
        # No heartbeats: they would close the connection to a peer that is silent.
        connect = leveret.connect(
            f"{peer.url}?heartbeat=0",
            write_high_watermark=WATERMARK,
            write_low_watermark=WATERMARK // 4,
            close_timeout=0.1,
        )
        client = await stack.enter_async_context(connect)
        await client.declare(leveret.Topology().exchange(EXCHANGE, "fanout"))
        producer = await client.producer(
            exchange=EXCHANGE,
            mandatory=False,  # no queue is bound
            serializer="bytes",
            max_outstanding=1_000_000,
            max_buffered=1_000_000,
            max_outstanding_bytes=OUTSTANDING,
            confirm_timeout=PATIENCE,
        ).open()
        publishers = [Publisher(producer, size) for _ in range(KINDS[kind].tasks)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(publisher.keep_trying(KINDS[kind].once)) for publisher in publishers]
            # Publish once before the obstacle, so that objects that are made only once exist.
            await producer.publish_batch([b"", b""], "blocked")
            await producer.publish(b"", "blocked")
            await producer.publish_nowait(b"", "blocked")
            OBSTACLES[obstacle](peer)
            gc.collect()
            reset_peak_rss()
            before = peak_rss_bytes()
            for publisher in publishers:
                publisher.start()
            pending, deadline = 0, time.monotonic() + seconds
            while time.monotonic() < deadline:
                await asyncio.sleep(INTERVAL)
                pending = max(pending, client.connection.transport.pending_bytes)
            growth = peak_rss_bytes() - before
            if obstacle == "blocked" and client.connection.blocked is None:
                raise RuntimeError("the broker did not block publishers")
            for task in tasks:
                task.cancel()
        client.connection.transport.abort()
        tries = sum(publisher.tries for publisher in publishers)
        return Result(obstacle=obstacle, kind=kind, size=size, tries=tries, growth=growth, pending=pending)


def run(obstacle: str, kind: str, size: int, seconds: float) -> Result:
    """Starts a broker, and lets publishers run against an obstacle for so many seconds."""
    logging.getLogger("leveret").setLevel(logging.CRITICAL)  # blocked and lost connections are expected
    with Peer() as peer:
        return leveret.run(hold_back(peer, obstacle, kind, size, seconds))


def measure(obstacle: str, kind: str, size: int, seconds: float) -> Result:
    """Calls `run` in a process of its own, so that earlier runs leave nothing in its memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, obstacle, kind, size, seconds).result()


# ---------------------------------------------------------------------- running


def table(results: Sequence[Result]) -> Table:
    """Makes the table for the console."""
    shown = Table(
        title=f"max_outstanding_bytes {OUTSTANDING // MEBIBYTE} MiB, write_high_watermark {WATERMARK // MEBIBYTE} MiB: "
        f"{ALLOWED / MEBIBYTE:.1f} MiB more are allowed"
    )
    shown.add_column("publishers")
    shown.add_column("obstacle")
    for heading in ("body KiB", "bodies offered", "memory grew by MiB", "waited for the socket MiB"):
        shown.add_column(heading, justify="right")
    for result in results:
        shown.add_row(
            KINDS[result.kind].title,
            {"blocked": "connection.blocked", "silent": "the peer does not read"}[result.obstacle],
            f"{result.size / 1024:g}",
            f"{result.tries:,}",
            f"{result.growth / MEBIBYTE:.1f}",
            f"{result.pending / MEBIBYTE:.1f}",
        )
    return shown


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(prog="make blocked", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long publishers are held back (default 60)")
    parser.add_argument("--kinds", help=f"some of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--obstacles", help=f"some of {', '.join(OBSTACLES)} (default: all)")
    parser.add_argument("--sizes", default="16k,1m", help="bytes of bodies, such as 64,1k,1m (default %(default)s)")
    options = parser.parse_args(arguments)
    if not 0 < options.seconds <= 86_400:
        parser.error(f"--seconds is above 0 and at most 86400, not {options.seconds:g}")
    options.kinds = choose(options.kinds, list(KINDS), "kind")
    options.obstacles = choose(options.obstacles, list(OBSTACLES), "obstacle")
    options.sizes = read_sizes(options.sizes)
    return options


def main(arguments: Sequence[str]) -> int:
    """Reads the options, runs, prints, judges.

    Returns:
        The exit status: 1 when memory grew too much.
    """
    options = parse(arguments)
    console = screen()
    runs = [
        (obstacle, kind, size) for obstacle in options.obstacles for kind in options.kinds for size in options.sizes
    ]
    results = []
    with progress_bars(console) as bars:
        bar = bars.add_task("", total=len(runs))
        for obstacle, kind, size in runs:
            bars.update(bar, description=f"{obstacle}: {KINDS[kind].title}", refresh=True)
            results.append(measure(obstacle, kind, size, options.seconds))
            bars.advance(bar)
        bars.update(bar, description="done", refresh=True)
    console.print(table(results))
    problems = [
        f"{result.obstacle}, {result.kind}, bodies of {result.size} bytes: {result.problem}"
        for result in results
        if result.problem
    ]
    return judge(console, problems, "the client's memory stayed within its settings")


if __name__ == "__main__":
    execute(main)
