"""The connection's state machine: bytes and time go in as arguments, no socket and no clock."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import commands
from pamqp.commands import Connection
from tests.support.conversation import (
    PROTOCOL_HEADER,
    memory,
    method,
    method_of_bytes,
    nested_table,
    raw_method,
    sent,
    sent_names,
)

from leveret.errors import (
    AuthenticationError,
    ConnectionClosed,
    ConnectionLost,
    HeartbeatTimeout,
    IncompatibleProtocol,
    LocalProtocolError,
    RemoteProtocolError,
    TableSyntaxError,
)
from leveret.protocol.connection import (
    CONNECTION_TRANSITIONS,
    Blocked,
    ConnectionEnded,
    ConnectionPhase,
    ConnectionState,
    Negotiated,
    Opened,
    SecretUpdated,
    Tuned,
    Unblocked,
)
from leveret.wire.numbers import HEARTBEAT_FRAME

if TYPE_CHECKING:
    from leveret.protocol.commands import Method

LARGEST = 2**32 - 1


class Client:
    """A connection's state machine, and the server that it talks to."""

    def __init__(
        self,
        *,
        mechanism: str = "PLAIN",
        response: str = "\0guest\0secret",
        frame_max: int = 131_072,
        channel_max: int = 2047,
        heartbeat: int = 30,
    ) -> None:
        self.out = memory()
        self.state = ConnectionState(
            mechanism=mechanism,
            response=response,
            virtual_host="shop",
            frame_max=frame_max,
            channel_max=channel_max,
            heartbeat=heartbeat,
            client_properties={"product": "Leveret", "capabilities": {"basic.nack": True}},
        )

    def receive(self, value: Method) -> object:
        return self.state.receive(method(value))

    def sent(self) -> list[Any]:
        return sent(self.out)

    def advance(self, phase: ConnectionPhase) -> Client:
        """Goes through the handshake until `phase`; what was sent on the way is forgotten."""
        steps = {
            ConnectionPhase.START: lambda: self.state.start(self.out),
            ConnectionPhase.TUNE: lambda: self.receive(Connection.Start()),
            ConnectionPhase.OPEN_OK: lambda: self.receive(Connection.Tune(2047, 131_072, 60)),
            ConnectionPhase.OPEN: lambda: self.receive(Connection.OpenOk()),
            ConnectionPhase.CLOSING: self.state.close,
            ConnectionPhase.CLOSED: lambda: self.receive(Connection.CloseOk()),
        }
        for reached, step in steps.items():
            if self.state.phase is phase:
                break
            step()
            assert self.state.phase is reached
        self.out.take()
        return self


AFTER_HEADER = [ConnectionPhase.START, ConnectionPhase.TUNE, ConnectionPhase.OPEN_OK, ConnectionPhase.OPEN]


# ---------------------------------------------------------------------- handshake


def test_the_protocol_header_comes_first_when_the_conversation_starts() -> None:
    client = Client()
    client.state.start(client.out)
    assert client.out.take() == PROTOCOL_HEADER


def test_plain_credentials_and_the_virtual_host_are_sent_when_the_server_asks_for_them() -> None:
    client = Client().advance(ConnectionPhase.START)

    assert (
        client.receive(Connection.Start(mechanisms="AMQPLAIN PLAIN", server_properties={"product": "RabbitMQ"})) is None
    )
    (start_ok,) = client.sent()
    assert (start_ok.mechanism, start_ok.response, start_ok.locale) == ("PLAIN", "\0guest\0secret", "en_US")
    assert start_ok.client_properties == {"product": "Leveret", "capabilities": {"basic.nack": True}}

    tuned = client.receive(Connection.Tune(2047, 131_072, 60))
    assert isinstance(tuned, Tuned)
    tune_ok, open_ = client.sent()
    assert (tune_ok.channel_max, tune_ok.frame_max, tune_ok.heartbeat) == (2047, 131_072, 30)
    assert open_.virtual_host == "shop"

    assert client.receive(Connection.OpenOk()) == Opened()
    assert client.state.phase is ConnectionPhase.OPEN
    assert client.state.negotiated is tuned.negotiated
    assert tuned.negotiated.server_properties == {"product": "RabbitMQ"}


def test_no_password_is_sent_when_the_mechanism_is_external() -> None:
    client = Client(mechanism="EXTERNAL", response="").advance(ConnectionPhase.START)
    client.receive(Connection.Start(mechanisms="PLAIN EXTERNAL"))
    (start_ok,) = client.sent()
    assert (start_ok.mechanism, start_ok.response) == ("EXTERNAL", "")


def test_the_credentials_are_forgotten_when_they_were_sent() -> None:
    client = Client(response="\0guest\0sentinel").advance(ConnectionPhase.TUNE)
    assert "sentinel" not in repr(vars(client.state))


@pytest.mark.parametrize(("major", "minor"), [(0, 8), (0, 10), (1, 0), (9, 1)])
def test_the_server_is_refused_when_it_speaks_another_version(major: int, minor: int) -> None:
    client = Client().advance(ConnectionPhase.START)
    with pytest.raises(IncompatibleProtocol, match=f"{major}-{minor}, not 0-9-1"):
        client.receive(Connection.Start(major, minor))
    assert client.sent() == []


@pytest.mark.parametrize(
    ("mechanism", "offered"),
    [("EXTERNAL", "PLAIN AMQPLAIN"), ("PLAIN", "AMQPLAIN"), ("PLAIN", "XPLAIN PLAINX"), ("PLAIN", "")],
)
def test_nothing_weaker_is_tried_when_the_mechanism_is_not_offered(mechanism: str, offered: str) -> None:
    client = Client(mechanism=mechanism).advance(ConnectionPhase.START)
    with pytest.raises(AuthenticationError) as refused:
        client.receive(Connection.Start(mechanisms=offered))
    assert mechanism in str(refused.value)
    assert offered in str(refused.value)
    assert client.sent() == []


def test_a_challenge_is_a_protocol_error_when_the_mechanism_has_one_step() -> None:
    client = Client().advance(ConnectionPhase.TUNE)
    with pytest.raises(RemoteProtocolError, match="challenges PLAIN"):
        client.receive(Connection.Secure("who are you?"))


@pytest.mark.parametrize("depth", [33, 500])
def test_the_server_is_refused_when_its_properties_are_nested_too_deep(depth: int) -> None:
    client = Client().advance(ConnectionPhase.START)
    frame = method_of_bytes(raw_method(0, 10, 10, b"\0\x09" + nested_table(depth) + b"\0\0\0\5PLAIN\0\0\0\5en_US"))
    with pytest.raises(TableSyntaxError, match=r"connection\.start on channel 0: .*32") as refused:
        client.state.receive(frame)
    assert refused.value.reply_code == 502


# ---------------------------------------------------------------------- tune


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "agreed"),
    [
        ("frame_max", 131_072, 0, 131_072),  # the server has no limit; we do
        ("frame_max", 131_072, 131_072, 131_072),
        ("frame_max", 131_072, 4096, 4096),  # the protocol's minimum
        ("frame_max", 131_072, 8192, 8192),
        ("frame_max", 131_072, 131_073, 131_072),
        ("frame_max", 1_048_576, 131_072, 131_072),  # S34 on RabbitMQ's default
        ("frame_max", 1_048_576, LARGEST, 1_048_576),  # S34 on a server that allows it
        ("frame_max", 4096, 131_072, 4096),
        ("channel_max", 2047, 0, 2047),
        ("channel_max", 2047, 10, 10),
        ("channel_max", 10, 2047, 10),
        ("channel_max", 65_535, 65_535, 65_535),
        ("heartbeat", 30, 0, 30),
        ("heartbeat", 30, 60, 30),
        ("heartbeat", 60, 5, 5),
        ("heartbeat", 0, 60, 0),  # off is what this side asked for
        ("heartbeat", 0, 0, 0),
    ],
)
def test_the_smaller_limit_is_agreed_when_both_sides_have_one(name: str, ours: int, theirs: int, agreed: int) -> None:
    limits: dict[str, Any] = {name: ours}
    client = Client(**limits).advance(ConnectionPhase.TUNE)
    tune = {"frame_max": 131_072, "channel_max": 2047, "heartbeat": 60} | {name: theirs}

    tuned = client.receive(Connection.Tune(**tune))

    assert isinstance(tuned, Tuned)
    assert getattr(tuned.negotiated, name) == agreed
    tune_ok, _ = client.sent()
    assert getattr(tune_ok, name) == agreed


@pytest.mark.parametrize("frame_max", [1, 4095])
def test_the_server_is_refused_when_its_frame_max_is_below_the_protocol_minimum(frame_max: int) -> None:
    client = Client().advance(ConnectionPhase.TUNE)
    with pytest.raises(RemoteProtocolError, match=f"frame_max of {frame_max}, below .* 4096"):
        client.receive(Connection.Tune(2047, frame_max, 60))
    assert client.sent() == []


@pytest.mark.parametrize(
    ("properties", "capabilities"),
    [({}, {}), ({"capabilities": {"basic.nack": True}}, {"basic.nack": True}), ({"capabilities": "none"}, {})],
)
def test_capabilities_are_a_table_when_the_server_sends_anything_else(
    properties: dict[str, object], capabilities: dict[str, object]
) -> None:
    assert Negotiated(4096, 1, 0, properties).capabilities == capabilities


# ---------------------------------------------------------------------- what may not come


@pytest.mark.parametrize("phase", [*AFTER_HEADER])
def test_a_method_out_of_turn_is_a_protocol_error_when_the_server_sends_it(phase: ConnectionPhase) -> None:
    in_turn = {
        ConnectionPhase.START: ("Connection.Start",),
        ConnectionPhase.TUNE: ("Connection.Tune", "Connection.Secure"),
        ConnectionPhase.OPEN_OK: ("Connection.OpenOk",),
        ConnectionPhase.OPEN: ("Connection.Blocked", "Connection.Unblocked", "Connection.UpdateSecretOk"),
    }[phase]
    others = [
        Connection.Start(),
        Connection.Tune(),
        Connection.OpenOk(),
        Connection.Blocked(""),
        Connection.Unblocked(),
        Connection.UpdateSecretOk(),
        Connection.CloseOk(),
        Connection.StartOk({}, "PLAIN", "", "en_US"),  # a client's method
        commands.Channel.OpenOk(),  # a channel's method on channel 0
        commands.Basic.CancelOk(""),
    ]
    for value in others:
        if value.name in in_turn:
            continue
        client = Client().advance(phase)
        with pytest.raises(RemoteProtocolError) as refused:
            client.receive(value)
        assert phase.value in str(refused.value), value.name
        assert refused.value.reply_code == 503
        assert client.sent() == []


def test_a_method_that_amqp_does_not_have_is_a_protocol_error_when_the_server_sends_it() -> None:
    client = Client().advance(ConnectionPhase.OPEN)
    with pytest.raises(RemoteProtocolError, match=r"10\.999") as refused:
        client.state.receive(method_of_bytes(raw_method(0, 10, 999)))
    assert refused.value.reply_code == 503


@pytest.mark.parametrize(
    "arguments",
    [b"", b"\x07", b"\x07\xff\0\2\0\0\0", b"\x07\xff\0\2\0\0\0\x3c\0"],  # short, and one byte too many
)
def test_malformed_arguments_are_a_syntax_error_when_the_server_sends_them(arguments: bytes) -> None:
    client = Client().advance(ConnectionPhase.TUNE)
    with pytest.raises(TableSyntaxError, match=r"connection\.tune") as refused:
        client.state.receive(method_of_bytes(raw_method(0, 10, 30, arguments)))
    assert refused.value.reply_code == 502


# ---------------------------------------------------------------------- close


@pytest.mark.parametrize("phase", AFTER_HEADER)
def test_the_reason_is_reported_and_answered_when_the_server_closes(phase: ConnectionPhase) -> None:
    client = Client().advance(phase)

    closed = client.receive(Connection.Close(320, "CONNECTION_FORCED - broker forced\nclosure", 10, 40))

    assert [value.name for value in client.sent()] == ["Connection.CloseOk"]
    assert client.state.phase is ConnectionPhase.CLOSED
    assert isinstance(closed, ConnectionEnded)
    error = closed.error
    assert type(error) is ConnectionClosed
    assert (error.reply_code, error.class_id, error.method_id) == (320, 10, 40)
    assert error.reply_text == r"CONNECTION_FORCED - broker forced\nclosure"
    assert "connection.open: 320" in str(error)


@pytest.mark.parametrize(
    ("phase", "reply_code", "kind"),
    [
        (ConnectionPhase.TUNE, 403, AuthenticationError),  # RabbitMQ: authentication_failure_close
        (ConnectionPhase.TUNE, 530, ConnectionClosed),
        (ConnectionPhase.OPEN_OK, 530, ConnectionClosed),  # no such virtual host
        (ConnectionPhase.OPEN_OK, 403, ConnectionClosed),  # no permission for it: the password was right
        (ConnectionPhase.OPEN, 403, ConnectionClosed),
    ],
)
def test_a_refusal_is_about_credentials_when_it_comes_after_they_were_sent(
    phase: ConnectionPhase, reply_code: int, kind: type[ConnectionClosed]
) -> None:
    closed = Client().advance(phase).receive(Connection.Close(reply_code, "no", 0, 0))
    assert isinstance(closed, ConnectionEnded)
    assert type(closed.error) is kind
    assert closed.error.reply_code == reply_code


@pytest.mark.parametrize("phase", [ConnectionPhase.IDLE, ConnectionPhase.START])
def test_nothing_is_closed_politely_when_the_server_has_not_spoken_yet(phase: ConnectionPhase) -> None:
    client = Client().advance(phase)
    client.state.close(503, "that is not AMQP")
    assert client.sent() == []
    assert client.state.phase is phase


def test_each_change_of_phase_is_in_the_table() -> None:
    assert set(CONNECTION_TRANSITIONS) == set(ConnectionPhase)
    assert CONNECTION_TRANSITIONS[ConnectionPhase.CLOSED] == set()
    client = Client().advance(ConnectionPhase.OPEN)
    with pytest.raises(LocalProtocolError, match="cannot change from OPEN to START"):
        client.state.start(client.out)


@pytest.mark.parametrize("phase", AFTER_HEADER[1:])
def test_closing_ends_without_error_when_the_server_agrees(phase: ConnectionPhase) -> None:
    client = Client().advance(phase)
    client.state.close(200, "closed by the application")
    (close,) = client.sent()
    assert (close.reply_code, close.reply_text, close.class_id, close.method_id) == (
        200,
        "closed by the application",
        0,
        0,
    )
    assert client.receive(Connection.CloseOk()) == ConnectionEnded(None)
    assert client.state.phase is ConnectionPhase.CLOSED
    assert client.sent() == []


def test_one_close_is_sent_when_close_is_called_again() -> None:
    client = Client().advance(ConnectionPhase.OPEN)
    client.state.close()
    client.state.close()
    assert sent_names(client.out) == ["Connection.Close"]
    client.receive(Connection.CloseOk())
    client.state.close()
    assert client.sent() == []


def test_closing_ends_without_error_when_both_sides_close_at_once() -> None:
    client = Client().advance(ConnectionPhase.CLOSING)
    assert client.receive(Connection.Close(320, "CONNECTION_FORCED", 0, 0)) == ConnectionEnded(None)
    assert sent_names(client.out) == ["Connection.CloseOk"]
    assert client.receive(Connection.CloseOk()) is None  # the answer to ours, which the server may still send


@pytest.mark.parametrize(
    "value",
    [Connection.Blocked("memory"), Connection.Unblocked(), Connection.Tune(), Connection.Start(), Connection.OpenOk()],
)
def test_everything_but_the_end_is_ignored_when_closing(value: Method) -> None:
    client = Client().advance(ConnectionPhase.CLOSING)
    assert client.receive(value) is None
    assert client.state.phase is ConnectionPhase.CLOSING
    assert client.sent() == []


@pytest.mark.parametrize("value", [Connection.Close(200, "", 0, 0), Connection.CloseOk(), Connection.Start()])
def test_everything_is_ignored_when_closed(value: Method) -> None:
    client = Client().advance(ConnectionPhase.CLOSED)
    assert client.receive(value) is None
    assert client.sent() == []


def test_a_long_reply_text_is_cut_between_characters_when_closing() -> None:
    client = Client().advance(ConnectionPhase.OPEN)
    client.state.close(501, "x" + "é" * 200)  # 401 bytes of UTF-8; byte 255 is the last half of a character
    (close,) = client.sent()
    assert close.reply_text == "x" + "é" * 127


# ---------------------------------------------------------------------- blocked, update-secret


def test_the_reason_is_known_when_the_broker_blocks_publishers() -> None:
    client = Client().advance(ConnectionPhase.OPEN)
    assert client.state.blocked is None
    assert client.receive(Connection.Blocked("low on memory\x1b[2J")) == Blocked(r"low on memory\x1b[2J")
    assert client.state.blocked == r"low on memory\x1b[2J"
    assert client.receive(Connection.Unblocked()) == Unblocked()
    assert client.state.blocked is None


def test_a_new_secret_is_sent_when_the_connection_is_open() -> None:
    client = Client().advance(ConnectionPhase.OPEN)
    client.state.update_secret("token-2", "rotation")
    (update,) = client.sent()
    assert (update.new_secret, update.reason) == ("token-2", "rotation")
    assert client.receive(Connection.UpdateSecretOk()) == SecretUpdated()
    assert "token-2" not in repr(vars(client.state))


@pytest.mark.parametrize("phase", [p for p in ConnectionPhase if p is not ConnectionPhase.OPEN])
def test_a_new_secret_is_refused_locally_when_the_connection_is_not_open(phase: ConnectionPhase) -> None:
    client = Client().advance(phase)
    with pytest.raises(LocalProtocolError) as refused:
        client.state.update_secret("token-2", "rotation")
    assert phase.value in str(refused.value)
    assert "token-2" not in str(refused.value)
    assert client.sent() == []


# ---------------------------------------------------------------------- the end of the transport


@pytest.mark.parametrize("phase", AFTER_HEADER)
def test_the_phase_is_named_when_the_transport_is_lost(phase: ConnectionPhase) -> None:
    client = Client().advance(phase)
    closed = client.state.lost(ConnectionResetError("reset by peer"))
    assert isinstance(closed.error, AuthenticationError if phase is ConnectionPhase.TUNE else ConnectionLost)
    assert "reset by peer" in str(closed.error)
    if phase is not ConnectionPhase.TUNE:
        assert phase.value in str(closed.error)
    assert client.state.phase is ConnectionPhase.CLOSED


def test_the_credentials_are_suspected_when_the_server_hangs_up_on_them() -> None:
    # A server without authentication_failure_close waits and hangs up (RabbitMQ: access control).
    closed = Client().advance(ConnectionPhase.TUNE).state.lost(None)
    assert isinstance(closed.error, AuthenticationError)
    assert closed.error.reply_code == 403


@pytest.mark.parametrize("capabilities", [{"authentication_failure_close": True}, {}, None, "all"])
def test_the_credentials_are_not_suspected_when_the_server_would_have_refused_them(capabilities: Any) -> None:
    client = Client().advance(ConnectionPhase.START)
    client.receive(Connection.Start(mechanisms="PLAIN", server_properties={"capabilities": capabilities}))
    closed = client.state.lost(None)
    aloud = isinstance(capabilities, dict) and capabilities != {}
    assert type(closed.error) is (ConnectionLost if aloud else AuthenticationError)


def test_a_lost_transport_is_no_error_when_closing() -> None:
    client = Client().advance(ConnectionPhase.CLOSING)
    assert client.state.lost(None) == ConnectionEnded(None)


# ---------------------------------------------------------------------- heartbeats


class Clock:
    """A connection whose heartbeat is ticked by hand, at the times the test gives."""

    def __init__(self, heartbeat: int = 10) -> None:
        client = Client(heartbeat=heartbeat).advance(ConnectionPhase.OPEN)
        self.state, self.out = client.state, client.out
        self.received = 1000
        self.now = 100.0

    def tick(self, after: float = 0.5, *, received: int = 0, listening: bool = True, again: bool = False) -> object:
        self.now += after
        self.received += received
        return self.state.tick(self.now, self.received, self.out.sent_bytes, listening=listening, again=again)

    def silence(self, seconds: float) -> None:
        """Ticks twice a second, without a byte from the peer."""
        for _ in range(int(seconds * 2)):
            assert self.tick() is None

    def look_again(self) -> float | None:
        return self.state.look_again(self.now)

    def written(self) -> bytes:
        return self.out.take()


@pytest.mark.parametrize("heartbeat", [1, 10])
def test_a_heartbeat_is_sent_when_this_side_is_idle(heartbeat: int) -> None:
    clock = Clock(heartbeat)
    clock.tick(received=8)
    clock.out.append(b"x")
    clock.written()
    times = []
    for _ in range(100):
        assert clock.tick(received=8) is None
        if clock.written() == HEARTBEAT_FRAME:
            times.append(clock.now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert set(gaps) == {heartbeat / 2}


def test_no_heartbeat_is_sent_when_something_else_was() -> None:
    clock = Clock()
    clock.tick(received=8)
    clock.written()
    for _ in range(30):
        clock.out.append(b"x" * 100)
        clock.written()
        clock.tick(received=8)
        assert clock.written() == b""
    for _ in range(10):
        clock.tick(received=8)
    assert clock.written() == HEARTBEAT_FRAME


def test_the_connection_is_alive_when_any_traffic_comes() -> None:
    clock = Clock()
    for _ in range(3):
        assert clock.tick(received=1) is None  # one byte of a slow frame is as good as a heartbeat
        clock.silence(19.5)


def dead(event: object) -> HeartbeatTimeout:
    assert isinstance(event, ConnectionEnded)
    assert isinstance(event.error, HeartbeatTimeout)
    return event.error


def test_the_connection_is_dead_when_nothing_came_for_two_intervals() -> None:
    clock = Clock(heartbeat=10)
    clock.tick(received=8)
    clock.silence(19.5)
    assert clock.look_again() is None
    assert clock.tick(0.4) is None
    # It says when two intervals will be over, and looks once more after what waits was read.
    assert clock.look_again() == pytest.approx(0.1)
    assert clock.tick(0.1, again=True) is None
    assert clock.look_again() == 0.05
    error = dead(clock.tick(0.05, again=True))
    assert "nothing was received for 20.0 s" in str(error)
    assert "10 s" in str(error)
    assert clock.state.phase is ConnectionPhase.CLOSED
    assert clock.tick() is None


def test_only_the_look_that_was_asked_for_judges_the_peer() -> None:
    clock = Clock(heartbeat=10)
    clock.tick(received=8)
    clock.silence(20)  # the last of them doubts
    assert clock.tick(0) is None  # another one in the same turn of the loop, before anything was read
    assert dead(clock.tick(0.05, again=True))


def test_the_peer_is_not_judged_before_what_waits_was_read_when_the_loop_was_blocked() -> None:
    clock = Clock(heartbeat=10)
    clock.tick(received=8)
    assert clock.tick(after=60) is None
    assert clock.tick(after=0.05, received=8, again=True) is None
    clock.silence(19.5)
    assert clock.tick() is None
    assert dead(clock.tick(0.05, again=True))


def test_the_peer_is_not_judged_by_a_late_look_when_the_loop_was_blocked_once_more() -> None:
    clock = Clock(heartbeat=10)
    clock.tick(received=8)
    assert clock.tick(after=60) is None
    assert clock.tick(after=5, again=True) is None
    assert clock.look_again() == 0.05
    assert clock.tick(after=0.05, received=8, again=True) is None


def test_the_peer_is_judged_though_every_look_comes_late() -> None:
    clock = Clock(heartbeat=10)
    clock.tick(received=8)
    assert clock.tick(after=60) is None
    assert clock.tick(after=5, again=True) is None
    assert dead(clock.tick(after=5, again=True))


def test_silence_says_nothing_of_the_peer_when_this_side_does_not_read() -> None:
    # A consumer without acknowledgements stops reading when it is slow; what the broker says waits in the sockets.
    clock = Clock(heartbeat=10)
    clock.tick(received=8)
    clock.written()
    heartbeats = b""
    for _ in range(60):
        assert clock.tick(listening=False) is None
        heartbeats += clock.written()
    assert heartbeats == 6 * HEARTBEAT_FRAME  # this side still shows that it is alive
    clock.silence(19.5)
    assert clock.tick() is None
    assert dead(clock.tick(0.05, again=True))


def test_nothing_is_sent_or_judged_when_heartbeats_are_off() -> None:
    clock = Clock(heartbeat=0)
    for _ in range(3):
        assert clock.tick(after=1000) is None
    assert clock.written() == b""


@pytest.mark.parametrize(
    "phase", [p for p in ConnectionPhase if p not in (ConnectionPhase.OPEN, ConnectionPhase.CLOSING)]
)
def test_nothing_is_sent_or_judged_when_the_connection_is_not_open(phase: ConnectionPhase) -> None:
    client = Client().advance(phase)
    for now in (1.0, 1000.0, 1001.0):
        assert client.state.tick(now, 0, 0) is None
    assert client.out.take() == b""
