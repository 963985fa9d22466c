"""Messages at a steady rate, for Python drivers. It imports only the standard library, as `job` does."""

from __future__ import annotations

import asyncio
import os
import shlex
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType
    from typing import Self

    from asv_bench.compare.job import Job

#: The time at which a message is due. Bodies of messages that are consumed begin with it.
DUE: Final = struct.Struct("<q")


class Ticks:
    """The times at which the messages of a job are due, read from a process of its own. Use it with `with`.

    Args:
        job: The job.
    """

    def __init__(self, job: Job) -> None:
        task = job.task
        command = [*shlex.split(task.ticker), str(task.rate), str(job.count)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0)

    def fileno(self) -> int:
        """The descriptor that is readable when a message is due, and at the end."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def read(self) -> list[int]:
        """Returns the times of the messages that became due; none at the end."""
        # A pipe keeps together what was written at once, so there are only whole times.
        return [due for (due,) in DUE.iter_unpack(os.read(self.fileno(), 65_536))]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.kill()
        self._process.wait()


def stamped(job: Job, due: int) -> bytes:
    """The body of a message that is consumed: when it was due, and the job's body up to its size."""
    return DUE.pack(due) + job.body[DUE.size :]


def note(job: Job, due: int) -> None:
    """Notes that what is measured has come for the message that was due then."""
    job.latencies.append((time.time_ns() - due) / 1e9)


def note_body(job: Job, body: bytes) -> None:
    """The same for a body that `stamped` made."""
    note(job, DUE.unpack_from(body)[0])


async def publish(ticks: Ticks, send: Callable[[int], Coroutine[Any, Any, Any]]) -> None:
    """Runs `send(due)` in a task of its own for each message, as a service does for each request.

    Returns:
        When all tasks have ended.

    Raises:
        Exception: What a task raised, after the last one has begun.
    """
    loop = asyncio.get_running_loop()
    begun: asyncio.Future[None] = loop.create_future()
    tasks: set[asyncio.Task[Any]] = set()

    def ended(task: asyncio.Task[Any]) -> None:
        if task.exception() is None:  # others stay for `gather`
            tasks.discard(task)

    def readable() -> None:
        found = ticks.read()
        for due in found:
            task = loop.create_task(send(due))
            tasks.add(task)
            task.add_done_callback(ended)
        if not found:
            loop.remove_reader(ticks.fileno())
            begun.set_result(None)

    loop.add_reader(ticks.fileno(), readable)
    await begun
    await asyncio.gather(*tasks)
