"""Frames are found in bytes however they are cut, and schedules of faults are the same for the same seed."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from leveret.errors import ConfigurationError
from leveret.protocol import commands
from leveret.protocol.commands import PROTOCOL_HEADER
from leveret.testing import Fault, FaultProxy, draw_faults
from leveret.testing.frames import FrameSplitter
from leveret.wire.numbers import HEARTBEAT_FRAME

#: As a client sends them: the frames' kinds and bytes.
SENT = [
    ("type 65", PROTOCOL_HEADER),
    ("connection.tune-ok", commands.encode(0, commands.make(commands.Connection.TuneOk))),
    ("heartbeat", HEARTBEAT_FRAME),
    ("basic.publish", commands.encode(1, commands.make(commands.Basic.Publish, routing_key="key"))),
    ("header", b"\x02\x00\x01\x00\x00\x00\x0e\x00\x3c\x00\x00" + bytes(7) + b"\x05\x00\x00\xce"),
    ("body", b"\x03\x00\x01\x00\x00\x00\x05hello\xce"),
    ("body", b"\x03\x00\x01\x00\x00\x00\x00\xce"),
    ("basic.ack", commands.encode(1, commands.make(commands.Basic.Ack, delivery_tag=7))),
]
STREAM = b"".join(frame for _, frame in SENT)


def split(pieces: list[bytes]) -> list[tuple[str, bytes]]:
    """The frames that are found in these pieces: the kind and the bytes of each."""
    splitter, found, frame = FrameSplitter(), [], b""
    for piece in pieces:
        for part in splitter.split(piece):
            assert part.begins == (not frame)
            frame += part.data
            if part.kind is not None:
                found.append((part.kind, frame))
                frame = b""
    assert frame == b"", "the last frame did not end"
    return found


@pytest.mark.parametrize("at", range(len(STREAM)))
def test_frames_are_found_wherever_bytes_are_cut(at: int) -> None:
    assert split([STREAM[:at], STREAM[at:]]) == SENT


def test_frames_are_found_in_single_bytes_and_in_random_pieces() -> None:
    assert split([STREAM[at : at + 1] for at in range(len(STREAM))]) == SENT
    chance = random.Random(1)
    for _ in range(100):
        cuts = sorted(chance.sample(range(1, len(STREAM)), 5))
        assert split([STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]) == SENT


def test_the_same_seed_draws_the_same_faults() -> None:
    drawn = draw_faults(7, 50)
    assert drawn == draw_faults(7, 50)
    assert drawn != draw_faults(8, 50)
    assert draw_faults(7, 20) == drawn[:20]
    assert Counter(fault.kind for fault in drawn).most_common()[-1][1] == 7, "each kind comes as often as the others"
    assert all(0.2 <= fault.after <= 1 for fault in drawn)
    assert {fault.duration for fault in drawn if fault.kind in {"reset", "half_close"}} == {0.0}
    assert all(0.1 <= fault.duration <= 1 for fault in drawn if fault.kind not in {"reset", "half_close"})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"kind": "rest"}, "kind is one of reset, half_close, stall, .*, not 'rest'"),
        ({"kind": "stall", "direction": "up"}, "direction is one of to_client, to_broker, both, not 'up'"),
        ({"kind": "stall", "after": -1}, "after is a number from 0 to 86400, not -1"),
        ({"kind": "stall", "after": "1"}, "after is a number from 0 to 86400, not '1'"),
        ({"kind": "reset", "duration": 1}, "reset happens at once, so its duration is 0, not 1"),
        (
            {"kind": "refuse", "direction": "to_client"},
            'refuse concerns the whole connection, .* "both", not \'to_client',
        ),
        ({"kind": "throttle"}, "throttle needs an amount above 0, not 0"),
        ({"kind": "stall", "amount": 3}, "stall has no amount, not 3"),
    ],
)
def test_a_fault_that_cannot_be_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Fault(**values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"count": -1}, "count is a number from 0 to 1e\\+06, not -1"),
        ({"kinds": ()}, "kinds names no kind of faults"),
        ({"kinds": ["alarm"]}, "kinds is one of reset, .*, not 'alarm'"),
        ({"gap": (2, 1)}, "the second of gap is a number from 2 to 86400, not 1"),
        ({"duration": (-1, 1)}, "the first of duration is a number from 0 to 86400, not -1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        draw_faults(1, **{"count": 1, **values})


@pytest.mark.parametrize(
    "url", ["localhost:5672", "http://localhost", "amqp://", "amqp://a,b/", "amqp://me:secret@a,b"]
)
def test_a_proxy_needs_the_url_of_one_broker(url: str) -> None:
    with pytest.raises(
        ConfigurationError, match="broker_url is amqp://host:port or amqps://host:port, with one host"
    ) as raised:
        FaultProxy(url)
    assert "secret" not in str(raised.value)


def test_a_proxy_that_is_not_started_says_so_without_the_password() -> None:
    proxy = FaultProxy("amqp://me:secret@localhost:5673")
    with pytest.raises(
        RuntimeError, match="<FaultProxy to localhost:5673, not started> is not running: use it with"
    ) as raised:
        proxy.reset()
    assert "secret" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="port is a number from 0 to 65535, not 65536"):
        FaultProxy("amqp://localhost", port=65_536)
