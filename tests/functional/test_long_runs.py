"""The long runs of the consumer (docs/long-runs.md), each with a small count; and that each of them can fail."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from asv_bench import killed, ordered, soak
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.time_limit(110)]


async def run(program: str, *arguments: str, status: int = 0) -> str:
    """Runs one of them as a user does; returns what it printed."""
    command = [sys.executable, "-m", f"asv_bench.{program}", *arguments]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


# ---------------------------------------------------------------------- make soak


async def test_nothing_is_left_after_a_soak() -> None:
    printed = await run("soak", "--count", "20000")
    assert "left: 0 messages in the queue, 0 in memory, 0 tasks" in printed


SAMPLE = soak.Sample(seen=100, client_mib=50, broker_mib=40, objects=1000, alive=1)
REMAINS = soak.Remains(
    counters={"delivered": 100, "acked": 100, "unsettled": 0, "stale_acks": 0},
    first=101,
    next_delivery_tag=101,
    queued=0,
    alive=0,
    tasks=(),
)


def test_a_soak_has_no_problems_when_nothing_is_left() -> None:
    assert soak.problems(100, [SAMPLE] * 20, REMAINS) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"counters": {**REMAINS.counters, "acked": 99}}, "the counter acked is 99, where 100 is due"),
        ({"counters": {**REMAINS.counters, "unsettled": 1}}, "the counter unsettled is 1, where 0 is due"),
        ({"first": 100}, "delivery tags are settled below 100"),
        ({"first": 102, "next_delivery_tag": 102}, "delivery tags are settled below 102"),
        ({"queued": 1}, "the broker still has 1 messages"),
        ({"alive": 2}, "2 messages are alive"),
        ({"tasks": ["<Task>"]}, "a task is left: <Task>"),
    ],
)
def test_a_soak_fails_when_something_is_left(changed: dict[str, object], said: str) -> None:
    (problem,) = soak.problems(100, [SAMPLE] * 20, dataclasses.replace(REMAINS, **changed))  # type: ignore[arg-type]
    assert said in problem


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"client_mib": 57}, "the client grew from 50.0 to 57.0 MiB"),
        ({"alive": 0}, "0 to 1 messages were alive on the way"),
        ({"alive": soak.PREFETCH + 1}, "1 to 501 messages were alive on the way"),
    ],
)
def test_a_soak_fails_when_memory_grows_or_messages_cannot_be_counted(changed: dict[str, int], said: str) -> None:
    (problem,) = soak.problems(100, [SAMPLE] * 19 + [dataclasses.replace(SAMPLE, **changed)], REMAINS)
    assert said in problem


# ---------------------------------------------------------------------- make killed

KILLS = ("--kills", "3", "--life", "0.4", "--broker")


async def test_no_message_is_lost_when_a_consumer_is_killed(broker_url: str) -> None:
    assert "no message was lost, and every duplicate was marked" in await run("killed", *KILLS, broker_url)


@pytest.mark.parametrize("broker_url", ["embedded"], indirect=True)
async def test_messages_are_lost_when_they_are_acknowledged_before_they_are_handled(broker_url: str) -> None:
    printed = await run("killed", *KILLS, broker_url, "--ack", "handoff", status=1)
    assert "messages were acknowledged and not handled, such as" in printed


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[tuple[killed.Ledger, Path]]:
    path = tmp_path / "handled"
    path.touch()
    made = killed.Ledger(path)
    yield made, path
    made.close()


def outcome(ledger: killed.Ledger, *, queued: int = 0, dry: int = 0, status: int = 0) -> list[str]:
    """What a run says that ended in this way."""
    return killed.Found(ledger=ledger, kills=1, dry=dry, queued=queued, status=status, seconds=1.0).problems()


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([(0, 0, 0), (1, 0, 0), (1, 1, 1)], []),
        ([(0, 0, 0), (0, 1, 1)], ["1 messages were acknowledged and not handled, such as 1"]),
        ([(0, 0, 1), (1, 0, 0), (1, 1, 0)], ["1 messages came again without the mark `redelivered`"]),
        ([(0, 0, 0), (1, 1, 0), (1, 1, 1)], ["1 messages came again to the process that had handled them"]),
        ([(0, 0, 0), (1, 0, 0)], ["no kill was at a moment at which messages were unacknowledged"]),
    ],
)
def test_the_ledger_tells_what_became_of_messages(
    ledger: tuple[killed.Ledger, Path], records: list[tuple[int, int, int]], said: list[str]
) -> None:
    book, path = ledger
    assert list(book.publish(2)) == [b"0", b"1"]
    path.write_bytes(b"".join(killed.RECORD % record for record in records))
    book.read()
    assert outcome(book) == said


def test_killing_fails_when_it_shows_nothing_or_the_end_is_not_in_order(ledger: tuple[killed.Ledger, Path]) -> None:
    book, path = ledger
    list(book.publish(1))
    path.write_bytes(killed.RECORD % (0, 0, 1))
    book.read()
    assert outcome(book) == []
    assert outcome(book, dry=1) == ["the queue was empty at 1 of the kills"]
    assert "its exit status is 1" in outcome(book, status=1)[0]
    list(book.publish(1))
    assert outcome(book, queued=1) == ["1 messages are left in the queue"]


# ---------------------------------------------------------------------- make ordered

ROUNDS = ("--count", "6000", "--part", "2000", "--rounds", "3")


async def test_keys_are_in_order_with_many_workers() -> None:
    # So few messages say nothing of throughput.
    assert "no key was out of order" in await run("ordered", *ROUNDS, "--bound", "0")


async def test_an_order_that_costs_too_much_fails() -> None:
    assert "of that without; 100 is due" in await run("ordered", *ROUNDS, "--bound", "100", status=1)


PLAIN = ordered.Result(handled=100, seconds=1.0, cpu=0.5, most=64, disorder=5, overlaps=5)
ORDERED = dataclasses.replace(PLAIN, disorder=0, overlaps=0)


@pytest.mark.parametrize(
    ("plain", "changed", "said"),
    [
        (PLAIN, {}, []),
        (PLAIN, {"disorder": 1}, ["1 messages were handled out of the order of their key"]),
        (PLAIN, {"overlaps": 1}, ["1 messages were handled at the same time as another of their key"]),
        (PLAIN, {"most": 1}, ["no more than 1 handlers were at work at once"]),
        (ORDERED, {}, ["without ordered_by everything was in order: this run shows nothing"]),
    ],
)
def test_a_key_out_of_order_fails(plain: ordered.Result, changed: dict[str, int], said: list[str]) -> None:
    found = ordered.Found([(PLAIN, ORDERED)] * 3, (plain, dataclasses.replace(ORDERED, **changed)))
    assert found.problems(0.75) == said
