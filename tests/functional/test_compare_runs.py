"""The comparison on a broker (asv_bench/compare): its frames, queues and steady rates, each driver, and a whole run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
import time
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pika
import pytest
from asv_bench.compare import broker, environment, run, steady, wire
from asv_bench.compare.broker import Queues, WrongCountError
from asv_bench.compare.children import Program
from asv_bench.compare.environment import MissingError
from asv_bench.compare.job import HEADER_TABLE, KINDS, STEADY_CONFIRM, STEADY_CONSUME
from asv_bench.compare.plan import CASES, Cell, Peer, make_plan
from tests.support.comparison import BY_NAME, TASK, peer, program
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from asv_bench.compare.job import Address
    from asv_bench.compare.results import Row

#: Peers whose libraries the development environment has.
PYTHON_PEERS = {"leveret": "leveret", "aio-pika": "aio_pika", "aiormq": "aiormq", "pika": "pika"}
SVG = "{http://www.w3.org/2000/svg}"


# ---------------------------------------------------------------------- ready-made frames


def ack(tag: int, *, multiple: bool) -> bytes:
    return bytes([1, 0, 1, 0, 0, 0, 13, 0, 60, 0, 80]) + tag.to_bytes(8) + bytes([multiple, 0xCE])


@pytest.mark.parametrize("cut", range(1, 64, 4))
def test_confirms_are_counted_in_any_order_and_however_they_are_cut(cut: int) -> None:
    data = b"".join([ack(2, multiple=False), ack(1, multiple=False), ack(7, multiple=False), ack(5, multiple=True)])
    confirms = wire.Confirms()
    for start in range(0, len(data), cut):
        confirms.feed(data[start : start + cut])
    assert confirms.settled == 5
    confirms.feed(ack(6, multiple=False))
    assert confirms.settled == 7


def test_anything_but_basic_ack_is_no_confirm() -> None:
    nack = bytearray(ack(1, multiple=False))
    nack[10] = 120
    with pytest.raises(wire.WireError, match=r"method 60\.120 where basic\.ack was due"):
        wire.Confirms().feed(bytes(nack))


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    """An embedded broker in a process of its own."""
    with broker.embedded() as found:
        yield found


@pytest.fixture
def queues(address: Address) -> Iterator[Queues]:
    with Queues(address) as found:
        yield found


@pytest.mark.parametrize("size", [1, 64, 131_064, 131_065, 300_000])
def test_ready_made_deliveries_are_exactly_as_long_as_computed(address: Address, queues: Queues, size: int) -> None:
    queue = queues.make()
    queues.fill(queue, size, 40)
    with wire.Connection(address.host, address.port) as connection:
        channel = connection.open_channel()
        received = wire.consume(connection, channel, queue, size, 40, 10, 3)
        connection.close_channel(channel)
        assert received == 40 * wire.delivery_size(queue, size, connection.frame_max)
    queues.expect(queue, 0)


def test_a_closed_channel_is_an_error_with_the_brokers_words(address: Address) -> None:
    with wire.Connection(address.host, address.port) as connection:
        channel = connection.open_channel()
        with pytest.raises(wire.WireError, match=r"Channel\.Close \(404 .*where ConsumeOk was due"):
            wire.consume(connection, channel, "no-such-queue", 1, 1, 1, 1)


# ---------------------------------------------------------------------- queues


def test_messages_that_do_not_arrive_are_an_error(queues: Queues, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "ARRIVAL", 0.0)
    queue = queues.make()
    queues.fill(queue, 10, 5)
    for wrong in (4, 6):
        with pytest.raises(WrongCountError, match=f"holds 5 messages where {wrong} are due"):
            queues.expect(queue, wrong)


@pytest.mark.parametrize(
    ("body", "mode", "text"),
    [
        (b"123", 2, "3 bytes where 5"),
        (b"12345", 1, "delivery mode 1"),
        (b"12345", 2, r"the headers \[\], not \['tenant'\]"),
        (None, 2, "is empty"),
    ],
)
def test_messages_that_are_not_what_was_asked_for_are_an_error(
    address: Address, queues: Queues, body: bytes | None, mode: int, text: str
) -> None:
    queue = queues.make()
    if body is not None:
        with pika.BlockingConnection(pika.ConnectionParameters(address.host, address.port)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish("", queue, body, pika.BasicProperties(delivery_mode=mode))
    with pytest.raises(WrongCountError, match=text):
        queues.check_sample(queue, 5, HEADER_TABLE)


def test_queues_are_gone_afterwards(address: Address) -> None:
    with Queues(address) as found:
        name = found.make()
        assert "leveret" in found.identity.lower()
    with (
        pika.BlockingConnection(pika.ConnectionParameters(address.host, address.port)) as connection,
        pytest.raises(pika.exceptions.ChannelClosedByBroker, match="404"),
    ):
        connection.channel().queue_declare(name, passive=True)


def test_a_run_that_lost_its_channel_does_not_take_the_next_one_with_it(queues: Queues) -> None:
    with pytest.raises(broker.FAILURES, match="404"):
        queues.expect("no-such-queue", 0)
    queue = queues.make()
    queues.fill(queue, 10, 3)
    queues.expect(queue, 3)


# ---------------------------------------------------------------------- whole runs


@pytest.fixture
def compared(address: Address, queues: Queues) -> Callable[[Program, Cell], list[Row]]:
    """Runs a cell of one peer."""

    def compare(program: Program, cell: Cell) -> list[Row]:
        programs = {cell.runners[0].peer.name: program}
        return run.Comparison(address, queues, programs, rounds=1, scale=0.005, timeout=60.0).run(cell)

    return compare


@pytest.mark.parametrize("name", PYTHON_PEERS)
@pytest.mark.parametrize("case", ["confirmed", "tasks", "header", "headers", "consume-100", "steady-consume-1000"])
def test_a_driver_does_what_it_says_and_all_messages_arrive(
    name: str, case: str, compared: Callable[[Program, Cell], list[Row]]
) -> None:
    child = Program((sys.executable, "-m", "asv_bench.compare.child", PYTHON_PEERS[name]))
    found = Peer.described(name, child.describe())
    missing = set(KINDS) - {way.kind for way in found.ways} - set(found.not_possible or ())
    assert missing == ({STEADY_CONFIRM, STEADY_CONSUME} if name == "aiormq" else set())
    for cell in make_plan([found], [BY_NAME[case]], [64]):
        for row in compared(child, cell):
            assert row.problem is None
            assert row.rounds == 1
            assert row.cpu_us is not None
            assert row.cpu_us > 0
            assert (row.latency_p99_s is not None) == (cell.case.rate > 0)


def test_a_compiled_driver_does_everything_that_it_says(compared: Callable[[Program, Cell], list[Row]]) -> None:
    ran = []
    for name in ("rabbitmq-c", "amqp091-go"):
        try:
            child = environment.prepare(name, environment.driver_files()[name])
        except MissingError:  # its library or compiler is not part of `make setup`
            continue
        found = Peer.described(name, child.describe())
        assert {way.kind for way in found.ways} == set(KINDS)
        for case in CASES:
            (cell,) = make_plan([found], [case], [64])
            ran += [(row.label, row.case, row.problem) for row in compared(child, cell)]
    assert [row for row in ran if row[2] is not None] == []


def test_every_row_has_its_settings_in_the_page() -> None:
    """Also the rows of the programs that are not installed here: they are strings in their sources."""
    prose = " ".join((ROOT / "docs" / "comparison.md").read_text().partition("<!-- comparison:end -->")[2].split())
    for name, module in PYTHON_PEERS.items():
        child = Program((sys.executable, "-m", "asv_bench.compare.child", module))
        for way in Peer.described(name, child.describe()).ways:
            assert way.best or way.how in prose, (name, way.how)
    for case in CASES:
        assert f"`{case.name}`" in prose


def test_messages_are_told_when_they_are_due_and_not_before() -> None:
    job = dataclasses.replace(TASK, rate=1000, count=50).job()
    began, times, seen = time.time_ns(), [], []
    with steady.Ticks(job) as ticks:
        while found := ticks.read():
            seen += [time.time_ns()] * len(found)
            times += found
    assert len(times) == 50
    assert [b - a for a, b in itertools.pairwise(times)] == [1_000_000] * 49
    assert times[0] > began
    assert all(at >= due for at, due in zip(seen, times, strict=True))


def test_latencies_count_from_when_a_message_was_due() -> None:
    job = TASK.job()
    due = time.time_ns() - 5_000_000_000
    body = steady.stamped(dataclasses.replace(TASK, size=20).job(), due)
    assert len(body) == 20
    steady.note_body(job, body)
    steady.note(job, due)
    assert all(5 <= latency < 60 for latency in job.latencies)


def test_a_driver_that_publishes_less_than_it_says_fails_loudly(
    tmp_path: Path, compared: Callable[[Program, Cell], list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "ARRIVAL", 0.0)
    figures = '{"event": "measured", "messages": 25, "seconds": 1, "cpu_seconds": 1, "peak_rss_bytes": 1}'
    liar = peer("liar", ("publish",))
    (row,) = compared(program(tmp_path, f"print({figures!r})"), make_plan([liar], [BY_NAME["publish"]], [64])[0])
    assert row.problem is not None
    assert row.problem.startswith("failed in round 0: the queue holds 0 messages where 25 are due")
    assert row.cpu_us is None


def test_a_small_comparison_writes_tables_json_and_a_chart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / name for name in ("found.json", "found.md", "found.svg")}
    status = run.main(
        [
            *("--peers", "leveret,ready-made", "--broker", "embedded", "--rounds", "1", "--sizes", "64"),
            *(
                "--count-scale",
                "0.002",
                "--cases",
                "confirmed,one-by-one",
                "--no-variants",
                "--json",
                str(files["found.json"]),
            ),
            *("--markdown", str(files["found.md"]), "--chart", str(files["found.svg"])),
        ]
    )
    assert status == 0
    document = json.loads(files["found.json"].read_text())
    assert [(row["label"], row["case"], row["problem"]) for row in document["rows"]] == [
        (label, case, None) for case in ("confirmed", "one-by-one") for label in ("leveret", "ready-made frames")
    ]
    assert all(row["rate_to_ceiling"] for row in document["rows"])
    assert document["rows"][2]["latency_p50_s"] > 0
    assert "ready-made frames" in files["found.md"].read_text()
    assert len(list(ET.parse(files["found.svg"]).iter(f"{SVG}rect"))) == 4
    assert "publish, confirmed one by one, 64 B" in capsys.readouterr().out
