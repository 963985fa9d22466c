"""Values become confirmed messages: the producer, its options, its window and its batches."""

from __future__ import annotations
