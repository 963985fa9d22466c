"""LZ4 compression for Leveret: the compressor "lz4".

    client.producer(compressor="lz4")
    client.consumer("orders", Order)  # goes by the content encoding

Bodies are LZ4 frames, which the `lz4` command and other languages read and write.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import lz4.frame  # type: ignore[import-untyped]

from leveret.errors import BodyTooLarge
from leveret.plugins import CompressorSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["COMPRESSOR", "BlockTooLarge", "LZ4Compressor", "leveret_compressors"]

#: The range in which each level makes a difference: python-lz4 takes any number, and gives it the nearest of these.
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
#: The block sizes that there are, and what they are called in BD.
_BLOCK_SIZES: Final = {1 << 16: 4, 1 << 18: 5, 1 << 20: 6, 1 << 22: 7}
#: LZ4 Block Format: a byte of a block adds at most 255 bytes to a match.
_MAX_RATIO: Final = 255

# Memory, in bytes. Everything but the body itself has to fit into 1 MiB more than `max_size`.
#: What is decompressed at a time. It is there twice, because python-lz4 copies it.
_CHUNK: Final = 1 << 15
#: A body of up to this size is made of chunks that are kept; for a longer one they would take its size once more.
_SMALL: Final = 1 << 18
#: What the body and the decoder's block may take together beyond `max_size`. The rest of the MiB is for chunks and for
#: the 64 KiB that the decoder remembers.
_ROOM: Final = (1 << 20) - (1 << 18)


class BlockTooLarge(ValueError):
    """A frame has blocks that need more memory than the limit of the body allows."""


class LZ4Compressor:
    """The LZ4 frame format.

    Frames have blocks of at most 64 KiB, tell the size of their content and have a checksum of it: one that was damaged
    on its way is refused.

    Args:
        level: -65,536 to 12. 0 is LZ4's own default, and what None stands for: its fastest level that looks for matches
            everywhere. Below 0 it skips more and more, and is faster. From 3 on it looks harder.
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
            data: One frame, of any writer.
            max_size: The most bytes to return.

        Returns:
            The body.

        Raises:
            BodyTooLarge: It has, or says that it has, more than `max_size` bytes.
            BlockTooLarge: The frame has blocks of 1 or 4 MiB, which the decoder has to hold as a whole beside the body,
                and both together do not fit. Bodies of up to `max_size` - 3.25 MiB always do.
            ValueError: It is no LZ4 frame, is cut off, has something behind it, or needs a dictionary.
            RuntimeError: It is malformed.
        """
        frame = _Frame(data)
        size = frame.content_size
        if size is not None and size > max_size:
            raise BodyTooLarge(f"the body says that it has {size} bytes, more than {max_size}")
        # What the frame says is believed only as far as so few bytes can become so many.
        most = min(max_size if size is None else size, len(data) * _MAX_RATIO)
        if most <= _SMALL:
            return b"".join(frame.chunks(most, _SMALL))
        if size is not None and size > most:
            raise ValueError(f"the body says that it has {size} bytes, which {len(data)} compressed bytes cannot be")
        block_size = min(frame.block_size, _block_size(max_size + _ROOM))
        if size is None or frame.block_size > _SMALL:
            # A first pass counts. A body that grew while it is made would be copied again and again; and a block could
            # have more bytes than the frame says that it has altogether.
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
    """Counts the bytes of a body; returns the body as well when it is one chunk."""
    size = 0
    first = b""
    for chunk in frame.chunks(max_size, block_size):
        first = first or chunk
        size += len(chunk)
    return size, first if len(first) == size else None


def _collect(frame: _Frame, size: int, block_size: int) -> bytes:
    """Makes a body of a known size, in memory of that size and not twice."""
    body = BytesIO()
    body.seek(size - 1)
    body.write(b"\0")
    body.seek(0)
    for chunk in frame.chunks(size, block_size):
        body.write(chunk)
    # CPython hands its buffer over and does not copy it.
    return body.getvalue()


def _block_size(room: int) -> int:
    """The largest block size that fits, or the second smallest, for which there is always room."""
    return max(size for size in _BLOCK_SIZES if size <= max(room, _SMALL))


class _Frame:
    """A frame whose header was read.

    Args:
        data: The frame.

    Attributes:
        block_size: The most bytes that a block has, as the header says.
        content_size: What the header says, or None.
    """

    def __init__(self, data: bytes) -> None:
        # Skippable and legacy frames begin with other numbers, and blocks without a frame with anything.
        if data[:_FLG] != _MAGIC:
            raise ValueError("the compressed body is no LZ4 frame")
        self._data = data
        self._header: dict[str, Any] = lz4.frame.get_frame_info(data)
        # One for all passes: a second one would not use the memory of the first, which malloc often keeps.
        self._context = lz4.frame.create_decompression_context()
        if data[_FLG] & _HAS_DICTIONARY:
            raise ValueError("the compressed body needs a dictionary")
        self.block_size: int = self._header["block_size"]
        self.content_size: int | None = self._header["content_size"] or None

    def chunks(self, max_size: int, block_size: int) -> Iterator[bytes]:
        """Decompresses piece by piece, from the beginning each time.

        Args:
            max_size: The most bytes to yield; a body with more is too large.
            block_size: The most memory that the decoder may use for a block.
        """
        context = self._context
        lz4.frame.reset_decompression_context(context)
        view = memoryview(self._data)
        position = 0
        # So few bytes that they cannot fill a block need no smaller one.
        smaller = block_size < min(self.block_size, len(view) * _MAX_RATIO)
        if smaller:
            lz4.frame.decompress_chunk(context, self._header_with(block_size))
            position = _HEADER_SIZE + (_CONTENT_SIZE_SIZE if self._data[_FLG] & _HAS_SIZE else 0)
        left = max_size
        ended = False
        while not ended:
            # Not LZ4FrameDecompressor: after each piece it copies what it has not read yet.
            try:
                # One byte more than is allowed tells "exactly full" from "too large".
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
                raise ValueError(f"the body has more than the {self.content_size} bytes that it says it has")
            if left < 0:
                raise BodyTooLarge(f"the body decompresses to more than {max_size} bytes")
            if chunk:
                yield chunk
            elif not (read or ended):
                raise ValueError("the compressed body is cut off")
        if position < len(view):
            raise ValueError(f"{len(view) - position} bytes follow the compressed body")

    def _header_with(self, block_size: int) -> bytes:
        """The frame's header with a smaller block size: the decoder allocates no more, and refuses larger blocks."""
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
                f"the body is malformed, or has a block of more than {block_size} bytes, for which the limit leaves no "
                "memory"
            )
        if self.content_size is not None:
            return ValueError(
                f"the body is malformed, or has more than the {self.content_size} bytes that it says it has"
            )
        return BodyTooLarge(f"the body is malformed, or decompresses to more than {max_size} bytes")


#: The compressor "lz4".
COMPRESSOR: Final = CompressorSpec(
    name="lz4", content_encoding="lz4", factory=LZ4Compressor, levels=_LEVELS, api_version=1
)


@hookimpl
def leveret_compressors() -> Iterable[CompressorSpec]:
    """The compressor "lz4"."""
    return [COMPRESSOR]
