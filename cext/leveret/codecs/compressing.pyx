"""Compresses the bodies of one producer where that saves enough, and counts what it saves."""
cimport cython
from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE

import logging

from leveret.errors import BodyTooLarge, EncodeFailed

cdef object logger = logging.getLogger("leveret.codecs")
cdef int DEBUG = logging.DEBUG

cdef enum:
    # Consumers refuse bodies that grow more than this by default (`max_decompression_ratio`), so a producer sends such
    # a body uncompressed.
    MAX_RATIO = 200


@cython.final
cdef class BodyCompressor:
    """Compresses the bodies of one producer.

    Args:
        compress: The compressor's own function.
        name: The compressor's name.
        origin: The distribution that brought it, for errors.
        encoding: The content encoding of compressed bodies.
        threshold: Bodies of up to this many bytes are not compressed.
        ratio: A compressed body is kept when it is smaller than this share of the original.
        max_size: The largest body that is sent, in bytes.
        max_uncompressed: The largest body before it is compressed, in bytes.

    Attributes:
        encoding: The content encoding of compressed bodies.
        compressed: How many bodies it has compressed.
        incompressible: How many bodies over the threshold it has left as they are.
        original_bytes: The size of the compressed bodies, before.
        compressed_bytes: Their size afterwards.
    """

    def __cinit__(self, compress not None, *, str name not None, str origin not None, str encoding not None,
                  Py_ssize_t threshold, double ratio, Py_ssize_t max_size, Py_ssize_t max_uncompressed):
        self.function = compress
        self.name = name
        self.who = f"the {name} compressor ({origin})"
        self.encoding = encoding
        self.threshold = threshold
        self.ratio = ratio
        self.max_size = max_size
        self.max_uncompressed = max_uncompressed

    cpdef bytes compress(self, bytes body):
        """Compresses a body when it is large enough and compression makes it smaller.

        Returns:
            The compressed body, or None when the body should be sent as it is.

        Raises:
            EncodeFailed: The compressor failed.
            BodyTooLarge: Consumers would refuse the body by default, compressed or not.
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
        cdef Py_ssize_t small
        cdef bint pays
        if size <= self.threshold:
            return None
        if size > self.max_uncompressed:
            raise BodyTooLarge(
                f"a body of {size} bytes before compression is larger than max_uncompressed_size of "
                f"{self.max_uncompressed} (consumers have max_decompressed_size)"
            )
        try:
            compressed = self.function(body)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise EncodeFailed(f"{self.who} failed on {size} bytes: {type(error).__name__}") from error
        if not PyBytes_CheckExact(compressed):
            raise EncodeFailed(f"{self.who} returned {type(compressed).__name__}, not bytes")
        small = PyBytes_GET_SIZE(compressed)
        if size > self.max_size and size > small * MAX_RATIO:
            raise BodyTooLarge(
                f"a body of {size} bytes is larger than max_body_size of {self.max_size}, and cannot be sent "
                f"compressed to {small}: consumers refuse what grows more than {MAX_RATIO} times "
                "(max_decompression_ratio)"
            )
        pays = size <= small * MAX_RATIO and small < self.ratio * size
        if logger.isEnabledFor(DEBUG):
            what = "compressed a body" if pays else "a body is sent uncompressed"
            logger.debug("%s, %s: %d -> %d bytes (%.3f)", self.name, what, size, small, small / <double>size)
        if not pays:
            self.incompressible += 1
            return None
        self.compressed += 1
        self.original_bytes += size
        self.compressed_bytes += small
        return compressed

    def counters(self):
        """Returns how many bodies were compressed, and their bytes before and afterwards. Any thread may call it."""
        return {
            "compressed": self.compressed,
            "incompressible": self.incompressible,
            "compression_input": self.original_bytes,
            "compression_output": self.compressed_bytes,
        }
