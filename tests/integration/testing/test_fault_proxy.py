"""A `FaultProxy` makes each fault that it promises, hands on everything else unchanged, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import leveret
from leveret.errors import ConfigurationError, ConnectionLost, PublishError
from leveret.testing import Fault, FaultProxy, draw_faults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

PATIENCE = 5.0


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A listening socket, in place of the broker where a test looks at single bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


@pytest.fixture
def plain(server: socket.socket) -> Iterator[FaultProxy]:
    with FaultProxy(f"amqp://127.0.0.1:{server.getsockname()[1]}") as proxy:
        yield proxy


@contextlib.contextmanager
def connected(proxy: FaultProxy, server: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection through the proxy: the client's and the broker's."""
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as client:
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            yield client, accepted


def carried(ends: tuple[socket.socket, socket.socket]) -> None:
    """Waits until the proxy carries bytes between them: what the broker has accepted may be unknown to it still."""
    client, accepted = ends
    client.sendall(b"!")
    assert accepted.recv(1) == b"!"


def read(sock: socket.socket, size: int) -> bytes:
    """Reads so many bytes, or fewer where the stream ends."""
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def silent(sock: socket.socket, seconds: float = 0.1) -> bool:
    """Whether nothing comes for so long."""
    sock.settimeout(seconds)
    try:
        return sock.recv(1) == b"never"
    except TimeoutError:
        return True
    finally:
        sock.settimeout(PATIENCE)


def wait_until_closed(proxy: FaultProxy) -> None:
    deadline = time.monotonic() + PATIENCE
    while proxy.connections:
        assert time.monotonic() < deadline, "the proxy did not close the connection"
        time.sleep(0.001)


# ---------------------------------------------------------------------- handing on


def test_what_is_no_fault_is_handed_on_unchanged(plain: FaultProxy, server: socket.socket) -> None:
    data = os.urandom(3_000_000)
    with connected(plain, server) as (client, broker):
        for source, sink in ((client, broker), (broker, client)):
            sender = threading.Thread(target=source.sendall, args=(data,))
            sender.start()
            assert read(sink, len(data)) == data
            sender.join()
        assert (plain.connections, plain.accepted) == (1, 1)
        client.shutdown(socket.SHUT_WR)
        assert broker.recv(1) == b""
        broker.sendall(b"the other direction is open")
        assert read(client, 27) == b"the other direction is open"
        broker.close()
        assert client.recv(1) == b""
    wait_until_closed(plain)


def test_a_reset_of_one_side_resets_the_other(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        broker.sendall(b"last words")
        broker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert read(client, 10) == b"last words"
        broker.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    wait_until_closed(plain)


def test_a_client_is_reset_when_the_broker_is_not_there(server: socket.socket) -> None:
    with FaultProxy(f"amqp://127.0.0.1:{server.getsockname()[1]}") as proxy:
        server.close()
        # The reset may come before `connect` has returned.
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", proxy.port), PATIENCE) as client,
        ):
            client.recv(1)
        wait_until_closed(proxy)


def test_its_url_has_everything_that_the_brokers_has() -> None:
    with FaultProxy("amqp://me:p%40ss@localhost:1/vhost?heartbeat=20", port=0) as proxy:
        assert proxy.url == f"amqp://me:p%40ss@127.0.0.1:{proxy.port}/vhost?heartbeat=20"
        assert repr(proxy) == f"<FaultProxy to localhost:1, port {proxy.port}>"
        with pytest.raises(OSError, match="in use"), FaultProxy("amqp://localhost", port=proxy.port):
            pass


# ---------------------------------------------------------------------- faults at once


def test_reset_ends_both_sides_with_an_error(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as first, connected(plain, server) as second:
        carried(first)
        assert plain.reset() == 2
        assert plain.connections == 0
        for sock in (*first, *second):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


def test_half_close_ends_one_direction_and_leaves_the_other(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        carried((client, broker))
        assert plain.half_close("to_client") == 1
        assert client.recv(1) == b""
        broker.sendall(b"nobody reads this")
        client.sendall(b"this arrives")
        assert read(broker, 12) == b"this arrives"
        client.close()
        assert broker.recv(1) == b""
        broker.close()
        wait_until_closed(plain)


def test_half_close_of_both_directions_ends_the_connection_in_order(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        carried((client, broker))
        plain.half_close()
        assert (client.recv(1), broker.recv(1)) == (b"", b"")


# ---------------------------------------------------------------------- faults that last


@pytest.mark.parametrize("direction", ["to_client", "to_broker", "both"])
def test_stall_holds_bytes_back_until_resume(plain: FaultProxy, server: socket.socket, direction: Any) -> None:
    with connected(plain, server) as (client, broker):
        plain.stall(direction)
        client.sendall(b"request")
        broker.sendall(b"answer")
        held = {"to_client": [client], "to_broker": [broker], "both": [client, broker]}[direction]
        assert all(silent(sock) for sock in held)
        for sock, text in ((client, b"answer"), (broker, b"request")):
            if sock not in held:
                assert read(sock, len(text)) == text
        plain.resume()
        for sock, text in ((client, b"answer"), (broker, b"request")):
            if sock in held:
                assert read(sock, len(text)) == text


def test_a_stalled_proxy_holds_little_and_makes_the_sender_wait(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        plain.stall()
        client.settimeout(0.3)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += client.send(bytes(1 << 20))
        assert sent < 32 << 20, "only the kernel's buffers take bytes"
        plain.resume()
        assert len(read(broker, sent)) == sent


def test_swallow_throws_whole_frames_away(plain: FaultProxy, server: socket.socket) -> None:
    frame = b"\x03\x00\x01\x00\x00\x00\x05%05d\xce"
    with connected(plain, server) as (client, broker):
        broker.sendall(frame % 1 + (frame % 2)[:6])
        assert read(client, 19) == frame % 1 + (frame % 2)[:6]
        plain.swallow()
        broker.sendall((frame % 2)[6:] + frame % 3 + (frame % 4)[:6])
        assert read(client, 7) == (frame % 2)[6:], "a frame that has begun is not cut"
        assert silent(client)
        plain.resume()
        broker.sendall((frame % 4)[6:] + frame % 5)
        assert read(client, 13) == frame % 5
        assert plain.frames("body", "to_client") == 3


def test_throttle_hands_on_so_many_bytes_in_a_second(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        plain.throttle(20_000, "to_client")
        started = time.monotonic()
        broker.sendall(bytes(10_000))
        client.sendall(bytes(10_000))
        read(broker, 10_000)
        assert time.monotonic() - started < 0.3, "the other direction is not throttled"
        read(client, 10_000)
        assert 0.4 <= time.monotonic() - started < 2


def test_slice_hands_on_small_pieces(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        plain.slice(3, "to_client", pause=0.005)
        broker.sendall(bytes(range(100)))
        pieces: list[bytes] = []
        while len(b"".join(pieces)) < 100:
            pieces.append(client.recv(100))
        assert b"".join(pieces) == bytes(range(100))
        # A reader that comes late finds two pieces at once.
        assert len(pieces) > 20


def test_delay_is_not_added_up(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        plain.delay(0.3)
        started = time.monotonic()
        for _ in range(5):
            broker.sendall(b"a part")
            time.sleep(0.02)
        assert silent(client, 0.05)
        assert read(client, 30) == b"a part" * 5
        assert 0.3 <= time.monotonic() - started < 0.8


def test_resume_lets_delayed_bytes_go_at_once(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        plain.delay(60)
        broker.sendall(b"late")
        assert silent(client)
        plain.resume()
        assert read(client, 4) == b"late"


def test_refuse_takes_no_connections_until_accept(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        for _ in range(3):
            plain.refuse()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", plain.port), PATIENCE)
            client.sendall(b"open")
            assert read(broker, 4) == b"open", "what is connected stays so"
            plain.accept()
            with connected(plain, server):
                pass


# ---------------------------------------------------------------------- faults at a moment


@pytest.mark.parametrize("forward", [True, False])
async def test_a_connection_is_cut_at_the_nth_confirm(broker: Broker, queue: str, forward: bool) -> None:
    async with (
        FaultProxy(broker.url) as proxy,
        leveret.connect(proxy.url, auto_recovery=False, close_timeout=0.5) as client,
        client.producer() as producer,
    ):
        cut = proxy.cut_after("basic.ack", 3, forward=forward)
        for number in range(3 if forward else 2):
            await producer.publish(number, queue)
        with pytest.raises(PublishError) as lost:
            await producer.publish("the last", queue)
        assert isinstance(lost.value.__cause__, ConnectionLost)
        await cut
        assert proxy.frames("basic.ack", "to_client") == 3
        assert proxy.frames("basic.publish", "to_client") == 0
    async with leveret.connect(broker.url) as other:
        assert await other.purge(queue) >= 3, "the broker had confirmed three"


async def test_frames_of_one_direction_are_counted_apart(broker: Broker, queue: str) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url) as client, client.producer() as producer:
        cut = proxy.cut_after("basic.ack", direction="to_broker", how="half_close")
        for number in range(3):
            await producer.publish(number, queue)
        assert not cut.done()
        consumer = client.consumer(queue)
        async with asyncio.timeout(PATIENCE):
            message = await consumer.get()
            assert message is not None
            message.ack()
            await cut


def test_a_cut_can_stall_everything(plain: FaultProxy, server: socket.socket) -> None:
    body = b"\x03\x00\x01\x00\x00\x00\x05hello\xce"
    with connected(plain, server) as (client, broker):
        cut = plain.cut_after("body", 2, how="stall")
        broker.sendall(body * 3)
        assert read(client, 2 * len(body)) == body * 2
        cut.result(PATIENCE)
        assert silent(client)
        plain.resume()
        assert read(client, len(body)) == body


def test_a_cut_that_was_taken_back_is_not_made(plain: FaultProxy, server: socket.socket) -> None:
    body = b"\x03\x00\x01\x00\x00\x00\x05hello\xce"
    with connected(plain, server) as (client, broker):
        assert plain.cut_after("body").cancel()
        broker.sendall(body * 2)
        assert read(client, 2 * len(body)) == body * 2


# ---------------------------------------------------------------------- schedules


def test_a_schedule_is_played_and_what_lasts_is_over_after_it(plain: FaultProxy, server: socket.socket) -> None:
    schedule = [
        Fault(kind="stall", after=0.01, duration=0.1),
        Fault(kind="delay", direction="to_client", duration=0.01, amount=30),
        Fault(kind="refuse", duration=0.01),
        Fault(kind="half_close", direction="to_broker"),
    ]
    with connected(plain, server) as (client, broker):
        played = plain.play(schedule)
        assert broker.recv(1) == b""
        played.result(PATIENCE)
        broker.sendall(b"nothing holds this back")
        assert read(client, 23) == b"nothing holds this back"
        with connected(plain, server):
            pass


def test_a_schedule_that_is_cancelled_takes_back_what_it_did(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        played = plain.play([Fault(kind="stall", duration=3600)])
        time.sleep(0.05)
        broker.sendall(b"held")
        assert silent(client)
        assert played.cancel()
        assert read(client, 4) == b"held"


async def test_everything_published_arrives_whatever_a_drawn_schedule_does(broker: Broker, queue: str) -> None:
    async with (
        FaultProxy(broker.url) as proxy,
        leveret.connect(proxy.url, recovery_initial_delay=0.01, recovery_max_delay=0.1) as client,
        client.producer() as producer,
    ):
        played = proxy.play(draw_faults(3, 12, gap=(0.02, 0.1), duration=(0.05, 0.2)))
        number = confirmed = 0
        while not played.done():
            number += 1
            with contextlib.suppress(PublishError):
                await producer.publish(number, queue)
                confirmed += 1
        await played
        assert confirmed > 10
    async with leveret.connect(broker.url) as other:
        assert await other.purge(queue) >= confirmed


# ---------------------------------------------------------------------- its thread, and the end


async def test_it_works_while_the_event_loop_is_blocked(plain: FaultProxy, server: socket.socket) -> None:
    with connected(plain, server) as (client, broker):
        client.sendall(b"no turn of this loop between")
        assert read(broker, 28) == b"no turn of this loop between"


def test_nothing_is_left_when_it_is_closed(server: socket.socket) -> None:
    before = len(os.listdir("/dev/fd"))
    threads = threading.active_count()
    with FaultProxy(f"amqp://127.0.0.1:{server.getsockname()[1]}") as proxy:
        cut, played = proxy.cut_after("basic.ack"), proxy.play([Fault(kind="stall", duration=3600)])
        with contextlib.ExitStack() as stack:
            ends = [stack.enter_context(connected(proxy, server)) for _ in range(20)]
            proxy.stall()
            ends[0][0].sendall(bytes(100_000))
            proxy.close()
            for client, _ in ends:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
    assert len(os.listdir("/dev/fd")) == before
    assert threading.active_count() == threads
    for pending in (cut, played):
        with pytest.raises(RuntimeError, match="the proxy was closed before that"):
            pending.result(PATIENCE)
    proxy.close()
    with pytest.raises(RuntimeError, match="closed> cannot be used any more"):
        proxy.stall()
    with pytest.raises(RuntimeError, match="was started before"):
        proxy.start()


def test_a_proxy_that_cannot_start_leaves_nothing(server: socket.socket) -> None:
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(OSError), FaultProxy("amqp://localhost", port=server.getsockname()[1]):  # noqa: PT011
        pass
    with pytest.raises(OSError), FaultProxy("amqp://no-such-host.invalid"):  # noqa: PT011
        pass
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (
            lambda proxy: proxy.cut_after("basic.akc"),
            "there is no kind of frames 'basic.akc'; did you mean 'basic.ack'",
        ),
        (lambda proxy: proxy.cut_after("basic.ack", 0), "count is a number from 1 to"),
        (
            lambda proxy: proxy.cut_after("basic.ack", how="slice"),
            "how is one of reset, half_close, stall, not 'slice'",
        ),
        (lambda proxy: proxy.stall("up"), "direction is one of to_client, to_broker, both, not 'up'"),
        (lambda proxy: proxy.throttle(0), "rate is a number from 1 to"),
        (lambda proxy: proxy.slice(0), "size is a number from 1 to"),
        (lambda proxy: proxy.delay(-1), "seconds is a number from 0 to 3600, not -1"),
        (lambda proxy: proxy.play(["reset"]), "faults are Fault objects, not 'reset'"),
        (lambda proxy: proxy.frames("nothing"), "there is no kind of frames 'nothing'"),
    ],
)
def test_wrong_arguments_are_named(plain: FaultProxy, call: Any, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        call(plain)


def test_frames_cannot_be_cut_in_tls() -> None:
    with (
        FaultProxy("amqps://localhost") as proxy,
        pytest.raises(ConfigurationError, match="cannot see frames in amqps"),
    ):
        proxy.cut_after("basic.ack")
