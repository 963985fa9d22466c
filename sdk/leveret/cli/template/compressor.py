"""$distribution: a compressor for Leveret.

It writes zlib streams (RFC 1950) with its own content encoding. Replace this format by
yours. `leveret.plugins.Compressor` tells what the two functions must do, and which
bodies they must refuse.
"""

from __future__ import annotations

import zlib

from leveret.errors import BodyTooLarge
from leveret.plugins import CompressorSpec, hookimpl

__all__ = ["StreamCompressor", "leveret_compressors"]

_DEFAULT_LEVEL = 6


class StreamCompressor:
    """One zlib stream for each body.

    One object serves one producer or one consumer, in one thread.

    Args:
        level: 1 (fastest) to 9 (smallest); None is 6.
    """

    def __init__(self, level: int | None) -> None:
        self._level = _DEFAULT_LEVEL if level is None else level

    def compress(self, data: bytes, /) -> bytes:
        """Compresses a body into one stream with its checksum."""
        return zlib.compress(data, self._level)

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        """Decompresses a body that came from the network.

        Args:
            data: One stream, with nothing after it.
            max_size: The most bytes to return. At most about twice that is allocated.

        Returns:
            The body.

        Raises:
            BodyTooLarge: The body has more than `max_size` bytes.
            ValueError: The stream is truncated, or other bytes follow it.
            zlib.error: The data is not a zlib stream, or its checksum is wrong.
        """
        stream = zlib.decompressobj()
        # With one byte above the limit, a body that is too large shows.
        body = stream.decompress(data, max_size + 1)
        if len(body) > max_size:
            raise BodyTooLarge(f"the body decompresses to more than {max_size} bytes")
        if not stream.eof:
            raise ValueError("the stream is truncated")
        if stream.unused_data:
            raise ValueError(f"{len(stream.unused_data)} bytes follow the stream")
        return body


@hookimpl
def leveret_compressors() -> list[CompressorSpec]:
    """Returns the plugin's compressors. Called once, when plugins are discovered."""
    return [
        CompressorSpec(
            name="$name",
            content_encoding="x-$name",
            factory=StreamCompressor,
            levels=(1, 9),
            api_version=1,
        )
    ]
