"""Consumers: they handle deliveries, one by one or in batches, acknowledge them, and retry or park those that fail.

This room may know the publishing room, because retry queues publish copies, and every room below it; no room above. A
run of deliveries comes from the channel into the compiled `delivery_buffer`, a `worker` takes each message, decodes it
by the `channel_deliveries` that it belongs to and drives the handler, and when that returns the message is marked in
the window of `acks`, whose finished prefix leaves as one basic.ack. `consumer` is what a user holds, over
`subscription`, `workers`, `settling` and `prefetch_tuner`; `states` has the states of all of them. What becomes of
messages that were not handled has a room of its own, `failing`.
"""

from __future__ import annotations
