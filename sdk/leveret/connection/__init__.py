"""A connection to a broker, its channels, and the pool that lends them."""

from __future__ import annotations
