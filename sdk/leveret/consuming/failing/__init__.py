"""What becomes of messages that were not handled: retried, held here, parked, refused, dead-lettered or dropped.

This room may know the publishing room, because copies are published, and how `consuming` settles a message; it does not
know the consumer. A worker hands a message and its error to `actions`. That asks the `error_policy` for an
action and `means` for what is possible with the queue, publishes a copy by `retry_queues` or holds the message in
`held_messages`, and `departures` logs and counts what leaves for good.
"""

from __future__ import annotations
