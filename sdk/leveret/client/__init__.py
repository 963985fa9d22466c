"""The client: what an application holds first, and gets everything else from.

`connect` makes a `Client` with two links (see `leveret.connection`), one to publish and one to consume, and makes
producers, consumers and batches on them. This room may know every room below it and has no part in a message's way:
producers and consumers talk to their channels without it.
"""

from __future__ import annotations
