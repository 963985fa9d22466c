"""The channel's state machine: requests, their answers in order, and every way to end."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pamqp import commands
from pamqp.commands import Basic, Channel, Confirm, Queue
from tests.support.conversation import (
    content_run,
    memory,
    method,
    method_of_bytes,
    nested_table,
    raw_method,
    sent,
    sent_names,
)

from leveret.errors import (
    AccessRefused,
    ChannelClosed,
    ConnectionLost,
    EncodeFailed,
    LocalProtocolError,
    NotFound,
    PreconditionFailed,
    RemoteProtocolError,
    ResourceLocked,
    TableSyntaxError,
)
from leveret.protocol.channel import CHANNEL_TRANSITIONS, CancelNotice, ChannelEnded, ChannelPhase, ChannelState, Reply
from leveret.protocol.commands import Method, make

NUMBER = 3


class Client:
    """A channel's state machine, and the server that it talks to."""

    def __init__(self) -> None:
        self.out = memory()
        self.state = ChannelState(self.out, NUMBER)

    def receive(self, value: Method) -> Any:
        return self.state.receive(method(value, NUMBER))

    def advance(self, phase: ChannelPhase) -> Client:
        """Goes on until `phase`; what was sent on the way is forgotten."""
        if phase is ChannelPhase.ABANDONED:
            self.state.open("open")
            self.state.abandon("abandoned")
            self.out.take()
            return self
        steps = {
            ChannelPhase.OPENING: lambda: self.state.open("open"),
            ChannelPhase.OPEN: lambda: self.receive(Channel.OpenOk()),
            ChannelPhase.CLOSING: lambda: self.state.close("close"),
            ChannelPhase.CLOSED: lambda: self.receive(Channel.CloseOk()),
        }
        for reached, step in steps.items():
            if self.state.phase is phase:
                break
            step()
            assert self.state.phase is reached
        self.out.take()
        return self


def opened() -> Client:
    return Client().advance(ChannelPhase.OPEN)


def test_a_channel_that_was_abandoned_while_it_was_opened_is_closed_as_soon_as_it_is_open() -> None:
    client = Client().advance(ChannelPhase.ABANDONED)
    assert client.receive(Channel.OpenOk()).token == "open"
    (close,) = sent(client.out)
    assert isinstance(close, Channel.Close)
    assert client.receive(Channel.CloseOk()) == ChannelEnded(None, ("abandoned",))


def test_a_channel_that_is_abandoned_is_closed_at_once_when_it_is_open_and_once_only() -> None:
    client = opened()
    client.state.abandon("abandoned")
    client.state.abandon("again")
    (close,) = sent(client.out)
    assert isinstance(close, Channel.Close)
    assert client.receive(Channel.CloseOk()) == ChannelEnded(None, ("abandoned",))


def test_each_change_of_phase_is_in_the_table() -> None:
    assert set(CHANNEL_TRANSITIONS) == set(ChannelPhase)
    assert {old for old, new in CHANNEL_TRANSITIONS.items() if not new} == {ChannelPhase.CLOSED}


# ---------------------------------------------------------------------- requests and answers


def test_the_channel_is_open_when_the_server_says_so() -> None:
    client = Client()
    client.state.open("token")
    assert sent_names(client.out) == ["Channel.Open"]
    reply = client.receive(Channel.OpenOk())
    assert reply.token == "token"
    assert client.state.phase is ChannelPhase.OPEN


def test_answers_go_to_their_requests_in_order_when_several_wait() -> None:
    client = opened()
    client.state.request(make(Queue.Declare, queue="a"), "first")
    client.state.request(make(Queue.Purge, queue="a"), "second")
    client.state.request(make(Queue.Declare, queue="b"), "third")
    assert sent_names(client.out) == ["Queue.Declare", "Queue.Purge", "Queue.Declare"]
    assert client.state.unanswered == 3

    replies = [
        client.receive(Queue.DeclareOk("a", 1, 0)),
        client.receive(Queue.PurgeOk(1)),
        client.receive(Queue.DeclareOk("b", 2, 0)),
    ]

    assert [reply.token for reply in replies] == ["first", "second", "third"]
    assert (replies[0].method.queue, replies[1].method.message_count, replies[2].method.queue) == ("a", 1, "b")
    assert client.state.unanswered == 0


def test_a_late_answer_reaches_nobody_else_when_its_caller_gave_up() -> None:
    # Giving up happens above, where the token is thrown away. Here it keeps its place until its answer comes, so the
    # next caller cannot get the answer of the one before (as in CVE-2023-28858).
    client = opened()
    client.state.request(make(Queue.Declare, queue="slow"), "gave up")
    client.state.request(make(Queue.Declare, queue="next"), "waits")
    assert client.receive(Queue.DeclareOk("slow", 0, 0)).token == "gave up"
    reply = client.receive(Queue.DeclareOk("next", 0, 0))
    assert (reply.token, reply.method.queue) == ("waits", "next")


@pytest.mark.parametrize("phase", [p for p in ChannelPhase if p is not ChannelPhase.OPEN])
def test_nothing_is_sent_when_a_request_is_made_and_the_channel_is_not_open(phase: ChannelPhase) -> None:
    client = Client().advance(phase)
    with pytest.raises(LocalProtocolError) as refused:
        client.state.request(make(Basic.Qos, prefetch_count=1), "token")
    assert "basic.qos" in str(refused.value)
    assert phase.value in str(refused.value)
    assert client.out.take() == b""


@pytest.mark.parametrize("phase", [p for p in ChannelPhase if p is not ChannelPhase.IDLE])
def test_opening_is_refused_locally_when_the_channel_was_opened_before(phase: ChannelPhase) -> None:
    client = Client().advance(phase)
    with pytest.raises(LocalProtocolError, match="cannot be opened"):
        client.state.open("token")
    assert client.out.take() == b""


@pytest.mark.parametrize("phase", [p for p in ChannelPhase if p is not ChannelPhase.OPEN])
def test_closing_is_refused_locally_when_the_channel_is_not_open(phase: ChannelPhase) -> None:
    client = Client().advance(phase)
    with pytest.raises(LocalProtocolError, match="cannot be closed"):
        client.state.close("token")
    assert client.out.take() == b""


def test_a_request_takes_no_place_in_the_queue_when_it_cannot_be_encoded() -> None:
    client = opened()
    with pytest.raises(EncodeFailed, match=r"queue\.declare queue is 300 bytes .* 255"):
        client.state.request(make(Queue.Declare, queue="q" * 300), "too long")
    assert client.out.take() == b""
    client.state.request(make(Queue.Declare, queue="q"), "next")
    assert client.receive(Queue.DeclareOk("q", 0, 0)).token == "next"


def test_an_answer_of_the_wrong_kind_is_a_protocol_error_when_another_is_due() -> None:
    client = opened()
    client.state.request(make(Queue.Declare, queue="q"), "token")
    with pytest.raises(RemoteProtocolError, match=r"Queue\.PurgeOk on channel 3, where Queue\.DeclareOk was due"):
        client.receive(Queue.PurgeOk(0))


def test_basic_consume_and_cancel_may_be_answered_after_what_was_asked_next() -> None:
    # RabbitMQ 4.0 does that when their caller gave up waiting and asked for something else.
    client = opened()
    client.state.request(make(Basic.Consume, queue="q", consumer_tag="a"), "consume")
    client.state.request(make(Basic.Cancel, consumer_tag="a"), "cancel")
    client.state.request(make(Basic.Qos, prefetch_count=1), "qos")
    client.state.request(make(Queue.Declare, queue="q"), "declare")
    with pytest.raises(RemoteProtocolError, match=r"Queue\.DeclareOk on channel 3, where Basic\.ConsumeOk was due"):
        client.receive(Queue.DeclareOk("q", 0, 0))
    answers = [Basic.QosOk(), Basic.CancelOk("a"), Basic.ConsumeOk("a"), Queue.DeclareOk("q", 0, 0)]
    assert [client.receive(answer).token for answer in answers] == ["qos", "cancel", "consume", "declare"]


@pytest.mark.parametrize(
    "value",
    [
        Queue.DeclareOk("q", 0, 0),
        Channel.OpenOk(),
        Basic.GetEmpty(),
        Basic.CancelOk("tag"),
        Queue.Declare(queue="q"),  # a client's method
        commands.Connection.Tune(),  # a connection's method on a channel
    ],
)
def test_a_method_is_a_protocol_error_when_nobody_asked_for_it(value: Method) -> None:
    client = opened()
    with pytest.raises(RemoteProtocolError, match="nothing was due") as refused:
        client.receive(value)
    assert refused.value.reply_code == 503


def test_a_method_is_a_protocol_error_when_amqp_does_not_have_it() -> None:
    with pytest.raises(RemoteProtocolError, match=r"60\.999 on channel 3"):
        opened().state.receive(method_of_bytes(raw_method(NUMBER, 60, 999)))


@pytest.mark.parametrize("arguments", [b"", b"\x05q", b"\1q\0\0\0\0\0\0\0", b"\1q\0\0\0\0\0\0\0\0\0"])
def test_an_answer_is_a_syntax_error_when_its_arguments_are_malformed(arguments: bytes) -> None:
    client = opened()
    client.state.request(make(Queue.Declare, queue="q"), "token")
    with pytest.raises(TableSyntaxError, match=r"queue\.declare-ok on channel 3") as refused:
        client.state.receive(method_of_bytes(raw_method(NUMBER, 50, 11, arguments)))
    assert refused.value.reply_code == 502


def test_tables_are_read_with_the_limits_of_the_settings_when_the_server_sends_them() -> None:
    # No method to a client's channel carries a table, so one of a client's stands in for it.
    state = ChannelState(memory(), NUMBER, max_table_depth=3)
    declare = b"\0\0" + b"\1q" + b"\0" + nested_table(4)
    with pytest.raises(TableSyntaxError, match="3"):
        state.receive(method_of_bytes(raw_method(NUMBER, 50, 10, declare)))


# ---------------------------------------------------------------------- basic.get


def test_a_message_answers_the_request_when_the_queue_has_one() -> None:
    client = opened()
    client.state.request(make(Basic.Get, queue="q"), "get")
    client.state.request(make(Queue.Purge, queue="q"), "purge")

    (reply,) = client.state.receive_get(content_run(Basic.GetOk(7, False, "", "q", 4), NUMBER, b"body"))

    assert (reply.token, reply.method) == ("get", None)
    assert reply.message is not None
    assert (reply.message.delivery_tag, reply.message.body, reply.message.message_count) == (7, b"body", 4)
    assert client.receive(Queue.PurgeOk(4)).token == "purge"


def test_no_message_answers_the_request_when_the_queue_is_empty() -> None:
    client = opened()
    client.state.request(make(Basic.Get, queue="q"), "get")
    reply = client.receive(Basic.GetEmpty())
    assert (reply.token, reply.message) == ("get", None)


def test_a_message_is_a_protocol_error_when_nobody_asked_for_one() -> None:
    client = opened()
    client.state.request(make(Queue.Purge, queue="q"), "purge")
    with pytest.raises(RemoteProtocolError, match=r"Basic\.GetOk .*Queue\.PurgeOk was due"):
        client.state.receive_get(content_run(Basic.GetOk(7, False, "", "q", 4), NUMBER))


@pytest.mark.parametrize("phase", [ChannelPhase.CLOSING, ChannelPhase.CLOSED])
def test_a_message_is_ignored_when_the_channel_closes(phase: ChannelPhase) -> None:
    client = Client().advance(phase)
    assert client.state.receive_get(content_run(Basic.GetOk(7, False, "", "q", 4), NUMBER)) == []


# ---------------------------------------------------------------------- what the server begins


def test_the_consumer_tag_is_reported_when_the_server_cancels_a_consumer() -> None:
    client = opened()
    client.state.request(make(Queue.Purge, queue="q"), "purge")
    client.out.take()
    assert client.receive(Basic.Cancel("tag-1", nowait=True)) == CancelNotice("tag-1")
    assert client.out.take() == b""  # a notification, which is not answered
    assert client.state.unanswered == 1


@pytest.mark.parametrize("active", [True, False])
def test_flow_is_answered_when_the_server_asks_for_it(active: bool) -> None:
    client = opened()
    assert client.receive(Channel.Flow(active)) is None
    (flow_ok,) = sent(client.out)
    assert isinstance(flow_ok, Channel.FlowOk)
    assert (flow_ok.name, flow_ok.active) == ("Channel.FlowOk", active)


# ---------------------------------------------------------------------- close

CODES = {
    311: ChannelClosed,
    313: ChannelClosed,
    403: AccessRefused,
    404: NotFound,
    405: ResourceLocked,
    406: PreconditionFailed,
    541: ChannelClosed,
}


@pytest.mark.parametrize(("reply_code", "kind"), CODES.items())
def test_the_error_has_the_type_of_its_code_when_the_server_closes(reply_code: int, kind: type[ChannelClosed]) -> None:
    client = opened()
    client.state.request(make(Queue.Declare, queue="a"), "first")
    client.state.request(make(Queue.Purge, queue="a"), "second")
    client.out.take()

    closed = client.receive(Channel.Close(reply_code, "SOME_REASON - of\nthe server", 50, 10))

    assert sent_names(client.out) == ["Channel.CloseOk"]
    assert isinstance(closed, ChannelEnded)
    assert closed.tokens == ("first", "second")
    error = closed.error
    assert type(error) is kind
    assert (error.reply_code, error.class_id, error.method_id) == (reply_code, 50, 10)
    assert error.reply_text == r"SOME_REASON - of\nthe server"
    assert f"channel 3 by queue.declare: {reply_code}" in str(error)
    assert client.state.phase is ChannelPhase.CLOSED


# RabbitMQ 3.10.8's text, word for word, and what stands in its places.
INEQUIVALENT = "PRECONDITION_FAILED - inequivalent arg '{}' for {} in vhost '/': received {} but current is {}"


@pytest.mark.parametrize(
    ("argument", "entity", "wanted", "actual"),
    [
        ("durable", "queue 'q1'", "'false'", "'true'"),
        ("auto_delete", "queue 'q1'", "'true'", "'false'"),
        ("x-message-ttl", "queue 'q2'", "'2000'", "'1000'"),
        ("x-message-ttl", "queue 'q2'", "none", "the value '1000' of type 'signedint'"),
        ("x-queue-type", "queue 'q1'", "the value 'quorum' of type 'longstr'", "none"),
        ("type", "exchange 'x1'", "'topic'", "'direct'"),
        ("alternate-exchange", "exchange 'x1'", "the value 'x9' of type 'longstr'", "none"),
        ("durable", "queue 'q'1 in vhost'", "'false'", "'true'"),  # a name with a quote in it
    ],
)
def test_the_argument_that_differs_is_named_when_a_declare_is_inequivalent(
    argument: str, entity: str, wanted: str, actual: str
) -> None:
    text = INEQUIVALENT.format(argument, entity, wanted, actual)
    error = opened().receive(Channel.Close(406, text, 50, 10)).error
    assert (error.argument, error.wanted, error.actual) == (argument, wanted, actual)
    assert error.reply_text == text


def test_the_argument_that_differs_is_named_when_a_long_name_leaves_no_room_for_its_values() -> None:
    # RabbitMQ cuts a reply text to the 255 bytes of a short string.
    text = INEQUIVALENT.format("x-max-length", f"queue '{'q' * 180}'", "none", "'1'")[:252] + "..."
    error = opened().receive(Channel.Close(406, text, 50, 10)).error
    assert (error.argument, error.wanted, error.actual) == ("x-max-length", "", "")


def test_no_argument_is_named_when_another_precondition_failed() -> None:
    error = opened().receive(Channel.Close(406, "PRECONDITION_FAILED - unknown delivery tag 7", 60, 80)).error
    assert type(error) is PreconditionFailed
    assert (error.argument, error.wanted, error.actual) == ("", "", "")


def test_closing_ends_without_error_when_the_server_agrees() -> None:
    client = opened()
    client.state.request(make(Queue.Purge, queue="q"), "purge")
    client.out.take()
    client.state.close("close")
    (close,) = sent(client.out)
    assert isinstance(close, Channel.Close)
    assert (close.name, close.reply_code) == ("Channel.Close", 200)
    assert client.receive(Channel.CloseOk()) == ChannelEnded(None, ("purge", "close"))


def test_closing_ends_without_error_when_both_sides_close_at_once() -> None:
    client = Client().advance(ChannelPhase.CLOSING)
    assert client.receive(Channel.Close(404, "NOT_FOUND", 60, 40)) == ChannelEnded(
        None, ("close",), by_server=True, crossed=True
    )
    assert sent_names(client.out) == ["Channel.CloseOk"]
    assert client.receive(Channel.CloseOk()) is None  # the answer to ours, which the server may still send


@pytest.mark.parametrize("phase", [ChannelPhase.OPENING, ChannelPhase.OPEN])
def test_close_ok_is_a_protocol_error_when_this_side_did_not_close(phase: ChannelPhase) -> None:
    with pytest.raises(RemoteProtocolError, match=r"channel\.close-ok while channel 3"):
        Client().advance(phase).receive(Channel.CloseOk())


@pytest.mark.parametrize(
    "value", [Queue.DeclareOk("q", 0, 0), Basic.Cancel("tag"), Channel.Flow(False), Basic.GetEmpty(), Channel.OpenOk()]
)
@pytest.mark.parametrize("phase", [ChannelPhase.CLOSING, ChannelPhase.CLOSED])
def test_everything_but_the_end_is_ignored_when_closing(phase: ChannelPhase, value: Method) -> None:
    client = Client().advance(phase)
    assert client.receive(value) is None
    assert client.out.take() == b""
    assert client.state.phase is phase


def test_all_requests_are_handed_back_when_the_connection_is_lost() -> None:
    client = opened()
    client.state.request(make(Queue.Purge, queue="q"), "purge")
    client.state.request(make(Confirm.Select), "select")
    error = ConnectionLost("gone")
    assert client.state.lost(error) == ChannelEnded(error, ("purge", "select"))
    assert client.state.phase is ChannelPhase.CLOSED


# ---------------------------------------------------------------------- all of it in any order

REQUESTS = {
    "declare": (lambda: make(Queue.Declare, queue="q"), lambda: Queue.DeclareOk("q", 0, 0)),
    "purge": (lambda: make(Queue.Purge, queue="q"), lambda: Queue.PurgeOk(0)),
    "qos": (lambda: make(Basic.Qos, prefetch_count=1), Basic.QosOk),
    "select": (lambda: make(Confirm.Select), Confirm.SelectOk),
    "get": (lambda: make(Basic.Get, queue="q"), Basic.GetEmpty),
}


class ChannelMachine(RuleBasedStateMachine):
    """A channel against a model that is only a phase and a queue of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.client = Client()
        self.phase = ChannelPhase.IDLE
        self.waiting: deque[tuple[str, int]] = deque()
        self.ended: list[int] = []
        self.tokens = itertools.count()
        self.given = 0

    def take_token(self, kind: str) -> int:
        self.given += 1
        token = next(self.tokens)
        self.waiting.append((kind, token))
        return token

    def end(self, event: Any) -> None:
        assert isinstance(event, ChannelEnded)
        assert list(event.tokens) == [token for _, token in self.waiting]
        self.ended += event.tokens
        self.waiting.clear()
        self.phase = ChannelPhase.CLOSED

    @rule()
    def open(self) -> None:
        if self.phase is ChannelPhase.IDLE:
            self.client.state.open(self.take_token("open"))
            self.phase = ChannelPhase.OPENING
        else:
            with pytest.raises(LocalProtocolError):
                self.client.state.open("refused")

    @rule(kind=st.sampled_from(sorted(REQUESTS)))
    def request(self, kind: str) -> None:
        if self.phase is ChannelPhase.OPEN:
            self.client.state.request(REQUESTS[kind][0](), self.take_token(kind))
        else:
            with pytest.raises(LocalProtocolError):
                self.client.state.request(REQUESTS[kind][0](), "refused")

    @rule()
    def close(self) -> None:
        if self.phase is ChannelPhase.OPEN:
            self.client.state.close(self.take_token("close"))
            self.phase = ChannelPhase.CLOSING
        else:
            with pytest.raises(LocalProtocolError):
                self.client.state.close("refused")

    @precondition(lambda self: self.phase in (ChannelPhase.OPENING, ChannelPhase.OPEN) and self.waiting)
    @rule()
    def server_answers(self) -> None:
        kind, token = self.waiting.popleft()
        reply = self.client.receive(Channel.OpenOk() if kind == "open" else REQUESTS[kind][1]())
        assert isinstance(reply, Reply)
        assert reply.token == token
        self.ended.append(token)
        if kind == "open":
            self.phase = ChannelPhase.OPEN

    @precondition(lambda self: self.waiting and self.waiting[0][0] == "get" and self.phase is ChannelPhase.OPEN)
    @rule()
    def server_sends_a_message(self) -> None:
        _, token = self.waiting.popleft()
        (reply,) = self.client.state.receive_get(content_run(Basic.GetOk(1, False, "", "q", 0), NUMBER, b"x"))
        assert reply.token == token
        self.ended.append(token)

    @rule(kind=st.sampled_from(sorted(REQUESTS)))
    def server_answers_out_of_turn(self, kind: str) -> None:
        answer = method(REQUESTS[kind][1](), NUMBER)
        if self.phase in (ChannelPhase.CLOSING, ChannelPhase.CLOSED):
            assert self.client.state.receive(answer) is None
        elif not self.waiting or self.waiting[0][0] != kind:
            with pytest.raises(RemoteProtocolError):
                self.client.state.receive(answer)

    @precondition(lambda self: self.phase is not ChannelPhase.IDLE)
    @rule()
    def server_closes(self) -> None:
        closing, closed = self.phase is ChannelPhase.CLOSING, self.phase is ChannelPhase.CLOSED
        event = self.client.receive(Channel.Close(404, "NOT_FOUND", 50, 10))
        if closed:
            assert event is None
        else:
            self.end(event)
            assert (event.error is None) is event.crossed is closing

    @rule()
    def server_sends_close_ok(self) -> None:
        if self.phase is ChannelPhase.CLOSING:
            self.end(self.client.receive(Channel.CloseOk()))
        elif self.phase is ChannelPhase.CLOSED:
            assert self.client.receive(Channel.CloseOk()) is None
        else:
            with pytest.raises(RemoteProtocolError):
                self.client.receive(Channel.CloseOk())

    @rule()
    def server_cancels_a_consumer(self) -> None:
        event = self.client.receive(Basic.Cancel("tag"))
        ignored = self.phase in (ChannelPhase.CLOSING, ChannelPhase.CLOSED)
        assert event == (None if ignored else CancelNotice("tag"))

    @precondition(lambda self: self.phase is not ChannelPhase.CLOSED)
    @rule()
    def connection_is_lost(self) -> None:
        self.end(self.client.state.lost(ConnectionLost("gone")))

    @invariant()
    def the_model_agrees(self) -> None:
        assert self.client.state.phase is self.phase
        assert self.client.state.unanswered == len(self.waiting)

    @invariant()
    def every_request_ends_once_and_in_order(self) -> None:
        assert self.ended == list(range(self.given - len(self.waiting)))


ChannelMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestChannelInAnyOrder = ChannelMachine.TestCase
