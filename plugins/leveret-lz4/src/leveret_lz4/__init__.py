"""LZ4 compression for Leveret: the compressor "lz4".

    client.producer(compressor="lz4")
    client.consumer("orders", Order)  # decompresses by the content encoding

Bodies are LZ4 frames, which the `lz4` command and other languages read and write.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import lz4.frame

from leveret.errors import BodyTooLarge
from leveret.plugins import CompressorSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["COMPRESSOR", "BlockTooLarge", "LZ4Compressor", "leveret_compressors"]

#: The range in which levels differ. python-lz4 accepts other numbers, and uses the nearest of these.
_LEVELS: Final = (-65_536, 12)
_DEFAULT_LEVEL: Final = 0

# LZ4 Frame Format 1.6.1: a frame begins
#
#   magic 4 | FLG 1 | BD 1 | content size 0 or 8 | dictionary id 0 or 4 | header checksum 1
_MAGIC: Final = b"\x04\x22\x4d\x18"
_FLG: Final = 4
_HAS_DICTIONARY: Final = 0b0001
_HAS_SIZE: Final = 0b1000
_HEADER_SIZE: Final = 7
_CONTENT_SIZE_SIZE: Final = 8
#: The block sizes, and their codes in BD.
_BLOCK_SIZES: Final = {1 << 16: 4, 1 << 18: 5, 1 << 20: 6, 1 << 22: 7}
#: The most decompressed bytes for each compressed one (LZ4 Block Format: a byte adds at most 255 bytes to a match).
_MAX_RATIO: Final = 255

# Memory, in bytes. Body and working memory must fit into `max_size` and 1 MiB.
#: The size of a chunk of output. python-lz4 copies it, so it takes twice the memory.
_CHUNK: Final = 1 << 15
#: Bodies up to this size are joined from their chunks. For larger ones that would take their size twice.
_SMALL: Final = 1 << 18
#: The memory above `max_size` for the body and the decoder's block together. The rest of the MiB is for chunks and for
#: the decoder's window of 64 KiB.
_ROOM: Final = (1 << 20) - (1 << 18)


class BlockTooLarge(ValueError):
    """The blocks of a frame need more memory than the body's limit allows."""


class LZ4Compressor:
    """The LZ4 frame format.

    Frames have blocks of at most 64 KiB, the size of their content, and a checksum, so that damaged frames are refused.

    Args:
        level: -65,536 to 12; None is 0, LZ4's default. Lower levels are faster and compress less. From 3 on LZ4
            searches harder.
    """

    def __init__(self, level: int | None = None) -> None:
        self._level = _DEFAULT_LEVEL if level is None else level

    def compress(self, data: bytes, /) -> bytes:
        """Compresses into one frame."""
        frame: bytes = lz4.frame.compress(data, compression_level=self._level, content_checksum=True, store_size=True)
        return frame

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        """Decompresses one frame, in memory of at most `max_size` bytes and 1 MiB more.

        Args:
            data: One frame, from any LZ4 implementation.
            max_size: The most bytes to return.

        Returns:
            The body.

        Raises:
            BodyTooLarge: The body has more than `max_size` bytes, or the frame claims so.
            BlockTooLarge: The frame has blocks of 1 or 4 MiB, which the decoder must hold beside the body, and both do
                not fit into the memory. Bodies of up to `max_size` - 3.25 MiB always fit.
            ValueError: The data is not an LZ4 frame, is truncated, is followed by other bytes, or needs a dictionary.
            RuntimeError: The frame is malformed.
        """
        frame = _Frame(data)
        size = frame.content_size
        if size is not None and size > max_size:
            raise BodyTooLarge(f"the body claims {size} bytes, more than {max_size}")
        # Limits a claimed size to what so many compressed bytes can become.
        most = min(max_size if size is None else size, len(data) * _MAX_RATIO)
        if most <= _SMALL:
            return b"".join(frame.chunks(most, _SMALL))
        if size is not None and size > most:
            raise ValueError(f"the body claims {size} bytes, which is impossible for {len(data)} compressed bytes")
        block_size = min(frame.block_size, _block_size(max_size + _ROOM))
        if size is None or frame.block_size > _SMALL:
            # A first pass counts the bytes. Without the size, the growing body would be copied repeatedly; and a block
            # could have more bytes than the frame claims.
            size, body = _measure(frame, most, block_size)
            if body is not None:
                return body
        if size + min(size, block_size) > max_size + _ROOM:
            raise BlockTooLarge(
                f"the body's {size} bytes, with blocks of up to {block_size} bytes, need more memory than a limit of "
                f"{max_size} bytes allows"
            )
        return _collect(frame, size, block_size)


def _measure(frame: _Frame, max_size: int, block_size: int) -> tuple[int, bytes | None]:
    """Counts the bytes of a body. Also returns the body if it is a single chunk."""
    size = 0
    first = b""
    for chunk in frame.chunks(max_size, block_size):
        first = first or chunk
        size += len(chunk)
    return size, first if len(first) == size else None


def _collect(frame: _Frame, size: int, block_size: int) -> bytes:
    """Decompresses a body of a known size into one buffer of that size."""
    body = BytesIO()
    body.seek(size - 1)
    body.write(b"\0")
    body.seek(0)
    for chunk in frame.chunks(size, block_size):
        body.write(chunk)
    # CPython returns the buffer without a copy.
    return body.getvalue()


def _block_size(room: int) -> int:
    """Returns the largest block size that fits into `room`, at least 256 KiB, which always fits."""
    return max(size for size in _BLOCK_SIZES if size <= max(room, _SMALL))


class _Frame:
    """A frame with its decoded header.

    Args:
        data: The frame.

    Attributes:
        block_size: The largest block, according to the header.
        content_size: The size of the body according to the header, or None.
    """

    def __init__(self, data: bytes) -> None:
        # Skippable and legacy frames begin with other numbers.
        if data[:_FLG] != _MAGIC:
            raise ValueError("the compressed body is not an LZ4 frame")
        self._data = data
        self._header: dict[str, Any] = lz4.frame.get_frame_info(data)
        # One context for all passes: a second one would not reuse the memory of the first.
        self._context = lz4.frame.create_decompression_context()
        if data[_FLG] & _HAS_DICTIONARY:
            raise ValueError("the compressed body needs a dictionary")
        self.block_size: int = self._header["block_size"]
        self.content_size: int | None = self._header["content_size"] or None

    def chunks(self, max_size: int, block_size: int) -> Iterator[bytes]:
        """Decompresses the frame from its beginning, in chunks.

        Args:
            max_size: The most bytes to yield. A larger body is an error.
            block_size: The most memory that the decoder may use for a block.
        """
        context = self._context
        lz4.frame.reset_decompression_context(context)
        view = memoryview(self._data)
        position = 0
        # The header keeps its block size if the data is too short to fill a larger block.
        smaller = block_size < min(self.block_size, len(view) * _MAX_RATIO)
        if smaller:
            lz4.frame.decompress_chunk(context, self._header_with(block_size))
            position = _HEADER_SIZE + (_CONTENT_SIZE_SIZE if self._data[_FLG] & _HAS_SIZE else 0)
        left = max_size
        ended = False
        while not ended:
            # Not LZ4FrameDecompressor, which copies the unread input after each chunk.
            try:
                # One byte above the limit distinguishes a body of exactly that size from one that is too large.
                chunk, read, ended = lz4.frame.decompress_chunk(
                    context, view[position:], max_length=min(_CHUNK, left + 1)
                )
            except RuntimeError as error:
                if not smaller:
                    raise
                raise self._too_large(max_size, block_size) from error
            position += read
            left -= len(chunk)
            if left < 0 and self.content_size is not None:
                raise ValueError(f"the body has more than the {self.content_size} bytes that it claims")
            if left < 0:
                raise BodyTooLarge(f"the body decompresses to more than {max_size} bytes")
            if chunk:
                yield chunk
            elif not (read or ended):
                raise ValueError("the compressed body is truncated")
        if position < len(view):
            raise ValueError(f"{len(view) - position} bytes follow the compressed body")

    def _header_with(self, block_size: int) -> bytes:
        """Returns the frame's header with a smaller block size, so that the decoder refuses larger blocks."""
        header = self._header
        writer = lz4.frame.LZ4FrameCompressor(
            block_size=_BLOCK_SIZES[block_size],
            block_linked=header["block_linked"],
            block_checksum=header["block_checksum"],
            content_checksum=header["content_checksum"],
        )
        made: bytes = writer.begin(source_size=header["content_size"])
        return made

    def _too_large(self, max_size: int, block_size: int) -> Exception:
        if block_size < max_size:
            return BlockTooLarge(
                f"the body is malformed, or has a block of more than {block_size} bytes, which does not fit into the "
                "memory for it"
            )
        if self.content_size is not None:
            return ValueError(f"the body is malformed, or has more than the {self.content_size} bytes that it claims")
        return BodyTooLarge(f"the body is malformed, or decompresses to more than {max_size} bytes")


#: The compressor "lz4".
COMPRESSOR: Final = CompressorSpec(
    name="lz4", content_encoding="lz4", factory=LZ4Compressor, levels=_LEVELS, api_version=1
)


@hookimpl
def leveret_compressors() -> Iterable[CompressorSpec]:
    """Returns the compressor "lz4"."""
    return [COMPRESSOR]
