"""Finds where AMQP frames begin and end in bytes that come in pieces of any size."""

from __future__ import annotations

import difflib
import functools
from typing import TYPE_CHECKING, Final, NamedTuple

from pamqp.commands import INDEX_MAPPING

from leveret.errors import ConfigurationError
from leveret.protocol.commands import PROTOCOL_HEADER, method_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FrameSplitter", "Part", "check_kind", "kinds"]

#: A frame's type octet, channel and size before its payload (AMQP 0-9-1 section 4.2.3), and the ids of a method.
_HEAD: Final = 7
_HEAD_AND_METHOD: Final = 11
_METHOD: Final = 1
#: The names of frames that are no methods, by their type octets.
_OTHERS: Final = {2: "header", 3: "body", 8: "heartbeat"}


@functools.cache
def kinds() -> tuple[str, ...]:
    """Returns the names of all kinds of frames: `basic.ack` and so on for methods, `header`, `body`, `heartbeat`."""
    return (*sorted(method_name(index >> 16, index & 0xFFFF) for index in INDEX_MAPPING), *_OTHERS.values())


def check_kind(kind: str) -> None:
    """Checks the name of a kind of frames.

    Raises:
        ConfigurationError: There is no such kind. The text suggests one.
    """
    if kind not in kinds():
        nearest = difflib.get_close_matches(str(kind), kinds(), 1) or ["basic.ack"]
        raise ConfigurationError(
            f"there is no kind of frames {kind!r}; did you mean {nearest[0]!r}? Kinds are methods and {_names()}",
            option="kind",
        )


def _names() -> str:
    return ", ".join(_OTHERS.values())


class Part(NamedTuple):
    """A frame, or as much of it as came.

    Attributes:
        data: The bytes.
        begins: Whether they are the frame's first.
        kind: The frame's kind, for example `basic.ack`, when they are its last; otherwise None.
    """

    data: memoryview
    begins: bool
    kind: str | None


class FrameSplitter:
    """Follows one direction of a connection from its first byte.

    It keeps at most the first 11 bytes of a frame. What is no AMQP is passed on, too, as frames of unknown kinds.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._seen = 0
        self._size = 0  # of the whole frame; 0 until its head is known
        self._is_first = True

    def split(self, data: bytes) -> Iterator[Part]:
        """Yields the parts of frames in the next bytes; joined, they are those bytes."""
        view = memoryview(data)
        while view:
            begins, at = not self._seen, 0
            while at < len(view) and not self._size == self._seen > 0:
                step = view[at : at + (self._size or _HEAD) - self._seen]
                self._head += step[: _HEAD_AND_METHOD - len(self._head)]
                self._seen += len(step)
                at += len(step)
                if self._seen == _HEAD:
                    self._size = self._whole()
            part, view = view[:at], view[at:]
            yield Part(part, begins, self._end() if self._size == self._seen else None)

    def _whole(self) -> int:
        """Returns the size of the frame whose head is complete."""
        if self._is_first and PROTOCOL_HEADER.startswith(self._head[:4]):
            return len(PROTOCOL_HEADER)
        return _HEAD + int.from_bytes(self._head[3:7], "big") + 1

    def _end(self) -> str:
        """Ends a frame; returns its kind."""
        head, size = self._head, self._size
        self._head, self._seen, self._size, self._is_first = bytearray(), 0, 0, False
        if head[0] == _METHOD and size > _HEAD_AND_METHOD:
            return method_name(int.from_bytes(head[7:9], "big"), int.from_bytes(head[9:11], "big"))
        return _OTHERS.get(head[0], f"type {head[0]}")
