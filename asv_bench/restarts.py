"""Dials a server that resets each connection, and restarts the broker of a hundred clients: `make restarts`.

Both once ended in SIGABRT on uvloop, because a socket was closed by two owners; see docs/long-runs.md. Fails when a
process ends by a signal, when a call raises another exception than a `LeveretError`, when a client does not publish
again within a minute of a restart, or when descriptors or memory are left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import gc
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asv_bench.programs import execute, judge, progress_bars, resident_mib, screen
from rich.table import Table

import leveret

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

TASKS: Final = 50
LOOPS: Final = ("uvloop", "asyncio")
#: Seconds after a restart within which every client has to have published again.
PATIENCE: Final = 60.0
#: The highest ratio of the memory at the end to the memory before the first restart.
MORE_MEMORY: Final = 1.10


def run(loop: str, main: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Runs a coroutine on one of `LOOPS`."""
    return leveret.run(main) if loop == "uvloop" else asyncio.run(main)


# ---------------------------------------------------------------------- a server that resets


@contextlib.contextmanager
def resetting_server() -> Iterator[int]:
    """A server that accepts each connection and resets it (SO_LINGER of 0 s, man 7 socket); gives its port."""
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                accepted.close()

    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        listener.settimeout(0.2)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


async def dial(port: int, seconds: float) -> dict[str, Any]:
    """`TASKS` tasks connect again and again. Returns the number of errors of each kind."""
    seen: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    until = time.monotonic() + seconds

    async def one() -> None:
        while time.monotonic() < until:
            try:
                async with leveret.connect(f"amqp://guest:guest@127.0.0.1:{port}"):
                    wrong.append("a connection was made")
            except leveret.LeveretError as error:
                seen[type(error).__name__] += 1
            except Exception as error:
                wrong.append(repr(error))

    await asyncio.gather(*(one() for _ in range(TASKS)))
    return {"seen": seen, "wrong": wrong[:5]}


# ---------------------------------------------------------------------- clients whose broker restarts


def descriptors() -> int:
    """Returns the number of files that this process has open."""
    return len(os.listdir("/dev/fd"))


async def publish_again(producer: leveret.Producer, queue: str) -> None:
    """Publishes until a message is confirmed, as a service would that tries again."""
    while True:
        try:
            await producer.publish(b"", queue)
            return
        except leveret.PublishError:
            await asyncio.sleep(0.05)


async def outlive(url: str, clients: int, restarts: int, max_delay: float) -> dict[str, Any]:
    """Publishes with all clients after each restart. Asks for a restart on stdout; stdin says when it is done."""
    found: dict[str, Any] = {"seconds": [], "descriptors": [], "mib": []}
    queue = f"restarts-{os.getpid()}"

    def look() -> None:
        gc.collect()
        found["descriptors"].append(descriptors())
        found["mib"].append(resident_mib())

    async with contextlib.AsyncExitStack() as stack:
        producers = []
        for _ in range(clients):
            client = await stack.enter_async_context(leveret.connect(url, recovery_max_delay=max_delay))
            producers.append(await stack.enter_async_context(client.producer(serializer="bytes")))
        await client.declare(leveret.Topology().queue(queue))

        async def all_publish() -> None:
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                for producer in producers:
                    group.create_task(publish_again(producer, queue))

        await all_publish()
        look()
        for _ in range(restarts):
            print("restart", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            began = time.monotonic()
            try:
                await all_publish()
            except TimeoutError:
                found["wrong"] = f"not all clients had published {PATIENCE:g} s after a restart"
                break
            found["seconds"].append(time.monotonic() - began)
            look()
        await client.delete_queue(queue)
    return found


# ---------------------------------------------------------------------- the processes


def child(loop: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts this program for one of its parts."""
    command = [sys.executable, "-m", "asv_bench.restarts", "--loop", loop, *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )


def ended(process: subprocess.Popen[str], last_line: str) -> tuple[dict[str, Any], list[str]]:
    """Returns the findings of an ended process, and the problems among them."""
    if process.returncode:
        return {}, [f"a process ended with status {process.returncode}"]
    found = json.loads(last_line)
    wrong = found.get("wrong") or []
    return found, [wrong] if isinstance(wrong, str) else wrong


def resets(loop: str, seconds: float) -> tuple[dict[str, Any], list[str]]:
    """Dials a server that resets connections, in a process of its own."""
    with resetting_server() as port:
        process = child(loop, "--dial", str(port), "--seconds", str(seconds))
        printed, _ = process.communicate(timeout=seconds + PATIENCE)
    return ended(process, printed)


def restarts(
    loop: str, clients: int, times: int, max_delay: float, progress: Callable[[], None]
) -> tuple[dict[str, Any], list[str]]:
    """Kills and starts a RabbitMQ node again and again under clients in a process of their own."""
    from tests.support.rabbitmq import RabbitMQNode, RabbitMQUnavailableError

    try:
        node = RabbitMQNode()
        node.start()
    except RabbitMQUnavailableError as error:
        raise SystemExit(str(error)) from None
    with (
        contextlib.closing(node),
        child(
            loop, "--outlive", node.url, "--clients", str(clients), "--times", str(times), "--max-delay", str(max_delay)
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdin is not None
        line = ""
        for line in process.stdout:
            if line != "restart\n":
                break
            node.kill()
            node.start()
            process.stdin.write("\n")
            process.stdin.flush()
            progress()
        process.wait(PATIENCE)
    found, wrong = ended(process, line)
    if found:
        if max(found["descriptors"][1:]) > found["descriptors"][0]:
            wrong.append(f"descriptors: {found['descriptors'][0]} before, up to {max(found['descriptors'])} after")
        if found["mib"][-1] > MORE_MEMORY * found["mib"][0]:
            wrong.append(f"memory: {found['mib'][0]:.1f} MiB before, {found['mib'][-1]:.1f} MiB at the end")
    return found, wrong


# ---------------------------------------------------------------------- running


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(prog="make restarts", description=__doc__)
    add = parser.add_argument
    add("--times", type=int, default=20, help="runs of the server, and restarts (default %(default)s)")
    add("--seconds", type=float, default=8.0, help="how long the resetting server is dialed (default %(default)s)")
    add("--clients", type=int, default=100, help="clients whose broker is restarted (default %(default)s)")
    add("--max-delay", type=float, default=30.0, help="their recovery_max_delay in seconds (default %(default)s)")
    add("--loop", choices=LOOPS, help="only this event loop (default: both)")
    add("--part", choices=("resets", "restarts"), help="only this part (default: both)")
    add("--dial", type=int, help=argparse.SUPPRESS)
    add("--outlive", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name, most in (("times", 1000), ("seconds", 600), ("clients", 1000), ("max_delay", 3600)):
        if not 0 < getattr(options, name) <= most:
            parser.error(f"--{name.replace('_', '-')} is above 0 and at most {most}, not {getattr(options, name):g}")
    return options


def main(arguments: Sequence[str]) -> int:
    """Reads the options, runs, prints, judges.

    Returns:
        The exit status: 1 when there are problems.
    """
    options = parse(arguments)
    if options.dial:
        print(json.dumps(run(options.loop, dial(options.dial, options.seconds))))
        return 0
    if options.outlive:
        logging.getLogger("leveret").setLevel(logging.ERROR)  # each client logs each attempt
        print(
            json.dumps(run(options.loop, outlive(options.outlive, options.clients, options.times, options.max_delay)))
        )
        return 0
    console = screen()
    loops = [options.loop] if options.loop else LOOPS
    dialed = Table(
        "loop",
        "times",
        "dialed",
        "errors",
        title=f"{TASKS} tasks dial a server that resets, {options.seconds:g} s each",
    )
    restarted = Table(
        "loop",
        "restarts",
        "seconds to the last publish",
        "descriptors",
        "memory MiB",
        title=f"{options.clients} clients of one process, their broker killed and started again",
    )
    problems: list[str] = []
    with progress_bars(console) as bars:
        for loop in loops:
            if options.part != "restarts":
                bar = bars.add_task(f"resets, {loop}", total=options.times)
                seen: collections.Counter[str] = collections.Counter()
                for _ in range(options.times):
                    found, wrong = resets(loop, options.seconds)
                    seen.update(found.get("seen", {}))
                    problems += [f"resets, {loop}: {each}" for each in wrong]
                    bars.advance(bar)
                    bars.refresh()
                errors = ", ".join(f"{name} {count:,}" for name, count in seen.most_common())
                dialed.add_row(loop, str(options.times), f"{seen.total():,}", errors)
            if options.part != "resets":
                bar = bars.add_task(f"restarts, {loop}", total=options.times)

                def progress(bar: Any = bar) -> None:
                    bars.advance(bar)
                    bars.refresh()

                found, wrong = restarts(loop, options.clients, options.times, options.max_delay, progress)
                problems += [f"restarts, {loop}: {each}" for each in wrong]
                if found:
                    times = sorted(found["seconds"])
                    restarted.add_row(
                        loop,
                        str(len(times)),
                        f"{times[len(times) // 2]:.1f} (median), {times[-1]:.1f} (longest)" if times else "",
                        f"{found['descriptors'][0]} before, {found['descriptors'][-1]} at the end",
                        f"{found['mib'][0]:.1f} before, {found['mib'][-1]:.1f} at the end",
                    )
    for table in (dialed, restarted):
        if table.row_count:
            console.print(table)
    return judge(
        console, problems, "no process was aborted, every error was a LeveretError, every client published again"
    )


if __name__ == "__main__":
    execute(main)
