"""Measures the client's CPU time per message, by what there may be many of, window and body size: `make costs`.

See docs/costs.md. The default broker is the embedded one, in its own process, so that the program runs anywhere. Only
the client's CPU time counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import socket
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

from asv_bench.compare import chart, wire
from asv_bench.compare.broker import BROKERS
from asv_bench.compare.report import cpu_text, size_text
from asv_bench.cost_points import BATCH, EXCHANGE, KIBIBYTE, MEBIBYTE, SMALL, Point, Stopwatch
from asv_bench.growth import address_queues, consume, lose, producer_of, share
from asv_bench.outputs import Outputs, markdown_page
from asv_bench.programs import choose, execute, facts, progress_bars, screen, versions
from rich.table import Table

import leveret

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

    from asv_bench.compare.job import Address

ROUNDS: Final = 5
CHANNELS: Final = (1, 10, 100, 1000)
CONNECTIONS: Final = (1, 10, 100, 500)
CONSUMERS: Final = (1, 10, 100, 1000)
QUEUES: Final = (1, 100, 1000, 5000)
OUTAGES: Final = (1000, 10_000, 100_000)
WINDOWS: Final = (100, 1000, 10_000, 100_000)
SIZES: Final = (SMALL, KIBIBYTE, 4 * KIBIBYTE, 16 * KIBIBYTE, 64 * KIBIBYTE, 256 * KIBIBYTE, MEBIBYTE)
#: Messages of a chunk where only the window differs: half of the smallest window.
CHUNK: Final = min(WINDOWS) // 2
#: The yardstick that is measured beside an axis.
YARDSTICKS: Final = {"size": "copying", "window": "bare"}
#: Up to this spread a cost is flat.
FLAT: Final = 0.1
#: What `--axes` takes.
CHOICES: Final = ("channels", "connections", "consumers", "queues", "outage", "window", "tickets", "size")
OUTPUTS: Final = Outputs("costs", "CPU per message")


@dataclass(frozen=True, slots=True)
class Row:
    """The result of a point.

    Attributes:
        point: The point.
        cpu_us: User and system CPU time, microseconds per message: the median of the rounds.
        ratio: To the first point of its axis, or to copying where that was measured: the median of the rounds' ratios.
        rounds: Microseconds per message of each round.
    """

    point: Point
    cpu_us: float
    ratio: float
    rounds: tuple[float, ...]


def plan(axes: Sequence[str], scale: float) -> list[Point]:
    """Returns the points that each round measures."""
    points = []
    if "channels" in axes:
        # At least one batch for each channel, also of the most channels.
        points += [Point("channels", n, round(max(1, 2 * scale) * max(CHANNELS)) * BATCH) for n in CHANNELS]
    if "connections" in axes:
        points += [Point("connections", n, round(max(1, 2 * scale) * max(CONNECTIONS)) * BATCH) for n in CONNECTIONS]
    if "consumers" in axes:
        points += [Point("consumers", n, round(scale * 100) * max(CONSUMERS)) for n in CONSUMERS]
    if "queues" in axes:
        points += [Point("queues", n, round(scale * 40) * max(QUEUES)) for n in QUEUES]
    if "outage" in axes:
        # Outages take time, so the smallest buffer has few of them.
        points += [Point("outage", n, max(1, round(scale * 10_000 / n)) * n) for n in OUTAGES]
    if "window" in axes:
        for n in WINDOWS:
            points += [Point(axis, n, round(scale * 4) * max(WINDOWS)) for axis in ("window", YARDSTICKS["window"])]
    if "tickets" in axes:
        points += [Point("tickets", n, round(scale * 4) * max(WINDOWS)) for n in WINDOWS]
    if "size" in axes:
        for size in SIZES:
            count = max(10, round(scale * min(400_000, 256 * MEBIBYTE // size)))
            points += [Point("size", size, count), Point("copying", size, count)]
    return points


# ---------------------------------------------------------------------- measuring


async def slide_window(url: str, point: Point, watch: Stopwatch) -> None:
    """Publishes one batch in small chunks, with a confirm window of `point.value`."""
    body = bytes(KIBIBYTE)
    async with (
        leveret.connect(url) as client,
        producer_of(
            client, batch_size=CHUNK, max_outstanding=point.value, max_outstanding_bytes=1024 * MEBIBYTE
        ) as producer,
    ):
        await producer.publish_batch(repeat(body, point.value), "costs")
        with watch.running():
            result = await producer.publish_batch(repeat(body, point.count), "costs")
        result.raise_for_failures()


async def fill_window(url: str, point: Point, watch: Stopwatch) -> None:
    """Publishes until the window is full, waits until it is empty, and so on."""
    body = bytes(SMALL)
    # A high watermark, so that the window limits publishing, and not the socket.
    async with (
        leveret.connect(f"{url}?write_high_watermark={1024 * MEBIBYTE}") as client,
        producer_of(
            client, max_outstanding=point.value, max_buffered=point.value, max_outstanding_bytes=1024 * MEBIBYTE
        ) as producer,
    ):
        publish = producer.publish_nowait
        await producer.publish(body, "costs")
        with watch.running():
            for _ in range(point.count // point.value):
                for _ in range(point.value):
                    publish(body, "costs")
                if producer.outstanding != point.value:
                    raise RuntimeError(f"{producer.outstanding} are unconfirmed where {point.value} are due")
                await producer.flush()


async def publish(url: str, point: Point, watch: Stopwatch, send_buffer: int) -> None:
    """Publishes a batch."""
    body = bytes(point.value)
    async with (
        leveret.connect(f"{url}?socket_send_buffer_size={send_buffer}") as client,
        producer_of(client) as producer,
    ):
        await producer.publish(body, "costs")
        with watch.running():
            result = await producer.publish_batch(repeat(body, point.count), "costs")
        result.raise_for_failures()


def bare(address: Address, point: Point, watch: Stopwatch) -> None:
    """Writes ready-made frames in the chunks of `slide_window`, and counts their confirms."""
    with wire.Connection(address.host, address.port) as connection:
        channel = connection.open_channel(confirms=True)
        with watch.running():
            # The default exchange has no such queue, so the broker drops these messages as well.
            wire.publish(connection, channel, EXCHANGE, bytes(KIBIBYTE), point.count, point.value, CHUNK)


def copy(point: Point, watch: Stopwatch, send_buffer: int, port: int) -> None:
    """Copies bodies into a block of 64 KiB or of one body, and writes each block to a socket."""
    body = bytes(point.value)
    size = point.value
    block = bytearray(max(64 * KIBIBYTE // size, 1) * size)
    with socket.socket() as sock:
        # The same options as the client's.
        if send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(("127.0.0.1", port))
        with watch.running():
            left = point.count
            while left > 0:
                for at in range(0, len(block), size):
                    block[at : at + size] = body
                sock.sendall(block)
                left -= len(block) // size


def swallow(listener: socket.socket) -> None:
    """The other side of `copy`: accepts one connection after another, and drops the bytes that they send."""
    room = bytearray(256 * KIBIBYTE)
    while True:
        connection, _ = listener.accept()
        with connection:
            while connection.recv_into(room):
                pass


async def prepare(url: str) -> None:
    """Declares the exchange."""
    async with leveret.connect(url) as client:
        await client.declare(leveret.Topology().exchange(EXCHANGE, "fanout"))


def measure(
    points: Sequence[Point], broker: str, rounds: int, send_buffer: int, progress: Callable[[Point], None]
) -> tuple[str, dict[Point, list[float]]]:
    """Runs all points in turn, round by round; the first round is not counted.

    Args:
        points: The points to measure.
        broker: The name of one of `BROKERS`.
        rounds: The number of counted rounds.
        send_buffer: The setting `socket_send_buffer_size` for the axes `size` and `copying`.
        progress: Called before each run.

    Returns:
        The broker's product and version, and microseconds per message, by point and round.
    """
    ways: dict[str, Callable[[str, Point, Stopwatch], Coroutine[Any, Any, None]]] = {
        "channels": share,
        "connections": share,
        "queues": address_queues,
        "outage": lose,
        "window": slide_window,
        "tickets": fill_window,
        "size": partial(publish, send_buffer=send_buffer),
    }
    found: dict[Point, list[float]] = {point: [] for point in points}
    with ExitStack() as stack:
        address = stack.enter_context(BROKERS[broker]())
        ways["consumers"] = partial(consume, address=address)
        with wire.Connection(address.host, address.port) as connection:
            identity = connection.identity
        url = address.url + "/%2F"
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        reader = multiprocessing.get_context("fork").Process(target=swallow, args=(listener,), daemon=True)
        reader.start()
        stack.callback(reader.join)
        stack.callback(reader.terminate)
        leveret.run(prepare(url))
        for turn in range(rounds + 1):
            for point in points:
                progress(point)
                watch = Stopwatch()
                if point.axis == "copying":
                    copy(point, watch, send_buffer, listener.getsockname()[1])
                elif point.axis == "bare":
                    bare(address, point, watch)
                else:
                    leveret.run(ways[point.axis](url, point, watch))
                if turn:
                    found[point].append(1e6 * watch.seconds / point.count)
    return identity, found


# ---------------------------------------------------------------------- showing


def summarize(found: Mapping[Point, Sequence[float]]) -> list[Row]:
    """Medians, and ratios of runs that were made in the same round."""
    first: dict[str, Point] = {}
    rows = []
    for point, rounds in found.items():
        reference = first.setdefault(point.axis, point)
        if point.axis == "size":
            reference = dataclasses.replace(point, axis="copying")
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rounds, found[reference], strict=True))
        rows.append(Row(point, statistics.median(rounds), ratio, tuple(rounds)))
    return rows


def _spread(ratios: Iterable[float]) -> float:
    found = list(ratios)
    return max(found) / min(found) - 1


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence about the figures of each axis."""
    said = []
    for axis, what in AXES.items():
        ratios = {row.point.value: row.ratio for row in rows if row.point.axis == axis}
        if ratios:
            values = sorted(ratios)
            spreads = {value: _spread(ratios[v] for v in values if v >= value) for value in values[:-1]}
            flat = next((value for value, spread in spreads.items() if spread <= FLAT), None)
            sentence = f"From {values[0]:,} to {values[-1]:,} {what} the cost is flat within {spreads[values[0]]:.0%}"
            if flat is None:
                sentence += f", and not within {FLAT:.0%} from any point on"
            elif flat != values[0]:
                sentence += f", and from {flat:,} on within {spreads[flat]:.0%}"
            said.append(sentence + ".")
    ours = {row.point.value: row.cpu_us for row in rows if row.point.axis == "size"}
    copying = {row.point.value: row.cpu_us for row in rows if row.point.axis == "copying"}
    if ours:
        low, high = min(ours), max(ours)
        growth = (ours[high] - ours[low]) / (copying[high] - copying[low])
        said.append(
            f"From {size_text(low)} to {size_text(high)} it grows by {growth:.2f} of what copying and writing the "
            "body grow by."
        )
    return said


def cells(rows: Sequence[Row]) -> Iterator[tuple[str, str, str, str]]:
    """The table's lines."""
    for row in rows:
        to = {"size": "copying", "copying": ""}.get(row.point.axis, "the first")
        spread = f"{cpu_text(min(row.rounds))} to {cpu_text(max(row.rounds))}"
        yield row.point.label, cpu_text(row.cpu_us), spread, f"{row.ratio:.2f} of {to}" if to else ""


#: The axes on which the cost should be flat, and the quantity that grows on each.
AXES: Final = {
    "channels": "channels",
    "connections": "connections",
    "consumers": "consumers of a queue",
    "queues": "queues that are published to in turn",
    "outage": "messages of an outage, half of them written before,",
    "window": "unconfirmed publishings of a batch",
    "bare": "unconfirmed ready-made frames of a plain socket",
    "tickets": "unconfirmed publishings with a ticket each",
}
HEADINGS: Final = ("messages", "CPU us/message", "lowest to highest", "ratio")


def table(rows: Sequence[Row]) -> Table:
    """Makes the table for the console."""
    shown = Table(title="CPU of the client, user and system")
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for line in cells(rows):
        shown.add_row(*line)
    return shown


def panels(rows: Sequence[Row]) -> list[chart.Panel]:
    """Makes the chart's panels: one for each axis, with its yardstick."""
    headings = {
        "channels": f"channels that share the load: publish_batch, {BATCH:,} bodies of 1 KiB each",
        "connections": "connections that share the load: the same",
        "consumers": "consumers of a queue, a channel each: handle and acknowledge bodies of 1 KiB",
        "queues": f"queues in turn: publish_nowait with the key of each; bodies of {SMALL} B",
        "outage": f"messages sent again after an outage: half unconfirmed, half new; bodies of {SMALL} B",
        "window": f"confirm window: publish_batch in chunks of {CHUNK}, bodies of 1 KiB; beside it ready-made frames",
        "tickets": f"the same full of tickets: publish_nowait until it is full, then flush; bodies of {SMALL} B",
        "size": "body size: publish_batch, and beside it the same bytes copied and written to a socket",
    }
    found = []
    for axis, heading in headings.items():
        yardstick = YARDSTICKS.get(axis)
        bars = [
            chart.Bar(row.point.label, row.cpu_us, style="ceiling" if row.point.axis == yardstick else "leveret")
            for row in rows
            if row.point.axis in (axis, yardstick)
        ]
        if bars:
            found.append(chart.Panel(heading, bars))
    return found


# ---------------------------------------------------------------------- running


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(prog="make costs", description=__doc__)
    add = parser.add_argument
    add("--axes", help=f"some of {', '.join(CHOICES)} (default: all)")
    add("--rounds", type=int, default=ROUNDS, help="counted rounds (default %(default)s)")
    add("--broker", choices=sorted(BROKERS), default="embedded", help="a private one of these (default %(default)s)")
    add("--count-scale", type=float, default=1.0, help="factor of all message counts (default 1)")
    add(
        "--send-buffer",
        type=int,
        metavar="BYTES",
        default=leveret.ConnectionSettings().socket_send_buffer_size,
        help="socket_send_buffer_size of the axis `size`, also for copying; 0: the kernel's own (default %(default)s)",
    )
    OUTPUTS.add_options(parser)
    options = parser.parse_args(arguments)
    options.axes = choose(options.axes, CHOICES, "axis")
    if options.rounds < 1:
        parser.error(f"--rounds is at least 1, not {options.rounds}")
    if not 0.25 <= options.count_scale <= 100:
        parser.error(f"--count-scale is 0.25 to 100, not {options.count_scale:g}")
    if options.send_buffer and not 4096 <= options.send_buffer <= 64 * MEBIBYTE:
        parser.error(f"--send-buffer is 0, or 4096 to 67108864 bytes, not {options.send_buffer}")
    OUTPUTS.check(parser, options)
    return options


def main(arguments: Sequence[str]) -> int:
    """Reads the options, measures, shows; returns the exit status."""
    options = parse(arguments)
    console = screen()
    points = plan(options.axes, options.count_scale)
    with progress_bars(console, remaining=True) as bars:
        bar = bars.add_task("measuring", total=len(points) * (options.rounds + 1))

        def progress(point: Point) -> None:
            bars.update(bar, description=point.label, refresh=True)
            bars.advance(bar)

        identity, found = measure(points, options.broker, options.rounds, options.send_buffer, progress)
        bars.update(bar, description="done", refresh=True)
    rows = summarize(found)
    console.print(table(rows))
    for verdict in verdicts(rows):
        console.print(verdict)
    about = facts(identity, versions("leveret", "uvloop"), options.rounds, options.count_scale)
    OUTPUTS.write(
        options,
        rows,
        about,
        title="CPU of the client, microseconds per message (logarithmic; shorter is better)",
        panels=panels(rows),
        markdown=markdown_page(about, verdicts(rows), HEADINGS, cells(rows)),
    )
    return 0


if __name__ == "__main__":
    execute(main)
