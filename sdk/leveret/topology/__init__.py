"""Topologies: exchanges, queues and bindings, described first, declared together, and declared again.

`Topology` collects `entities`; `Declarer` declares and deletes them for a client; `Declared` remembers what there is;
`Restorer` declares it again on a new connection. This room knows channels, links and errors. No message passes through
it.
"""

from __future__ import annotations
