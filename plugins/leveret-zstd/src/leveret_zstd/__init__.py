"""Zstandard compression for Leveret: the compressor "zstd".

    client.producer(compressor="zstd")
    client.consumer("orders", Order)  # goes by the content encoding

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

#: zstd.h: the lowest is -ZSTD_TARGETLENGTH_MAX, which python-zstandard does not pass on.
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
#: RFC 8878 section 3.1.1.1.2 recommends that decoders take windows of at least 8 MiB, and that encoders write none that
#: are larger.
_MAX_WINDOW: Final = 8 << 20
#: The smallest window that zstd lets itself be limited to.
_NO_WINDOW: Final = 1 << 10

# Memory, in bytes. Everything but the body itself has to fit into 1 MiB more than `max_size`.
#: What is decompressed at a time.
_CHUNK: Final = 1 << 16
#: What the body, and its window or a copy of the frame, may take together beyond `max_size`. The rest of the MiB is for
#: the chunk and for what zstd has beside the window: two blocks of 128 KiB and its tables.
_ROOM: Final = (1 << 20) - (1 << 19)


class WindowTooLarge(ValueError):
    """A frame needs more memory to be decompressed than the limit of its body allows."""


class ZstdCompressor:
    """Zstandard.

    Frames tell the size of their content and have a checksum of it: one that was damaged on its way is refused.

    Args:
        level: -131,072 to 22. 3 is zstd's own default, and what None and 0 stand for. Below 0 it is faster and
            compresses less; from 20 on it takes hundreds of MiB of memory for large bodies.
    """

    def __init__(self, level: int | None = None) -> None:
        self._compressor = zstandard.ZstdCompressor(
            level=_DEFAULT_LEVEL if level is None else level, write_checksum=True, write_content_size=True
        )
        # A frame that tells its size is decompressed straight into the body, which serves as its window, too. Only when
        # it turns out to be cut off, zstd would allocate a window after all: this has it raise instead.
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_NO_WINDOW)

    def compress(self, data: bytes, /) -> bytes:
        """Compresses into one frame."""
        return self._compressor.compress(data)

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        """Decompresses one frame, in memory of at most `max_size` bytes and 1 MiB more.

        Args:
            data: One frame, of any writer.
            max_size: The most bytes to return.

        Returns:
            The body.

        Raises:
            BodyTooLarge: It has, or says that it has, more than `max_size` bytes.
            WindowTooLarge: The frame does not tell its size, and what zstd needs beside the body does not fit: the
                smaller of the frame itself and its window. It always fits for frames of up to 512 KiB and for bodies of
                up to `max_size` - 7.5 MiB. Or the window has more than 8 MiB.
            ValueError: It is no Zstandard frame, is cut off, has something behind it, or needs a dictionary.
            zstandard.ZstdError: It is malformed, cut off, or has something behind it.
        """
        if data[: len(_MAGIC)] != _MAGIC:
            raise ValueError("the compressed body is no Zstandard frame")
        header = zstandard.get_frame_parameters(data)
        if header.dict_id:
            raise ValueError(f"the compressed body needs the dictionary {header.dict_id}")
        size = header.content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN:
            return self._decompress_unsized(data, max_size, header.window_size)
        if size > max_size:
            raise BodyTooLarge(f"the body says that it has {size} bytes, more than {max_size}")
        if size == 0:
            # python-zstandard would take its word and not look at the rest.
            _expect_nothing(data)
            return b""
        return self._decompressor.decompress(data, allow_extra_data=False)

    def _decompress_unsized(self, data: bytes, max_size: int, window_size: int) -> bytes:
        """Decompresses a frame that does not tell its size."""
        if window_size > _MAX_WINDOW:
            raise WindowTooLarge(
                f"the compressed body does not tell its size and has a window of {window_size} bytes, more than the "
                f"{_MAX_WINDOW} that are taken"
            )
        size = _measure(data, max_size)
        if not size:
            _expect_nothing(data)
            return b""
        if size + min(size, window_size, len(data)) > max_size + _ROOM:
            raise WindowTooLarge(
                f"the compressed body does not tell its size; its {size} bytes, with a window of {window_size} bytes, "
                f"need more memory than a limit of {max_size} bytes allows"
            )
        if len(data) < window_size:
            return self._decompressor.decompress(_sized(data, size), allow_extra_data=False)
        # With room for exactly as much as there is, python-zstandard looks whether anything follows.
        body = _windowed().decompress(data, max_output_size=size, allow_extra_data=False)
        if len(body) != size:
            raise ValueError("another frame follows the compressed body")
        return body


def _windowed() -> zstandard.ZstdDecompressor:
    # Never kept: it holds on to its window, which would count when the body is made.
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)


def _measure(data: bytes, max_size: int) -> int:
    """Counts the bytes that there are, without keeping them. It does not see whether the frame is whole and alone."""
    reader = _windowed().stream_reader(data)
    size = 0
    while True:
        read = len(reader.read(_CHUNK))
        size += read
        if size > max_size:
            raise BodyTooLarge(f"the body decompresses to more than {max_size} bytes")
        if read < _CHUNK:
            # The frame ended, or the data. Reading on would go over to the next frame, as it does after full chunks.
            return size


def _expect_nothing(data: bytes) -> None:
    """Raises unless a frame without content is whole, and nothing follows."""
    rest = _windowed().decompressobj()
    # This could return any amount; but zstd raises when there is more than a frame announces, and stops at its end.
    rest.decompress(data)
    if not rest.eof:
        raise ValueError("the compressed body is cut off")
    if rest.unused_data:
        raise ValueError(f"{len(rest.unused_data)} bytes follow the compressed body")


def _sized(data: bytes, size: int) -> bytes:
    """A copy of a frame that tells the size of its content."""
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
    """The compressor "zstd"."""
    return [COMPRESSOR]
