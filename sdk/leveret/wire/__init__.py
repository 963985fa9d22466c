"""The wire format: buffers, frames, field tables, properties and `Message`, compiled.

It knows only `settings`, `message` and `errors`, and touches no event loop, socket or clock.
A message goes out as frames that `content` or a publish template appends to a `SendBuffer`; it comes in through
`FrameReader`, which turns the bytes of a read into runs of `Message` objects.
"""

from __future__ import annotations
