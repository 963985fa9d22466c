"""Values to bytes and back: serializer and compressor, chosen once and then called directly."""

from __future__ import annotations
