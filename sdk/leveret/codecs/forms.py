"""Content types and encodings as they are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from leveret.plugins.plugin import comparable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NO_ENCODINGS", "media_types"]

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
