"""The client side of an AMQP channel as a state machine (AMQP 0-9-1 section 2.3)."""

from __future__ import annotations

import enum
import re
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import (
    AccessRefused,
    ChannelClosed,
    EncodeFailed,
    LeveretError,
    LocalProtocolError,
    NotFound,
    PreconditionFailed,
    RemoteProtocolError,
    ResourceLocked,
    printable,
)
from leveret.protocol import commands
from leveret.protocol.commands import Basic, Channel
from leveret.protocol.transitions import moved
from leveret.records import dataclass
from leveret.wire.numbers import (
    ACCESS_REFUSED,
    CHANNEL_ERROR,
    NOT_FOUND,
    PRECONDITION_FAILED,
    REPLY_SUCCESS,
    RESOURCE_LOCKED,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leveret.wire.buffers import SendBuffer
    from leveret.wire.message import Message
    from leveret.wire.runs import ContentRun, MethodFrame

_BY_CODE: Final[dict[int, type[ChannelClosed]]] = {
    ACCESS_REFUSED: AccessRefused,
    NOT_FOUND: NotFound,
    RESOURCE_LOCKED: ResourceLocked,
    PRECONDITION_FAILED: PreconditionFailed,
}

# RabbitMQ: "inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'", and for
# x-arguments "received the value '5' of type 'signedint' but current is none". A long name pushes the values out of the
# 255 bytes of a reply text.
_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']*)'(.*?: received (?P<wanted>.*) but current is (?P<actual>.*)$)?", re.DOTALL
)

# RabbitMQ has the queue answer these, and may answer what the channel was asked next before (seen with 4.0).
_OVERTAKEN: Final = frozenset({"Basic.ConsumeOk", "Basic.CancelOk"})

_CONTENT: Final = (Basic.Deliver, Basic.GetOk, Basic.Return)


class ChannelPhase(enum.Enum):
    """The phase of the channel."""

    IDLE = "not open yet"
    OPENING = "waiting for channel.open-ok"
    ABANDONED = "waiting for channel.open-ok, to be closed at once"
    OPEN = "open"
    CLOSING = "waiting for channel.close-ok"
    CLOSED = "closed"


#: Which phase may follow which.
CHANNEL_TRANSITIONS: Final[Mapping[ChannelPhase, frozenset[ChannelPhase]]] = {
    ChannelPhase.IDLE: frozenset({ChannelPhase.OPENING, ChannelPhase.CLOSED}),
    ChannelPhase.OPENING: frozenset({ChannelPhase.OPEN, ChannelPhase.ABANDONED, ChannelPhase.CLOSED}),
    ChannelPhase.ABANDONED: frozenset({ChannelPhase.CLOSING, ChannelPhase.CLOSED}),
    ChannelPhase.OPEN: frozenset({ChannelPhase.CLOSING, ChannelPhase.CLOSED}),
    ChannelPhase.CLOSING: frozenset({ChannelPhase.CLOSED}),
    ChannelPhase.CLOSED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request.

    Attributes:
        token: What the request was made with.
        method: The answer; for basic.get-ok None, with the message beside it.
        message: For basic.get-ok.
    """

    token: Any
    method: commands.Method | None
    message: Message | None = None


@dataclass(frozen=True, slots=True)
class CancelNotice:
    """The broker cancelled a consumer (RabbitMQ: consumer cancel notify)."""

    consumer_tag: str


@dataclass(frozen=True, slots=True)
class ChannelEnded:
    """The channel is over.

    Attributes:
        error: Why; None when this side asked for it.
        tokens: The requests that will not be answered.
        by_server: The server has closed it. Until it reads channel.close-ok, RabbitMQ may still send deliveries that
            were on their way, and repeats channel.close when another delivery on the channel times out.
        crossed: Both sides closed at once, so the server's answer to this side's close may still come. Until then the
            channel's number must not be used again: RabbitMQ may send it even behind the next channel's open-ok.
    """

    error: LeveretError | None
    tokens: tuple[Any, ...]
    by_server: bool = False
    crossed: bool = False


Event = Reply | CancelNotice | ChannelEnded


def channel_error(number: int, reply_code: int, reply_text: str, class_id: int, method_id: int) -> ChannelClosed:
    """Makes the typed error for a channel.close.

    Args:
        number: The channel.
        reply_code: AMQP 0-9-1 section 1.1.
        reply_text: As the server sent it.
        class_id: The method that failed.
        method_id: The method that failed.

    Returns:
        For 406 with an argument that differs, `PreconditionFailed` says which one.
    """
    text = printable(reply_text, 1024)
    by = f" by {commands.method_name(class_id, method_id)}" if class_id else ""
    error = _BY_CODE.get(reply_code, ChannelClosed)(
        f"the server closed channel {number}{by}: {reply_code} {text}",
        reply_code=reply_code,
        reply_text=text,
        class_id=class_id,
        method_id=method_id,
    )
    found = _INEQUIVALENT.search(text)
    if found and isinstance(error, PreconditionFailed):
        error.argument, error.wanted, error.actual = (
            part or "" for part in found.group("argument", "wanted", "actual")
        )
    return error


class ChannelState:
    """One channel of a client.

    Requests are answered in the order they were made (AMQP 0-9-1 section 2.3), so answers are paired by a queue; only
    basic.consume and basic.cancel may be answered later. A request that its caller gave up keeps its place there, so
    that its late answer is not taken for the answer to another.

    Args:
        out: Where frames are appended.
        number: The channel number.
        frame_max: The negotiated limit of a frame in bytes; a method must fit one (AMQP 0-9-1 section 4.2.3).
        max_table_depth: Limit for tables from the server.
        max_table_entries: Limit for tables from the server.
    """

    def __init__(
        self,
        out: SendBuffer,
        number: int,
        *,
        frame_max: int = 131_072,
        max_table_depth: int = 32,
        max_table_entries: int = 16384,
    ) -> None:
        self.number = number
        self._frame_max = frame_max
        self.phase = ChannelPhase.IDLE
        self._out = out
        self._table_limits = {"max_table_depth": max_table_depth, "max_table_entries": max_table_entries}
        self._requests: deque[tuple[tuple[str, ...], Any]] = deque()
        self._abandoned: Any = None

    @property
    def unanswered(self) -> int:
        """The number of requests that wait for their answer."""
        return len(self._requests)

    # ------------------------------------------------------------------ what this side does

    def open(self, token: Any) -> None:
        """Sends channel.open; a `Reply` follows."""
        if self.phase is not ChannelPhase.IDLE:
            raise LocalProtocolError(f"channel {self.number} is {self.phase.value}; it cannot be opened")
        self._move(ChannelPhase.OPENING)
        self._request(commands.make(Channel.Open, out_of_band=""), token)

    def request(self, method: commands.Method, token: Any) -> None:
        """Sends a method that is answered; a `Reply` follows.

        Args:
            method: From `commands.make`.
            token: Comes back with the answer.

        Raises:
            LocalProtocolError: The channel is not open; nothing was sent.
            EncodeFailed: An argument does not fit; nothing was sent.
        """
        if self.phase is not ChannelPhase.OPEN:
            name = commands.spec_of(type(method)).name
            raise LocalProtocolError(f"channel {self.number} is {self.phase.value}; {name} was not sent")
        self._request(method, token)

    def close(self, token: Any, reply_code: int = REPLY_SUCCESS, reply_text: str = "") -> None:
        """Sends channel.close; `ChannelEnded` follows."""
        if self.phase is not ChannelPhase.OPEN:
            raise LocalProtocolError(f"channel {self.number} is {self.phase.value}; it cannot be closed")
        self._close(token, reply_code, reply_text)

    def abandon(self, token: Any) -> None:
        """Closes the channel: now when it is open, or as soon as it is open; otherwise it does nothing.

        Args:
            token: Comes back with the `ChannelEnded` that may follow.
        """
        if self.phase is ChannelPhase.OPEN:
            self._close(token)
        elif self.phase is ChannelPhase.OPENING:
            self._move(ChannelPhase.ABANDONED)
            self._abandoned = token

    def _close(self, token: Any, reply_code: int = REPLY_SUCCESS, reply_text: str = "") -> None:
        self._move(ChannelPhase.CLOSING)
        self._request(
            commands.make(Channel.Close, reply_code=reply_code, reply_text=reply_text, class_id=0, method_id=0), token
        )

    def _move(self, phase: ChannelPhase) -> None:
        self.phase = moved(CHANNEL_TRANSITIONS, self.phase, phase)

    def _request(self, method: commands.Method, token: Any) -> None:
        # Encoded first: when an argument does not fit, no place in the queue was taken.
        frame = commands.encode(self.number, method)
        if field := commands.not_utf8(method):
            name = commands.spec_of(type(method)).name
            raise EncodeFailed(f"{name} {field} is no UTF-8; RabbitMQ ends a connection on which such a name comes")
        if len(frame) > self._frame_max:
            name = commands.spec_of(type(method)).name
            raise EncodeFailed(f"{name} takes {len(frame)} bytes; the negotiated frame_max is {self._frame_max}")
        self._out.append(frame)
        self._requests.append((commands.spec_of(type(method)).replies, token))

    def _take(self, name: str) -> Any:
        for index, (replies, token) in enumerate(self._requests):
            if name in replies:
                del self._requests[index]
                return token
            if not _OVERTAKEN.issuperset(replies):
                break
        due = " or ".join(self._requests[0][0]) if self._requests else "nothing"
        raise RemoteProtocolError(f"the server answered {name} on channel {self.number}, where {due} was due")

    def _end(self, error: LeveretError | None, *, by_server: bool = False, crossed: bool = False) -> ChannelEnded:
        if self.phase is not ChannelPhase.CLOSED:
            self._move(ChannelPhase.CLOSED)
        tokens = tuple(token for _, token in self._requests)
        self._requests.clear()
        return ChannelEnded(error, tokens, by_server, crossed)

    def lost(self, error: LeveretError | None) -> ChannelEnded:
        """The connection is over."""
        return self._end(error)

    # ------------------------------------------------------------------ what the server says

    def receive(self, frame: MethodFrame) -> Event | None:
        """Takes a method frame of this channel.

        Args:
            frame: From the frame reader.

        Returns:
            What happened, if it matters above.

        Raises:
            RemoteProtocolError: The server broke the protocol; close the connection with its `reply_code`.
        """
        if self.phase is ChannelPhase.CLOSED:
            return None
        method = commands.decode(frame, **self._table_limits)
        if isinstance(method, Channel.Close):
            self._out.append(commands.encode(self.number, commands.make(Channel.CloseOk)))
            if self.phase is ChannelPhase.CLOSING:
                return self._end(None, by_server=True, crossed=True)
            return self._end(
                channel_error(
                    self.number,
                    method.reply_code or 0,
                    method.reply_text or "",
                    method.class_id or 0,
                    method.method_id or 0,
                ),
                by_server=True,
            )
        if isinstance(method, Channel.CloseOk):
            if self.phase is not ChannelPhase.CLOSING:
                raise RemoteProtocolError(f"channel.close-ok while channel {self.number} is {self.phase.value}")
            return self._end(None)
        if self.phase is ChannelPhase.CLOSING:
            # Everything but close and close-ok is to be dropped (AMQP 0-9-1 section 2.2.4).
            return None
        if isinstance(method, _CONTENT):
            # The frame reader takes content on open channels only.
            raise RemoteProtocolError(
                f"content on channel {self.number} while {self.phase.value}", reply_code=CHANNEL_ERROR
            )
        if isinstance(method, Channel.Flow):
            # RabbitMQ does not send it; answering keeps other brokers content.
            self._out.append(commands.encode(self.number, commands.make(Channel.FlowOk, active=method.active)))
            return None
        if isinstance(method, Basic.Cancel):
            return CancelNotice(method.consumer_tag or "")
        token = self._take(type(method).name)
        if isinstance(method, Channel.OpenOk):
            if self.phase is ChannelPhase.ABANDONED:
                self._close(self._abandoned)
            else:
                self._move(ChannelPhase.OPEN)
        return Reply(token, method)

    def receive_get(self, run: ContentRun) -> list[Reply]:
        """Takes the messages that basic.get-ok brought."""
        if self.phase is not ChannelPhase.OPEN:
            return []
        return [Reply(self._take("Basic.GetOk"), None, message) for message in run.messages]
