"""Topologies: exchanges, queues and bindings, described first and declared together.

`Topology` collects them and `declare_on` declares them on a channel, exchanges before queues before bindings. This room
knows channels and errors. No message passes through it.
"""

from __future__ import annotations
