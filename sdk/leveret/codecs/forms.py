"""The form of a body: the content type, content encoding and original size that its properties tell."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ORIGINAL_SIZE", "Form", "OriginalSize"]

#: The header with the size of a compressed body before compression, in bytes.
ORIGINAL_SIZE: Final = "original-size"
_LONGLONG: Final = struct.Struct(">q")


class Form(NamedTuple):
    """Content type and content encoding of a body. Bodies of one form share their properties."""

    content_type: str
    content_encoding: str | None = None


class OriginalSize:
    """Packed properties with an `original-size` header that differs from message to message.

    Args:
        pack: Packs the properties with the given number in that header.
    """

    __slots__ = ("_after", "_before")

    def __init__(self, pack: Callable[[int], bytes]) -> None:
        # The header is a FieldValue of type "l", so the number is always eight bytes wide. The two packings differ
        # in these bytes only.
        zeros, ones = pack(0), pack(-1)
        at = next(i for i, (zero, one) in enumerate(zip(zeros, ones, strict=True)) if zero != one)
        self._before, self._after = zeros[:at], zeros[at + 8 :]

    def of(self, size: int) -> bytes:
        """Returns the packed properties of a body that had `size` bytes before compression."""
        return self._before + _LONGLONG.pack(size) + self._after
