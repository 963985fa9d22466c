"""Values become confirmed messages: the producer, its options and templates, batches, confirms and transactions.

It knows of connections and channels (`leveret.connection`) and of what lies below them; consumers, clients and apps use
it, and it knows none of them. A message goes from `Producer.publish` (compiled, `publisher`) through the serializer,
its frames (`packing`, `template`) and the send buffer to the broker, waits in the confirm window (`confirms`), and ends
with an outcome (`outcomes`); `writing`, `room` and `deadlines` serve the messages that have to wait on that way.
"""

from __future__ import annotations
