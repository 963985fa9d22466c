"""The compressor "lz4": what it writes, what it makes of foreign and hostile frames, and how it works with a broker."""

from __future__ import annotations

import random
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, NamedTuple

import lz4.block
import lz4.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st

import leveret
import leveret_lz4
from leveret.broker import EmbeddedBroker
from leveret.errors import BodyTooLarge, ConfigurationError, DecodeFailed
from leveret.plugins import CompressorSpec, PluginRegistry
from leveret.testing import CompressorConformance, measure_decompression
from leveret_lz4 import COMPRESSOR, BlockTooLarge, LZ4Compressor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KiB = 1 << 10
MiB = 1 << 20
TEXT = b" ".join(b"order %d" % number for number in range(100_000))  # 1.2 MiB that LZ4 makes a third of
NOISE = random.Random(20_091_119).randbytes(8 * MiB)


class TestConformance(CompressorConformance):
    @pytest.fixture
    def spec(self) -> CompressorSpec:
        return COMPRESSOR


# ---------------------------------------------------------------------- frames by hand


def header(block_size: int = 4, **options: Any) -> bytes:
    """A frame's header, with a right checksum whatever it says: `block_size` 4 to 7 is 64 KiB to 4 MiB."""
    size = options.pop("source_size", 0)
    begun: bytes = lz4.frame.LZ4FrameCompressor(block_size=block_size, **options).begin(source_size=size)
    return begun


def stored(data: bytes) -> bytes:
    """A block that is not compressed."""
    return (len(data) | 1 << 31).to_bytes(4, "little") + data


END = bytes(4)


def bomb(size: int, block_size: int = 4, *, sized: bool = False) -> bytes:
    compressed: bytes = lz4.frame.compress(bytes(size), block_size=block_size, store_size=sized)
    return compressed


# ---------------------------------------------------------------------- what it writes


def test_frames_say_their_size_and_have_a_checksum() -> None:
    frame = LZ4Compressor().compress(TEXT)

    info = lz4.frame.get_frame_info(frame)
    assert (info["content_size"], info["content_checksum"]) == (len(TEXT), True)
    assert info["block_size"] == 64 * KiB  # a reader needs that much memory beside the body


@pytest.mark.parametrize("level", [None, -65_536, -1, 0, 1, 3, 9, 12])
def test_the_plain_library_reads_frames_of_every_level(level: int | None) -> None:
    assert lz4.frame.decompress(LZ4Compressor(level).compress(TEXT)) == TEXT


def test_levels_are_those_that_make_a_difference() -> None:
    lowest, highest = COMPRESSOR.levels
    sizes = {level: len(LZ4Compressor(level).compress(TEXT)) for level in (lowest, -10, 0, 3, highest)}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    assert len(set(sizes.values())) == len(sizes)
    assert LZ4Compressor(highest + 1).compress(TEXT) == LZ4Compressor(highest).compress(TEXT)
    assert LZ4Compressor(None).compress(TEXT) == LZ4Compressor(0).compress(TEXT)


def test_levels_out_of_range_are_refused_by_the_core() -> None:
    registry = PluginRegistry.from_plugins(leveret_lz4)
    for level in (-65_537, 13):
        with pytest.raises(ConfigurationError, match=rf"compression_level is {level}; lz4 has -65536 to 12"):
            registry.make_compressor(registry.provided("compressor", "lz4"), level)


@given(st.binary(max_size=5000), st.sampled_from([-65_536, 0, 12]))
def test_bodies_come_back(body: bytes, level: int) -> None:
    compressor = LZ4Compressor(level)
    assert compressor.decompress(compressor.compress(body), len(body)) == body


# ---------------------------------------------------------------------- frames of others


def foreign(data: bytes, command_options: list[str], library_options: dict[str, Any]) -> bytes:
    """A frame from the `lz4` command, or from the plain library where there is none."""
    command = shutil.which("lz4")
    if command is not None:
        # From a pipe, so that the writer does not know the size.
        return subprocess.run([command, "-c", *command_options], input=data, capture_output=True, check=True).stdout
    compressed: bytes = lz4.frame.compress(data, **library_options)
    return compressed


@pytest.mark.parametrize(
    ("command_options", "library_options"),
    [
        pytest.param([], {"block_size": 7, "block_linked": False}, id="4 MiB blocks, as the command writes them"),
        pytest.param(["-B4"], {"block_size": 4, "block_linked": False}, id="64 KiB blocks"),
        pytest.param(["-B5", "-BD"], {"block_size": 5, "store_size": False}, id="256 KiB linked blocks"),
        pytest.param(["-B6", "-BD", "-BX"], {"block_size": 6, "block_checksum": True}, id="block checksums"),
        pytest.param(["-9", "--no-frame-crc"], {"compression_level": 9, "content_checksum": False}, id="level 9"),
        pytest.param(["--fast=5", "-BD"], {"compression_level": -5}, id="level -5"),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 100, 40 * KiB, 300 * KiB, len(TEXT), 6 * MiB])
def test_frames_of_the_lz4_command_are_read(
    command_options: list[str], library_options: dict[str, Any], size: int
) -> None:
    body = (TEXT * 6)[:size]
    frame = foreign(body, command_options, library_options)
    assert LZ4Compressor().decompress(frame, 64 * MiB) == body


@pytest.mark.parametrize("body", [b"", b"x", TEXT, NOISE[: 100 * KiB]], ids=["empty", "one byte", "text", "noise"])
def test_the_lz4_command_reads_what_is_written(body: bytes) -> None:
    frame = LZ4Compressor().compress(body)
    command = shutil.which("lz4")
    if command is None:
        assert lz4.frame.decompress(frame) == body
    else:
        done = subprocess.run([command, "-dc"], input=frame, capture_output=True)
        assert (done.stdout, done.returncode) == (body, 0), done.stderr


@pytest.mark.parametrize("max_size", [200 * KiB, MiB, 2 * MiB, 3 * MiB, 64 * MiB])
def test_small_bodies_in_large_blocks_are_read_whatever_the_limit(max_size: int) -> None:
    # What many libraries write by default: room for 4 MiB in each block, and no size.
    body = NOISE[: 100 * KiB] * 2
    for linked in (True, False):
        frame = lz4.frame.compress(body, block_size=7, block_linked=linked, store_size=False)
        frame = header(7, block_linked=linked) + frame[lz4.frame.get_frame_info(frame)["content_size"] + 7 :]
        assert lz4.frame.get_frame_info(frame)["block_size"] == 4 * MiB
        assert LZ4Compressor().decompress(frame, max_size) == body


@pytest.mark.parametrize("block_size", [4, 5, 6, 7])
@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_limit_is_exact_for_frames_of_every_kind(block_size: int, linked: bool, sized: bool) -> None:
    for size in (1, 64 * KiB, 256 * KiB, 256 * KiB + 1, 700 * KiB):
        body = TEXT[:size]
        frame = lz4.frame.compress(body, block_size=block_size, block_linked=linked, store_size=sized)
        assert LZ4Compressor().decompress(frame, size) == body
        with pytest.raises(BodyTooLarge, match=rf"more than {size - 1}\b"):
            LZ4Compressor().decompress(frame, size - 1)


def test_large_blocks_are_refused_when_they_do_not_fit_beside_the_body() -> None:
    frame = lz4.frame.compress(TEXT * 6, block_size=7)
    size = len(TEXT * 6)
    assert LZ4Compressor().decompress(frame, size + 13 * MiB // 4) == TEXT * 6
    with pytest.raises(
        BlockTooLarge, match=rf"^the body's {size} bytes, with blocks of up to 4194304 bytes, need more"
    ):
        LZ4Compressor().decompress(frame, size)


# ---------------------------------------------------------------------- what is refused


class Hostile(NamedTuple):
    data: bytes
    max_size: int
    outcome: str


GOOD = LZ4Compressor().compress(b"hello, hare")
TINY = header(4, source_size=10) + stored(b"0123456789")  # without an end

HOSTILE = {
    "a bomb that tells its size": Hostile(bomb(64 * MiB, sized=True), MiB, "BodyTooLarge"),
    "a bomb that does not": Hostile(bomb(64 * MiB), MiB, "BodyTooLarge"),
    "a bomb and a small limit": Hostile(bomb(64 * MiB), 64 * KiB, "BodyTooLarge"),
    "a bomb, large limit": Hostile(bomb(64 * MiB), 32 * MiB, "BodyTooLarge"),
    "a bomb of 256 KiB blocks": Hostile(bomb(64 * MiB, 5), MiB, "BodyTooLarge"),
    "a bomb of 1 MiB blocks": Hostile(bomb(64 * MiB, 6), MiB, "BodyTooLarge"),
    "a bomb of 4 MiB blocks, 10 KiB limit": Hostile(bomb(64 * MiB, 7), 10 * KiB, "BodyTooLarge"),
    "a bomb of 4 MiB blocks, 200 KiB limit": Hostile(bomb(64 * MiB, 7), 200 * KiB, "BodyTooLarge"),
    "a bomb of 4 MiB blocks, 300 KiB limit": Hostile(bomb(64 * MiB, 7), 300 * KiB, "BodyTooLarge"),
    "a bomb of 4 MiB blocks, 1 MiB limit": Hostile(bomb(64 * MiB, 7), MiB, "BodyTooLarge"),
    "a bomb of 4 MiB blocks, 2 MiB limit": Hostile(bomb(64 * MiB, 7), 2 * MiB, "BlockTooLarge"),
    "a bomb of 4 MiB blocks, 8 MiB limit": Hostile(bomb(64 * MiB, 7), 8 * MiB, "BodyTooLarge"),
    "one block of 4 MiB that is all of the body": Hostile(bomb(4 * MiB, 7), 4 * MiB, "BlockTooLarge"),
    "4 MiB blocks of a body as large as the limit": Hostile(bomb(16 * MiB, 7), 16 * MiB, "BlockTooLarge"),
    "1 MiB blocks of a body as large as the limit": Hostile(bomb(16 * MiB, 6), 16 * MiB, "BlockTooLarge"),
    "256 KiB blocks of a body as large as the limit": Hostile(bomb(16 * MiB, 5), 16 * MiB, "16777216 bytes"),
    "a body as large as the limit": Hostile(bomb(16 * MiB), 16 * MiB, "16777216 bytes"),
    "noise as large as the limit": Hostile(LZ4Compressor().compress(NOISE), 8 * MiB, "8388608 bytes"),
    "noise as large as the limit, of unknown size": Hostile(
        lz4.frame.compress(NOISE, store_size=False), 8 * MiB, "8388608 bytes"
    ),
    "a size of 2**62 bytes": Hostile(header(source_size=2**62) + stored(b"x") + END, MiB, "BodyTooLarge"),
    "a size as large as the limit, of 10 bytes": Hostile(
        header(source_size=16 * MiB) + stored(b"0123456789") + END, 16 * MiB, "RuntimeError"
    ),
    "a size as large as the limit, of 64 KiB": Hostile(
        header(source_size=16 * MiB) + stored(NOISE[: 64 * KiB]) * 2 + END, 16 * MiB, "RuntimeError"
    ),
    "a size of 10 bytes, of 64 MiB": Hostile(header(source_size=10) + bomb(64 * MiB)[7:], 16 * MiB, "ValueError"),
    "a size of 4 MiB, of 64 MiB": Hostile(header(source_size=4 * MiB) + bomb(64 * MiB)[7:], 16 * MiB, "ValueError"),
    "a bomb that is cut off": Hostile(bomb(16 * MiB)[:-5], 16 * MiB, "ValueError"),
    "noise that is cut off": Hostile(LZ4Compressor().compress(NOISE)[:-1], 8 * MiB, "ValueError"),
    "a block that claims 2 GiB": Hostile(header() + b"\xff\xff\xff\x7f" + b"x" * 100, MiB, "RuntimeError"),
    "a million empty blocks": Hostile(header() + stored(b"") * 1_000_000 + END, MiB, "0 bytes"),
    "a million empty blocks and no end": Hostile(header() + stored(b"") * 1_000_000, MiB, "ValueError"),
    "a thousand frames": Hostile(GOOD * 1000, MiB, "ValueError"),
    "a skippable frame that claims 4 GiB": Hostile(b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + b"x" * 100, MiB, "ValueError"),
    "a skippable frame in front": Hostile(b"\x50\x2a\x4d\x18\x04\0\0\0skip" + GOOD, MiB, "ValueError"),
    "a skippable frame behind": Hostile(GOOD + b"\x50\x2a\x4d\x18\x04\0\0\0skip", MiB, "ValueError"),
    "a legacy frame": Hostile(b"\x02\x21\x4c\x18" + bomb(MiB)[7:], MiB, "ValueError"),
    "a block without a frame": Hostile(lz4.block.compress(bytes(64 * MiB)), MiB, "ValueError"),
    "a block without a frame that claims 2 GiB": Hostile(b"\xff\xff\xff\x7f" + b"x" * 100, MiB, "ValueError"),
}


@pytest.mark.parametrize("hostile", [pytest.param(each, id=what) for what, each in HOSTILE.items()])
def test_hostile_frames_take_no_more_memory_than_the_limit_and_1_mib(hostile: Hostile) -> None:
    measured = measure_decompression("leveret_lz4:COMPRESSOR", hostile.data, hostile.max_size)

    assert measured.outcome == hostile.outcome
    assert measured.memory <= hostile.max_size + MiB


def test_frames_that_need_a_dictionary_are_refused() -> None:
    # Dictionary 7, blocks of 64 KiB. The header's checksum is one of 256, and the library does not write such headers.
    begin, end = bytes.fromhex("04224d18 61 40 07000000"), stored(b"x") + END
    errors = []
    for checksum in range(256):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            LZ4Compressor().decompress(begin + bytes([checksum]) + end, 100)
        errors.append(str(caught.value))
    assert errors.count("the compressed body needs a dictionary") == 1


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("block_size", [4, 7])
def test_frames_cut_off_anywhere_are_refused(sized: bool, block_size: int) -> None:
    frame = lz4.frame.compress(TEXT[:2000], block_size=block_size, store_size=sized, content_checksum=True)
    for size in range(len(frame)):
        with pytest.raises((ValueError, RuntimeError)):
            LZ4Compressor().decompress(frame[:size], 10_000)


@pytest.mark.parametrize("behind", [b"\0", b"x" * 100, GOOD, b"\x50\x2a\x4d\x18\0\0\0\0"])
@pytest.mark.parametrize("size", [0, 10, 2000, 400 * KiB])
def test_bytes_behind_a_frame_are_counted_in_the_error(behind: bytes, size: int) -> None:
    for frame in (LZ4Compressor().compress(TEXT[:size]), lz4.frame.compress(TEXT[:size], store_size=False)):
        with pytest.raises(ValueError, match=rf"^{len(behind)} bytes follow the compressed body"):
            LZ4Compressor().decompress(frame + behind, MiB)


def test_a_flipped_bit_never_makes_another_body() -> None:
    body = TEXT[:500]
    frame = LZ4Compressor().compress(body)
    noticed = 0
    for bit in range(len(frame) * 8):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            # In text that repeats itself, another distance can mean the same bytes.
            assert LZ4Compressor().decompress(bytes(damaged), 10_000) == body
        except (ValueError, RuntimeError, BodyTooLarge):
            noticed += 1
    assert noticed > len(frame) * 7


def test_it_can_be_used_again_after_an_error() -> None:
    compressor = LZ4Compressor()
    for bad in (b"", GOOD[:-1], GOOD + b"x", bomb(MiB), bomb(8 * MiB, 7)):
        with pytest.raises((ValueError, BodyTooLarge)):
            compressor.decompress(bad, 1000)
        assert compressor.decompress(GOOD, 11) == b"hello, hare"


# ---------------------------------------------------------------------- with a broker


@pytest.fixture
async def client() -> AsyncIterator[leveret.Client]:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        await client.declare(leveret.Topology().queue("orders"))
        yield client


async def take(client: leveret.Client, **options: Any) -> leveret.Message:
    async with client.consumer("orders", **options) as consumer:
        message = await consumer.get()
    assert message is not None
    return message


async def test_a_consumer_without_options_reads_what_a_producer_compressed(client: leveret.Client) -> None:
    orders = [{"id": number, "customer": "Ada"} for number in range(1000)]
    async with client.producer(compressor="lz4", compression_level=9) as producer:
        await producer.publish(orders, "orders")

    message = await take(client)
    assert (message.content_type, message.content_encoding) == ("application/json", "lz4")
    assert message.body is not None
    assert message.body[:4] == b"\x04\x22\x4d\x18"
    assert message.body_size < 20_000
    assert message.value == orders


async def test_a_consumer_reads_what_another_client_compressed(client: leveret.Client) -> None:
    body = foreign(TEXT, [], {"block_size": 7, "store_size": False})
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(body, "orders", content_type="text/plain", content_encoding="lz4")

    assert (await take(client)).value == TEXT.decode()


async def test_a_bomb_is_an_error_and_the_next_message_is_read(client: leveret.Client) -> None:
    async with client.producer(serializer="bytes") as producer:
        for body in (bomb(64 * MiB), bomb(64 * MiB, 7), GOOD[:-1], GOOD):
            await producer.publish(body, "orders", content_type="text/plain", content_encoding="lz4")

    async with client.consumer("orders", max_decompressed_size=MiB) as consumer:
        for error in (BodyTooLarge, BodyTooLarge, DecodeFailed):
            message = await consumer.get()
            assert message is not None
            with pytest.raises(error):
                message.value  # noqa: B018 - decodes
            message.ack()
        message = await consumer.get()
        assert message is not None
        assert message.value == "hello, hare"
