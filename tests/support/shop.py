"""A directory with an app, which `leveret run` runs in processes of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import leveret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE = 25.0

#: Writes down its processes, and what its handlers have finished: one line for each, by one write.
SHOP = """
from __future__ import annotations

import asyncio
import os
import time

import msgspec

import leveret


class Order(msgspec.Struct):
    id: int


def note(file: str, text: object) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\\n".encode())
    os.close(descriptor)


app = leveret.App(os.environ["SHOP_URL"], name="shop")
app.topology = leveret.Topology().queue(os.environ["SHOP_QUEUE"])
app.on_startup(lambda client: note("started", os.getpid()))
app.on_shutdown(lambda client: note("ended", os.getpid()))


@app.consumer(os.environ["SHOP_QUEUE"], concurrency=4, prefetch=20)
async def handle(order: Order, message: leveret.Message) -> None:
    assert type(order) is Order
    note("begun", os.getpid())
    await asyncio.sleep(float(os.environ.get("SHOP_SECONDS", "0.005")))
    note("handled", order.id)


stuck = leveret.App(os.environ["SHOP_URL"])


@stuck.consumer(os.environ["SHOP_QUEUE"])
def block(order: Order, message: leveret.Message) -> None:
    note("begun", os.getpid())
    time.sleep(60)


busy = leveret.App(os.environ["SHOP_URL"])


@busy.consumer(os.environ["SHOP_QUEUE"])
async def keep_the_loop(order: Order, message: leveret.Message) -> None:
    note("begun", os.getpid())
    while True:
        pass


crashing = leveret.App(os.environ["SHOP_URL"])
crashing.consumer(os.environ["SHOP_QUEUE"])(handle)
crashing.on_startup(lambda client: note("started", os.getpid()))
crashing.on_startup(lambda client: os._exit(3))

half = leveret.App(os.environ["SHOP_URL"])
half.consumer(os.environ["SHOP_QUEUE"])(handle)


@half.on_startup
def only_the_first(client):
    try:
        os.mkdir("first")
    except FileExistsError:
        os._exit(3)


half.on_shutdown(lambda client: os._exit(4))
"""


class Shop:
    """A directory with the app, a queue, and what the app's processes wrote down."""

    def __init__(self, folder: Path, url: str, queue: str) -> None:
        self.folder = folder
        self.url = url
        self.queue = queue
        (folder / "shop.py").write_text(SHOP)

    def lines(self, file: str) -> list[int]:
        path = self.folder / file
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    @contextlib.contextmanager
    def program(self, *command: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=self.folder,
            env=os.environ | {"SHOP_URL": self.url, "SHOP_QUEUE": self.queue} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def running(self, *arguments: str, **environment: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        return self.program("-m", "leveret.cli", "run", *arguments, **environment)

    async def publish(self, count: int) -> None:
        async with leveret.connect(self.url) as client, client.producer() as producer:
            await client.declare(leveret.Topology().queue(self.queue))
            result = await producer.publish_batch(({"id": i} for i in range(count)), self.queue)
            result.raise_for_failures()

    async def left(self) -> list[tuple[int, bool]]:
        """Takes what is in the queue: the numbers, and whether they were delivered before."""
        found = []
        async with leveret.connect(self.url) as client, client.consumer(self.queue) as consumer:
            while (message := await consumer.get()) is not None:
                found.append((message.value["id"], message.redelivered))
                message.ack()
        return found


async def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            assert process is None or process.poll() is None, process.communicate()
            await asyncio.sleep(0.02)


async def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, error = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
    return process.returncode, error


def problems(error: str) -> list[str]:
    """The lines that are no plain news of the app."""
    return [line for line in error.splitlines() if " INFO [" not in line]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
