"""Sends what no peer should send, and watches the victim's memory: `make floods`.

The victim is an embedded broker, or a client, in a process of its own; see docs/long-runs.md. Fails when its resident
memory grows by more than the configured limit and 16 MiB, when it is not back 5 s after the peer's end, or when the
connection did not end with the right error. Victims do not collect cycles, and have the C library give back what it
keeps for later.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import itertools
import logging
import multiprocessing
import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from asv_bench.programs import choose, execute, judge, resident_mib, screen
from rich.table import Table

import leveret
from leveret.broker import EmbeddedBroker
from leveret.protocol.commands import PROTOCOL_HEADER, Basic, Channel, Connection, decode, encode, make
from leveret.wire.reader import FrameReader
from leveret.wire.runs import MethodFrame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from multiprocessing.connection import Connection as Pipe

MEBIBYTE: Final = 1024 * 1024
#: The largest body of both victims, and so the limit of incomplete and surplus messages.
LARGEST: Final = 16 * MEBIBYTE
#: MiB that memory may grow beyond the configured limit.
SLACK_MIB: Final = 16.0
#: MiB by which it may be higher afterwards: what Python keeps for later.
KEPT_MIB: Final = 8.0
#: Seconds after the peer's end.
BACK: Final = 5.0
#: Sockets that never log in may take this much in all.
SOCKETS_MIB: Final = 100.0
#: A flood ends after so many bytes, when nothing has ended it before.
MOST_SENT: Final = 1024 * MEBIBYTE
PREFETCH: Final = 100
CHANNELS: Final = 16
FRAME_MAX: Final = 131_072
TAG: Final = "flooded"


# ---------------------------------------------------------------------- frames


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def publish(channel: int) -> bytes:
    """Packs basic.publish to the default exchange."""
    return encode(channel, make(Basic.Publish, exchange="", routing_key="nowhere"))


def deliver(channel: int, delivery_tag: int = 1) -> bytes:
    """Packs basic.deliver to the consumer of the victim."""
    return encode(channel, make(Basic.Deliver, consumer_tag=TAG, delivery_tag=delivery_tag, routing_key="q"))


def begun(method: bytes, channel: int, size: int, received: int) -> bytes:
    """Packs a content of `size` bytes of which so many come, in one frame."""
    header = _frame(2, channel, struct.pack(">HHQH", 60, 0, size, 0))
    return method + header + _frame(3, channel, bytes(received))


def one_byte_each(method: Callable[[int], bytes]) -> Iterator[bytes]:
    """Sends one byte of a large body on each of 65,535 channels."""
    return (begun(method(channel), channel, LARGEST, 1) for channel in range(1, 65_536))


def huge(method: Callable[[int], bytes], channels: int) -> Iterator[bytes]:
    """Announces large bodies, and sends them on all channels by turns, but for their last byte."""
    part = FRAME_MAX - 8
    for channel in range(1, channels + 1):
        yield begun(method(channel), channel, LARGEST, part)
    for _ in range(LARGEST // part - 1):
        for channel in range(1, channels + 1):
            yield _frame(3, channel, bytes(part))


# ---------------------------------------------------------------------- peers


class Peer:
    """The flooding end of a connection, which reads methods and sends anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, server: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader(server=server, protocol_header=server, frame_max=FRAME_MAX)
        self._events: list[Any] = []
        self.sent = 0
        #: The reply code that the victim ended the connection with; 0 when it only closed the socket.
        self.reply_code = 0

    async def expect(self, kind: type[Any]) -> Any:
        """Waits for a method, and skips others."""
        while True:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, bytes) and kind is bytes:
                    return event
                if isinstance(event, MethodFrame):
                    method = decode(event)
                    if isinstance(method, Connection.Close):
                        self.reply_code = method.reply_code or 0
                    if isinstance(method, kind):
                        return method
            data = await self._reader.read(65_536)
            if not data:
                raise ConnectionResetError("the victim has closed the socket")
            self._events += self._frames.feed(data)

    def send(self, kind: type[Any], channel: int = 0, **values: object) -> None:
        """Sends a method."""
        self._writer.write(encode(channel, make(kind, **values)))

    async def flood(self, pieces: Iterable[bytes]) -> None:
        """Sends until the victim ends the connection, nothing is left, or `MOST_SENT` bytes are sent."""
        ended = asyncio.ensure_future(self.expect(Connection.Close))
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                self._writer.write(piece)
                self.sent += len(piece)
                if self.sent >= MOST_SENT or ended.done():
                    break
                await self._writer.drain()
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(BACK):
                await ended

    def end(self) -> None:
        """Closes the socket."""
        self._writer.transport.abort()


async def log_in(port: int, *, channels: int = 0) -> Peer:
    """Opens a connection to the broker, with the first so many channels."""
    peer = Peer(*await asyncio.open_connection("127.0.0.1", port), server=False)
    peer._writer.write(PROTOCOL_HEADER)
    await peer.expect(Connection.Start)
    peer.send(Connection.StartOk, client_properties={}, response="\0guest\0guest")
    tune = await peer.expect(Connection.Tune)
    peer.send(Connection.TuneOk, channel_max=tune.channel_max, frame_max=FRAME_MAX, heartbeat=0)
    peer.send(Connection.Open, virtual_host="/")
    await peer.expect(Connection.OpenOk)
    for channel in range(1, channels + 1):
        peer.send(Channel.Open, channel)
        await peer.expect(Channel.OpenOk)
    return peer


async def serve_victim(peer: Peer, until: str) -> None:
    """Answers a client's handshake, and then its requests up to the last basic.consume."""
    await peer.expect(bytes)
    if until == "start":
        return
    peer.send(Connection.Start, server_properties={}, mechanisms="PLAIN", locales="en_US")
    await peer.expect(Connection.StartOk)
    if until == "tune":
        return
    peer.send(Connection.Tune, channel_max=2047, frame_max=FRAME_MAX, heartbeat=0)
    await peer.expect(Connection.Open)
    peer.send(Connection.OpenOk)
    for channel in range(1, CHANNELS + 1):
        await peer.expect(Channel.Open)
        peer.send(Channel.OpenOk, channel)
        await peer.expect(Basic.Qos)
        peer.send(Basic.QosOk, channel)
        await peer.expect(Basic.Consume)
        peer.send(Basic.ConsumeOk, channel, consumer_tag=TAG)


# ---------------------------------------------------------------------- victims


async def give_back() -> None:
    """Has the C library give free memory back four times a second; without collections of cycles."""
    gc.disable()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    while trim is not None:
        trim(0)
        await asyncio.sleep(0.25)


def be_broker(pipe: Pipe) -> None:
    """Runs an embedded broker until the pipe is closed; sends its port."""

    async def run() -> None:
        logging.getLogger("leveret").setLevel(logging.CRITICAL)
        async with EmbeddedBroker(max_message_size=LARGEST, backlog=4096, handshake_timeout=60) as broker:
            trimming = asyncio.create_task(give_back())
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(pipe.fileno(), ended.set)
            pipe.send(broker.port)
            await ended.wait()
            trimming.cancel()

    with contextlib.suppress(KeyboardInterrupt):
        leveret.run(run())


def be_client(pipe: Pipe) -> None:
    """Connects to each port that the pipe brings, and consumes with handlers that never end; sends what ended it."""

    async def consume(port: int) -> str:
        options: dict[str, Any] = {
            "auto_recovery": False,
            "max_body_size": LARGEST,
            "close_timeout": 1,
            "handshake_timeout": 60,
        }
        async with leveret.connect(f"amqp://guest:guest@127.0.0.1:{port}?heartbeat=0", **options) as client:
            consumers = []
            for _ in range(CHANNELS):
                consumer = client.consumer("q", serializer="bytes", prefetch=PREFETCH, consumer_tag=TAG)
                await consumer.subscribe()
                consumers.append(consumer)
            pipe.send("ready")
            await asyncio.gather(*(consumer.run(never) for consumer in consumers))
        return "nothing"

    async def never(value: object, message: object) -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        logging.getLogger("leveret").setLevel(logging.CRITICAL)
        trimming = asyncio.create_task(give_back())
        while (port := await asyncio.to_thread(pipe.recv)) is not None:
            try:
                said = await consume(port)
            except leveret.LeveretError as error:
                said = f"{type(error).__name__} {getattr(error, 'reply_code', '')}".strip()
            pipe.send(said)
        trimming.cancel()

    with contextlib.suppress(EOFError, KeyboardInterrupt):
        leveret.run(run())


class Victim:
    """A process that is flooded. Use it with `with`."""

    def __init__(self, target: Callable[[Pipe], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=target, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.kill()
        self._process.join()

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def reset_peak(self) -> float:
        """Forgets the peak; returns the resident memory in MiB."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        return resident_mib(self.pid)

    def peak_mib(self) -> float:
        """Returns the most resident memory since `reset_peak`, in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# ---------------------------------------------------------------------- floods


@dataclass(frozen=True, slots=True)
class Flood:
    """A flood.

    Attributes:
        victim: `broker` or `client`.
        title: The name in the table.
        limit_mib: The configured limit, in MiB.
        ends: How the connection has to end: a reply code, or what the client raises; empty for any end.
        run: Floods the victim with the given number of sockets, and returns the bytes sent and how it ended.
    """

    victim: str
    title: str
    limit_mib: float
    ends: str
    run: Callable[[Victim, int], Awaitable[tuple[int, str]]]


def of_broker(pieces: Callable[[], Iterable[bytes]], *, channels: int = -1) -> Callable[..., Any]:
    """A flood of the broker on one connection; with -1 channels it is not logged in."""

    async def run(victim: Victim, port: int) -> tuple[int, str]:
        if channels < 0:
            peer = Peer(*await asyncio.open_connection("127.0.0.1", port), server=False)
            peer._writer.write(PROTOCOL_HEADER)
        else:
            peer = await log_in(port, channels=channels)
        await peer.flood(pieces())
        peer.end()
        return peer.sent, str(peer.reply_code or "socket closed")

    return run


def of_client(pieces: Callable[[], Iterable[bytes]], until: str = "consuming") -> Callable[..., Any]:
    """A flood of the client, as soon as its handshake has come so far or it consumes."""

    async def run(victim: Victim, _: int) -> tuple[int, str]:
        sent = 0
        done = asyncio.Event()

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            peer = Peer(reader, writer, server=True)
            with contextlib.suppress(ConnectionError):
                await serve_victim(peer, until)
                await peer.flood(pieces())
            sent += peer.sent
            peer.end()
            if peer.sent:
                done.set()

        async with await asyncio.start_server(accepted, "127.0.0.1", 0) as server:
            victim.pipe.send(server.sockets[0].getsockname()[1])
            await done.wait()
            said = await asyncio.to_thread(victim.pipe.recv)
            if said == "ready":
                said = await asyncio.to_thread(victim.pipe.recv)
        return sent, said

    return run


async def silent_sockets(count: int, port: int) -> list[socket.socket]:
    """Opens so many sockets to the broker; each sends a part of a handshake."""
    loop = asyncio.get_running_loop()
    sockets = []
    for _ in range(count):
        one = socket.socket()
        one.setblocking(False)
        await loop.sock_connect(one, ("127.0.0.1", port))
        await loop.sock_sendall(one, PROTOCOL_HEADER + b"\1\0\0\0")
        sockets.append(one)
    return sockets


FLOODS: Final = {
    "login": Flood("broker", "content before the login", 0, "", of_broker(lambda: one_byte_each(publish))),
    "unopened": Flood(
        "broker",
        "content on channels that are not open",
        0,
        "504",
        of_broker(lambda: one_byte_each(publish), channels=0),
    ),
    "bytes": Flood(
        "broker",
        "one byte on each of 65,535 channels, 2,047 of them open",
        LARGEST / MEBIBYTE,
        "530",
        of_broker(lambda: one_byte_each(publish), channels=2047),
    ),
    "huge": Flood(
        "broker",
        "large bodies on 2,047 channels",
        LARGEST / MEBIBYTE,
        "506",
        of_broker(lambda: huge(publish, 2047), channels=2047),
    ),
    "client-login": Flood(
        "client",
        "content before the login",
        0,
        "RemoteProtocolError 505",
        of_client(lambda: one_byte_each(deliver), "tune"),
    ),
    "client-bytes": Flood(
        "client",
        f"one byte on each of 65,535 channels, {CHANNELS} of them open",
        LARGEST / MEBIBYTE,
        "RemoteProtocolError 504",
        of_client(lambda: one_byte_each(deliver)),
    ),
    "client-huge": Flood(
        "client",
        f"large bodies on {CHANNELS} channels",
        LARGEST / MEBIBYTE,
        "RemoteProtocolError 506",
        of_client(lambda: huge(deliver, CHANNELS)),
    ),
    "client-prefetch": Flood(
        "client",
        f"deliveries of 1 KiB beyond the prefetch of {PREFETCH}",
        LARGEST / MEBIBYTE,
        "RemoteProtocolError 506",
        of_client(lambda: (begun(deliver(1, tag), 1, 1024, 1024) for tag in itertools.count(1))),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a flood did; memory in MiB.

    Attributes:
        name: One of `FLOODS`, or `sockets`.
        victim: `broker` or `client`.
        title: The name in the table.
        sent_mib: What the peer sent.
        before: Resident memory before.
        peak: The most.
        allowed: By how much it may grow.
        ended: How the connection ended.
        ends: How it should have ended; empty for any end.
        back: Seconds after the peer's end until memory was back; None when it was not.
    """

    name: str
    victim: str
    title: str
    sent_mib: float
    before: float
    peak: float
    allowed: float
    ended: str
    ends: str
    back: float | None


def problems(results: Iterable[Result]) -> list[str]:
    """Returns a sentence for each rule that was broken."""
    found = []
    for one in results:
        grown = one.peak - one.before
        if grown > one.allowed:
            found.append(f"{one.name}: memory grew by {grown:.1f} MiB; {one.allowed:.1f} are allowed")
        if one.back is None:
            found.append(f"{one.name}: memory was not back {BACK:g} s after the peer's end")
        if one.ends and one.ended != one.ends:
            found.append(f"{one.name}: it ended with {one.ended!r}, not {one.ends!r}")
    return found


async def until_back(victim: Victim, before: float) -> float | None:
    """Waits until the victim's memory is as it was, and returns the seconds; None when that takes too long."""
    began = time.monotonic()
    while (seconds := time.monotonic() - began) < BACK:
        if resident_mib(victim.pid) <= before + KEPT_MIB:
            return seconds
        await asyncio.sleep(0.05)
    return None


async def measure(name: str) -> Result:
    """Runs a flood against a fresh victim, which has been used once."""
    flood = FLOODS[name]
    with Victim(be_broker if flood.victim == "broker" else be_client) as victim:
        port = await asyncio.to_thread(victim.pipe.recv) if flood.victim == "broker" else 0
        if flood.victim == "broker":
            (await log_in(port, channels=2047)).end()
        else:
            await of_client(lambda: [b"\x09"])(victim, 0)
        await asyncio.sleep(0.5)
        before = victim.reset_peak()
        sent, ended = await flood.run(victim, port)
        back = await until_back(victim, before)
        return Result(
            name=name,
            victim=flood.victim,
            title=flood.title,
            sent_mib=sent / MEBIBYTE,
            before=before,
            peak=victim.peak_mib(),
            allowed=flood.limit_mib + SLACK_MIB,
            ended=ended,
            ends=flood.ends,
            back=back,
        )


async def open_and_close(count: int, port: int, look: Callable[[], float]) -> float:
    """Opens sockets that never log in, looks when the broker has answered all of them, and closes them."""
    sockets = await silent_sockets(count, port)
    for one in sockets:
        await asyncio.get_running_loop().sock_recv(one, 1)  # connection.start
    seen = look()
    for one in sockets:
        one.close()
    return seen


async def measure_sockets(count: int) -> Result:
    """Opens sockets that never log in, twice: what Python keeps of the first time for later is used by the second."""
    with Victim(be_broker) as victim:
        port = await asyncio.to_thread(victim.pipe.recv)
        (await log_in(port)).end()
        before = victim.reset_peak()
        peak = await open_and_close(count, port, victim.peak_mib)
        await asyncio.sleep(BACK / 2)
        after = resident_mib(victim.pid)
        await open_and_close(count, port, victim.peak_mib)
        back = await until_back(victim, after)
        return Result(
            name="sockets",
            victim="broker",
            title=f"{count:,} sockets that never log in, twice",
            sent_mib=2 * count * 12 / MEBIBYTE,
            before=before,
            peak=peak,
            allowed=SOCKETS_MIB * count / 5000,
            ended="closed by the peer",
            ends="",
            back=back,
        )


def table(results: Sequence[Result]) -> Table:
    """Makes the table for the console."""
    shown = Table(title=f"largest body {LARGEST // MEBIBYTE} MiB; memory in MiB")
    for heading in ("victim", "flood", "ended with"):
        shown.add_column(heading)
    for heading in ("sent", "before", "at most", "grew", "allowed", "back after s"):
        shown.add_column(heading, justify="right")
    for one in results:
        shown.add_row(
            one.victim,
            one.title,
            one.ended,
            *(f"{value:.1f}" for value in (one.sent_mib, one.before, one.peak, one.peak - one.before, one.allowed)),
            "not" if one.back is None else f"{one.back:.1f}",
        )
    return shown


async def run(names: Sequence[str], sockets: int) -> list[Result]:
    """Runs floods, one after the other."""
    return [await (measure_sockets(sockets) if name == "sockets" else measure(name)) for name in names]


def main(arguments: Sequence[str]) -> int:
    """Reads the options, runs, prints, judges.

    Returns:
        The exit status: 1 when a limit was exceeded.
    """
    known = [*FLOODS, "sockets"]
    parser = argparse.ArgumentParser(prog="make floods", description=__doc__)
    parser.add_argument("--floods", help=f"some of {', '.join(known)} (default: all)")
    parser.add_argument("--sockets", type=int, default=5000, help="sockets that never log in (default 5000)")
    options = parser.parse_args(arguments)
    names = choose(options.floods, known, "flood")
    if not 1 <= options.sockets <= 15_000:
        parser.error(f"--sockets is 1 to 15000, not {options.sockets}")
    if not os.path.exists("/proc/self/clear_refs"):
        parser.error("the peak of another process's memory is read from /proc, which is not here")
    console = screen()
    results = asyncio.run(run(names, options.sockets))
    console.print(table(results))
    return judge(console, problems(results), "every flood stayed within its limit, and memory was back afterwards")


if __name__ == "__main__":
    execute(main)
