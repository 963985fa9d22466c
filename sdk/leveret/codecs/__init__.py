"""Encodes values into bodies and decodes bodies into values: serializers and compressors, looked up once.

This package may use `leveret.plugins` and the layers below, and knows nothing of connections or event loops. A
producer's value goes through `BodyEncoder` (serializer, then compressor), and its properties tell the `Form` of the
body; a consumer's body goes through `BodyDecoder`, which chooses decompressor and serializer by these properties.
"""

from __future__ import annotations
