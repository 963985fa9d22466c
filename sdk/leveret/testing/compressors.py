"""The conformance kit of compressors."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final

import pytest

from leveret.errors import BodyTooLarge, DecodeFailed, PluginError
from leveret.plugins.interfaces import CompressorSpec
from leveret.testing.base import Conformance, fail, in_threads, ordinary, override, registry_of, require
from leveret.testing.child import MiB, in_child, peak_memory
from leveret.testing.live import QUEUE, take, with_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leveret.client.client import Client
    from leveret.plugins.interfaces import Compressor
    from leveret.publishing.options import PublishOptions

__all__ = ["CompressorConformance"]

#: The seed of all random data here, so that a failure can be repeated.
_SEED: Final = 20_091_119
_BOMB_SIZE: Final = 64 * MiB
_SMALL_BOMB_SIZE: Final = 1 << 16
#: From this length on, no random body should be a valid frame by chance.
_TELLING: Final = 16


def _random(size: int) -> bytes:
    return random.Random(_SEED).randbytes(size)  # noqa: S311 - must be the same each time


def _bodies() -> dict[str, bytes]:
    return {
        "an empty body": b"",
        "one byte": b"x",
        "a short text": b"hello, hare",
        "64 KiB and one byte of text": (b'{"id": 1, "name": "leveret"}' * 2500)[: 65536 + 1],
        "100,000 incompressible bytes": _random(100_000),
        "1 MiB of zeros": bytes(MiB),
    }


class CompressorConformance(Conformance):
    """Checks a compressor against `leveret.plugins.Compressor`.

    Subclass it in a class named `Test...` and override the fixture `spec`, which returns the `CompressorSpec`.

    Example:
        >>> import pytest
        >>> from leveret.plugins import builtin
        >>> class TestGzip(CompressorConformance):
        ...     @pytest.fixture
        ...     def spec(self):
        ...         return builtin.leveret_compressors()[0]
    """

    @pytest.fixture
    def spec(self) -> CompressorSpec:
        """The descriptor to check; override it."""
        override(type(self), "spec", "your CompressorSpec")

    # ------------------------------------------------------------------ the descriptor

    def test_descriptor_is_accepted_by_the_registry(self, spec: CompressorSpec) -> None:
        """Name, content encoding, aliases and levels have the right form, and the factory makes a compressor."""
        require(isinstance(spec, CompressorSpec), f"`spec` is a {type(spec).__name__}, not a CompressorSpec")
        try:
            registry = registry_of("leveret_compressors", spec)
            for level in (None, *spec.levels):
                registry.make_compressor(registry.provided("compressor", spec.name), level)
        except PluginError as error:
            fail(f"the core does not take this CompressorSpec: {error}")

    # ------------------------------------------------------------------ round trips

    def test_bodies_come_back_whole_at_every_level(self, spec: CompressorSpec) -> None:
        """A compressor of the default level reads the frames of the lowest, default and highest level."""
        reader = spec.factory(None)
        for level in _levels(spec):
            writer = spec.factory(level)
            for what, body in _bodies().items():
                found = _decompress(reader, _compress(writer, body), len(body), f"{what} (level {level})")
                require(found == body, f"{what} came back as {len(found)} other bytes (level {level})")

    def test_both_functions_return_bytes(self, spec: CompressorSpec) -> None:
        """`compress` and `decompress` return exactly bytes: no bytearray or memoryview."""
        compressor = spec.factory(None)
        for what, body in _bodies().items():
            compressed = compressor.compress(body)
            require(
                type(compressed) is bytes,
                f"compress returned {type(compressed).__name__} for {what}; the interface wants bytes",
            )
            found = compressor.decompress(compressed, len(body))
            require(
                type(found) is bytes,
                f"decompress returned {type(found).__name__} for {what}; the interface wants bytes",
            )

    def test_repetitive_bodies_become_smaller(self, spec: CompressorSpec) -> None:
        """The default level compresses repetitive text to less than half its size."""
        body = b'{"id": 1, "name": "leveret"}' * 4000
        size = len(_compress(spec.factory(None), body))
        require(size < len(body) / 2, f"{len(body)} bytes of repeating text became {size}: it does not compress")

    # ------------------------------------------------------------------ max_size

    def test_max_size_is_exact(self, spec: CompressorSpec) -> None:
        """A body of exactly `max_size` bytes is returned, and one of `max_size + 1` raises BodyTooLarge."""
        compressor = spec.factory(None)
        for what, body in _bodies().items():
            compressed = _compress(compressor, body)
            found = _decompress(compressor, compressed, len(body), f"{what} with max_size {len(body)}")
            require(found == body, f"{what} came back changed with max_size {len(body)}")
            for max_size in {len(body) - 1, len(body) // 2, 0}:
                if not 0 <= max_size < len(body):
                    continue
                try:
                    found = compressor.decompress(compressed, max_size)
                except BodyTooLarge:
                    continue
                except BaseException as error:
                    ordinary(error, f"decompressing {what} with max_size {max_size}")
                    fail(
                        f"decompressing {what} ({len(body)} bytes) with max_size {max_size} raised "
                        f"{type(error).__name__}; the interface wants leveret.errors.BodyTooLarge"
                    )
                fail(
                    f"decompressing {what} ({len(body)} bytes) with max_size {max_size} returned {len(found)} bytes; "
                    "the interface wants leveret.errors.BodyTooLarge"
                )

    def test_bombs_are_refused_within_bounded_memory(self, spec: CompressorSpec) -> None:
        """64 MiB of zeros with `max_size` 512 KiB raise BodyTooLarge, and take at most 1.5 MiB of memory.

        The compressed data and one copy of it may be added to that. The kit measures by how much the peak resident
        memory of a forked process grows after a first bomb of 64 KiB. A compressor may refuse a frame because of the
        size that the frame claims: test frames that claim no size, or a wrong one, in your own tests.
        """
        # Half of a MiB, because Python's own zlib needs `max_size` twice, and the kernel does not count exactly.
        max_size = MiB // 2
        bombs = [spec.factory(level).compress(bytes(_BOMB_SIZE)) for level in _levels(spec)]
        # The first comes from the default level. Other levels may hardly compress; their frames are no bombs.
        bombs = [bomb for bomb in bombs if bomb is bombs[0] or len(bomb) <= MiB]
        small_bomb = spec.factory(None).compress(bytes(_SMALL_BOMB_SIZE))

        def check() -> None:
            for bomb in bombs:
                compressor = spec.factory(None)
                # Loads everything that is loaded at first use, so that it does not count.
                _expect_too_large(compressor, small_bomb, 1024)
                baseline = peak_memory()
                _expect_too_large(compressor, bomb, max_size)
                used = peak_memory() - baseline
                require(
                    used <= max_size + MiB + 2 * len(bomb),
                    f"refusing a bomb of {len(bomb)} bytes with max_size {max_size} took {used / MiB:.1f} MiB of "
                    "memory: decompress piece by piece and stop, instead of decompressing all of it first",
                )

        # The kernel counts resident memory in lumps, so one measurement may be a little too high. A compressor that
        # decompresses the whole bomb is too high each time.
        for left in reversed(range(3)):
            try:
                in_child(check, "decompressing a bomb")
                break
            except pytest.fail.Exception:
                if not left:
                    raise

    # ------------------------------------------------------------------ in the core

    def test_bodies_travel_from_a_producer_to_a_consumer(self, spec: CompressorSpec) -> None:
        """Bodies pass a real client and broker. The consumer knows only the content encoding, not the level."""
        registry = registry_of("leveret_compressors", spec)
        value = " ".join(str(number) for number in range(5000))

        async def work(client: Client) -> None:
            for level in _levels(spec):
                options: dict[str, Any] = {
                    "compressor": spec.name,
                    "compression_level": level,
                    "compression_ratio": 1.0,
                }
                async with client.producer(serializer="text", **options) as producer:
                    await producer.publish(value, QUEUE)
                async with client.consumer(QUEUE, str) as consumer:
                    message = await take(consumer)
                    encoding = message.content_encoding
                    # Level 0 of some formats does not compress, and a body that stays as large is sent as it is.
                    require(
                        encoding == spec.content_encoding or (encoding is None and level == spec.levels[0]),
                        f"a body arrived with the content encoding {encoding!r} (level {level})",
                    )
                    require(message.value == value, f"a body of {len(value)} bytes arrived changed (level {level})")

        with_client(registry, work, "publishing and consuming")

    def test_bad_bodies_are_refused_by_a_consumer(self, spec: CompressorSpec) -> None:
        """A consumer raises DecodeFailed for a bad frame and BodyTooLarge for a bomb, and takes the next body."""
        registry = registry_of("leveret_compressors", spec)
        compressor = spec.factory(None)
        good, bomb = _compress(compressor, b"hello, hare"), _compress(compressor, bytes(4 * MiB))
        bad: list[tuple[bytes, type[Exception]]] = [
            (good[:-1], DecodeFailed),
            (good + b"\0", DecodeFailed),
            (b"", DecodeFailed),
            (_random(100), DecodeFailed),
            (bomb, BodyTooLarge),
        ]

        async def work(client: Client) -> None:
            options: PublishOptions = {"content_type": "text/plain", "content_encoding": spec.content_encoding}
            async with (
                client.producer(serializer="bytes") as producer,
                client.consumer(QUEUE, str, max_decompressed_size=MiB) as consumer,
            ):
                for body, wanted in bad:
                    await producer.publish(body, QUEUE, **options)
                    message = await take(consumer)
                    try:
                        found = message.value
                    except Exception as error:
                        require(
                            isinstance(error, wanted),
                            f"consuming a bad body of {len(body)} bytes raised {type(error).__name__}, "
                            f"not {wanted.__name__}",
                        )
                    else:
                        fail(f"consuming a bad body of {len(body)} bytes gave {len(found)} characters")
                    await producer.publish(good, QUEUE, **options)
                    message = await take(consumer)
                    require(message.value == "hello, hare", "a good body that came after a bad one arrived changed")

        what = "consuming bad bodies"
        in_child(lambda: with_client(registry, work, what), what)

    # ------------------------------------------------------------------ bad data

    def test_cut_off_frames_are_refused(self, spec: CompressorSpec) -> None:
        """A frame that is cut off anywhere raises, and so does an empty body."""

        def check() -> None:
            compressor = spec.factory(None)
            for body in (b"", b"hello, hare" * 3, _random(300), bytes(5000)):
                frame = _compress(compressor, body)
                for size in range(len(frame)):
                    what = f"decompressing the first {size} of {len(frame)} bytes of a frame"
                    _expect_refusal(compressor, frame[:size], 10_000, what, "a frame that is cut off must raise")

        in_child(check, "decompressing frames that are cut off")

    def test_bytes_behind_the_frame_are_refused(self, spec: CompressorSpec) -> None:
        """Bytes behind the frame raise, even if they are a second frame: a body is exactly one frame."""
        compressor = spec.factory(None)
        for body in (b"", b"hello, hare" * 3, _random(300)):
            frame = _compress(compressor, body)
            for what, behind in {"a zero": b"\0", "16 random bytes": _random(16), "a second frame": frame}.items():
                _expect_refusal(
                    compressor,
                    frame + behind,
                    10_000,
                    f"decompressing a frame with {what} behind it",
                    "a body is one complete frame and nothing else; use a decompressor that tells where a frame ends",
                )

    def test_random_bytes_are_refused(self, spec: CompressorSpec) -> None:
        """Random bytes raise ordinary exceptions. Up to 15 bytes may pass: by chance they are a valid frame."""

        def check() -> None:
            compressor = spec.factory(None)
            source = random.Random(_SEED)  # noqa: S311 - must be the same each time
            for size in (*(number % 200 for number in range(2000)), 65_536, MiB):
                data = source.randbytes(size)
                what = f"decompressing {size} random bytes"
                if size < _TELLING:
                    _attempt(compressor, data, 10_000, what)
                else:
                    _expect_refusal(compressor, data, 10_000, what, "random bytes must raise")

        in_child(check, "decompressing random bytes")

    def test_flipped_bits_are_harmless(self, spec: CompressorSpec) -> None:
        """A frame with one wrong bit raises or gives at most `max_size` bytes, within 64 MiB of memory."""
        max_size = 2000

        def check() -> None:
            compressor = spec.factory(None)
            baseline = peak_memory()
            for body in (b"hello, hare" * 30, _random(200), bytes(max_size)):
                frame = _compress(compressor, body)
                for bit in range(len(frame) * 8):
                    bad = bytearray(frame)
                    bad[bit // 8] ^= 1 << bit % 8
                    _attempt(compressor, bytes(bad), max_size, f"decompressing a frame whose bit {bit} was flipped")
                    used = peak_memory() - baseline
                    require(
                        used <= 64 * MiB,
                        f"decompressing {len(bad)} bytes with max_size {max_size}, bit {bit} flipped, took "
                        f"{used // MiB} MiB of memory: do not allocate by a size that the data claims",
                    )

        in_child(check, "decompressing frames with flipped bits")

    # ------------------------------------------------------------------ independence

    def test_two_instances_do_not_share_state(self, spec: CompressorSpec) -> None:
        """Two compressors used in turns do what each would do alone."""
        bodies = list(_bodies().values())
        lowest, highest = spec.levels
        # Compares sizes, not bytes, because a frame may hold the time.
        alone = [[len(spec.factory(level).compress(body)) for body in bodies] for level in (lowest, highest)]
        one, other = spec.factory(lowest), spec.factory(highest)
        require(one is not other, "the factory returned one object twice; each producer and consumer gets its own")
        for number, body in enumerate(bodies):
            compressed = one.compress(body), other.compress(body)
            sizes = len(compressed[0]), len(compressed[1])
            require(
                sizes == (alone[0][number], alone[1][number]),
                f"two compressors of the levels {lowest} and {highest}, used in turns, made {sizes[0]} and {sizes[1]} "
                f"bytes of {len(body)}; each alone made {alone[0][number]} and {alone[1][number]}: they share state",
            )
            found = one.decompress(compressed[1], len(body)), other.decompress(compressed[0], len(body))
            require(found == (body, body), "two compressors used in turns did not give the body back: they share state")

    def test_two_threads_do_not_disturb_each_other(self, spec: CompressorSpec) -> None:
        """Two threads with a compressor each get what they would get alone."""
        bodies = list(_bodies().values())

        def work(mine: list[bytes]) -> Callable[[], None]:
            def run() -> None:
                compressor = spec.factory(None)
                for _ in range(20):
                    for body in mine:
                        found = compressor.decompress(compressor.compress(body), len(body))
                        require(
                            found == body,
                            "with two threads that have a compressor each, a body came back changed: they share state",
                        )

            return run

        in_threads(work(bodies), work(bodies[::-1]))

    def test_works_as_before_after_an_error(self, spec: CompressorSpec) -> None:
        """After data that was refused for any reason, the compressor works as before."""

        def check() -> None:
            compressor = spec.factory(None)
            for body in (b"", b"hello, hare" * 3, _random(300)):
                frame = _compress(compressor, body)
                for bad in (frame[:-1], frame + b"\0", _random(50), b"", frame[: len(frame) // 2]):
                    _attempt(compressor, bad, 10_000, "decompressing bad data")
                    if body:
                        _attempt(compressor, frame, len(body) - 1, "decompressing too large a body")
                    found = _decompress(compressor, frame, len(body), "a good frame after a bad one")
                    require(found == body, "after data that was refused, a good frame came back changed")
                    again = _decompress(compressor, _compress(compressor, body), len(body), "a body after a bad frame")
                    require(again == body, "after data that was refused, a body that was compressed came back changed")

        in_child(check, "decompressing good and bad frames in turns")


# ---------------------------------------------------------------------- using compressors


def _levels(spec: CompressorSpec) -> Iterator[int | None]:
    lowest, highest = spec.levels
    yield from dict.fromkeys((None, lowest, highest))


def _compress(compressor: Compressor, body: bytes) -> bytes:
    try:
        return compressor.compress(body)
    except BaseException as error:
        ordinary(error, f"compressing {len(body)} bytes")
        fail(f"compressing {len(body)} bytes raised {type(error).__name__}: {error}")


def _decompress(compressor: Compressor, data: bytes, max_size: int, what: str) -> bytes:
    try:
        return compressor.decompress(data, max_size)
    except BaseException as error:
        ordinary(error, f"decompressing {what}")
        fail(f"decompressing {what} raised {type(error).__name__}: {error}")


def _attempt(compressor: Compressor, data: bytes, max_size: int, what: str) -> bytes | None:
    """Decompresses data that may raise an ordinary exception. Returns the body, or None after an exception."""
    try:
        found = compressor.decompress(data, max_size)
    except BaseException as error:
        ordinary(error, what)
        return None
    require(len(found) <= max_size, f"{what} returned {len(found)} bytes with max_size {max_size}")
    return found


def _expect_refusal(compressor: Compressor, data: bytes, max_size: int, what: str, why: str) -> None:
    found = _attempt(compressor, data, max_size, what)
    if found is not None:
        fail(f"{what} returned {len(found)} bytes: {why}")


def _expect_too_large(compressor: Compressor, data: bytes, max_size: int) -> None:
    try:
        found = compressor.decompress(data, max_size)
    except BodyTooLarge:
        return
    except BaseException as error:
        ordinary(error, "decompressing a bomb")
        fail(f"decompressing a bomb raised {type(error).__name__}; the interface wants leveret.errors.BodyTooLarge")
    fail(f"decompressing a bomb with max_size {max_size} returned {len(found)} bytes")
