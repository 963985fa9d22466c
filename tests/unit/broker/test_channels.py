"""What a client asks of the channels of the embedded broker, bytes in and answers out."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import pytest
from tests.support.session import Client, bodies, publishing

from leveret.broker import EmbeddedBroker
from leveret.broker import session as session_module
from leveret.broker.dead_letters import DEATHS_COUNT
from leveret.protocol.commands import (
    Basic,
    Channel,
    Confirm,
    Connection,
    Exchange,
    Method,
    Queue,
    Tx,
    encode,
    make,
    spec_of,
)
from leveret.wire.runs import SettlementRun

pytestmark = pytest.mark.usefixtures("no_errors_logged")


async def test_confirms_of_one_read_are_one_frame(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(b"".join(publishing(str(n).encode()) for n in range(50)))
    (run,) = client.answers()
    assert isinstance(run, SettlementRun)
    assert list(run) == [(50, True, False, False)]
    client.feed(publishing())
    (run,) = client.answers()
    assert list(run) == [(51, False, False, False)]


async def test_python_calls_do_not_grow_with_the_publishings_of_one_read(client: Client) -> None:
    def calls_of(data: bytes) -> int:
        seen: list[str] = []
        gc.disable()  # whoever is told of a collection is called, too
        sys.setprofile(lambda frame, event, arg: seen.append(event) if event in {"call", "c_call"} else None)
        try:
            client.feed(data)
        finally:
            sys.setprofile(None)
            gc.enable()
        return len(seen)

    client.send(1, Queue.Declare, queue="q")
    client.send(1, Confirm.Select)
    client.feed(publishing() * 500)  # the buffer that is read into grows
    client.answers()
    few = calls_of(publishing() * 2)
    client.answers()
    assert calls_of(publishing() * 500) == few
    assert client.session.vhost.queues["q"].next_sequence == 1002


async def test_confirms_come_before_the_answer_of_a_later_method(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(publishing() + publishing() + encode(1, make(Queue.Declare, queue="q", passive=True)) + publishing())
    first, declared, second = client.answers()
    assert list(first) == [(2, True, False, False)]
    assert declared.message_count == 2
    assert list(second) == [(3, False, False, False)]


async def test_return_comes_before_its_confirm(client: Client) -> None:
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(publishing(b"lost", key="nowhere", mandatory=True, message_id="m") + publishing(key="nowhere"))
    returned, confirmed = client.answers()
    (message,) = returned.messages
    assert (message.reply_code, message.reply_text, message.routing_key) == (312, "NO_ROUTE", "nowhere")
    assert (message.body, message.message_id) == (b"lost", "m")
    assert list(confirmed) == [(2, True, False, False)]


async def test_refused_publishings_are_nacked_and_the_others_confirmed(client: Client) -> None:
    limits = {"x-max-length": 2, "x-overflow": "reject-publish"}
    client.send(1, Queue.Declare, queue="q", arguments=limits)
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(publishing() * 5 + publishing(key="nowhere"))
    (run,) = client.answers()
    assert list(run) == [(2, True, False, False), (5, True, True, False), (6, False, False, False)]


async def test_publishings_before_a_bad_one_are_kept_and_confirmed(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(publishing(b"1") + publishing(b"2") + publishing(b"3", user_id="other") + publishing(b"4"))
    confirmed, close = client.answers()
    assert list(confirmed) == [(2, True, False, False)]
    assert (close.reply_code, close.reply_text) == (
        406,
        "PRECONDITION_FAILED - user_id property set to 'other' but authenticated user was 'guest'",
    )
    client.send(1, Channel.CloseOk)
    client.send(1, Channel.Open)
    client.answers()
    assert client.ask(1, Queue.Declare, queue="q", passive=True).message_count == 2


async def test_message_over_the_limit_closes_the_channel(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.answers()
    client.feed(publishing(b"x" * 1_000_001))
    (close,) = client.answers()
    assert close.reply_text == ("PRECONDITION_FAILED - message size 1000001 is larger than configured max size 1000000")


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_sender_selected_distribution_is_refused(client: Client, header: str) -> None:
    client.feed(publishing(headers={header: ["other"]}))
    (close,) = client.answers()
    assert close.reply_code == 540
    assert header in close.reply_text


@pytest.mark.parametrize(
    ("cls", "values", "name"),
    [
        (Queue.Declare, {"queue": "q", "arguments": {"x-max-priority": 5}}, "x-max-priority"),
        (Queue.Declare, {"queue": "q", "arguments": {"x-queue-mode": "lazy"}}, "x-queue-mode"),
        (Queue.Declare, {"queue": "q", "arguments": {"x-of-tomorrow": 1}}, "x-of-tomorrow"),
        (Queue.Declare, {"queue": "q", "durable": True, "arguments": {"x-queue-type": "stream"}}, "stream"),
        (Exchange.Declare, {"exchange": "x", "arguments": {"x-delayed-type": "direct"}}, "x-delayed-type"),
        (Basic.Consume, {"queue": "there", "arguments": {"x-cancel-on-ha-failover": True}}, "x-cancel-on-ha-failover"),
        (Basic.Consume, {"queue": "there", "no_local": True}, "no_local"),
        (Basic.Consume, {"queue": "amq.rabbitmq.reply-to", "no_ack": True}, "direct reply-to"),
        (Queue.Declare, {"queue": "amq.rabbitmq.reply-to"}, "direct reply-to"),
    ],
)
async def test_what_is_not_implemented_is_refused_by_name(
    client: Client, cls: type[Method], values: dict[str, object], name: str
) -> None:
    client.send(1, Queue.Declare, queue="there")
    client.answers()
    close = client.ask(1, cls, **values)
    assert isinstance(close, Connection.Close)
    assert close.reply_code == 540
    assert name in close.reply_text


async def test_headers_exchange_routes_each_message_of_a_run(client: Client) -> None:
    for queue, wanted in (("one", 1), ("two", 2)):
        client.send(1, Queue.Declare, queue=queue)
        client.send(1, Queue.Bind, queue=queue, exchange="amq.headers", arguments={"n": wanted})
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(
        b"".join(
            publishing(str(index).encode(), exchange="amq.headers", key="", headers={"n": n}, mandatory=True)
            for index, n in enumerate((1, 1, 2, 3, 2, 1))
        )
    )
    returned, confirmed = client.answers()
    assert bodies([returned]) == [b"3"]
    assert list(confirmed) == [(6, True, False, False)]
    for queue, expected in (("one", [b"0", b"1", b"5"]), ("two", [b"2", b"4"])):
        client.send(1, Basic.Consume, queue=queue, consumer_tag=queue)
        assert bodies(client.answers()) == expected


async def test_routes_follow_bindings(client: Client) -> None:
    client.send(1, Queue.Declare, queue="a")
    client.send(1, Queue.Declare, queue="b")
    client.send(1, Queue.Bind, queue="a", exchange="amq.topic", routing_key="#")

    def depths() -> list[int]:
        client.feed(publishing(exchange="amq.topic", key="k"))
        client.answers()
        return [client.ask(1, Queue.Purge, queue=name).message_count for name in ("a", "b")]

    client.answers()
    assert depths() == [1, 0]
    client.ask(1, Queue.Bind, queue="b", exchange="amq.topic", routing_key="*")
    assert depths() == [1, 1]
    client.ask(1, Queue.Unbind, queue="a", exchange="amq.topic", routing_key="#")
    assert depths() == [0, 1]
    client.ask(1, Queue.Delete, queue="b")
    client.ask(1, Queue.Declare, queue="b")
    assert depths() == [0, 0]


async def test_prefetch_limits_what_is_unacknowledged(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Basic.Qos, prefetch_count=3)
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    client.answers()
    client.feed(b"".join(publishing(str(n).encode()) for n in range(6)))
    assert bodies(client.answers()) == [b"0", b"1", b"2"]
    client.send(1, Basic.Ack, delivery_tag=2, multiple=True)
    assert bodies(client.answers()) == [b"3", b"4"]
    client.send(1, Basic.Nack, delivery_tag=3, requeue=True)
    (run,) = client.answers()
    assert [(m.body, m.redelivered, m.delivery_tag) for m in run.messages] == [(b"2", True, 6)]


async def test_global_prefetch_is_shared_by_a_channels_consumers(client: Client) -> None:
    for queue in ("a", "b"):
        client.send(1, Queue.Declare, queue=queue)
    client.send(1, Basic.Qos, prefetch_count=3, global_=True)
    for queue in ("a", "b"):
        client.send(1, Basic.Consume, queue=queue, consumer_tag=queue)
    client.answers()
    client.feed(b"".join(publishing(key=key) for key in "aaabbb"))
    assert len(bodies(client.answers())) == 3
    client.send(1, Basic.Ack, delivery_tag=0, multiple=True)
    assert len(bodies(client.answers())) == 3


async def test_channel_that_ends_gives_back_in_order(broker: EmbeddedBroker, client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.feed(b"".join(publishing(str(n).encode()) for n in range(4)))
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    assert bodies(client.answers()) == [b"0", b"1", b"2", b"3"]
    client.send(1, Basic.Ack, delivery_tag=2)
    client.ask(1, Channel.Close, reply_code=200, class_id=0, method_id=0)
    other = Client(broker).open(1)
    other.send(1, Basic.Consume, queue="q", consumer_tag="t")
    (ok, run) = other.answers()
    assert ok.consumer_tag == "t"
    assert [(m.body, m.redelivered) for m in run.messages] == [(b"0", True), (b"2", True), (b"3", True)]


async def test_lost_connection_gives_back_and_takes_its_queues_along(broker: EmbeddedBroker, client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Queue.Declare, queue="mine", exclusive=True)
    client.send(1, Queue.Declare, queue="auto", auto_delete=True)
    for queue in ("q", "mine", "auto"):
        client.send(1, Basic.Consume, queue=queue, consumer_tag=queue)
    client.feed(publishing() + publishing(key="mine"))
    client.answers()
    client.lose()
    assert list(broker.vhosts["/"].queues) == ["q"]
    assert broker.queue_depth("q") == 1
    assert broker.vhosts["/"].queues["q"].consumer_count == 0
    assert broker.sessions == {}


async def test_deliveries_wait_while_the_client_does_not_read(broker: EmbeddedBroker, client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Basic.Consume, queue="q", consumer_tag="t", no_ack=True)
    client.answers()
    client.transport.pause_writing()
    client.feed(publishing(b"1") + publishing(b"2"))
    assert client.answers() == []
    assert broker.queue_depth("q") == 2
    client.transport.resume_writing()
    broker.scheduler.run()
    assert bodies(client.answers()) == [b"1", b"2"]


async def test_requests_wait_while_the_client_does_not_read_its_answers(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.answers()
    client.transport.pause_writing()
    client.wire.unsent = session_module.HOLD_BYTES + 1
    client.feed(encode(1, make(Queue.Declare, queue="q", passive=True)) * 3)
    assert (client.answers(), client.wire.reading) == ([], False)
    client.wire.unsent = 0
    client.transport.resume_writing()
    assert (len(client.answers()), client.wire.reading) == (3, True)


async def test_consumer_is_cancelled_when_its_queue_goes(broker: EmbeddedBroker, client: Client) -> None:
    quiet = Client(broker).open(1, capabilities={})
    client.send(1, Queue.Declare, queue="q")
    for each in (client, quiet):
        each.send(1, Basic.Consume, queue="q", consumer_tag="t")
        each.answers()
    other = Client(broker).open(1)
    other.ask(1, Queue.Delete, queue="q")
    (cancel,) = client.answers()
    assert (spec_of(type(cancel)).name, cancel.consumer_tag, cancel.nowait) == ("basic.cancel", "t", True)
    assert quiet.answers() == []
    # The tag may be used again.
    client.ask(1, Queue.Declare, queue="q")
    assert client.ask(1, Basic.Consume, queue="q", consumer_tag="t").consumer_tag == "t"


async def test_server_makes_up_names(client: Client) -> None:
    first, second = (client.ask(1, Queue.Declare, queue="").queue for _ in range(2))
    assert first.startswith("amq.gen-")
    assert first != second
    # An empty name stands for the queue declared last.
    tag = client.ask(1, Basic.Consume, queue="").consumer_tag
    assert tag.startswith("amq.ctag-")
    assert client.ask(1, Queue.Declare, queue=second, passive=True).consumer_count == 1


async def test_get_takes_one_message_and_counts_the_others(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.feed(publishing(b"1") + publishing(b"2") + publishing(b"3"))
    client.answers()
    client.send(1, Basic.Get, queue="q")
    ((message,),) = [run.messages for run in client.answers()]
    assert (message.body, message.message_count, message.delivery_tag) == (b"1", 2, 1)
    client.send(1, Basic.Get, queue="q", no_ack=True)
    client.send(1, Basic.Reject, delivery_tag=1, requeue=True)
    client.send(1, Basic.Get, queue="q")
    runs = client.answers()
    assert [(m.body, m.redelivered) for run in runs for m in run.messages] == [(b"2", False), (b"1", True)]
    client.send(1, Basic.Get, queue="q", no_ack=True)
    client.answers()
    assert isinstance(client.ask(1, Basic.Get, queue="q"), Basic.GetEmpty)


async def test_body_is_split_at_the_clients_frame_max(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.frame_max = 4096
    client.open(1)
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    client.answers()
    body = bytes(range(256)) * 100
    other = Client(broker).open(1)
    other.feed(publishing(body))
    client.transport.flush()
    assert len(client.wire.written) > len(body) + 6 * 8
    assert bodies(client.answers()) == [body]


async def test_transaction_shows_nothing_before_commit_and_all_of_it_after(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Tx.Select)
    client.answers()
    client.feed(publishing(b"1") + publishing(key="nowhere", mandatory=True) + publishing(b"2"))
    assert client.ask(1, Queue.Declare, queue="q", passive=True).message_count == 0
    client.send(1, Tx.Commit)
    returned, ok = client.answers()
    assert isinstance(ok, Tx.CommitOk)
    assert [m.routing_key for m in returned.messages] == ["nowhere"]
    assert client.ask(1, Queue.Declare, queue="q", passive=True).message_count == 2


async def test_rollback_makes_settled_deliveries_outstanding_again(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.feed(b"".join(publishing(str(n).encode()) for n in range(4)))
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    client.send(1, Tx.Select)
    client.send(1, Basic.Ack, delivery_tag=2)
    client.send(1, Basic.Ack, delivery_tag=4, multiple=True)
    client.send(1, Tx.Rollback)
    client.answers()
    client.send(1, Basic.Ack, delivery_tag=4, multiple=True)
    assert isinstance(client.ask(1, Tx.Commit), Tx.CommitOk)
    client.send(1, Basic.Ack, delivery_tag=4)
    (close,) = client.answers()
    assert close.reply_text == "PRECONDITION_FAILED - unknown delivery tag 4"


async def test_commit_fails_when_a_queue_refuses(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    client.send(1, Tx.Select)
    client.answers()
    client.feed(publishing())
    close = client.ask(1, Tx.Commit)
    assert (close.reply_code, close.reply_text) == (406, "PRECONDITION_FAILED - partial tx completion")


async def test_uncommitted_settlements_are_given_back_when_the_channel_ends(
    broker: EmbeddedBroker, client: Client
) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.feed(publishing() * 3)
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    client.send(1, Tx.Select)
    client.send(1, Basic.Ack, delivery_tag=2, multiple=True)
    client.lose()
    assert broker.queue_depth("q") == 3


async def test_dead_letters_travel_through_long_chains_without_nesting(
    broker: EmbeddedBroker, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    count = DEATHS_COUNT
    for number in range(count + 1):
        arguments = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": f"q{number + 1}",
            **({"x-max-length": 0} if number else {}),
        }
        client.send(1, Queue.Declare, queue=f"q{number}", arguments=arguments)
    client.send(1, Queue.Declare, queue=f"q{count + 1}")

    def reject() -> list[str]:
        client.feed(publishing(key="q0"))
        client.send(1, Basic.Get, queue="q0")
        (run,) = client.answers()[-1:]
        client.send(1, Basic.Reject, delivery_tag=run.messages[0].delivery_tag, requeue=False)
        return [name for name, queue in broker.vhosts["/"].queues.items() if len(queue)]

    # The header that tells of every queue has its limit.
    assert reject() == []
    assert "its x-death header has the most entries allowed" in caplog.text
    client.send(1, Queue.Delete, queue="q3")
    client.send(1, Queue.Declare, queue="q3")
    assert reject() == ["q3"]
    client.send(1, Queue.Delete, queue="q3")
    client.send(1, Queue.Declare, queue="q3", arguments={
        "x-max-length": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"q{count - 1}"})  # fmt: skip
    assert reject() == [f"q{count + 1}"]


async def test_dead_letters_of_a_large_queue_let_others_have_their_turn(broker: EmbeddedBroker, client: Client) -> None:
    count = 1000
    client.send(1, Queue.Declare, queue="dead")
    client.send(1, Queue.Declare, queue="q", arguments={
        "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})  # fmt: skip
    client.feed(publishing() * count)
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    client.send(1, Basic.Nack, delivery_tag=0, multiple=True, requeue=False)
    assert 0 < broker.queue_depth("dead") < count
    async with asyncio.timeout(5):
        while broker.queue_depth("dead") < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_exchanges_of_a_long_chain_go_with_the_last_binding(broker: EmbeddedBroker, client: Client) -> None:
    count = 1500
    client.send(1, Queue.Declare, queue="q")
    for number in range(count):
        client.send(1, Exchange.Declare, exchange=f"x{number}", exchange_type="fanout", auto_delete=True)
        if number:
            client.send(1, Exchange.Bind, destination=f"x{number}", source=f"x{number - 1}", arguments={})
    client.send(1, Queue.Bind, queue="q", exchange=f"x{count - 1}", arguments={})
    client.feed(publishing(exchange="x0"))
    client.answers()
    assert client.ask(1, Queue.Delete, queue="q").message_count == 1
    assert [name for name in broker.vhosts["/"].exchanges if name.startswith("x")] == []


async def test_hostile_death_header_does_not_stop_dead_lettering(client: Client) -> None:
    deep: Any = []
    for _ in range(28):
        deep = [deep]
    client.send(1, Queue.Declare, queue="dead")
    client.send(1, Queue.Declare, queue="q", arguments={
        "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})  # fmt: skip
    client.answers()
    for death in ("text", [5], [{"count": "many"}], [{"count": 1 << 62, "queue": "q", "reason": "rejected"}],
                  [{"deep": deep}], {"a": 1}, [{"queue": 5, "reason": None}]):  # fmt: skip
        client.feed(publishing(headers={"x-death": death}))
        client.send(1, Basic.Get, queue="q")
        (run,) = client.answers()
        client.send(1, Basic.Reject, delivery_tag=run.messages[0].delivery_tag, requeue=False)
        client.send(1, Basic.Get, queue="dead", no_ack=True)
        (run,) = client.answers()
        first = run.messages[0].headers["x-death"][0]
        assert (first["queue"], first["reason"]) == ("q", "rejected")
        assert first["count"] >= 1
