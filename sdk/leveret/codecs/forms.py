"""The form of a body: the content type, content encoding and original size that its properties tell."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from leveret.plugins.loading import comparable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["NO_ENCODINGS", "ORIGINAL_SIZE", "Form", "OriginalSize", "media_types"]

#: The header with the size of a compressed body before compression, in bytes.
ORIGINAL_SIZE: Final = "original-size"
_LONGLONG: Final = struct.Struct(">q")
#: Content encodings that change nothing. Some clients write the character sets for text.
NO_ENCODINGS: Final = frozenset({"", "identity", "utf-8", "us-ascii", "binary"})


def media_types(content_type: str) -> Iterator[str]:
    """Yields the content types under which a serializer for this one may be registered, the most specific first.

    They are the type as it is, without its parameters, and the type of its structured syntax suffix (RFC 6838 section
    4.2.8): `application/vnd.shop.order+json; v=2` is `application/json`.
    """
    key = comparable(content_type)
    yield key
    kind = key.partition(";")[0]
    if kind != key:
        yield kind
    suffix = kind.rpartition("+")[2]
    if suffix != kind and "/" not in suffix:
        yield f"application/{suffix}"


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
