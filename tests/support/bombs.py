"""Compressed bodies that are made to hurt whoever decompresses them, and a program that measures how much they do.

    python -m tests.support.bombs

prints, for each of them, what a consumer's decoder raised and by how many bytes its process grew at most.
"""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import json
import os
import random
import resource
import struct
import zlib
from typing import TYPE_CHECKING

import lz4.block
import lz4.frame
import zstandard

if TYPE_CHECKING:
    from leveret import Message
    from leveret.codecs.decoding import BodyDecoder

MIB = 1 << 20
#: The limit that the measured consumer sets.
MAX_SIZE = 4 * MIB
#: Much larger than the limit; none of it may ever be in memory.
_HUGE = 256 * MIB
_SMALL = b'{"id": 1}' * 100
_NOISE = random.Random(7).randbytes(2 * MIB)

_COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress, "lz4": lz4.frame.compress, "zstd": zstandard.compress}
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LZ4_MAGIC = b"\x04\x22\x4d\x18"


def _zstd_stream(size: int) -> bytes:
    """A frame that does not tell its size."""
    compressor = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(MIB)
    return b"".join([*(compressor.compress(zeros) for _ in range(size // MIB)), compressor.flush()])


def _zstd_run_blocks(blocks: int) -> bytes:
    """A frame of blocks of four bytes that stand for 128 KiB each (RFC 8878 section 3.1.1.2)."""
    block = ((131_072 << 3) | (1 << 1)).to_bytes(3, "little") + b"\0"
    last = ((131_072 << 3) | (1 << 1) | 1).to_bytes(3, "little") + b"\0"
    # No single segment, so there is a window (of 8 MiB) and no content size.
    return _ZSTD_MAGIC + b"\x00" + bytes([13 << 3]) + block * (blocks - 1) + last


def _lz4_claiming(size: int) -> bytes:
    """A short frame whose header says that it has this many bytes, with a right header checksum."""
    writer = lz4.frame.LZ4FrameCompressor()
    return writer.begin(source_size=size) + writer.compress(_SMALL)[: len(_SMALL)]


def bombs() -> dict[str, tuple[str, bytes]]:
    """Content encoding and body by name."""
    zeros = bytes(_HUGE)
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    dictionary = zlib.compressobj(9, zlib.DEFLATED, 15, zdict=b"[1, 2, 3]")
    bomb = gzip.compress(zeros, 9)
    lz4_bomb = lz4.frame.compress(zeros, store_size=False)
    lz4_sized = lz4.frame.compress(zeros, store_size=True)
    zstd_sized = zstandard.ZstdCompressor().compress(zeros)
    zstd_stream = _zstd_stream(_HUGE)
    zstd_small = zstandard.ZstdCompressor().compress(_SMALL)
    return {
        "gzip: 256 MiB of zeros": ("gzip", bomb),
        "gzip: a bomb that is cut off": ("gzip", bomb[:-9]),
        "gzip: a bomb after 2 MiB of noise": ("gzip", gzip.compress(_NOISE + zeros, 1)),
        "gzip: one byte more than is allowed": ("gzip", gzip.compress(_NOISE + _NOISE + b"x", 1)),
        "gzip: cut off": ("gzip", gzip.compress(_NOISE)[:-1]),
        "gzip: another member behind": ("gzip", gzip.compress(_SMALL) + bomb),
        "gzip: a wrong checksum": ("gzip", gzip.compress(_NOISE)[:-8] + bytes(8)),
        "gzip: a lie about its size": ("gzip", gzip.compress(_NOISE)[:-4] + struct.pack("<I", 1)),
        "gzip: a file name of 2 MiB that never ends": ("gzip", b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 2 * MIB),
        "deflate: 256 MiB of zeros": ("deflate", zlib.compress(zeros, 9)),
        "deflate: without zlib's header": ("deflate", raw.compress(zeros[: 16 * MIB]) + raw.flush()),
        "deflate: needs a dictionary": ("deflate", dictionary.compress(b"[1, 2, 3]" * 99) + dictionary.flush()),
        "deflate: is gzip": ("deflate", bomb),
        "lz4: 256 MiB of zeros": ("lz4", lz4_bomb),
        "lz4: 256 MiB of zeros, as it says": ("lz4", lz4_sized),
        "lz4: a bomb that is cut off": ("lz4", lz4_bomb[:-5]),
        "lz4: blocks of 4 MiB": ("lz4", lz4.frame.compress(zeros[: 64 * MIB], block_size=7, store_size=False)),
        "lz4: a lie of 1 TiB": ("lz4", _lz4_claiming(1 << 40)),
        "lz4: a lie of exactly the limit": ("lz4", _lz4_claiming(MAX_SIZE)),
        "lz4: a block without a frame": ("lz4", lz4.block.compress(zeros[: 64 * MIB])),
        "lz4: a block whose size is a lie": ("lz4", struct.pack("<I", 0x7E000000) + b"\x1fx"),
        "lz4: a frame to be skipped before": ("lz4", struct.pack("<II", 0x184D2A50, 4) + b"skip" + lz4_bomb),
        "lz4: another frame behind": ("lz4", lz4.frame.compress(_SMALL) + lz4_bomb),
        "zstd: 256 MiB of zeros": ("zstd", zstd_stream),
        "zstd: 256 MiB of zeros, as it says": ("zstd", zstd_sized),
        "zstd: a bomb that is cut off": ("zstd", zstd_stream[:-5]),
        "zstd: 4 bytes for each 128 KiB": ("zstd", _zstd_run_blocks(10_000)),
        "zstd: a lie of 2^60 bytes": ("zstd", _ZSTD_MAGIC + b"\xe0" + struct.pack("<Q", 1 << 60) + zstd_small[6:]),
        "zstd: a lie of the limit": ("zstd", _ZSTD_MAGIC + b"\xa0" + MAX_SIZE.to_bytes(4, "little") + zstd_small[6:]),
        "zstd: a window of 2 GiB": ("zstd", _ZSTD_MAGIC + b"\x00" + bytes([21 << 3]) + b"\x01\x00\x00"),
        "zstd: 13 bytes that claim much": ("zstd", bytes.fromhex("28b52ffdc000000000e0ffffff")),
        "zstd: another frame behind": ("zstd", zstd_small + zstd_stream),
        "zstd: a frame to be skipped before": ("zstd", struct.pack("<II", 0x184D2A50, 4) + b"skip" + zstd_stream),
    }  # fmt: skip


def message_of(body: bytes, encoding: str) -> Message:
    """A message as it comes from a socket."""
    from leveret.publishing.publish_batch import PublishBatch
    from leveret.publishing.template import PublishTemplate
    from leveret.wire.buffers import SendBuffer
    from leveret.wire.properties import Properties
    from leveret.wire.reader import FrameReader
    from leveret.wire.runs import ContentRun

    written: list[bytes] = []
    out = SendBuffer(lambda: None, lambda: written.append(out.take()))
    properties = Properties(content_type="application/json", content_encoding=encoding).encode()
    PublishBatch(out, None).add(PublishTemplate("", "q", properties), body)
    (run,) = FrameReader(server=True, frame_max=131_072).feed(b"".join([*written, out.take()]))
    assert isinstance(run, ContentRun)
    return run.messages[0]


def _grown(decoder: BodyDecoder, message: Message, small: Message, smallest: Message) -> tuple[str, int]:
    """Decodes in a process of its own, and returns what was raised and how much it grew at most.

    A small message and the smallest bomb go first: what a process pays once is not the bomb's. After a fork the pages
    of programs and libraries are mapped again when they are first used, and count as growth: 0.8 MiB for one Python.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        decoder.decode(small)
        with contextlib.suppress(Exception):
            decoder.decode(smallest)
        # Free memory that malloc keeps could be used again without being seen.
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as forget:
            forget.write("5")  # VmHWM begins at VmRSS again (proc(5))
        before = _memory("VmRSS")
        try:
            raised = repr(decoder.decode(message))[:20]
        except Exception as error:
            raised = type(error).__name__
        os.write(writing, json.dumps([raised, _memory("VmHWM") - before]).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        raised, grown = json.loads(pipe.read() or b'["died", -1]')
    return raised, grown


def _memory(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def main() -> None:
    from leveret.codecs.decoding import BodyDecoder
    from leveret.plugins import PluginRegistry
    from leveret.settings import ConsumerSettings, PluginSettings

    # One that escapes must not take the machine with it.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    settings = ConsumerSettings(max_decompressed_size=MAX_SIZE, max_decompression_ratio=1_000_000)
    registry = PluginRegistry.load(PluginSettings(strict=True))
    for name, (encoding, body) in bombs().items():
        decoder = BodyDecoder(registry, None, settings)
        bodies = (body, *map(_COMPRESS[encoding], (b"[1]", bytes(MAX_SIZE + 1))))
        raised, grown = _grown(decoder, *(message_of(each, encoding) for each in bodies))
        print(json.dumps({"name": name, "size": len(body), "raised": raised, "grown": grown}))


if __name__ == "__main__":
    main()
