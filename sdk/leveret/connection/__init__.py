"""Connections and channels on an event loop: opened, watched, recovered, and ended in one place.

`link` keeps a client connected (`connection`, opened again when it was lost), a connection has `channel`s, and
`channel_pool` lends channels for single calls. This room may know `transport`, `protocol`, plugins and monitoring, but
no producer and no consumer: it knows those as `PublisherSink` and `ConsumerSink`. A read's frames come from the
transport as runs, go to the channel of their number, and from there to its sink; what is sent is appended to the
transport's buffer.
"""

from __future__ import annotations
