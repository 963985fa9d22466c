"""The compressor "zstd": what it writes, what it makes of foreign and hostile frames, and its way through a broker."""

from __future__ import annotations

import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import leveret
import leveret_zstd
from leveret.broker import EmbeddedBroker
from leveret.errors import BodyTooLarge, ConfigurationError, DecodeFailed
from leveret.plugins import CompressorSpec, PluginRegistry
from leveret.testing import CompressorConformance, measure_decompression
from leveret_zstd import COMPRESSOR, WindowTooLarge, ZstdCompressor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KiB = 1 << 10
MiB = 1 << 20
TEXT = b" ".join(b"order %d" % number for number in range(100_000))  # 1.2 MiB that zstd makes a fifth of
NOISE = random.Random(20_091_119).randbytes(12 * MiB)


class TestConformance(CompressorConformance):
    @pytest.fixture
    def spec(self) -> CompressorSpec:
        return COMPRESSOR


# ---------------------------------------------------------------------- frames by hand

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE = b"\x50\x2a\x4d\x18"
BLOCK = 128 * KiB  # RFC 8878 section 3.1.1.2.4: no block is larger


def header(size: int | None = None, *, window_log: int = 10) -> bytes:
    """A frame's header (RFC 8878 section 3.1.1.1) with a window of a power of two, and a size of 8 bytes if any."""
    window = (window_log - 10) << 3
    if size is None:
        return MAGIC + bytes([0, window])
    return MAGIC + bytes([0b1100_0000, window]) + size.to_bytes(8, "little")


def block(kind: int, size: int, data: bytes, *, last: bool = False) -> bytes:
    return (size << 3 | kind << 1 | last).to_bytes(3, "little") + data


def stored(data: bytes, *, last: bool = False) -> bytes:
    """A block that is not compressed."""
    return block(0, len(data), data, last=last)


def repeated(size: int, *, last: bool = False) -> bytes:
    """A block of one byte, many times: 4 bytes that become up to 128 KiB."""
    return block(1, size, b"\0", last=last)


def zeros(size: int) -> bytes:
    """The blocks of so many zeros, with an end."""
    return repeated(BLOCK) * (size // BLOCK) + stored(b"", last=True)


def noise(size: int) -> bytes:
    """The blocks of so much that cannot be compressed, with an end."""
    return b"".join(stored(NOISE[at : at + BLOCK]) for at in range(0, size, BLOCK)) + stored(b"", last=True)


def streamed(body: bytes, **options: Any) -> bytes:
    """A frame of a writer that does not know the size when it begins."""
    writer = zstandard.ZstdCompressor(**options).compressobj()
    return writer.compress(body) + writer.flush()


# ---------------------------------------------------------------------- what it writes


def test_frames_say_their_size_and_have_a_checksum() -> None:
    parameters = zstandard.get_frame_parameters(ZstdCompressor().compress(TEXT))

    assert (parameters.content_size, parameters.has_checksum, parameters.dict_id) == (len(TEXT), True, 0)


@pytest.mark.parametrize("level", [None, -131_072, -1, 0, 1, 3, 19, 22])
def test_the_plain_library_reads_frames_of_every_level(level: int | None) -> None:
    assert zstandard.decompress(ZstdCompressor(level).compress(TEXT)) == TEXT


def test_level_3_is_the_default() -> None:
    level_3 = ZstdCompressor(3).compress(TEXT)
    assert ZstdCompressor().compress(TEXT) == ZstdCompressor(None).compress(TEXT) == level_3
    assert ZstdCompressor(0).compress(TEXT) == level_3  # zstd's own word for its default


def test_levels_are_those_that_make_a_difference() -> None:
    lowest, highest = COMPRESSOR.levels
    assert ZstdCompressor(lowest - 1).compress(TEXT) == ZstdCompressor(lowest).compress(TEXT)
    with pytest.raises(ValueError, match="level must be less than"):
        ZstdCompressor(highest + 1)
    sizes = {level: len(ZstdCompressor(level).compress(TEXT)) for level in (lowest, -5, 1, highest)}
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)


def test_levels_out_of_range_are_refused_by_the_core() -> None:
    registry = PluginRegistry.from_plugins(leveret_zstd)
    for level in (-131_073, 23):
        with pytest.raises(ConfigurationError, match=rf"compression_level is {level}; zstd has -131072 to 22"):
            registry.make_compressor(registry.provided("compressor", "zstd"), level)


@given(st.binary(max_size=5000), st.sampled_from([-131_072, 3, 22]))
def test_bodies_come_back(body: bytes, level: int) -> None:
    compressor = ZstdCompressor(level)
    assert compressor.decompress(compressor.compress(body), len(body)) == body


@given(st.binary(max_size=5000))
def test_bodies_of_unknown_size_come_back(body: bytes) -> None:
    assert ZstdCompressor().decompress(streamed(body), len(body)) == body


def test_two_objects_in_two_threads_do_not_disturb_each_other() -> None:
    bodies = [TEXT[at : at + 50_000] for at in range(0, 1_000_000, 50_000)]

    def work(compress: Callable[[bytes], bytes]) -> bool:
        compressor = ZstdCompressor()
        return all(compressor.decompress(compress(body), 50_000) == body for _ in range(10) for body in bodies)

    with ThreadPoolExecutor(4) as pool:
        writers = [
            ZstdCompressor(1).compress,
            ZstdCompressor(9).compress,
            streamed,
            lambda body: streamed(body, level=9),
        ]
        assert list(pool.map(work, writers)) == [True] * 4


# ---------------------------------------------------------------------- frames of others


def foreign(data: bytes, command_options: list[str], library_options: dict[str, Any]) -> bytes:
    """A frame from the `zstd` command, or from the plain library where there is none."""
    command = shutil.which("zstd")
    if command is not None:
        # From a pipe, so that the writer does not know the size.
        return subprocess.run([command, "-qc", *command_options], input=data, capture_output=True, check=True).stdout
    return streamed(data, **library_options)


@pytest.mark.parametrize(
    ("command_options", "library_options"),
    [
        pytest.param([], {}, id="as the command writes them"),
        pytest.param(["-1"], {"level": 1}, id="level 1"),
        pytest.param(["-19"], {"level": 19}, id="level 19, a window of 8 MiB"),
        pytest.param(["--fast=5"], {"level": -5}, id="level -5"),
        pytest.param(["--no-check"], {"write_checksum": False}, id="no checksum"),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 100, 40 * KiB, 300 * KiB, len(TEXT), 6 * MiB])
def test_frames_of_the_zstd_command_are_read(
    command_options: list[str], library_options: dict[str, Any], size: int
) -> None:
    body = (TEXT * 6)[:size]
    frame = foreign(body, command_options, library_options)
    assert zstandard.get_frame_parameters(frame).content_size in (zstandard.CONTENTSIZE_UNKNOWN, size)
    assert ZstdCompressor().decompress(frame, 64 * MiB) == body


@pytest.mark.parametrize("body", [b"", b"x", TEXT, NOISE[: 100 * KiB]], ids=["empty", "one byte", "text", "noise"])
def test_the_zstd_command_reads_what_is_written(body: bytes) -> None:
    frame = ZstdCompressor().compress(body)
    command = shutil.which("zstd")
    if command is None:
        assert zstandard.decompress(frame) == body
    else:
        done = subprocess.run([command, "-dqc"], input=frame, capture_output=True)
        assert (done.stdout, done.returncode) == (body, 0), done.stderr


@pytest.mark.parametrize("level", [-5, 1, 3, 19])
@pytest.mark.parametrize("make", [streamed, lambda body, **options: zstandard.ZstdCompressor(**options).compress(body)])
def test_limit_is_exact_for_frames_of_every_kind(make: Callable[..., bytes], level: int) -> None:
    for size in (1, 64 * KiB, 128 * KiB + 1, 700 * KiB):
        frame = make(TEXT[:size], level=level)
        assert ZstdCompressor().decompress(frame, size) == TEXT[:size]
        with pytest.raises(BodyTooLarge, match=rf"more than {size - 1}\b"):
            ZstdCompressor().decompress(frame, size - 1)


@pytest.mark.parametrize("window_log", [10, 17, 21, 23])
@pytest.mark.parametrize("checksum", [True, False])
def test_frames_of_unknown_size_are_read_with_any_window_up_to_8_mib(window_log: int, checksum: bool) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, write_checksum=checksum)
    for body in (TEXT, NOISE[: 3 * MiB], TEXT * 8):
        frame = streamed(body, compression_params=parameters)
        assert zstandard.get_frame_parameters(frame).window_size == 1 << window_log
        assert ZstdCompressor().decompress(frame, 2 * len(body)) == body


def test_frames_of_known_size_are_read_whatever_their_window() -> None:
    # The body serves as the window, so nothing is allocated for it.
    frame = header(10, window_log=31) + stored(b"0123456789", last=True)
    assert ZstdCompressor().decompress(frame, 10) == b"0123456789"


def test_frames_of_unknown_size_are_refused_when_their_window_does_not_fit() -> None:
    frame = header(window_log=23) + noise(12 * MiB)
    size = 12 * MiB
    assert ZstdCompressor().decompress(frame, size + 15 * MiB // 2) == NOISE
    with pytest.raises(WindowTooLarge, match=rf"its {size} bytes and a window of {8 * MiB} bytes need more"):
        ZstdCompressor().decompress(frame, size)
    with pytest.raises(WindowTooLarge, match=rf"a window of {16 * MiB} bytes; at most {8 * MiB}"):
        ZstdCompressor().decompress(header(window_log=24) + noise(BLOCK), 64 * MiB)


# ---------------------------------------------------------------------- what is refused


class Hostile(NamedTuple):
    data: bytes
    max_size: int
    outcome: str


GOOD = ZstdCompressor().compress(b"hello, hare")
BOMB = zstandard.ZstdCompressor().compress(bytes(64 * MiB))  # 2,067 bytes

HOSTILE = {
    "a bomb that tells its size": Hostile(BOMB, MiB, "BodyTooLarge"),
    "a bomb that does not": Hostile(streamed(bytes(64 * MiB)), MiB, "BodyTooLarge"),
    "a bomb and a small limit": Hostile(streamed(bytes(64 * MiB)), 10 * KiB, "BodyTooLarge"),
    "a bomb with a window of 8 MiB": Hostile(header(window_log=23) + zeros(64 * MiB), MiB, "BodyTooLarge"),
    "a bomb with a window of 8 MiB, large limit": Hostile(
        header(window_log=23) + zeros(64 * MiB), 16 * MiB, "BodyTooLarge"
    ),
    "a bomb of 16 GiB": Hostile(header(window_log=23) + zeros(16 << 30), 16 * MiB, "BodyTooLarge"),
    "a bomb of 16 GiB that tells its size": Hostile(header(16 << 30) + zeros(16 << 30), 16 * MiB, "BodyTooLarge"),
    "a bomb with a window of 2 GiB": Hostile(header(window_log=31) + zeros(64 * MiB), MiB, "WindowTooLarge"),
    "a bomb with a window of 2 TiB": Hostile(header(window_log=41) + zeros(64 * MiB), MiB, "ZstdError"),
    "13 bytes that claim a terabyte": Hostile(MAGIC + b"\xe0" + (1 << 40).to_bytes(8, "little"), MiB, "BodyTooLarge"),
    "13 bytes that claim as much as the limit": Hostile(
        MAGIC + b"\xe0" + (16 * MiB).to_bytes(8, "little"), 16 * MiB, "ZstdError"
    ),
    "a size of 2**63": Hostile(header(1 << 63) + repeated(10, last=True), MiB, "BodyTooLarge"),
    "a size as large as the limit, of 10 bytes": Hostile(
        header(16 * MiB) + repeated(10, last=True), 16 * MiB, "ZstdError"
    ),
    "a size as large as the limit, of half of it": Hostile(header(16 * MiB) + zeros(8 * MiB), 16 * MiB, "ZstdError"),
    "a size of 10 bytes, of 64 MiB": Hostile(header(10) + zeros(64 * MiB), 16 * MiB, "ZstdError"),
    "a size of 0 bytes, of 64 MiB": Hostile(header(0, window_log=23) + zeros(64 * MiB), 16 * MiB, "ZstdError"),
    "a size of 8 MiB, of 64 MiB": Hostile(header(8 * MiB) + zeros(64 * MiB), 16 * MiB, "ZstdError"),
    "a body as large as the limit": Hostile(header(16 * MiB) + zeros(16 * MiB), 16 * MiB, "16777216 bytes"),
    "a body as large as the limit, of unknown size": Hostile(
        header(window_log=23) + zeros(16 * MiB), 16 * MiB, "16777216 bytes"
    ),
    "noise as large as the limit": Hostile(ZstdCompressor().compress(NOISE), 12 * MiB, "12582912 bytes"),
    "noise as large as the limit, of unknown size": Hostile(
        header(window_log=23) + noise(12 * MiB), 12 * MiB, "WindowTooLarge"
    ),
    "noise of unknown size that just fits": Hostile(
        header(window_log=22) + noise(12 * MiB), 12 * MiB + 7 * MiB // 2, "12582912 bytes"
    ),
    "a cut off body with a window of 8 MiB": Hostile(
        (header(12 * MiB, window_log=23) + noise(12 * MiB))[:-10], 12 * MiB, "ZstdError"
    ),
    "a cut off body of unknown size": Hostile(
        (header(window_log=23) + noise(11 * MiB))[:-10], 12 * MiB, "WindowTooLarge"
    ),
    "a cut off bomb of unknown size": Hostile((header(window_log=23) + zeros(16 * MiB))[:-3], 16 * MiB, "ZstdError"),
    "a million empty blocks": Hostile(header() + stored(b"") * 1_000_000 + stored(b"", last=True), MiB, "0 bytes"),
    "a million empty blocks and no end": Hostile(header() + stored(b"") * 1_000_000, MiB, "ValueError"),
    "a block of 2 MiB": Hostile(header(window_log=23) + repeated((1 << 21) - 1, last=True), 4 * MiB, "ZstdError"),
    "a block of the reserved kind": Hostile(header() + block(3, 10, b"x" * 10, last=True), MiB, "ZstdError"),
    "a thousand frames": Hostile(GOOD * 1000, MiB, "ZstdError"),
    "a thousand frames of unknown size": Hostile(streamed(TEXT[:2000]) * 1000, 4 * MiB, "ZstdError"),
    "a skippable frame that claims 4 GiB": Hostile(SKIPPABLE + b"\xff\xff\xff\xff" + b"x" * 100, MiB, "ValueError"),
    "a skippable frame in front": Hostile(SKIPPABLE + b"\x04\0\0\0skip" + GOOD, MiB, "ValueError"),
    "a skippable frame behind": Hostile(GOOD + SKIPPABLE + b"\x04\0\0\0skip", MiB, "ZstdError"),
    "a skippable frame behind nothing": Hostile(
        ZstdCompressor().compress(b"") + SKIPPABLE + b"\x04\0\0\0skip", MiB, "ValueError"
    ),
    "a frame of zstd 0.7": Hostile(b"\x27" + BOMB[1:], MiB, "ValueError"),
}


@pytest.mark.parametrize("hostile", [pytest.param(each, id=what) for what, each in HOSTILE.items()])
def test_hostile_frames_take_no_more_memory_than_the_limit_and_1_mib(hostile: Hostile) -> None:
    measured = measure_decompression("leveret_zstd:COMPRESSOR", hostile.data, hostile.max_size)

    assert measured.outcome == hostile.outcome
    assert measured.memory <= hostile.max_size + MiB


def test_frames_that_need_a_dictionary_are_refused() -> None:
    dictionary = zstandard.train_dictionary(4096, [TEXT[at : at + 500] for at in range(0, 500_000, 500)], dict_id=7)
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT[:500])
    with pytest.raises(ValueError, match="needs the dictionary 7"):
        ZstdCompressor().decompress(frame, MiB)


@pytest.mark.parametrize("size", [0, 1, 2000])
@pytest.mark.parametrize("make", [streamed, lambda body: ZstdCompressor().compress(body)])
def test_frames_cut_off_anywhere_are_refused(make: Callable[[bytes], bytes], size: int) -> None:
    frame = make(TEXT[:size])
    for end in range(len(frame)):
        with pytest.raises((ValueError, zstandard.ZstdError)):
            ZstdCompressor().decompress(frame[:end], 10_000)


BEHIND = {
    "a zero": b"\0",
    "text": b"x" * 100,
    "a frame": GOOD,
    "a frame of unknown size": streamed(b"more"),
    "an empty frame": ZstdCompressor().compress(b""),
    "a bomb": BOMB,
    "a skippable frame": SKIPPABLE + b"\0\0\0\0",
}


@pytest.mark.parametrize("behind", [pytest.param(data, id=what) for what, data in BEHIND.items()])
@pytest.mark.parametrize("size", [0, 10, 2000, 64 * KiB, 400 * KiB])
def test_bytes_behind_a_frame_are_refused(behind: bytes, size: int) -> None:
    body = TEXT[:size]
    narrow = streamed(body, compression_params=zstandard.ZstdCompressionParameters(window_log=10))
    for frame in (ZstdCompressor().compress(body), streamed(body), narrow):
        assert ZstdCompressor().decompress(frame, MiB) == body
        with pytest.raises((ValueError, zstandard.ZstdError, BodyTooLarge)):
            ZstdCompressor().decompress(frame + behind, MiB)


def test_a_flipped_bit_never_makes_another_body() -> None:
    body = TEXT[:500]
    for frame in (ZstdCompressor().compress(body), streamed(body, write_checksum=True)):
        noticed = 0
        for bit in range(len(frame) * 8):
            damaged = bytearray(frame)
            damaged[bit // 8] ^= 1 << bit % 8
            try:
                assert ZstdCompressor().decompress(bytes(damaged), 10_000) == body
            except (ValueError, zstandard.ZstdError, BodyTooLarge):
                noticed += 1
        assert noticed > len(frame) * 7


def test_it_can_be_used_again_after_an_error() -> None:
    compressor = ZstdCompressor()
    for bad in (b"", GOOD[:-1], GOOD + b"x", BOMB, streamed(bytes(MiB)), streamed(TEXT[:900])[:-1]):
        with pytest.raises((ValueError, BodyTooLarge, zstandard.ZstdError)):
            compressor.decompress(bad, 1000)
        assert compressor.decompress(GOOD, 11) == b"hello, hare"


# ---------------------------------------------------------------------- with a broker


@pytest.fixture
async def client() -> AsyncIterator[leveret.Client]:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        await client.declare(leveret.Topology().queue("orders"))
        yield client


async def test_a_consumer_without_options_reads_what_a_producer_compressed(client: leveret.Client) -> None:
    orders = [{"id": number, "customer": "Ada"} for number in range(1000)]
    async with client.producer(compressor="zstd", compression_level=9) as producer:
        await producer.publish(orders, "orders")

    async with client.consumer("orders") as consumer:
        message = await consumer.get()
    assert message is not None
    assert (message.content_type, message.content_encoding) == ("application/json", "zstd")
    assert message.body is not None
    assert message.body[:4] == MAGIC
    assert message.body_size < 10_000
    assert message.value == orders


async def test_a_consumer_reads_what_another_client_compressed(client: leveret.Client) -> None:
    body = foreign(TEXT, [], {})
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(body, "orders", content_type="text/plain", content_encoding="zstd")

    async with client.consumer("orders") as consumer:
        message = await consumer.get()
    assert message is not None
    assert message.value == TEXT.decode()


async def test_a_bomb_is_an_error_and_the_next_message_is_read(client: leveret.Client) -> None:
    async with client.producer(serializer="bytes") as producer:
        for body in (BOMB, streamed(bytes(64 * MiB)), GOOD[:-1], GOOD):
            await producer.publish(body, "orders", content_type="text/plain", content_encoding="zstd")

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
