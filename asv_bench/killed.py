"""Kills a consumer's process at random moments, again and again, and looks for lost messages: `make killed`.

The broker is a private RabbitMQ node; see docs/long-runs.md. A handler writes the number of its message to a file as
the last thing that it does. Fails when a message was acknowledged before a handler had finished with it (its number
is not in the file, and it is not in the queue), or when a handled message came again without the mark `redelivered`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from asv_bench.compare.broker import rabbitmq
from asv_bench.programs import advance, execute, judge, progress_bars, screen
from rich.table import Table

import leveret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection as Pipe

WORKERS: Final = 10
PREFETCH: Final = 100
#: The longest time in seconds that a handler sleeps.
LONGEST: Final = 0.003
#: Messages that are ready for each second that a consumer may live: more than its workers can handle.
RATE: Final = 8000
#: A handler's record: the numbers of the message and the process, and 1 for a message marked `redelivered`.
RECORD: Final = b"%010d %05d %d\n"
RECORD_SIZE: Final = len(RECORD % (0, 0, 0))
#: Seconds in which a process must begin or end.
PATIENCE: Final = 30.0
#: Seconds without a handled message after which the last process counts as stalled.
STALLED: Final = 5.0

Ack = Literal["coalesced", "each", "handoff"]


# ---------------------------------------------------------------------- the process that is killed


@dataclass(frozen=True, slots=True)
class Life:
    """The task of a process.

    Attributes:
        number: The process's number, from 0.
        url: The broker's URL.
        queue: The queue's name.
        file: The file to which handlers write.
        ack: When messages are acknowledged.
    """

    number: int
    url: str
    queue: str
    file: Path
    ack: Ack


async def consume(life: Life, pipe: Pipe) -> bool:
    """Consumes until SIGTERM, then drains. Sends on the pipe when it begins. Returns False if a handler was cut off."""
    chance = random.Random(life.number)
    file = os.open(life.file, os.O_WRONLY | os.O_APPEND)
    enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, enough.set)

    async def handle(body: bytes, message: leveret.Message) -> None:
        await asyncio.sleep(chance.uniform(0, LONGEST))
        os.write(file, RECORD % (int(body), life.number, message.redelivered))

    async with leveret.connect(life.url) as client:
        consumer = client.consumer(life.queue, prefetch=PREFETCH, concurrency=WORKERS, ack=life.ack, serializer="bytes")
        await consumer.subscribe()
        pipe.send(None)
        async with asyncio.TaskGroup() as group:
            group.create_task(consumer.run(handle))
            await enough.wait()
            return await consumer.drain(PATIENCE)


def live(life: Life, pipe: Pipe) -> None:
    """Runs `consume`; the exit status is 1 when a handler was cut off."""
    sys.exit(0 if leveret.run(consume(life, pipe)) else 1)


class Process:
    """A consumer in a process of its own. Use it with `with`; the end of the block kills it if it still runs."""

    def __init__(self, life: Life) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, self._other = context.Pipe()
        self._process = context.Process(target=live, args=(life, self._other), daemon=True)

    def __enter__(self) -> Process:
        self._process.start()
        self._other.close()
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    async def begun(self) -> None:
        """Waits until its consumer is subscribed."""
        if not await asyncio.to_thread(self._pipe.poll, PATIENCE):
            raise RuntimeError(f"a consumer did not begin within {PATIENCE:g} s")
        with contextlib.suppress(EOFError):
            self._pipe.recv()
            return
        raise RuntimeError("a consumer ended before it began")

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()
        self._process.join()
        if self._process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"a consumer ended by itself, with status {self._process.exitcode}")

    async def drain(self) -> int | None:
        """Sends SIGTERM. Returns the exit status, or None when the process does not end in time."""
        self._process.terminate()
        await asyncio.to_thread(self._process.join, PATIENCE)
        return self._process.exitcode


# ---------------------------------------------------------------------- what handlers wrote


class Ledger:
    """Reads the handlers' records.

    Attributes:
        published: The number of published messages, which are numbered from 0.
        handled: The number of messages with a record.
        records: The number of records: more than `handled` when handled messages came again.
        redelivered: The number of records with the mark `redelivered`.
        unmarked: Messages that came again without the mark.
        repeated: Messages that came again to the process that had handled them.
        again: Handled messages that came again, counted by the number of the process that had handled them.
    """

    def __init__(self, path: Path) -> None:
        self.published = 0
        self.handled = self.records = self.redelivered = self.unmarked = self.repeated = 0
        self.again: dict[int, int] = {}
        self._by: list[int] = []
        self._file = path.open("rb")

    @property
    def duplicates(self) -> int:
        """The number of records of messages that had been handled before."""
        return self.records - self.handled

    def missing(self) -> Iterator[int]:
        """Yields the numbers of messages without a record."""
        return (number for number, life in enumerate(self._by) if life < 0)

    def publish(self, count: int) -> Iterator[bytes]:
        """Yields the bodies of `count` more messages."""
        begin, self.published = self.published, self.published + count
        self._by += [-1] * count
        return (b"%d" % number for number in range(begin, self.published))

    def read(self) -> int:
        """Reads new records; returns the number of messages without a record."""
        written = self._file.read()
        if len(written) % RECORD_SIZE:
            raise RuntimeError("a handler wrote a part of its record")
        for record in written.splitlines():
            number, life, redelivered = map(int, record.split())
            before, self._by[number] = self._by[number], life
            self.records += 1
            self.redelivered += redelivered
            if before < 0:
                self.handled += 1
                continue
            self.unmarked += not redelivered
            self.repeated += before == life
            self.again[before] = self.again.get(before, 0) + 1
        return self.published - self.handled

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


# ---------------------------------------------------------------------- killing


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The result of a run.

    Attributes:
        ledger: The handlers' records.
        kills: The number of killed processes.
        dry: The number of kills at which the queue may have been empty.
        queued: Messages that are in the queue at the end.
        status: The exit status of the last process, which drained the queue.
        seconds: The duration of the run.
    """

    ledger: Ledger
    kills: int
    dry: int
    queued: int
    status: int | None
    seconds: float

    @property
    def lost(self) -> int:
        """Messages that were acknowledged although no handler had finished with them."""
        return self.ledger.published - self.ledger.handled - self.queued

    def problems(self) -> list[str]:
        """Returns a sentence for each rule that was broken."""
        ledger, found = self.ledger, []
        if self.lost:
            some = ", ".join(str(number) for number, _ in zip(ledger.missing(), range(5), strict=False))
            found.append(f"{self.lost:,} messages were acknowledged and not handled, such as {some}")
        if self.queued:
            found.append(f"{self.queued:,} messages are left in the queue")
        if ledger.unmarked:
            found.append(f"{ledger.unmarked:,} messages came again without the mark `redelivered`")
        if ledger.repeated:
            found.append(f"{ledger.repeated:,} messages came again to the process that had handled them")
        if (most := max(ledger.again.values(), default=0)) > PREFETCH:
            found.append(f"{most:,} messages came again after one kill, where at most {PREFETCH} were unacknowledged")
        if self.dry:
            found.append(f"the queue was empty at {self.dry:,} of the kills")
        if not ledger.redelivered:
            found.append("no kill was at a moment at which messages were unacknowledged")
        if self.status != 0:
            found.append(f"the last process did not drain its consumer: its exit status is {self.status}")
        return found


async def torment(
    life: Callable[[int], Life], ledger: Ledger, kills: int, longest: float, seed: int, progress: Callable[[], None]
) -> Found:
    """Kills processes, one after another, and lets a last one handle the rest.

    Args:
        life: Returns the task of the process with a number.
        ledger: Reads the handlers' records.
        kills: The number of processes to kill.
        longest: The most seconds that a consumer runs before its process is killed.
        seed: The seed of the random moments.
        progress: Called after each kill.
    """
    chance = random.Random(seed)
    began = time.monotonic()
    dry = 0
    last = life(kills)
    async with leveret.connect(last.url) as client, client.producer(serializer="bytes") as producer:
        await client.declare(leveret.Topology().queue(last.queue))
        try:
            for number in range(kills):
                with Process(life(number)) as process:
                    missing = PREFETCH + round(RATE * longest) - ledger.read()
                    (await producer.publish_batch(ledger.publish(missing), last.queue)).raise_for_failures()
                    await process.begun()
                    await asyncio.sleep(chance.uniform(0, longest))
                    process.kill()
                dry += ledger.read() <= PREFETCH
                progress()
            with Process(last) as process:
                await process.begun()
                left, deadline = ledger.read(), time.monotonic() + STALLED
                while left and time.monotonic() < deadline:
                    await asyncio.sleep(0.05)
                    before, left = left, ledger.read()
                    if left < before:
                        deadline = time.monotonic() + STALLED
                status = await process.drain()
            ledger.read()
        finally:
            queued = await client.delete_queue(last.queue)
    return Found(ledger=ledger, kills=kills, dry=dry, queued=queued, status=status, seconds=time.monotonic() - began)


def show(found: Found) -> Table:
    """Makes the table for the console."""
    ledger = found.ledger
    shown = Table(title=f"{WORKERS} workers, prefetch {PREFETCH}, handlers of 0 to {1000 * LONGEST:g} ms")
    again = ledger.again.values()
    cells = {
        "kills": found.kills,
        "seconds": round(found.seconds),
        "messages": ledger.published,
        "processed": ledger.handled,
        "lost": found.lost,
        "duplicates": ledger.duplicates,
        "of them not marked": ledger.unmarked,
        "most by one kill": max(again, default=0),
        "redelivered": ledger.redelivered,
        "left in the queue": found.queued,
    }
    for heading in cells:
        shown.add_column(heading, justify="right")
    shown.add_row(*(f"{value:,}" for value in cells.values()))
    return shown


# ---------------------------------------------------------------------- running


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(prog="make killed", description=__doc__)
    add = parser.add_argument
    add("--kills", type=int, default=100, help="how many processes are killed (default %(default)s)")
    add("--life", type=float, default=1.5, help="seconds that each may consume at most (default %(default)s)")
    add("--seed", type=int, default=1, help="of the moments (default %(default)s)")
    add("--broker", metavar="URL", help="a broker that is there (default: a RabbitMQ node of its own)")
    add(
        "--ack",
        choices=("coalesced", "each", "handoff"),
        default="coalesced",
        help='when messages are acknowledged (default %(default)s). "handoff" does so before they are handled, and '
        "shows what this run says when messages are lost",
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.kills <= 10_000:
        parser.error(f"--kills is 1 to 10000, not {options.kills}")
    if not 0 < options.life <= 60:
        parser.error(f"--life is above 0 and at most 60, not {options.life:g}")
    return options


@contextlib.contextmanager
def broker(url: str | None) -> Iterator[str]:
    """Yields the URL of a broker: the given one, or that of a private RabbitMQ node."""
    if url is not None:
        yield url
        return
    with rabbitmq() as address:
        yield address.url


def main(arguments: Sequence[str]) -> int:
    """Reads the options, runs, prints, judges.

    Returns:
        The exit status: 1 when a message was lost, or came again without its mark.
    """
    options = parse(arguments)
    console = screen()
    with tempfile.TemporaryDirectory(prefix="leveret-killed-") as folder, broker(options.broker) as url:
        path = Path(folder, "handled")
        path.touch()

        def life(number: int) -> Life:
            return Life(number, url, f"killed-{os.getpid()}", path, options.ack)

        with contextlib.closing(Ledger(path)) as ledger, progress_bars(console) as bars:
            bars.add_task("kills", total=options.kills)
            found = leveret.run(torment(life, ledger, options.kills, options.life, options.seed, advance(bars)))
    console.print(show(found))
    return judge(console, found.problems(), "no message was lost, and every duplicate was marked as redelivered")


if __name__ == "__main__":
    execute(main)
