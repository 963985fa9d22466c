"""Counts what producers, consumers and connections do, and hands the numbers to metrics sinks when they ask.

This package may use `leveret.plugins` and the layers below; it calls nothing in the packages that it reads. A message
only adds to plain integers in its producer, consumer or connection: a meter reads them, the client's `Monitor` adds up
all meters under the names of the catalogue, and sinks take a snapshot of it.
"""

from __future__ import annotations
