"""Zstandard compression for Leveret: the compressor "zstd".

    client.producer(compressor="zstd")
    client.consumer("orders", Order)  # decompresses by the content encoding

Bodies are Zstandard frames (RFC 8878), which the `zstd` command and other languages read and write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import zstandard

from leveret.errors import BodyTooLarge
from leveret.plugins import CompressorSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["COMPRESSOR", "WindowTooLarge", "ZstdCompressor", "leveret_compressors"]

#: The lowest level is -ZSTD_TARGETLENGTH_MAX of zstd.h, which python-zstandard does not export.
_LEVELS: Final = (-131_072, zstandard.MAX_COMPRESSION_LEVEL)
_DEFAULT_LEVEL: Final = 3

# RFC 8878 section 3.1.1: a frame begins
#
#   magic 4 | descriptor 1 | window descriptor 0 or 1 | dictionary id 0 to 4 | content size 0 to 8
#
# Skippable frames and those of zstd before 0.8 begin with other numbers.
_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_DESCRIPTOR: Final = 4
_SIZE_OF_8_BYTES: Final = 0b1100_0000
#: The largest window. RFC 8878 section 3.1.1.1.2 recommends that decoders support 8 MiB, and that encoders use no more.
_MAX_WINDOW: Final = 8 << 20
#: The smallest limit for a window that zstd accepts.
_NO_WINDOW: Final = 1 << 10

# Memory, in bytes. Body and working memory must fit into `max_size` and 1 MiB.
#: The size of a chunk of output.
_CHUNK: Final = 1 << 16
#: The memory above `max_size` for the body together with its window, or a copy of the frame. The rest of the MiB is for
#: the chunk and for zstd's own memory: two blocks of 128 KiB, and tables.
_ROOM: Final = (1 << 20) - (1 << 19)


class WindowTooLarge(ValueError):
    """Decompressing a frame needs more memory than the body's limit allows."""


class ZstdCompressor:
    """Zstandard.

    Frames have the size of their content and a checksum, so that damaged frames are refused.

    Args:
        level: -131,072 to 22; None and 0 are 3, zstd's default. Lower levels are faster and compress less. From 20 on,
            large bodies take hundreds of MiB of memory.
    """

    def __init__(self, level: int | None = None) -> None:
        self._compressor = zstandard.ZstdCompressor(
            level=_DEFAULT_LEVEL if level is None else level, write_checksum=True, write_content_size=True
        )
        # A frame with a size is decompressed directly into the body, which also serves as window. For a truncated frame
        # zstd would allocate a window; with this limit it raises instead.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_NO_WINDOW)

    def compress(self, data: bytes, /) -> bytes:
        """Compresses into one frame."""
        return self._compressor.compress(data)

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        """Decompresses one frame, in memory of at most `max_size` bytes and 1 MiB more.

        Args:
            data: One frame, from any zstd implementation.
            max_size: The most bytes to return.

        Returns:
            The body.

        Raises:
            BodyTooLarge: The body has more than `max_size` bytes, or the frame claims so.
            WindowTooLarge: The frame has no size, and zstd's memory beside the body does not fit: the window, or a copy
                of the frame if that is smaller. It always fits for frames of up to 512 KiB and for bodies of up to
                `max_size` - 7.5 MiB. Also raised for a window of more than 8 MiB.
            ValueError: The data is not a Zstandard frame, is truncated, is followed by other bytes, or needs a
                dictionary.
            zstandard.ZstdError: The frame is malformed, truncated, or followed by other bytes.
        """
        if data[: len(_MAGIC)] != _MAGIC:
            raise ValueError("the compressed body is not a Zstandard frame")
        header = zstandard.get_frame_parameters(data)
        if header.dict_id:
            raise ValueError(f"the compressed body needs the dictionary {header.dict_id}")
        size = header.content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            return self._decompress_unsized(data, max_size, header.window_size)
        if size > max_size:
            raise BodyTooLarge(f"the body claims {size} bytes, more than {max_size}")
        if size == 0:
            # For a claimed size of 0, python-zstandard does not check the rest of the frame.
            _expect_nothing(data)
            return b""
        return self._decompressor.decompress(data, allow_extra_data=False)

    def _decompress_unsized(self, data: bytes, max_size: int, window_size: int) -> bytes:
        """Decompresses a frame without a size."""
        if window_size > _MAX_WINDOW:
            raise WindowTooLarge(
                f"the compressed body has no size, and a window of {window_size} bytes; at most {_MAX_WINDOW} are "
                "allowed"
            )
        size = _measure(data, max_size)
        if not size:
            _expect_nothing(data)
            return b""
        if size + min(size, window_size, len(data)) > max_size + _ROOM:
            raise WindowTooLarge(
                f"the compressed body has no size; its {size} bytes and a window of {window_size} bytes need more "
                f"memory than a limit of {max_size} bytes allows"
            )
        if len(data) < window_size:
            return self._decompressor.decompress(_sized(data, size), allow_extra_data=False)
        # With exactly this output size, python-zstandard checks whether other bytes follow.
        body = _windowed().decompress(data, max_output_size=size, allow_extra_data=False)
        if len(body) != size:
            raise ValueError("another frame follows the compressed body")
        return body


def _windowed() -> zstandard.ZstdDecompressor:
    # A new one for each use, because it keeps its window, which would add to the memory of the next step.
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)


def _measure(data: bytes, max_size: int) -> int:
    """Counts the bytes of a body. It does not check that the frame is complete, or that no bytes follow."""
    reader = _windowed().stream_reader(data)
    size = 0
    while True:
        read = len(reader.read(_CHUNK))
        size += read
        if size > max_size:
            raise BodyTooLarge(f"the body decompresses to more than {max_size} bytes")
        if read < _CHUNK:
            # End of the frame or of the data. The next read would go on to a following frame.
            return size


def _expect_nothing(data: bytes) -> None:
    """Raises ValueError unless a frame without content is complete and no bytes follow."""
    rest = _windowed().decompressobj()
    # The output is not limited here, but zstd raises if a frame has more content than it claims.
    rest.decompress(data)
    if not rest.eof:
        raise ValueError("the compressed body is truncated")
    if rest.unused_data:
        raise ValueError(f"{len(rest.unused_data)} bytes follow the compressed body")


def _sized(data: bytes, size: int) -> bytes:
    """Returns a copy of a frame with the size of its content in the header."""
    end = zstandard.frame_header_size(data)
    descriptor = data[_DESCRIPTOR] | _SIZE_OF_8_BYTES
    return b"".join(
        (_MAGIC, bytes((descriptor,)), data[_DESCRIPTOR + 1 : end], size.to_bytes(8, "little"), memoryview(data)[end:])
    )


#: The compressor "zstd".
COMPRESSOR: Final = CompressorSpec(
    name="zstd", content_encoding="zstd", factory=ZstdCompressor, levels=_LEVELS, api_version=1
)


@hookimpl
def leveret_compressors() -> Iterable[CompressorSpec]:
    """Returns the compressor "zstd"."""
    return [COMPRESSOR]
