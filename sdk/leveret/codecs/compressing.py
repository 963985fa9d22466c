"""Compresses the bodies of one producer where that saves enough, and counts what it saves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from leveret.errors import BodyTooLarge, EncodeFailed

if TYPE_CHECKING:
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ProducerSettings

__all__ = ["BodyCompressor"]

logger = logging.getLogger("leveret.codecs")

#: Consumers refuse bodies that grow more than this by default (`max_decompression_ratio`), so a producer sends such a
#: body uncompressed.
_MAX_RATIO: Final = 200


class BodyCompressor:
    """Compresses the bodies of one producer.

    Args:
        registry: The registry that has the compressor.
        name: The compressor's name.
        settings: Its level, and when a body is compressed.

    Attributes:
        encoding: The content encoding of compressed bodies.
        compressed: How many bodies it has compressed.
        incompressible: How many bodies over the threshold it has left as they are.
        original_bytes: The size of the compressed bodies, before.
        compressed_bytes: Their size afterwards.

    Raises:
        ConfigurationError: The compressor or level does not exist.
        PluginError: The plugin failed to make the compressor.
    """

    def __init__(self, registry: PluginRegistry, name: str, settings: ProducerSettings) -> None:
        provided = registry.provided("compressor", name)
        self.encoding = provided.keys[0]
        self.compressed = 0
        self.incompressible = 0
        self.original_bytes = 0
        self.compressed_bytes = 0
        self._compress = registry.make_compressor(provided, settings.compression_level).compress
        self._name = name
        self._who = f"the {name} compressor ({provided.origin})"
        self._threshold = settings.compression_threshold
        self._ratio = settings.compression_ratio
        self._max_size = settings.max_body_size
        self._max_uncompressed = settings.max_uncompressed_size

    def compress(self, body: bytes) -> bytes | None:
        """Compresses a body when it is large enough and compression makes it smaller.

        Returns:
            The compressed body, or None when the body should be sent as it is.

        Raises:
            EncodeFailed: The compressor failed.
            BodyTooLarge: Consumers would refuse the body by default, compressed or not.
        """
        size = len(body)
        if size <= self._threshold:
            return None
        if size > self._max_uncompressed:
            raise BodyTooLarge(
                f"a body of {size} bytes before compression is larger than max_uncompressed_size of "
                f"{self._max_uncompressed} (consumers have max_decompressed_size)"
            )
        try:
            compressed = self._compress(body)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise EncodeFailed(f"{self._who} failed on {size} bytes: {type(error).__name__}") from error
        if type(compressed) is not bytes:
            raise EncodeFailed(f"{self._who} returned {type(compressed).__name__}, not bytes")
        small = len(compressed)
        if size / _MAX_RATIO > small and size > self._max_size:
            raise BodyTooLarge(
                f"a body of {size} bytes is larger than max_body_size of {self._max_size}, and cannot be sent "
                f"compressed to {small}: consumers refuse what grows more than {_MAX_RATIO} times "
                "(max_decompression_ratio)"
            )
        pays = size / _MAX_RATIO <= small < self._ratio * size
        if logger.isEnabledFor(logging.DEBUG):
            what = "compressed a body" if pays else "a body is sent uncompressed"
            logger.debug("%s, %s: %d -> %d bytes (%.3f)", self._name, what, size, small, small / size)
        if not pays:
            self.incompressible += 1
            return None
        self.compressed += 1
        self.original_bytes += size
        self.compressed_bytes += small
        return compressed

    def counters(self) -> dict[str, int]:
        """Returns how many bodies were compressed, and their bytes before and afterwards. Any thread may call it."""
        return {
            "compressed": self.compressed,
            "incompressible": self.incompressible,
            "compression_input": self.original_bytes,
            "compression_output": self.compressed_bytes,
        }
