"""The board adds up what the processes of a run say, and answers whether they are well."""

from __future__ import annotations

import json

import msgspec
import pytest
from tests.support.snapshots import snapshot

from leveret.app.board import STUCK, Board
from leveret.app.snapshot import Snapshot
from leveret.monitoring.health import Health
from leveret.monitoring.histogram import Histogram
from leveret.monitoring.report import QueueDepth, Totals
from leveret.monitoring.usage import Used

LOST = Health(ready=False, live=True, reasons=("connection 'consume': lost",))
CLOSED = Health(ready=False, live=False, reasons=("the client is closed",))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    """Two processes, which are both ready."""
    made = Board("shop:app", 2, clock)
    made.update(snapshot(0))
    made.update(snapshot(1))
    return made


def test_a_run_is_ready_when_all_its_processes_are(board: Board) -> None:
    assert board.standing().ready
    assert board.standing().live
    assert board.standing().reasons == ()


def test_a_process_that_has_not_started_is_not_ready_and_is_live(clock: Clock) -> None:
    board = Board("shop:app", 2, clock)
    board.update(snapshot(0))
    standing = board.standing()
    assert (standing.ready, standing.live) == (False, True)
    assert standing.reasons == ("process 1: has not started yet",)


@pytest.mark.parametrize(("health", "live"), [(LOST, True), (CLOSED, False)])
def test_reasons_name_the_process_where_there_are_several(board: Board, health: Health, live: bool) -> None:
    board.update(snapshot(1, health=health))
    standing = board.standing()
    assert (standing.ready, standing.live) == (False, live)
    assert standing.reasons == (f"process 1: {health.reasons[0]}",)


def test_reasons_of_a_single_process_are_its_own(clock: Clock) -> None:
    board = Board("shop:app", 1, clock)
    board.update(snapshot(0, health=LOST))
    assert board.standing().reasons == LOST.reasons


def test_a_process_that_says_nothing_for_long_is_not_live(board: Board, clock: Clock) -> None:
    clock.now = STUCK
    board.update(snapshot(0))
    assert board.standing().ready
    clock.now = STUCK + 1
    standing = board.standing()
    assert (standing.ready, standing.live) == (False, False)
    assert standing.reasons == ("process 1: its event loop has not turned for 11 s",)
    board.update(snapshot(1))
    assert board.standing().ready


def test_a_run_that_is_being_stopped_is_not_ready(board: Board) -> None:
    board.stop()
    standing = board.standing()
    assert (standing.ready, standing.live) == (False, True)
    assert standing.reasons == ("it is being stopped",)


def test_counters_and_gauges_of_all_processes_are_added_up(board: Board) -> None:
    board.update(snapshot(0, deliveries=10, deliveries_unsettled=3))
    board.update(snapshot(1, deliveries=5, deliveries_unsettled=4))
    totals = Totals(board.snapshot())
    assert totals.number("deliveries") == 15
    assert totals.number("deliveries_unsettled") == 7
    assert len([it for it in board.snapshot() if it.metric.name == "deliveries"]) == 1


def test_histograms_of_all_processes_are_added_up(board: Board) -> None:
    for process, seconds in ((0, 0.1), (1, 0.3)):
        histogram = Histogram()
        histogram.record(int(seconds * 1e9))
        board.update(snapshot(process, distributions={"handler_time": histogram.read()}))
    (sample,) = [it for it in board.snapshot() if it.metric.name == "handler_time"]
    assert sample.distribution is not None
    assert sample.value == sample.distribution.count == 2
    assert sample.distribution.total == pytest.approx(0.4)


def test_no_counter_falls_when_a_process_is_replaced(board: Board) -> None:
    board.update(snapshot(1, deliveries=5, deliveries_unsettled=4, used=Used(10, 2.0), restarts=3))
    board.ended(1)
    assert board.standing().reasons == ("process 1: has ended, and is started again",)
    totals = Totals(board.snapshot())
    assert (totals.number("deliveries"), totals.number("deliveries_unsettled")) == (5, 0)
    board.update(snapshot(1, deliveries=1))
    assert Totals(board.snapshot()).number("deliveries") == 6
    assert board.restarts == 4
    assert board.running == 2


def test_a_process_that_ended_before_it_said_anything_is_counted_as_restarted(clock: Clock) -> None:
    board = Board("shop:app", 1, clock)
    board.ended(0)
    assert (board.restarts, board.running) == (1, 0)


def test_report_is_about_the_last_seconds(board: Board, clock: Clock) -> None:
    for second in range(1, 21):
        clock.now = float(second)
        for process in (0, 1):
            used = Used(50_000_000, second * 0.25)
            board.update(snapshot(process, deliveries=100 * second, deliveries_acked=100 * second, used=used))
        board.tick()
    report = board.report()
    assert report.seconds == 5
    assert report.consumed.count == 1000
    assert report.consumed.success == 1.0
    assert board.acked_rate == 200
    assert report.process.rss == 100_000_000
    assert report.process.cpu == pytest.approx(50)


def test_page_has_each_process_queue_and_exchange(board: Board, clock: Clock) -> None:
    queues: dict[str, QueueDepth | None] = {"billing": QueueDepth(7, 2), "other": None}
    board.update(snapshot(0, deliveries=10, handler_errors=1, publishings=4, queues=queues))
    board.update(snapshot(1, health=LOST, deliveries=10))
    clock.now = 2.0
    board.tick()
    page = board.as_dict()
    assert (page["ready"], page["live"], page["failures"]) == (False, True, 1)
    assert [it["pid"] for it in page["processes"]] == [1000, 1001]
    assert page["processes"][1]["reasons"] == ["connection 'consume': lost"]
    billing = page["queues"]["billing"]
    assert (billing["delivered"], billing["rate"], billing["messages"]) == (20, 10.0, 7)
    assert page["exchanges"][""]["published"] == 4
    assert json.loads(json.dumps(page))["queues"] == page["queues"]


def test_snapshot_is_the_same_behind_the_socket() -> None:
    histogram = Histogram()
    histogram.record(12_345)
    queues: dict[str, QueueDepth | None] = {"billing": QueueDepth(7, 2), "other": None}
    distributions = {"handler_time": histogram.read()}
    sent = snapshot(3, health=LOST, queues=queues, distributions=distributions, deliveries=5)
    received = msgspec.json.decode(msgspec.json.encode(sent), type=Snapshot)
    assert received == sent
    assert received.samples() == sent.samples()
