"""The client's only sockets: dialing, streams of frames, the event loop, and waiting.

`dialing` connects to the first address that answers, `frame_transport` joins a frame reader, a send buffer and an
asyncio transport, and `loop` runs programs. This room may use asyncio and sockets, and knows `wire`, settings and
errors, but no AMQP method. What a read brings goes up as one list of events to a `FrameReceiver`; what is appended to
the send buffer in one turn of the loop leaves in one write.
"""

from __future__ import annotations
