"""A short form of `make faults` (docs/long-runs.md): nothing is lost; and the run can fail."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter

import pytest
from asv_bench.faults import plan
from asv_bench.faults.attacks import number_of
from asv_bench.faults.ledger import DURABLE, EVENTS, Found, Ledger
from asv_bench.faults.run import ALL_WELL, tracebacks
from tests.support.paths import ROOT


@pytest.mark.integration
def test_nothing_is_lost_under_one_fault_of_each_kind() -> None:
    command = [sys.executable, "-m", "asv_bench.faults.run", "--faults", "12", "--duration", "30", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ALL_WELL in done.stdout


def test_a_wrong_option_is_refused() -> None:
    command = [sys.executable, "-m", "asv_bench.faults.run", "--faults", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--faults is 1 to 10000, not 0" in done.stderr


# ---------------------------------------------------------------------- the schedule


@pytest.mark.parametrize("count", [11, 12, 60, 100, 110, 1000])
def test_each_kind_of_faults_is_drawn_and_the_seed_decides(count: int) -> None:
    steps = plan.draw(3, count)
    assert len(steps) == count
    assert {step.kind for step in steps} == set(plan.SHARES) == set(plan.MEANINGS)
    assert steps == plan.draw(3, count)
    assert steps != plan.draw(4, count)


def test_fewer_faults_than_kinds_are_different_ones() -> None:
    assert len({step.kind for step in plan.draw(3, 5)}) == 5


# ---------------------------------------------------------------------- the ledger


def ledger() -> Ledger:
    """One in which all is well: two messages of each queue were confirmed and handled, one of orders was parked."""
    made = Ledger()
    for queue in (*DURABLE, EVENTS):
        for line in (
            f"P {queue} 3",
            f"C {queue} 1,2",
            f"H {queue} 1",
            f"H {queue} 2",
            f"X {queue} UNKNOWN ConfirmTimeout",
        ):
            made.read(line + "\n")
    made.read("C orders 3\n")
    made.read('Z {"orders": {"parked": 1, "dropped": 0}, "audit": {"dropped": 0}}\n')
    return made


WELL = Found(
    ledger=ledger(),
    made=Counter(reset=2),
    wanted=2,
    left={"orders.parked": [3]},
    wrong=[],
    tracebacks=[],
    status=0,
    seconds=1.0,
)


def test_a_run_without_losses_has_no_problems() -> None:
    assert WELL.problems() == []
    assert WELL.parked("orders") == [3]
    assert WELL.ledger.ended.is_set()


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("C audit 4", "1 messages confirmed into audit are lost, such as 4"),
        ('Z {"orders": {"dropped": 2}, "audit": {"dropped": 1}}', "3 messages were dropped"),
        ("! a_consumer_ended orders: ConnectionLost()", "1 times: a consumer ended: orders: ConnectionLost()"),
        (
            "! a_call_took_longer_than_its_deadline publish 40.0 s",
            "1 times: a call took longer than its deadline: publish",
        ),
    ],
)
def test_what_the_client_reports_fails_the_run(report: str, said: str) -> None:
    told = ledger()
    told.read(report)
    (problem,) = dataclasses.replace(WELL, ledger=told).problems()
    assert said in problem


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"left": {}}, "1 messages confirmed into orders are lost, such as 3"),
        (
            {"left": {"orders.parked": [3], "audit": [9]}},
            "messages are left in queues, neither handled nor parked: {'audit': 1}",
        ),
        ({"made": Counter(reset=1)}, "1 of 2 faults were made"),
        ({"status": 1}, "the client's process ended with status 1"),
        ({"status": None}, "the client's process ended with status None"),
        ({"wrong": ["nothing of audit was handled"]}, "nothing of audit was handled"),
        (
            {"tracebacks": ["KeyError: 'x'"]},
            "1 tracebacks are in the client's log; the last lines: [\"KeyError: 'x'\"]",
        ),
    ],
)
def test_what_is_found_at_the_end_fails_the_run(changed: dict[str, object], said: str) -> None:
    problems = dataclasses.replace(WELL, **changed).problems()  # type: ignore[arg-type]
    assert said in problems


def test_a_run_in_which_nothing_was_handled_fails() -> None:
    problems = dataclasses.replace(WELL, ledger=Ledger()).problems()
    assert [each for each in problems if "this run shows nothing" in each] == [
        f"nothing of {queue} was confirmed and handled: this run shows nothing" for queue in (*DURABLE, EVENTS)
    ]


def test_what_is_missing_since_a_moment_is_named() -> None:
    told = ledger()
    assert told.missing_since(0) == set()
    moment = max(told.handled_at.values())
    told.read("C orders 7")
    assert told.missing_since(moment) == {
        "nothing was confirmed for audit",
        "nothing was confirmed for events",
        *(f"nothing of {queue} was handled" for queue in (*DURABLE, EVENTS)),
    }


def test_duplicates_are_counted() -> None:
    told = ledger()
    for _ in range(3):
        told.read("H orders 1")
    assert told.accounts["orders"].duplicates == 3
    assert dataclasses.replace(WELL, ledger=told).problems() == []


def test_tracebacks_in_a_log_are_found() -> None:
    first = "Traceback (most recent call last):\n"
    assert tracebacks(f"INFO a\n{first}  File x\n    y\nKeyError: 'x'\nINFO b\n{first}") == ["KeyError: 'x'", ""]


@pytest.mark.parametrize("body", [b'{"id":17}', b'{"id": "unreadable 17"}'])
def test_numbers_of_messages_are_found_in_readable_and_unreadable_bodies(body: bytes) -> None:
    assert number_of(body) == 17
